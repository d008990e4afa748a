"""Faults that were found from outside, one row each: the right value, or a refusal in words that name function and argument.

Where a fault has a table of its own (transformations, wrong arguments, terms of solvers) the row here is the case that was found.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.linalg import expm

import pdejax as pj

KEY = jax.random.key(0)
ONE = jnp.ones((1, 1), jnp.float32)


def model(**changes):
    config = {"vocab": 16, "dim": 8, "heads": 2, "layers": 2, "ffn": 16, "norm": "pre"} | changes
    return pj.Transformer(pj.Architecture(**config), rngs=nnx.Rngs(0))


def decay(rate=1.0):
    return pj.MasterEquation(pj.LinearDamping(rate))


class OwnDamping(pj.terms.AbstractTerm):
    """−κu, and nothing said of being linear."""

    rate: float = 0.5

    def __call__(self, t, u, args):
        return -self.rate * u

    def damping(self):
        return jnp.asarray(self.rate)

    def check(self, n, d):
        pass


def closed_over_labels():
    x, y = jnp.asarray(np.random.default_rng(0).normal(size=(24, 2))), jnp.asarray(np.arange(24) % 3)

    def found():
        return pj.analysis.mutual_information(x, y).value

    return jax.jit(found)(), found(), 1e-6


DIFFUSIVITY = jnp.asarray([[1.0, 0.6], [-0.6, 1.0]])
TOKENS = np.random.default_rng(0).normal(size=(6, 2))


def asymmetric_diffusion_under_jit(solver):
    """Against the exponential of the whole 12 × 12 matrix."""

    def solve(matrix):
        field = pj.MasterEquation(pj.Diffusion(pj.Grid(6), matrix))
        return pj.simulate(pj.Discretization(field, solver, t1=0.02, steps=64), jnp.asarray(TOKENS)).us[-1]

    second = np.diag(np.full(6, -2.0)) + np.diag(np.ones(5), 1) + np.diag(np.ones(5), -1)
    second[0, 0] = second[-1, -1] = -1.0
    exact = expm(0.02 * np.kron(36 * second, np.asarray(DIFFUSIVITY))) @ TOKENS.ravel()
    return jax.jit(solve)(DIFFUSIVITY).ravel(), exact, 1e-6 if solver == "etdrk4" else 2e-3


def gradient_at_equal_diffusivities():
    """D = I: the derivative of Σu² along I is that of a scalar diffusivity, by finite differences."""

    def loss(matrix):
        field = pj.MasterEquation(pj.Diffusion(pj.Grid(6), matrix))
        return jnp.sum(pj.simulate(pj.Discretization(field, "etdrk4", t1=0.02, steps=4), jnp.asarray(TOKENS)).us ** 2)

    eps, run = 1e-5, jax.jit(jax.value_and_grad(loss))
    (ahead, _), (behind, _), (_, slope) = (run(s * np.eye(2)) for s in (1 + eps, 1 - eps, 1.0))
    return np.trace(slope), float(ahead - behind) / (2 * eps), 1e-6


def own_term_in_the_diffusion_slot(solver):
    """Taken as the nonlinear rest, whatever the slot: u' = −u/2."""
    field = pj.MasterEquation(diffusion=OwnDamping())
    found = pj.simulate(pj.Discretization(field, solver, t1=1.0, steps=40), jnp.ones((6, 2))).us[-1]
    return found, np.exp(-0.5), 1e-3 if solver in ("strangflow", "rkc2") else 1e-6


def rotation_has_no_certificate():
    """u' = uJ is an isometry, and Euler grows for every step, ‖I + hJ‖ = √(1 + h²): the constants are those of the field."""
    turn = pj.FeedForward(2, 2, key=KEY, activation="identity")
    turn = eqx.tree_at(lambda r: (r.w1, r.w2), turn, (jnp.eye(2), jnp.asarray([[0.0, 1.0], [-1.0, 0.0]])))
    field = pj.MasterEquation(turn)
    found = pj.analysis.stability.step_constants(field, 1, 1.0, norm="frobenius")
    jacobian = np.asarray(jax.jit(jax.jacfwd(lambda u: field(0.0, u, None)))(np.ones((1, 2)))).reshape(2, 2)
    grows = [np.linalg.norm(np.eye(2) + h * jacobian, 2) - np.sqrt(1 + h**2) for h in (1e-3, 0.1, 1.0)]
    bound = pj.analysis.stability.corrected_step_bound(1.0, leak=found.least_leak, lipschitz=found.rest_lipschitz)
    return np.array([found.dt_max, bound, *grows]), 0.0, 1e-15


def report_under_jit():
    us = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 8)))
    report = pj.analysis.residual.fidelity_report
    return jax.jit(lambda u: report(u, u[0]).fidelity)(us), report(us, us[0]).fidelity, 1e-12


VALUES = {
    "labels closed over by jit": closed_over_labels,
    "a diffusion matrix that is not symmetric under jit, exponential": lambda: asymmetric_diffusion_under_jit("etdrk4"),
    "a diffusion matrix that is not symmetric under jit, implicit": lambda: asymmetric_diffusion_under_jit("ark4"),
    "the gradient at a diffusion matrix of equal eigenvalues": gradient_at_equal_diffusivities,
    "an own term in the diffusion slot, exponential": lambda: own_term_in_the_diffusion_slot("etdrk4"),
    "an own term in the diffusion slot, split": lambda: own_term_in_the_diffusion_slot("strangflow"),
    "an own term in the diffusion slot, stabilized": lambda: own_term_in_the_diffusion_slot("rkc2"),
    "the corrected step bound of a rotation": rotation_has_no_certificate,
    "a report under jit": report_under_jit,
}


