"""Bad input: an error that names the argument, what it was and what is allowed, before the field is evaluated at all."""

import re

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from untouchable import KEY, ONE, TWO, D, N, U, attention, check, feed_forward, layered, run, with_term

import pdejax as pj
from pdejax.solvers import RK4, Euler, Laplacian, LieTrotter, Retract, Strang, divergence

pytestmark = pytest.mark.bad_input

NAN = U.at[1, 2].set(jnp.nan)

FIELD = {
    "rank 1": (lambda: run(u0=U[0]), ValueError, r"field must have shape \(n, d\).*got \(4,\).*jax\.vmap"),
    "rank 3": (lambda: run(u0=U[None]), ValueError, r"field must have shape \(n, d\).*got \(1, 5, 4\)"),
    "no tokens": (lambda: run(u0=U[:0]), ValueError, r"field of shape \(0, 4\) is empty"),
    "no features": (lambda: run(u0=U[:, :0]), ValueError, r"field of shape \(5, 0\) is empty"),
    "integers": (lambda: run(u0=jnp.ones((N, D), int)), TypeError, r"field has dtype int64; .*float32 or float64"),
    "complex": (lambda: run(u0=U.astype(complex)), TypeError, "u0=an array of shape .* and type complex128 must be"),
    "half": (lambda: run(u0=U.astype(jnp.bfloat16)), TypeError, "field has dtype bfloat16.*round-off"),
    "nan": (lambda: run(u0=NAN), ValueError, "initial field has 1 NaN or infinite entries of 20"),
    "infinite": (lambda: run(u0=U.at[0].set(jnp.inf)), ValueError, "initial field has 4 NaN or infinite entries"),
    "attention width": (
        lambda: with_term("interaction", attention(), U[:, :3]),
        ValueError,
        r"Attention was built for fields of width dim=4, but the field has 3 features",
    ),
    "feed-forward width": (
        lambda: with_term("reaction", feed_forward(), U[:, :3]),
        ValueError,
        "FeedForward was built for fields of width dim=4, but the field has 3 features",
    ),
    "norm width": (
        lambda: with_term("interaction", attention(norm=pj.LayerNorm(D + 1))),
        ValueError,
        r"Attention \(its norm\) was built for fields of width dim=5",
    ),
    "norm_out width": (
        lambda: with_term("reaction", feed_forward(norm_out=pj.RMSNorm(D + 1))),
        ValueError,
        r"FeedForward \(its norm\) was built for fields of width dim=5",
    ),
    "relaxation width": (
        lambda: with_term("stabilization", pj.LayerNormRelaxation(3)),
        ValueError,
        "LayerNormRelaxation was built for fields of width dim=3",
    ),
    "diffusivity width": (
        lambda: with_term("diffusion", pj.Diffusion(pj.Grid(N), jnp.ones(3))),
        ValueError,
        r"Diffusion \(its diffusivity\) was built for fields of width dim=3",
    ),
    "layered width": (
        lambda: run(layered(), U[:, :3], steps=3, t1=1.5),
        ValueError,
        "built for width 4, but the field has 3",
    ),
    "state of coupled layers": (
        lambda: run(pj.MultilayerEquation([ONE, ONE], [pj.Exchange(D, key=KEY)]), jnp.ones((3, N, D))),
        ValueError,
        r"MultilayerEquation: the state must have shape \(2, n, d\), got \(3, 5, 4\)",
    ),
    "exchange width": (
        lambda: run(pj.MultilayerEquation([ONE, ONE], [pj.Exchange(3, key=KEY)]), jnp.ones((2, N, D))),
        ValueError,
        "exchange was built for fields of width dim=3, but the state has 4",
    ),
    "called with a batch": (lambda: TWO(0.0, U[None]), ValueError, r"field must have shape \(n, d\)"),
}

