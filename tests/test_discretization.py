"""`Discretization`: checked when made, immutable, a sweep of steps compiles once, any function is a field."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax.solvers import Euler, LieTrotter

N, D = 5, 4
KEY = jax.random.key(0)
U = jnp.asarray(np.random.default_rng(0).standard_normal((N, D)))


def equation(**more):
    attention = pj.Attention(D, 2, key=KEY)
    return pj.MasterEquation(attention, pj.FeedForward(D, 6, key=KEY), **more)


def decay(t, u, args):
    return -u


class Untouchable(pj.terms.AbstractTerm):
    """A term that must not be evaluated."""

    def __call__(self, t, u, args):
        raise AssertionError("the field was evaluated before the input was checked")

    def damping(self):
        return jnp.zeros(())

    def check(self, n, d):
        if d != D:
            raise ValueError(f"Untouchable was built for width {D}, but the field has {d} features.")


FIELD = pj.MasterEquation(one=Untouchable(), two=Untouchable())


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: pj.Discretization(FIELD, t1=1.0), ValueError, "Discretization: give either steps"),
        (lambda: pj.Discretization(FIELD, t1=1.0, steps=4, rtol=1e-3), ValueError, "fixes the step"),
        (lambda: pj.Discretization(FIELD, t1=1.0, rtol=1e-3), ValueError, "atol is missing"),
        (
            lambda: pj.Discretization(FIELD, t1=1.0, rtol=-1.0, atol=0.1),
            ValueError,
            "Discretization: rtol=-1.0 must be",
        ),
        (lambda: pj.Discretization(FIELD, t1=1.0, rtol=0.0, atol=0.0), ValueError, "are both 0"),
        (lambda: pj.Discretization(FIELD, t1=1.0, steps=0), ValueError, "steps=0 must be an integer of at least 1"),
        (lambda: pj.Discretization(FIELD, t1=1.0, steps=2.5), TypeError, "pass steps=round"),
        (lambda: pj.Discretization(FIELD, t1=1.0, steps=jnp.ones(2, int)), TypeError, "must be one integer"),
        (lambda: pj.Discretization(FIELD, t1=0.0, steps=1), ValueError, "t1 must be positive"),
        (lambda: pj.Discretization(FIELD, t0=2.0, t1=1.0, steps=1), ValueError, "greater than t0=2.0"),
        (lambda: pj.Discretization(FIELD, t1=np.nan, steps=1), ValueError, "t1=nan must be a real number"),
        (
            lambda: pj.Discretization(FIELD, "eler", t1=1.0, steps=1),
            ValueError,
            "Discretization: unknown solver 'eler'. Did you mean 'euler'",
        ),
        (
            lambda: pj.Discretization(FIELD, Euler, t1=1.0, steps=1),
            TypeError,
            "Discretization: solver=the class Euler must be",
        ),
        (lambda: pj.Discretization(FIELD, "rk4", t1=1.0, rtol=1e-3, atol=1e-3), ValueError, "no error estimate"),
        (lambda: pj.Discretization(FIELD, "rk4", t1=1.0, steps=1, split=(("one",), ("two",))), ValueError, "at once"),
        (lambda: pj.Discretization(FIELD, "strang", t1=1.0, steps=1, split=(("one",),)), ValueError, "exactly once"),
        (lambda: pj.Discretization(FIELD, LieTrotter((Euler(),) * 3), t1=1.0, steps=1), ValueError, "3 sub-solvers"),
        (lambda: pj.Discretization(FIELD, t1=1.0, steps=1, max_steps=9), ValueError, "max_steps=9 limits adaptive"),
        (lambda: pj.Discretization(FIELD, t1=1.0, steps=1, adjoint="back"), ValueError, "did you mean 'backsolve'"),
        (lambda: pj.Discretization(FIELD, t1=1.0, steps=1, adjoint=3), TypeError, "adjoint=3 must be one of"),
        (lambda: pj.Discretization(3, t1=1.0, steps=1), TypeError, "field=3 must be a MasterEquation"),
        (lambda: pj.Discretization(Untouchable, t1=1.0, steps=1), TypeError, "field=the class Untouchable must be"),
        (lambda: pj.Discretization(decay, "lietrotter", t1=1.0, steps=1), ValueError, "no terms to split"),
        (lambda: pj.Discretization(decay, "etdrk4", t1=1.0, steps=1), ValueError, "no linear part"),
        (lambda: pj.Discretization(FIELD, t1=1.0, steps=1).replace(h=2), TypeError, "'h'"),
        (lambda: pj.Discretization(FIELD, t1=1.0, rtol=1e-3, atol=1e-3).refine(2), ValueError, "steps are adaptive"),
        (lambda: pj.Discretization(FIELD, t1=1.0, steps=1).refine(0), ValueError, "k=0 must be"),
        (
            lambda: pj.simulate(FIELD, U),
            TypeError,
            "simulate: d=an object of type MasterEquation must be a Discretization",
        ),
        (lambda: pj.simulate(pj.Discretization(FIELD, t1=1.0, steps=1), U[:, :2]), ValueError, "simulate: Untouchable"),
        (lambda: pj.MasterEquation(Untouchable(), Untouchable()), ValueError, "two terms are called 'untouchable'"),
        (lambda: pj.MasterEquation(None), ValueError, "no term given"),
        (lambda: FIELD["three"], ValueError, "there is no term 'three'"),
    ],
)
def test_every_check_happens_when_it_is_made(make, kind, text):
    with pytest.raises(kind) as error:
        make()
    assert text in str(error.value)


def test_a_transformer_is_no_field():
    model = pj.Transformer(pj.Architecture(vocab=5, dim=D, heads=2, layers=2, ffn=6), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"whole model; pdejax\.lift"):
        pj.Discretization(model, t1=1.0, steps=1)


def test_layers_take_whole_steps():
    layers = pj.DepthVarying.from_layers([equation()] * 3, 3.0)
    with pytest.raises(ValueError, match="cannot be shared equally by the 3 layers"):
        pj.Discretization(layers, "euler", t1=3.0, steps=4)
    with pytest.raises(ValueError, match="not a layer boundary"):
        pj.Discretization(layers, "euler", t1=2.5, steps=5)
    d = pj.Discretization(layers, "euler", t0=1.0, t1=3.0, steps=4)
    assert d.layers == (1, 2) and d.step == 0.5


def test_replace_and_refine():
    d = pj.Discretization(equation(), "strang", t1=2.0, steps=4, split=(("reaction",), ("interaction",)))
    fine = d.refine(3)
    assert (fine.steps, fine.step, fine.split, d.steps) == (12, 2.0 / 12, d.split, 4)
    assert d.replace(solver="rk4").split is None
    adaptive = d.replace(solver="dopri5", rtol=1e-6, atol=1e-7)
    assert adaptive.adaptive and adaptive.steps is None and adaptive.step is None
    assert (adaptive.rtol, adaptive.atol) == (1e-6, 1e-7)
    back = adaptive.replace(steps=8)
    assert back.steps == 8 and back.rtol is None
    # A splitting known by its name gets as many sub-solvers as the new field has terms.
    more = d.replace(solver="lietrotter", field=equation(damping=pj.LinearDamping(0.1)))
    assert len(more.solver.solvers) == 3


def test_repr_says_what_it_is():
    model = pj.Transformer(pj.Architecture(vocab=5, dim=D, heads=2, layers=2, ffn=6), rngs=nnx.Rngs(0))
    expected = "2 layers: attention + feed-forward | Lie–Trotter (Euler, Euler) | 2 steps over t in [0, 2]"
    assert repr(pj.lift(model)) == expected
    d = pj.Discretization(decay, t1=2.5, rtol=1e-6, atol=1e-8)
    assert repr(d) == "decay | Tsit5 | adaptive steps (rtol 1e-06, atol 1e-08) over t in [0, 2.5]"
    post = pj.Transformer(pj.Architecture(vocab=5, dim=D, heads=2, layers=2, ffn=6, norm="post"), rngs=nnx.Rngs(0))
    assert "Lie–Trotter (Euler then LayerNorm, Euler then LayerNorm)" in repr(pj.lift(post))
    assert "chosen from the stiffness" in repr(pj.Discretization(equation(), "auto", t1=1.0, steps=2))


def test_any_function_is_a_field():
    """u' = −u and a rotation of one number more, against their exponentials; a mask reaches the function."""
    d = pj.Discretization(decay, "rk4", t1=1.0, steps=50)
    np.testing.assert_allclose(pj.simulate(d, U).us[-1], np.exp(-1.0) * U, rtol=1e-7)
    turn = pj.Discretization(lambda t, u, args: jnp.stack([u[1], -u[0]]), "rk4", t1=1.0, steps=50)
    np.testing.assert_allclose(pj.simulate(turn, jnp.asarray([1.0, 0.0])).us[-1], [np.cos(1), -np.sin(1)], rtol=1e-7)
    held = pj.Discretization(lambda t, u, args: -u * args.mask[:, None].astype(u.dtype), "rk4", t1=1.0, steps=50)
    mask = jnp.arange(N) < 3
    np.testing.assert_allclose(pj.simulate(held, U, mask=mask).us[-1, 3:], U[3:], rtol=1e-14)
    with pytest.raises(ValueError, match="must return ∂u/∂t of the same shape"):
        pj.simulate(pj.Discretization(lambda t, u, args: u[:1], "rk4", t1=1.0, steps=2), U)


