"""Bad input gets an error that names the argument, says what it was and what is allowed, before anything compiles."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def equation():
    return pj.MasterEquation(interaction=pj.Attention(4, 2, key=KEY), reaction=pj.FeedForward(4, 6, key=KEY))


@pytest.fixture(scope="module")
def layered(equation):
    return pj.DepthVarying.from_layers([equation, equation, equation], 3.0)


@pytest.fixture(scope="module")
def model():
    config = pj.TransformerConfig(vocab=7, dim=4, heads=2, layers=2, ffn=6, max_length=5)
    return pj.Transformer(config, rngs=nnx.Rngs(0))


U0 = jnp.ones((5, 4))
OK = {"t1": 1.0, "steps": 2}


@pytest.mark.parametrize(
    "u0, words",
    [
        (jnp.ones(4), ["(n, d)", "vmap"]),
        (jnp.ones((2, 5, 4)), ["(n, d)", "vmap"]),
        (jnp.ones((5, 3)), ["dim=4", "3 features"]),
        (jnp.ones((0, 4)), ["empty"]),
        (U0.at[1, 2].set(jnp.nan), ["NaN", "1 "]),
        (U0.at[0].set(jnp.inf), ["infinite", "4 "]),
    ],
)
def test_fields(equation, u0, words):
    with pytest.raises(ValueError) as error:
        pj.simulate(equation, u0, **OK)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("dtype", ["int32", "bfloat16", "float16", "complex128"])
def test_field_types(equation, dtype):
    with pytest.raises(TypeError, match=dtype):
        pj.simulate(equation, U0.astype(dtype), **OK)


def test_equation_type():
    with pytest.raises(TypeError, match="equation"):
        pj.simulate(lambda t, u, args: u, U0, **OK)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("steps", [0, -3, True])
def test_step_counts(equation, steps):
    with pytest.raises(ValueError, match="at least 1"):
        pj.simulate(equation, U0, t1=1.0, steps=steps)


@pytest.mark.parametrize("steps", [2.5, 4.0, "4"])
def test_step_types(equation, steps):
    with pytest.raises(TypeError, match="integer"):
        pj.simulate(equation, U0, t1=1.0, steps=steps)


def test_steps_accepts_numpy_integers(equation):
    assert int(pj.simulate(equation, U0, t1=1.0, steps=np.int64(2), solver="euler").stats.steps) == 2


@pytest.mark.parametrize("t1", [0.0, -1.0, float("nan"), float("inf")])
def test_depths(equation, t1):
    with pytest.raises(ValueError, match="t1"):
        pj.simulate(equation, U0, t1=t1, steps=2)


@pytest.mark.parametrize(
    "how, word",
    [
        ({}, "neither"),
        ({"steps": 2, "rtol": 1e-3, "atol": 1e-3}, "one or the other"),
        ({"steps": 2, "rtol": 1e-3}, "one or the other"),
        ({"rtol": 1e-3}, "atol"),
        ({"atol": 1e-3}, "rtol"),
        ({"rtol": -1.0, "atol": 1e-3}, "rtol"),
        ({"rtol": float("nan"), "atol": 1e-3}, "rtol"),
    ],
)
def test_steps_or_tolerances(equation, how, word):
    with pytest.raises(ValueError, match=word):
        pj.simulate(equation, U0, t1=1.0, **how)


def test_solvers(equation):
    with pytest.raises(ValueError, match="Did you mean 'tsit5'"):
        pj.simulate(equation, U0, solver="tsit4", **OK)
    with pytest.raises(TypeError, match=r"RK4\(\)"):
        pj.simulate(equation, U0, solver=pj.solvers.RK4, **OK)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"2 sub-solvers.*3 parts"):
        three = pj.MasterEquation(equation.interaction, equation.reaction, stabilization=pj.LinearDamping(1.0))
        pj.simulate(three, U0, solver=pj.solvers.LieTrotter((diffrax.Euler(), diffrax.Euler())), **OK)
    with pytest.raises(ValueError, match="exactly once"):
        pj.simulate(equation, U0, solver="strang", split=(("interaction",), ("interaction",)), **OK)
    with pytest.raises(ValueError, match="split"):
        pj.simulate(equation, U0, solver="euler", split=(("interaction",), ("reaction",)), **OK)


@pytest.mark.parametrize("solver", ["rk4", "euler", "lietrotter", "strang"])
def test_schemes_without_error_estimate_refuse_tolerances(equation, solver):
    with pytest.raises(ValueError, match="no error estimate"):
        pj.simulate(equation, U0, t1=1.0, rtol=1e-3, atol=1e-3, solver=solver)


def test_rk4_refuses_a_pid_controller_in_diffrax_too(equation):
    with pytest.raises(RuntimeError, match="adaptive"):
        diffrax.diffeqsolve(
            diffrax.ODETerm(equation),
            pj.solvers.RK4(),
            0.0,
            1.0,
            0.1,
            U0,
            stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-3),
        )


@pytest.mark.parametrize("mask", [np.ones(4, bool), np.ones((5, 1), bool), np.ones(5, int), np.zeros(5, bool)])
def test_masks(equation, mask):
    with pytest.raises(ValueError, match="mask"):
        pj.simulate(equation, U0, mask=jnp.asarray(mask), **OK)


@pytest.mark.parametrize(
    "save, word",
    [
        ("ends", "unknown"),
        ("layers", "layers"),
        ([0.5, 0.2], "increasing"),
        ([0.5, 1.5], "lie in"),
        ([-0.1, 0.5], "lie in"),
        ([], "non-empty"),
        ([float("nan")], "lie in"),
    ],
)
def test_what_to_save(equation, save, word):
    with pytest.raises(ValueError, match=word):
        pj.simulate(equation, U0, save=save, **OK)


def test_layers(layered):
    with pytest.raises(ValueError, match=r"3 layers.*such as 3 or 6"):
        pj.simulate(layered, U0, t1=3.0, steps=4)
    with pytest.raises(ValueError, match="not a layer boundary"):
        pj.simulate(layered, U0, t1=2.5, steps=3)
    with pytest.raises(ValueError, match="not a layer boundary"):
        pj.simulate(layered, U0, t1=4.0, steps=4)
    with pytest.raises(ValueError, match="save='steps'"):
        pj.simulate(layered, U0, t1=3.0, rtol=1e-3, atol=1e-3, save="steps")


def test_adjoints(equation, layered):
    with pytest.raises(ValueError, match="adjoint='backwards'"):
        pj.simulate(equation, U0, adjoint="backwards", **OK)
    with pytest.raises(ValueError, match="splitting"):
        pj.simulate(equation, U0, adjoint="backsolve", solver="strang", **OK)
    with pytest.raises(ValueError, match="layers"):
        pj.simulate(layered, U0, t1=3.0, steps=3, adjoint="backsolve")
    damped = pj.MasterEquation(stabilization=pj.LinearDamping(10.0))
    with pytest.raises(ValueError, match="10 e-foldings"):
        pj.simulate(damped, U0, adjoint="backsolve", **OK)


def test_limits(equation):
    with pytest.raises(ValueError, match="blowup"):
        pj.simulate(equation, U0, blowup=0.0, **OK)


def test_one_token(equation):
    # One token has an attention of its own value only, which means something; diffusion has nobody to exchange with.
    assert pj.simulate(equation, U0[:1], solver="euler", **OK).us.shape == (1, 1, 4)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        pj.Diffusion(pj.Grid(1), 1.0)


@pytest.mark.parametrize(
    "build, word",
    [
        (lambda: pj.Grid(0), "n"),
        (lambda: pj.Grid(4, boundary="robin"), "robin"),
        (lambda: pj.Grid(4, length=-1.0), "length"),
        (lambda: pj.Attention(4, 3, key=KEY), "does not divide"),
        (lambda: pj.Attention(4, 2, kernel="cosine", key=KEY), "cosine"),
        (lambda: pj.Attention(4, 2, weights=jnp.asarray([1.0, -1.0]), key=KEY), "positive"),
        (lambda: pj.Attention(6, 2, rotary=1e4, key=KEY), "even"),
        (lambda: pj.FeedForward(4, 6, activation="relu6", key=KEY), "relu6"),
        (lambda: pj.FeedForward(4, 0, key=KEY), "hidden=0"),
        (lambda: pj.Diffusion(pj.Grid(4), -1.0), "backward heat"),
        (lambda: pj.Diffusion(pj.Grid(4), jnp.asarray([1.0, jnp.nan])), "NaN"),
        (lambda: pj.Diffusion(pj.Grid(4), jnp.asarray([[1.0, 3.0], [3.0, 1.0]])), "positive semidefinite"),
        (lambda: pj.Diffusion(pj.Grid(4), jnp.ones((2, 3))), "(2, 3)"),
        (lambda: pj.SpatialNorm(-1.0), "gamma"),
        (lambda: pj.SpatialNorm(1.0, eps=0.0), "eps"),
        (lambda: pj.LinearDamping(float("inf")), "gamma"),
        (lambda: pj.MasterEquation(), "no term"),
        (lambda: pj.DepthVarying.from_layers([], 1.0), "no layers"),
        (lambda: pj.TransformerConfig(vocab=5, dim=10, heads=3), "heads"),
        (lambda: pj.TransformerConfig(vocab=5, norm="batch"), "norm"),
        (lambda: pj.TransformerConfig(vocab=5, activation="relu6"), "relu6"),
        (lambda: pj.TransformerConfig(vocab=5, norm="post", block="parallel"), "parallel"),
    ],
)
def test_what_equations_are_built_from(build, word):
    with pytest.raises(ValueError) as error:
        build()
    assert word in str(error.value)


def test_something_that_is_no_term():
    with pytest.raises(TypeError, match="interaction"):
        pj.MasterEquation(interaction=pj.LayerNorm(4))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "term",
    [
        pj.Diffusion(pj.Grid(6), 1.0),
        pj.SpatialNorm(grid=pj.Grid(6)),
        pj.Attention(4, 2, grid=pj.Grid(6, boundary="dirichlet"), key=KEY),
        pj.LinearDamping(jnp.ones(6)),
    ],
    ids=lambda t: type(t).__name__,
)
def test_grids_that_do_not_fit_the_field(term):
    place = {"Diffusion": "diffusion", "Attention": "interaction"}.get(type(term).__name__, "stabilization")
    with pytest.raises(ValueError, match=r"6 tokens.*has 5"):
        pj.simulate(pj.MasterEquation(**{place: term}), U0, **OK)


@pytest.mark.parametrize(
    "tokens, word",
    [
        (jnp.asarray([1, 7]), "7"),
        (jnp.asarray([-1, 2]), "-1"),
        (jnp.zeros(0, int), "empty"),
        (jnp.zeros((2, 3), int), "vmap"),
        (jnp.zeros(6, int), "max_length=5"),
    ],
)
def test_tokens(model, tokens, word):
    with pytest.raises(ValueError, match=word):
        model.embed(tokens)


def test_token_types(model):
    with pytest.raises(TypeError, match="integer"):
        model.embed(jnp.ones(3))


def test_diverging_is_a_result_unless_asked_otherwise():
    growing = pj.MasterEquation(stabilization=pj.LinearDamping(30.0))
    options = {"t1": 100.0, "steps": 100, "solver": "euler", "blowup": 1e6}
    result = pj.simulate(growing, U0, **options)
    assert bool(result.diverged) and not bool(result.complete)
    # |1 − 30|^k > 1e6 first at k = 5.
    assert float(result.blowup_time) == pytest.approx(5.0)
    with pytest.raises(pj.DivergenceError, match="t = 5"):
        pj.simulate(growing, U0, throw=True, **options)
