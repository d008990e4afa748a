"""`simulate_in_parallel` against `simulate`: states, gradients, masks, layers, devices."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax import solvers

N, D = 4, 2
KEY = jax.random.key(0)
U0 = jnp.asarray(np.random.default_rng(1).normal(size=(N, D)))


def layer(key, strength=1.0):
    return pj.MasterEquation(pj.Attention(D, 1, key=key, strength=strength), pj.LinearDamping(0.5))


FIELD = layer(KEY)
SMOOTH = pj.smooth_random(FIELD, 2.0, key=KEY)
LAYERS = pj.DepthVarying.from_layers([layer(k) for k in jax.random.split(KEY)], 2.0)
CASES = {
    "mgrit": (pj.Discretization(FIELD, "euler", t1=2.0, steps=16), {}),
    "parareal": (pj.Discretization(SMOOTH, "rk4", t1=2.0, steps=16), {"method": "parareal"}),
    "three levels": (pj.Discretization(SMOOTH, "euler", t1=2.0, steps=16), {"levels": 3, "coarsening": 2}),
    "another coarse solver": (pj.Discretization(SMOOTH, "rk4", t1=2.0, steps=16), {"coarse": "euler"}),
    "layers": (pj.Discretization(LAYERS, "lietrotter", t1=2.0, steps=8), {"coarsening": 4}),
    "coarser than layers": (pj.Discretization(LAYERS, "euler", t1=2.0, steps=2), {"coarsening": 2}),
    "newton": (pj.Discretization(SMOOTH, "euler", t1=2.0, steps=16), {"method": "newton"}),
    "newton in cycles": (pj.Discretization(FIELD, "euler", t1=2.0, steps=16), {"method": "newton", "linear": "cycles"}),
}


# Cases whose gradients are compared: their states come with them, from the same program.
GRADIENTS = ["mgrit", "layers", "newton", pytest.param("newton in cycles", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", [name for name in CASES if name not in GRADIENTS])
def test_states_are_those_of_the_serial_solve(name):
    d, how = CASES[name]
    found = pj.simulate_in_parallel(d, U0, tolerance=1e-13, **how)
    assert bool(found.converged), found
    np.testing.assert_allclose(found.us, pj.simulate(d, U0, save="steps").us, rtol=0, atol=1e-11)


def loss(us):
    return jnp.sum(us[-1] ** 2) + jnp.sum(jnp.sin(us[5]))


@eqx.filter_jit
def solved(d, how, **more):
    """The solution, and the gradient with respect to the field's arrays and the initial state, in one row."""

    @eqx.filter_value_and_grad(has_aux=True)
    def run(given):
        field, u0 = given
        d_ = d.replace(field=field)
        found = pj.simulate(d_, u0, save="steps") if how is None else pj.simulate_in_parallel(d_, u0, **how, **more)
        return loss(found.us), found

    (_, found), gradient = run((d.field, U0))
    return found, jnp.concatenate([x.ravel() for x in jax.tree.leaves(gradient)])


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_the_serial_solve(name):
    d, how = CASES[name]
    found, gradient = solved(d, how, tolerance=1e-13)
    serial, expected = solved(d, None)
    assert bool(found.converged), found
    np.testing.assert_allclose(found.us, serial.us, rtol=0, atol=1e-11)
    np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-10)


def test_padding_stays_out():
    """Of states and of gradients."""
    d, mask = CASES["mgrit"][0], jnp.arange(N) < 3

    @jax.jit
    def run(u):
        def of(solve):
            return jax.value_and_grad(lambda u: (lambda us: (loss(us[:, :3]), us))(solve(u)), has_aux=True)

        serial = of(lambda u: pj.simulate(d, u, mask=mask, save="steps").us)(u.at[3].set(0.0))
        found = of(lambda u: pj.simulate_in_parallel(d, u, mask=mask, tolerance=1e-13).us)(u.at[3].set(jnp.nan))
        return serial, found

    ((_, serial), slope), ((_, us), found) = run(U0)
    np.testing.assert_allclose(us[:, :3], serial[:, :3], rtol=0, atol=1e-11)
    np.testing.assert_allclose(found[:3], slope[:3], rtol=1e-9, atol=1e-12)
    assert np.all(found[3] == 0)


def test_few_cycles_of_the_adjoint_are_biased_and_said_to_be():
    d, _ = CASES["mgrit"]
    exact = np.asarray(solved(d, None)[1])
    found = [np.asarray(solved(d, {"adjoint_iterations": k}, tolerance=1e-13)[1]) for k in (0, 1)]
    errors = [np.linalg.norm(gradient - exact) / np.linalg.norm(exact) for gradient in found]
    assert 1e-3 < errors[0] < 1 and errors[1] < 0.1 * errors[0]


SHORT = pj.Discretization(lambda t, u: jnp.sin(u) - u, "euler", t1=1.0, steps=4)


def euler(k, u):
    return u + 0.25 * jnp.sin(u)