def test_terms_beyond_the_papers_four():
    """Names by role, by keyword, in the papers' order first; contributions sum to the field."""
    e = pj.MasterEquation(pj.LinearDamping(0.5), pj.Attention(D, 2, key=KEY), extra=pj.LinearDamping(0.25))
    assert e.names() == ("interaction", "stabilization", "extra")
    assert e.reaction is None and e["extra"] is e.get("extra")
    parts = e.contributions(0.0, U)
    np.testing.assert_allclose(sum(parts.values()), e(0.0, U), rtol=1e-14)
    assert e.replace(extra=None).names() == ("interaction", "stabilization")
    assert e.describe() == "attention + linear damping + linear damping"
    assert float(e.damping()) == 0.75


def count_traces(field):
    calls = []

    def counted(t, u, args):
        calls.append(1)
        return field(t, u, args)

    return counted, calls


def test_a_sweep_of_refinements_compiles_once():
    counted, calls = count_traces(decay)
    d = pj.Discretization(counted, "heun", t1=1.0, steps=2)
    ends = [pj.simulate(d.refine(k), U).us[-1] for k in (1, 2, 4)]
    traced = len(calls)
    errors = [float(jnp.max(jnp.abs(end - np.exp(-1) * U))) for end in ends]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.4) and errors[1] / errors[2] == pytest.approx(4, rel=0.2)
    pj.simulate(d.refine(8), U)
    assert len(calls) == traced


