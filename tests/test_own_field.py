"""A field that is only a function, a plain one, a closure, an equinox or a Flax module, in everything that takes a field."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax import analysis as an

A = jnp.asarray([[-1.0, 0.5], [-0.5, -2.0]])
U = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
US = jnp.stack([U, 0.5 * U])
KEY = jax.random.key(0)


class Equinox(eqx.Module):
    matrix: jax.Array

    def __call__(self, t, u, args):
        return u @ self.matrix


class Flax(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 2, use_bias=False, param_dtype=jnp.float64, rngs=rngs)
        self.linear.kernel.set_value(A)  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, t, u, args):
        return self.linear(u)


class Plain:
    def __call__(self, t, u, args):
        return u @ A


def plain(t, u, args):
    return u @ A


def closure(matrix):
    return lambda t, u: u @ matrix


# All of them are u' = uA.
FIELDS = {
    "a function": plain,
    "a closure of two arguments": closure(A),
    "an equinox module": Equinox(A),
    "a Flax module": Flax(nnx.Rngs(0)),
    "an object": Plain(),
    "a partial": functools.partial(lambda matrix, t, u, args: u @ matrix, A),
    "compiled": jax.jit(plain),
}


def discretization(field):
    return pj.Discretization(field, "rk4", t1=0.5, steps=8)


def square(u, *args):
    return jnp.sum(u**2)


# What the analysis finds for u' = uA, in one or a few numbers, and what is right by the matrix alone.
J = np.kron(np.eye(3), np.asarray(A).T)
FLOW = np.asarray(jax.scipy.linalg.expm(0.5 * A))
END = np.asarray(U) @ FLOW
STEP = sum(np.linalg.matrix_power(np.asarray(A) / 16, k) / math.factorial(k) for k in range(5))
BY_RK4 = np.asarray(U) @ np.linalg.matrix_power(STEP, 8)  # eight steps of 1/16
VALUES, SYMMETRIC = np.linalg.eigvals(np.asarray(A)), np.linalg.eigvalsh(np.asarray(A + A.T) / 2)


def rk4_limit():
    """The first h at which |R(hλ)| = 1, R(z) = Σ z^k/k!, for the eigenvalues of A."""
    h = np.linspace(0.1, 4, 400_000)
    broken = [np.abs(1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24) > 1 for z in (h * value for value in VALUES)]
    return float(h[np.argmax(np.any(broken, axis=0))])


ANALYSES = {
    "simulate": (lambda f: pj.simulate(discretization(f), U).us[-1], BY_RK4, 1e-12),
    "simulate, adaptive": (
        lambda f: pj.simulate(pj.Discretization(f, "tsit5", t1=0.5, rtol=1e-8, atol=1e-8), U).us[-1],
        END,
        1e-7,
    ),
    "simulate, auto": (
        lambda f: pj.simulate(pj.Discretization(f, "auto", t1=0.5, steps=8), U).us[-1],
        BY_RK4,
        1e-12,
    ),
    "predict_dt_max": (lambda f: an.predict_dt_max(f, U, "rk4").dt_max, rk4_limit(), 1e-3),
    "predict_dt_max of a discretization": (lambda f: an.predict_dt_max(discretization(f), U).dt_max, rk4_limit(), 1e-3),
    "measure_dt_max": (
        lambda f: an.stability.measure_dt_max(f, U, "rk4", steps=400).dt_max,
        rk4_limit(),
        0.02,
    ),
    "spectral_bounds": (
        lambda f: [(b := an.stability.spectral_bounds(f, U)["field"]).log_norm, b.rightmost.real, b.lipschitz],
        [SYMMETRIC.max(), np.real(VALUES).max(), np.linalg.norm(np.asarray(A), 2)],
        1e-10,
    ),
    "lyapunov_exponents": (
        lambda f: jnp.sum(an.lyapunov_exponents(discretization(f), U, k=6).exponents.value),
        3 * np.trace(np.asarray(A)),
        1e-5,
    ),
    "ftle": (
        lambda f: an.jacobian.ftle(discretization(f), U).exponents,
        np.full(3, np.log(np.linalg.norm(FLOW, 2)) / 0.5),
        1e-5,
    ),
    "gradient_flow": (
        lambda f: an.gradient_flow(discretization(f), U, loss=square, null=None, resamples=20, depths=1).median.value[
            0
        ],
        np.linalg.norm(2 * END @ FLOW.T),
        1e-6,
    ),
    "layer_jacobian": (
        lambda f: an.layer_jacobian(pj.Discretization(f, "euler", t1=0.5, steps=2), U, step=0).matrix(),
        np.eye(6) + 0.25 * J,
        1e-12,
    ),
    "perturbation_sensitivity": (
        lambda f: an.perturbation_sensitivity(discretization(f), U, key=KEY, loss=square, draws=2).base_loss,
        np.sum(END**2),
        1e-6,
    ),
    "field_constants": (
        lambda f: [
            (c := an.numerics.field_constants(f, jnp.linspace(0, 1, 2), US)).log_norm_on_trajectory,
            c.lipschitz_on_trajectory,
        ],
        [SYMMETRIC.max(), np.linalg.norm(np.asarray(A), 2)],
        1e-10,
    ),
    "sampled_lipschitz": (
        lambda f: an.stability.sampled_lipschitz(f, (3, 2), 1.0, key=KEY, norm="frobenius", samples=4).value,
        np.linalg.norm(np.asarray(A), 2),
        1e-3,
    ),
    "adversarial_lipschitz": (
        lambda f: (
            an.stability.adversarial_lipschitz(f, (3, 2), 1.0, key=KEY, norm="frobenius", starts=2, steps=30).value
        ),
        np.linalg.norm(np.asarray(A), 2),
        1e-2,
    ),
    "energy_rates": (
        lambda f: an.growth.energy_rates(f, U)["field"],
        np.sum(np.asarray(U) * (np.asarray(U) @ np.asarray(A))) / 3,
        1e-12,
    ),
    "energy_budget": (
        lambda f: an.growth.energy_budget(f, jnp.linspace(0, 1, 2), US).total,
        [np.sum(np.asarray(u) * (np.asarray(u) @ np.asarray(A))) / 3 for u in US],
        1e-12,
    ),
    "solve_reference": (
        lambda f: an.numerics.solve_reference(discretization(f), U, tolerance=1e-10).us[-1],
        END,
        1e-9,
    ),
}
TAKEN_APART = {
    "field_lipschitz": lambda f: an.field_lipschitz(f, 3, 1.0),
    "step_constants": lambda f: an.stability.step_constants(f, 3, 1.0),
    "growth_bound": lambda f: an.growth.growth_bound(f, 3),
    "negative_fraction": lambda f: an.growth.negative_fraction(f, U),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_takes_a_function(name):
    """Of the closure, which the rest is to agree with: what linear algebra says."""
    analysis, expected, tolerance = ANALYSES[name]
    np.testing.assert_allclose(
        np.asarray(analysis(FIELDS["a closure of two arguments"])), expected, rtol=tolerance, atol=1e-9
    )


@pytest.mark.parametrize("kind", FIELDS)
def test_every_kind_of_function_is_a_field(kind):
    for name in ("simulate", "energy_rates", "layer_jacobian"):
        analysis, expected, tolerance = ANALYSES[name]
        np.testing.assert_allclose(
            np.asarray(analysis(FIELDS[kind])), expected, rtol=tolerance, atol=1e-9, err_msg=name
        )


@pytest.mark.parametrize("name", TAKEN_APART)
def test_what_needs_terms_says_so(name):
    """Certificates are sums over terms that know their own constants: a function has none."""
    with pytest.raises(TypeError, match=f"{name}: .*(must be a MasterEquation|pass an EffectiveDiffusion)"):
        TAKEN_APART[name](plain)


def test_weights_of_a_module_are_differentiated_and_shuffled():
    """Of an equinox and of a Flax module; d/dA of Σ(U + hUA)² is 2h Uᵀ(U + hUA)."""
    for kind in ("an equinox module", "a Flax module"):
        d = pj.Discretization(FIELDS[kind], "euler", t1=0.25, steps=1)
        slope = eqx.filter_grad(lambda d: jnp.sum(pj.simulate(d, U).us ** 2))(d)
        (found,) = [x for x in jax.tree.leaves(slope.field) if eqx.is_array(x)]
        np.testing.assert_allclose(found, 0.5 * U.T @ (U + 0.25 * U @ A), rtol=1e-10)
        (mixed,) = [x for x in jax.tree.leaves(an.jacobian.shuffle_weights(d, key=KEY).field) if eqx.is_array(x)]
        np.testing.assert_array_equal(np.sort(np.ravel(mixed)), np.sort(np.ravel(A)))
    with pytest.raises(TypeError, match="shuffle_weights: plain has no weight matrices"):
        an.jacobian.shuffle_weights(discretization(plain), key=KEY)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 2, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, u):
        return u + jnp.tanh(self.linear(u))


def test_a_foreign_model_is_not_taken_for_a_layer():
    block = Block(nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"layer_jacobian: the system is the nnx module Block.*pdejax\.network"):
        an.layer_jacobian(block, U)
    for analysis in (
        lambda: an.lyapunov_exponents(block, U, k=1),
        lambda: an.jacobian.ftle(block, U),
        lambda: an.gradient_flow(block, U, loss=square),
        lambda: an.convergence(block, U),
    ):
        with pytest.raises(TypeError, match=r"Block.*pdejax\.network\(\[layer, …\]\)"):
            analysis()
    net = pj.network([block, block])
    found = an.layer_jacobian(net, U, layer=1).matrix()
    np.testing.assert_allclose(found, an.layer_jacobian(lambda u: block(u), U).matrix(), rtol=1e-12)