TRANSFORMED = {
    "simulate_in_parallel": lambda u: pj.simulate_in_parallel(SHORT, u, tolerance=1e-13).us,
    "simulate_in_parallel newton": lambda u: pj.simulate_in_parallel(SHORT, u, method="newton", tolerance=1e-13).us,
    "mgrit": lambda u: solvers.parallel.mgrit((euler, euler), u, count=4, coarsening=2, tolerance=1e-13).us,
    "newton": lambda u: solvers.parallel.newton((euler,), u, count=4, tolerance=1e-13).us,
    "predict_iterations": lambda u: pj.analysis.parallel.predict_iterations(SHORT, u).residuals[:1],
    "gradient_bias": lambda u: (
        pj.analysis.parallel.gradient_bias(DAMPED, u, loss=lambda v: jnp.sum(v**2), iterations=(0,)).residual
    ),
}
DAMPED = pj.Discretization(pj.MasterEquation(pj.LinearDamping(jnp.asarray(0.5))), "euler", t1=1.0, steps=4)


def stepped(slope):
    """Four steps of size 1/4 one after another, in NumPy."""
    us = [np.asarray(U0)]
    for _ in range(4):
        us.append(us[-1] + 0.25 * slope(us[-1]))
    return np.stack(us)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_inside_transformations(name):
    """Closed over, and as an argument of `lax.map` and of `vmap` inside `shard_map`."""
    function = TRANSFORMED[name]
    mesh = jax.make_mesh((1,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=jax.P("b"), out_specs=jax.P("b"))

    @jax.jit
    def everywhere(us):
        return {
            "closed over": function(U0),
            "lax.map": jax.lax.map(function, us[::-1])[1],
            "shard_map": spread(us)[0],
        }

    expected = (
        stepped(lambda u: np.sin(u) - u)
        if "simulate" in name
        else stepped(np.sin)
        if name in ("mgrit", "newton")
        else function(U0)
    )
    for where, value in everywhere(np.stack([U0, 2 * U0])).items():
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12, err_msg=where)


def test_a_flow_that_expands_is_returned_with_its_residual():
    d = pj.Discretization(lambda t, u: 6 * jnp.sin(3 * u), "euler", t1=8.0, steps=64)
    found = pj.simulate_in_parallel(d, U0, iterations=2, tolerance=1e-10)
    assert not bool(found.converged) and np.isfinite(float(found.residual)) and float(found.residual) > 1e-10
    assert "NOT converged after 2 iterations" in repr(found)


EIGHT = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
import pdejax as pj
from test_parallel import SMOOTH, U0
d = pj.Discretization(SMOOTH, "euler", t1=2.0, steps=32)
mesh = jax.make_mesh((8,), ("depth",), axis_types=(jax.sharding.AxisType.Auto,))
one = pj.simulate_in_parallel(d, U0, tolerance=1e-12, coarsening=4)
many = pj.simulate_in_parallel(d, U0, tolerance=1e-12, coarsening=4, mesh=mesh)
assert int(one.iterations) == int(many.iterations) and bool(many.converged)
print(float(np.abs(one.us - many.us).max()))
"""


@pytest.mark.slow
def test_eight_devices_give_the_same(tmp_path):
    import os
    import pathlib

    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", ""),
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path]),
    }
    run = subprocess.run([sys.executable, "-c", EIGHT], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1e-12


STEPS = CASES["mgrit"][0]


@pytest.mark.parametrize(
    ("d", "more", "words"),
    [
        (STEPS, {"method": "parareal", "levels": 3}, "simulate_in_parallel: levels=3, but parareal has two"),
        (STEPS, {"coarsening": 3}, "simulate_in_parallel: coarsening=3 on 2 levels needs steps in multiples of 3"),
        (STEPS, {"tolerance": -1.0}, "simulate_in_parallel: tolerance=-1"),
        (STEPS, {"tolerance": float("nan")}, "simulate_in_parallel: tolerance"),
        (STEPS, {"levels": 1}, "simulate_in_parallel: levels"),
        (STEPS.replace(steps=7), {"levels": 3}, "simulate_in_parallel: 7 steps have no coarsening on 3 levels"),
        (STEPS.replace(solver="tsit5", rtol=1e-3, atol=1e-3), {}, "simulate_in_parallel: steps are adaptive"),
        (
            STEPS,
            {"mesh": jax.make_mesh((1, 1), ("a", "b"))},
            "simulate_in_parallel: mesh is .* give a jax.sharding.Mesh",
        ),
        (STEPS, {"method": "parallel"}, "simulate_in_parallel: method"),
    ],
)
def test_what_does_not_fit_is_refused(d, more, words):
    with pytest.raises((ValueError, TypeError), match=words):
        pj.simulate_in_parallel(d, U0, **more)


def test_reverse_mode_alone_and_not_through_numbers_of_the_scheme():
    assert solvers.parallel.ParallelSolution is type(pj.simulate_in_parallel(STEPS, U0))
    with pytest.raises(TypeError, match=r"custom_vjp|forward-mode"):
        jax.jvp(lambda u: pj.simulate_in_parallel(STEPS, u).us, (U0,), (U0,))