GRIDS = {
    "diffusion": (
        lambda: with_term("diffusion", pj.Diffusion(pj.Grid(N + 1), 0.1)),
        ValueError,
        r"Diffusion was built on a grid of 6 tokens, but the field has 5\. Use Grid\(5, \.\.\.\)",
    ),
    "emergent diffusion": (
        lambda: with_term(
            "diffusion", pj.EffectiveDiffusion(pj.Grid(6), attention(), feed_forward(), jnp.ones((6, D)))
        ),
        ValueError,
        "EffectiveDiffusion was built on a grid of 6",
    ),
    "positions": (
        lambda: pj.EffectiveDiffusion(pj.Grid(N), attention(), feed_forward(), jnp.ones((6, D))),
        ValueError,
        "EffectiveDiffusion was built on a grid of 5 tokens, but the field has 6",
    ),
    "positions rank": (
        lambda: pj.EffectiveDiffusion(pj.Grid(N), attention(), feed_forward(), jnp.ones(N)),
        ValueError,
        r"positions=an array of shape \(5,\) .* of shape \(n, d\)",
    ),
    "emergent width": (
        lambda: with_term(
            "diffusion", pj.EffectiveDiffusion(pj.Grid(N), attention(), feed_forward(3), jnp.ones((N, D)))
        ),
        ValueError,
        "FeedForward was built for fields of width dim=3",
    ),
    "spatial norm": (
        lambda: with_term("stabilization", pj.SpatialNorm(grid=pj.Grid(7))),
        ValueError,
        "SpatialNorm was built on a grid of 7",
    ),
    "source": (
        lambda: with_term("reaction", feed_forward(grid=pj.Grid(7))),
        ValueError,
        "FeedForward was built on a grid of 7",
    ),
    "quadrature": (
        lambda: with_term("interaction", attention(grid=pj.Grid(7, "dirichlet"))),
        ValueError,
        r"Attention \(its quadrature weights\) was built on a grid of 7",
    ),
    "gamma": (
        lambda: with_term("stabilization", pj.LinearDamping(jnp.ones(7))),
        ValueError,
        r"LinearDamping \(its gamma\) was built on a grid of 7",
    ),
    "one token": (lambda: pj.Diffusion(pj.Grid(1), 0.1), ValueError, "Diffusion needs at least 2 tokens.*has 1"),
    "one token, emergent": (
        lambda: pj.EffectiveDiffusion(pj.Grid(1), attention(), feed_forward(), jnp.ones((1, D))),
        ValueError,
        "EffectiveDiffusion needs at least 2 tokens",
    ),
    "one token, operator": (lambda: Laplacian(pj.Grid(1)), ValueError, "diffusion needs at least 2 tokens"),
    "operator": (lambda: Laplacian(pj.Grid(7))(U), ValueError, r"u has shape \(5, 4\), but the grid has n=7"),
    "coefficient": (
        lambda: divergence(pj.Grid(N), jnp.ones(3), U),
        ValueError,
        r"coefficient has shape \(3,\); it must be \(5,\)",
    ),
    "boundary": (lambda: pj.Grid(N, "robin"), ValueError, "boundary must be one of 'neumann'.*got 'robin'"),
    "size": (lambda: pj.Grid(0), ValueError, "Grid: n=0 must be an integer of at least 1, the number of tokens"),
    "size type": (lambda: pj.Grid(2.5), TypeError, "Grid: n=2.5 must be an integer of at least 1"),
    "length": (lambda: pj.Grid(N, length=-1.0), ValueError, r"length must be positive and finite; got -1\.0"),
}