@pytest.mark.parametrize("name", VALUES)
def test_value(name):
    found, right, tolerance = VALUES[name]()
    np.testing.assert_allclose(
        np.asarray(found), np.broadcast_to(right, np.shape(found)), rtol=tolerance, atol=tolerance
    )


def simulated(*, u0=None, field=None, blowup=None, **how):
    d = pj.Discretization(
        field or decay(), **{"solver": "euler", "t1": 1.0} | ({"steps": 2} if "rtol" not in how else {}) | how
    )
    return pj.simulate(d, jnp.ones((2, 2)) if u0 is None else u0, blowup=blowup)


REFUSED = {
    "a depth that float32 does not resolve": (
        lambda: simulated(u0=ONE, solver="tsit5", t0=1e8, t1=1e8 + 1, rtol=1e-3, atol=1e-6),
        "simulate: t0=.* do not resolve any steps in float32",
    ),
    "a span below the rounding of a layer": (
        lambda: pj.lift(model()).replace(t0=1.0, t1=1 + 1e-8, steps=2),
        "Discretization: t0=.* same layer boundary",
    ),
    "the solver of three layers on a field of two": (
        lambda: pj.lift(model(norm="post")).replace(solver=pj.lift(model(norm="post", layers=3)).solver),
        "Discretization: LieTrotter was made for a model of 3 layers, but the field has 2",
    ),
    "layers saved where none ends": (
        lambda: pj.simulate(
            pj.Discretization(
                pj.DepthVarying.from_layers([decay()] * 2, 2.0, "linear"), "euler", t0=0.2, t1=0.8, steps=2
            ),
            jnp.ones((2, 2)),
            save="layers",
        ),
        "simulate: .*no layer begins or ends in",
    ),
    "a word as a normalization": (lambda: pj.Attention(8, 2, key=KEY, norm="layer"), "Attention: norm='layer'"),
    "a word as the base of rotation": (lambda: pj.Attention(8, 2, key=KEY, rotary="yes"), "Attention: rotary='yes'"),
    "a complex strength": (lambda: pj.Attention(8, 2, key=KEY, strength=1j), "Attention: strength=1j"),
    "a word as a switch": (lambda: pj.Attention(8, 2, key=KEY, causal="no"), "Attention: causal='no'"),
    "half a feature": (lambda: pj.Attention(2.5, 1, key=KEY), r"Attention: dim=2\.5"),
    "a word as a source": (lambda: pj.FeedForward(8, 16, key=KEY, source="g"), "FeedForward: source='g'"),
    "NaN as an epsilon": (lambda: pj.LayerNorm(8, eps=float("nan")), "LayerNorm: eps=nan"),
    "a negative width": (lambda: pj.LayerNorm(-1), "LayerNorm: dim=-1"),
    "NaN as a scale": (lambda: pj.Exchange(4, key=KEY, scale=float("nan")), "Exchange: scale=nan"),
    "a complex rate": (lambda: pj.LinearDamping(1j), "LinearDamping: gamma=1j"),
    "no configuration": (lambda: pj.Transformer(None, rngs=nnx.Rngs(0)), "Transformer: architecture=None"),
    "a word as a model": (lambda: pj.lift("model"), "lift: .*'model'|lift: .*str"),
    "True as a depth": (lambda: simulated(t1=True), "Discretization: t1=True"),
    "a word as a depth": (lambda: simulated(t1="1"), "Discretization: t1='1'"),
    "a word as a limit": (lambda: simulated(blowup="3"), "simulate: blowup='3'"),
    "more steps than int32 counts": (lambda: simulated(steps=2**31), "Discretization: steps=2147483648.*int32"),
    "a number as a key": (lambda: pj.Attention(8, 2, key=7), "Attention: key=7"),
}


SIZES = {
    "Attention": ("dim", lambda n: pj.Attention(n, 1, key=KEY)),
    "Attention, heads": ("heads", lambda n: pj.Attention(8, n, key=KEY)),
    "FeedForward": ("dim", lambda n: pj.FeedForward(n, 4, key=KEY)),
    "FeedForward, hidden": ("hidden", lambda n: pj.FeedForward(4, n, key=KEY)),
    "LayerNorm": ("dim", lambda n: pj.LayerNorm(n)),
    "RMSNorm": ("dim", lambda n: pj.RMSNorm(n)),
    "LayerNormRelaxation": ("dim", lambda n: pj.LayerNormRelaxation(n)),
    "Exchange": ("dim", lambda n: pj.Exchange(n, key=KEY)),
    "Grid": ("n", lambda n: pj.Grid(n)),
    **{
        f"Architecture, {name}": (name, lambda n, name=name: model(**{name: n}))
        for name in ("vocab", "dim", "heads", "layers", "ffn")
    },
    "Discretization, steps": ("steps", lambda n: pj.Discretization(decay(), t1=1.0, steps=n)),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [0, -1])
def test_sizes_are_positive(name, size):
    argument, make = SIZES[name]
    with pytest.raises(ValueError, match=rf"{name.split(',')[0]}: {argument}={size} must be an integer"):
        make(size)


@pytest.mark.bad_input
def test_epsilons_are_not_negative():
    for norm in (pj.LayerNorm, pj.RMSNorm):
        with pytest.raises(ValueError, match=rf"{norm.__name__}: eps=-1.0 must be one finite number"):
            norm(4, eps=-1.0)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name):
    call, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=words):
        call()