def test_traced_steps():
    """Inside the user's own jit and vmap one program serves every number of steps; the values are those of plain integers."""
    d = pj.Discretization(equation(), "rk4", t1=1.0, steps=1)

    @jax.jit
    def sweep(counts):
        return jax.vmap(lambda k: pj.simulate(d.refine(k), U, save=[0.5, 1.0]).us)(counts)

    found = sweep(jnp.asarray([2, 4, 6]))
    for k, us in zip((2, 4, 6), found, strict=True):
        np.testing.assert_allclose(us, pj.simulate(d.refine(k), U, save=[0.5, 1.0]).us, rtol=1e-12)
    assert sweep._cache_size() == 1
    with pytest.raises(TypeError, match="save='steps' needs a number of steps that is known"):
        jax.jit(lambda k: pj.simulate(d.refine(k), U, save="steps").us)(3)


def test_derivatives_with_traced_steps():
    """Forward mode agrees with plain integers; reverse mode is refused in words."""

    def end(u, k):
        return pj.simulate(pj.Discretization(equation(), "heun", t1=1.0, steps=k), u).us[-1]

    v = jnp.cos(U)
    plain = jax.jvp(lambda u: end(u, 4), (U,), (v,))[1]
    np.testing.assert_allclose(jax.jit(lambda k: jax.jvp(lambda u: end(u, k), (U,), (v,))[1])(4), plain, rtol=1e-11)
    with pytest.raises(TypeError, match="forward-mode derivatives"):
        jax.jit(lambda k: jax.grad(lambda u: end(u, k).sum())(U))(4)