STEPS = {
    "neither": (
        lambda: pj.simulate(pj.Discretization(ONE, t1=1.0), U),
        ValueError,
        "give either steps .* or rtol and atol",
    ),
    "both": (lambda: run(steps=4, rtol=1e-3), ValueError, "steps=4 fixes the step.*give one or the other"),
    "only rtol": (lambda: run(rtol=1e-3), ValueError, "both tolerances, but atol is missing"),
    "only atol": (lambda: run(atol=1e-3), ValueError, "both tolerances, but rtol is missing"),
    "negative rtol": (lambda: run(rtol=-1e-3, atol=0.0), ValueError, r"rtol=-0\.001 must be one finite number ≥ 0"),
    "nan atol": (lambda: run(rtol=1e-3, atol=np.nan), ValueError, "atol=nan must be a real number .*NaN is none"),
    "zero tolerances": (lambda: run(rtol=0.0, atol=0.0), ValueError, "rtol and atol are both 0"),
    "tolerances of a field": (lambda: run(rtol=jnp.ones(3), atol=0.0), TypeError, "rtol=.* must be one finite number"),
    "zero": (lambda: run(steps=0), ValueError, "steps=0 must be an integer of at least 1"),
    "negative": (lambda: run(steps=-3), ValueError, "steps=-3 must be an integer of at least 1"),
    "float": (lambda: run(steps=4.0), TypeError, r"steps=4\.0 must be an integer of at least 1.*steps=round"),
    "bool": (lambda: run(steps=True), TypeError, "steps=True must be an integer"),
    "text": (lambda: run(steps="4"), TypeError, "steps='4' must be an integer"),
    "traced": (lambda: jax.jit(lambda n: run(steps=n))(4.0), TypeError, "it must be one integer"),
    "max_steps": (lambda: run(rtol=1e-3, atol=1e-3, max_steps=0), ValueError, "max_steps=0 must be an integer"),
    "max_steps of fixed steps": (lambda: run(steps=4, max_steps=9), ValueError, "max_steps=9 limits adaptive steps"),
    "not a multiple": (
        lambda: run(layered(), t1=1.5, steps=4),
        ValueError,
        "steps=4 cannot be shared equally by the 3 layers.*such as 3 or 6",
    ),
    "fewer than layers": (lambda: run(layered(), t1=1.5, steps=2), ValueError, "steps=2 cannot be shared.* 3 or 6"),
}

DEPTHS = {
    "zero": (lambda: run(t1=0.0), ValueError, r"t1=0\.0: t1 must be positive"),
    "negative": (lambda: run(t1=-1.0), ValueError, r"t1=-1\.0: t1 must be positive"),
    "before t0": (lambda: run(t0=2.0, t1=1.0), ValueError, r"t1=1\.0: t1 must be greater than t0=2\.0"),
    "nan": (lambda: run(t1=np.nan), ValueError, "t1=nan must be a real number .*NaN is none"),
    "infinite": (lambda: run(t0=-np.inf), ValueError, "t0=-inf must be one finite number"),
    "several": (lambda: run(t1=jnp.ones(2)), TypeError, "t1=.* must be one finite number"),
    "inside a layer": (
        lambda: run(layered(), t1=1.2, steps=3),
        ValueError,
        r"t1=1\.2 is not a layer boundary of this equation of 3 layers over \[0, 1\.5\]; use a multiple of 0\.5",
    ),
    "beyond the layers": (lambda: run(layered(), t1=2.0, steps=4), ValueError, r"t1=2\.0 is not a layer boundary"),
    "from inside a layer": (
        lambda: run(layered(), t0=0.3, t1=1.5, steps=3),
        ValueError,
        r"t0=0\.3 is not a layer boundary",
    ),
    "traced over layers": (
        lambda: jax.jit(lambda t: run(layered(), t1=t, steps=3))(1.5),
        TypeError,
        "t0 and t1 must be plain numbers for piecewise-constant weights",
    ),
    "of the weights": (lambda: layered(0.0), ValueError, "DepthVarying: t1=0.0 must be one finite number > 0"),
    "infinite weights": (
        lambda: layered(float("inf")),
        ValueError,
        "DepthVarying: t1=inf must be one finite number > 0",
    ),
}

SAVING = {
    "name": (lambda: run(save="all"), ValueError, "save='all' is unknown; choose 'end', 'steps', 'layers'"),
    "unsorted": (lambda: run(save=[0.5, 0.2]), ValueError, "depths to save must be in increasing order"),
    "outside": (lambda: run(save=[0.5, 1.2]), ValueError, r"lie in \[t0, t1\] = \[0\.0, 1\.0\], got \[0\.5, 1\.2\]"),
    "before t0": (lambda: run(t0=0.5, save=[0.2, 1.0]), ValueError, r"lie in \[t0, t1\] = \[0\.5, 1\.0\]"),
    "nan": (lambda: run(save=[0.5, np.nan]), ValueError, "depths to save must lie in"),
    "empty": (lambda: run(save=[]), ValueError, r"non-empty 1-D array of depths, got shape \(0,\)"),
    "rank": (lambda: run(save=np.ones((2, 2))), ValueError, r"1-D array of depths, got shape \(2, 2\)"),
    "layers of none": (lambda: run(save="layers"), ValueError, "save='layers' needs an equation with layers"),
    "adaptive steps over layers": (
        lambda: run(layered(), t1=1.5, rtol=1e-3, atol=1e-3, save="steps"),
        ValueError,
        "save='steps' with adaptive steps is not defined across layers",
    ),
    "traced": (
        lambda: jax.jit(lambda ts: run(save=ts))(jnp.array([0.5])),
        TypeError,
        "saving at given depths needs t0, t1 and the depths as plain numbers",
    ),
    "blowup": (lambda: run(blowup=0.0), ValueError, r"blowup=0\.0 must be one finite number > 0"),
    "blowup nan": (lambda: run(blowup=float("nan")), ValueError, "blowup=nan must be one real number .*NaN is none"),
    "adjoint": (lambda: run(adjoint="magic"), ValueError, "adjoint='magic' must be one of"),
    "adjoint type": (lambda: run(adjoint=3), TypeError, "adjoint=3 must be one of"),
}

SOLVERS = {
    "unknown": (lambda: run(solver="rk5"), ValueError, "unknown solver 'rk5'. Did you mean 'rk4'.*Known: euler, heun"),
    "class": (lambda: run(solver=Euler), TypeError, "solver=the class Euler must be .*; call the class to make one"),
    "number": (lambda: run(solver=4), TypeError, "solver=4 must be a string or a diffrax solver"),
    "PID with RK4": (
        lambda: run(solver="rk4", rtol=1e-3, atol=1e-3),
        ValueError,
        r"RK4 has no error estimate.*Give steps=….*diffrax\.HalfSolver\(RK4",
    ),
    "PID with Euler": (lambda: run(solver=Euler(), rtol=1e-3, atol=1e-3), ValueError, "Euler has no error estimate"),
    "PID with a splitting": (
        lambda: run(TWO, solver="strang", rtol=1e-3, atol=1e-3),
        ValueError,
        "Strang has no error estimate",
    ),
    "too few sub-solvers": (
        lambda: run(TWO, solver=LieTrotter((Euler(),))),
        ValueError,
        "LieTrotter has 1 sub-solvers, but the equation is split into 2 parts",
    ),
    "too many sub-solvers": (
        lambda: run(TWO, solver=Strang((Euler(), Euler(), Euler()))),
        ValueError,
        "Strang has 3 sub-solvers, but the equation is split into 2 parts",
    ),
    "split of a whole": (
        lambda: run(TWO, solver="rk4", split=(("interaction",), ("reaction",))),
        ValueError,
        "RK4 integrates the whole field at once; leave split out or use LieTrotter or Strang",
    ),
    "split forgets": (
        lambda: run(TWO, solver="lietrotter", split=(("interaction",),)),
        ValueError,
        r"split=\[\('interaction',\)\] must name every term of the equation exactly once",
    ),
    "split twice": (
        lambda: run(TWO, solver="lietrotter", split=(("interaction", "reaction"), ("reaction",))),
        ValueError,
        "must name every term of the equation exactly once",
    ),
    "split of names": (
        lambda: run(TWO, solver="lietrotter", split=("interaction", "reaction")),
        TypeError,
        "split=.* must be a sequence .each entry a sequence",
    ),
    "split empty": (lambda: run(TWO, solver="lietrotter", split=()), ValueError, "must name every term"),
    "sub-solver class": (lambda: LieTrotter((Euler,)), TypeError, r"solvers\[0\] is the class Euler; call it"),
    "no sub-solvers": (lambda: LieTrotter(()), ValueError, "solvers is empty"),
    "retraction": (lambda: Retract(Euler(), 3), TypeError, "retraction must be a function of the state"),
    "equation": (
        lambda: run(diffrax.ODETerm(ONE)),
        TypeError,
        "field=an object of type ODETerm must be a MasterEquation",
    ),
}

MASKS = {
    "length": (lambda: run(mask=np.ones(N + 1, bool)), ValueError, r"mask has shape \(6,\); it must be 5 booleans"),
    "rank": (lambda: run(mask=np.ones((1, N), bool)), ValueError, r"mask has shape \(1, 5\); it must be 5 booleans"),
    "type": (lambda: run(mask=np.ones(N, int)), TypeError, "mask has type int64; it must be 5 booleans"),
    "nothing left": (lambda: run(mask=np.zeros(N, bool)), ValueError, "mask hides every token"),
}