def test_traced_steps_that_layers_cannot_share_give_nan():
    layers = pj.DepthVarying.from_layers([equation()] * 3, 3.0)

    def end(k):
        return pj.simulate(pj.Discretization(layers, "euler", t1=3.0, steps=k), U).us[-1]

    np.testing.assert_allclose(jax.jit(end)(6), end(6), rtol=1e-12)
    assert np.isnan(jax.jit(end)(7)).all()


def test_passes_through_transformations():
    """As an argument of jit and vmap, and differentiated by its field's weights and its depth."""
    d = pj.Discretization(equation(), "heun", t1=1.0, steps=4)
    plain, eps = pj.simulate(d, U).us, 1e-6
    ends = [float(np.sum(pj.simulate(d.replace(t1=1.0 + s * eps), U).us[-1])) for s in (1, -1)]

    @jax.jit
    def run(d, us, t1):
        slope = jax.grad(lambda t1: pj.simulate(d.replace(t1=t1), us[0]).us[-1].sum())(t1)
        return pj.simulate(d, us[0]).us, jax.vmap(lambda u: pj.simulate(d, u).us)(us)[0], slope

    one, lane, slope = run(d, np.stack([U, 2 * U]), 1.0)
    np.testing.assert_allclose(one, plain, rtol=1e-13)
    np.testing.assert_allclose(lane, plain, rtol=1e-12)
    assert float(slope) == pytest.approx((ends[0] - ends[1]) / (2 * eps), rel=1e-6)


def test_auto_is_settled_when_used():
    stiff = equation(diffusion=pj.Diffusion(pj.Grid(N), 5.0))
    d = pj.Discretization(stiff, "auto", t1=1.0, steps=8)
    assert pj.simulate(d, U).choice.startswith("etdrk4")
    assert pj.simulate(d, U, mask=jnp.arange(N) < 4).choice.startswith("ark4")


def test_a_diffrax_solver_object_serves():
    d = pj.Discretization(decay, diffrax.Tsit5(), t1=1.0, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(pj.simulate(d, U).us[-1], np.exp(-1.0) * U, rtol=1e-8)


@pytest.mark.parametrize(
    ("owner", "call"),
    [
        ("lift", lambda x: pj.lift(x)),
        ("pair", lambda x: pj.pair(x)),
        ("observe", lambda x: pj.observe(x, jnp.arange(3))),
        ("save_model", lambda x: pj.save_model("never.npz", x)),
        ("Transformer", lambda x: pj.Transformer(x, rngs=nnx.Rngs(0))),
        ("Simulator", lambda x: pj.Simulator(x, key=KEY)),
        ("SimulatorConfig", lambda x: pj.SimulatorConfig(x)),
        ("MultilayerSimulator", lambda x: pj.MultilayerSimulator(x, key=KEY)),
        ("as_network", lambda x: pj.as_network(x)),
        ("network", lambda x: pj.network(x)),
        ("DepthVarying", lambda x: pj.DepthVarying(x, 1.0)),
        ("DepthVarying.from_layers", lambda x: pj.DepthVarying.from_layers([x], 1.0)),
        ("smooth_random", lambda x: pj.smooth_random(x, 1.0, key=KEY)),
        ("simulate", lambda x: pj.simulate(x, U)),
        ("lyapunov_exponents", lambda x: pj.analysis.lyapunov_exponents(x, U, k=1)),
        ("predict_dt_max", lambda x: pj.analysis.predict_dt_max(x, U, "euler")),
    ],
)
@pytest.mark.parametrize("thing", [3, pj.Attention], ids=["number", "class"])
def test_something_else_in_the_place_of_a_model(owner, call, thing):
    """An error that names the function and what it was given, not an attribute that the thing lacks."""
    with pytest.raises(TypeError, match=rf"^{owner}: .*(int|=3|Attention|class|Module)"):
        call(thing)