TABLES = {
    "field": FIELD,
    "grids": GRIDS,
    "steps": STEPS,
    "depths": DEPTHS,
    "saving": SAVING,
    "solvers": SOLVERS,
    "masks": MASKS,
}


@pytest.mark.parametrize("table, name", [(table, name) for table, rows in TABLES.items() for name in rows])
def test_message(table, name):
    check(*TABLES[table][name])


def test_good_input_does_evaluate_the_field():
    """The guard of this file is not asleep: with good input the untouchable term is reached."""
    with pytest.raises(AssertionError, match="field was evaluated"):
        run()


def test_model():
    """Token ids, names and shapes of a model that a lifted run starts from."""
    sizes = {"vocab": 7, "dim": D, "heads": 2, "layers": 2, "ffn": 5}
    model = pj.Transformer(pj.Architecture(**sizes), rngs=nnx.Rngs(0))
    for call, error, message in (
        (lambda: model.embed(np.array([1, 7])), ValueError, "ids from 1 to 7"),
        (lambda: model.embed(np.array([-1, 3])), ValueError, "ids from -1 to 3"),
        (lambda: model.embed(np.zeros(0, int)), ValueError, "tokens is empty"),
        (lambda: model.embed(np.zeros((2, 3), int)), ValueError, r"tokens has shape \(2, 3\); it must be \(n,\)"),
        (lambda: model.embed(np.zeros(3)), TypeError, "must be integer ids"),
        (lambda: model.hidden_states(np.array([1, 2]), np.ones(3, bool)), ValueError, "must be 2 booleans"),
        (lambda: pj.Architecture(**sizes | {"heads": 3}), ValueError, "heads=3 must divide dim=4"),
        (lambda: pj.Architecture(**sizes, norm="batch"), ValueError, "norm='batch' must be one of"),
        (lambda: pj.Architecture(**sizes, activation="swish"), ValueError, "activation='swish' must be one of"),
        (lambda: pj.Architecture(**sizes, block="parallel", norm="post"), ValueError, "is not defined"),
    ):
        with pytest.raises(error, match=message):
            call()
    # The wrong field for a lifted equation, and a solver that belongs to another.
    equation = pj.lift(model).field
    with pytest.raises(ValueError, match="Attention was built for fields of width dim=4"):
        pj.simulate(pj.Discretization(equation, pj.lift(model).solver, t1=2.0, steps=2), jnp.ones((3, 5)))
    post = pj.Transformer(pj.Architecture(**sizes, norm="post"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="made for a model of 2 layers, but the field has 1"):
        pj.simulate(pj.Discretization(equation.layer(0), pj.lift(post).solver, t1=1.0, steps=1), jnp.ones((3, D)))


def test_to_xarray_of_a_batch():
    equation = pj.MasterEquation(stabilization=pj.LinearDamping(1.0))
    batch = jax.vmap(lambda u: pj.simulate(pj.Discretization(equation, "euler", t1=1.0, steps=2), u))(U[None])
    with pytest.raises(ValueError, match="to_xarray: the trajectory must hold one array over one depth axis"):
        batch.to_xarray()
    one = jax.tree.map(lambda x: x[0], batch)
    np.testing.assert_allclose(one.to_xarray()["u"][0], 0.25 * U)


def test_messages_say_what_to_do():
    """Every message of `simulate` begins with its name, so that a traceback is not needed to find the call."""
    for table in ("steps", "depths", "saving", "masks"):
        for call, error, _ in TABLES[table].values():
            with pytest.raises(error) as caught:
                call()
            assert re.match(r"(Discretization|simulate|DepthVarying): ", str(caught.value)), caught.value


def test_pid_with_rk4_in_diffrax():
    """Outside `simulate` the same mistake is diffrax's to report: RK4 gives no error estimate."""
    with pytest.raises(RuntimeError, match="error estimate"):
        diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -y),
            RK4(),
            0.0,
            1.0,
            0.1,
            jnp.ones(2),
            stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-3),
        )
