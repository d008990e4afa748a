"""Decay of fidelity against closed forms of uniform attention, which decay as each of the three laws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax import Attention, MasterEquation
from pdejax.analysis.residual._fidelity import (
    decay_difference,
    fidelity,
    fidelity_bound,
    residual_decay,
    residual_necessity,
    residual_ratio,
)
from pdejax.exact import uniform_attention

K, B, N, D = 25, 4, 3, 2
TS = jnp.linspace(0.0, 12.0, K)
FEW = 40


def states(matrix, u0):
    """u' = V ū − u in closed form, (k, b, n, d)."""
    flow = jax.vmap(lambda u, t: uniform_attention(u, jnp.asarray(matrix), t), in_axes=(0, None))
    return jax.vmap(flow, in_axes=(None, 0))(u0, TS)


def equal_tokens(key):
    """Tokens all alike, along the first feature: the deviations are 0 and the direction is e₁ e^{tV}."""
    sizes = 1 + jax.random.uniform(key, (B, 1, 1))
    return sizes * jnp.broadcast_to(jnp.asarray([1.0, 0.0])[None, None], (B, N, D))


def test_leaky_attention_decays_by_any_of_the_three_laws():
    """e₁e^{tV} = (1, (b/c)(e^{ct} − 1)): ρ ~ (c/b) e^{−ct}; for c = 0 (1, bt): ρ = (1 + b²t²)^{−1/2}; V = I: a plateau."""
    u0 = equal_tokens(jax.random.key(0))
    b, c = 2.0, 0.7
    exponential = residual_decay(TS, states([[0.0, b], [0.0, c]], u0), start=4.0, resamples=FEW)
    algebraic = residual_decay(TS, states([[0.0, 3.0], [0.0, 0.0]], u0), start=4.0, resamples=FEW)
    mixed = u0 + jax.random.normal(jax.random.key(1), u0.shape)
    plateau = residual_decay(TS, states(np.eye(2), mixed), start=4.0, resamples=FEW)
    t = np.asarray(TS)
    assert np.asarray(exponential.rho.value) == pytest.approx((1 + (b / c * np.expm1(c * t)) ** 2) ** -0.5, rel=1e-9)
    assert np.asarray(algebraic.rho.value) == pytest.approx((1 + 9 * t**2) ** -0.5, rel=1e-9)
    assert (exponential.kind, algebraic.kind, plateau.kind) == ("exponential", "algebraic", "plateau")
    assert float(exponential.rate.value) == pytest.approx(c, rel=0.05)
    assert float(algebraic.power.value) == pytest.approx(1, rel=0.01)
    mean = jnp.mean(mixed, axis=1, keepdims=True)
    limit = np.mean(np.asarray(jnp.sqrt(N * jnp.sum(mean**2, axis=(1, 2)) / jnp.sum(mixed**2, axis=(1, 2)))))
    assert float(plateau.plateau.value) == pytest.approx(limit, abs=2e-3)
    assert float(plateau.plateau.low) > 0.1 and float(plateau.plateau.low) < limit < float(plateau.plateau.high)
    assert abs(float(exponential.plateau.value)) < 0.01  # a plateau fitted to what decays is none


def test_criteria_are_those_of_the_laws_for_few_points():
    """Where a law of p parameters is met exactly: AICc = k ln tolerance² + 2p + 2p(p + 1)/(k − p − 1) with k points fitted."""
    t = np.arange(1.0, 9.0)  # after the first depth, which is not fitted
    ts = jnp.asarray([0.0, *t])
    for law, rho, parameters in ((0, 0.9 * np.exp(-0.4 * t), 2), (1, 0.8 * t**-0.5, 2), (2, np.full(8, 0.3), 1)):
        found = residual_decay(ts, jnp.asarray([1.0, *rho]), tolerance=1e-3, resamples=FEW)
        small = 2 * parameters * (parameters + 1) / (8 - parameters - 1)
        assert float(found.aicc.value[law]) == pytest.approx(8 * np.log(1e-6) + 2 * parameters + small, abs=1e-3)


def test_laws_are_recovered_exactly_with_noise_free_fidelities():
    t = np.asarray(TS)
    with np.errstate(divide="ignore"):
        power = np.where(t > 0, 0.8 * t**-1.5, 1.0) / 3
    for rho, name, expected in (
        (0.9 * np.exp(-0.35 * t), "rate", 0.35),
        (power, "power", 1.5),
        (0.3 + 0.6 * np.exp(-0.8 * t), "plateau", 0.3),
        (0.3 + 0.6 * np.exp(-0.8 * t), "plateau_rate", 0.8),
        (-0.2 + 0.6 * np.exp(-0.8 * t), "plateau", -0.2),
        (np.full(K, 0.9), "plateau", 0.9),
        (np.full(K, 0.9), "rate", 0.0),
    ):
        found = residual_decay(TS, jnp.asarray(np.stack([rho] * B, axis=1)), resamples=FEW)
        assert float(getattr(found, name).value) == pytest.approx(expected, abs=1e-5)
        assert found.kind == {"rate": "exponential", "power": "algebraic"}.get(name, "plateau") or rho[0] == rho[-1]
        assert not found.rho.nulls and found.sharp is None
    assert found.kind == "plateau"  # a constant


def test_rho_and_bounds_are_those_of_the_residual_module_and_padding_is_not_seen():
    us = jax.random.normal(jax.random.key(2), (K, B, N, D))
    whole = residual_decay(TS, us, resamples=FEW)
    rho = jax.vmap(fidelity, in_axes=(1, 0))(us, us[0])
    r = jax.vmap(residual_ratio, in_axes=(1, 0))(us, us[0])
    assert np.asarray(whole.rho.value) == pytest.approx(np.mean(np.asarray(rho), axis=0), abs=1e-12)
    assert np.asarray(whole.sharp) == pytest.approx(np.mean(np.asarray(fidelity_bound(r)), axis=0), abs=1e-12)
    assert np.asarray(whole.claimed) == pytest.approx(
        np.mean(np.asarray(fidelity_bound(r, claimed=True)), axis=0), abs=1e-12
    )
    assert abs(float(np.mean(np.asarray(whole.rho.nulls["tokens shuffled"])[1:]))) < 0.2
    mask = jnp.asarray([[True, True, False]] * B)
    a, b = (us.at[:, :, 2].set(x) for x in (jnp.nan, 7.0))
    masked = [residual_decay(TS, x, mask=mask, resamples=FEW) for x in (a, b)]
    for x, y in zip(*(jax.tree.leaves(m) for m in masked), strict=True):
        assert np.array_equal(np.asarray(x), np.asarray(y))
    two = jax.vmap(fidelity, in_axes=(1, 0))(us[:, :, :2], us[0, :, :2])
    assert np.asarray(masked[0].rho.value) == pytest.approx(np.mean(np.asarray(two), axis=0), abs=1e-12)


@pytest.mark.slow
def test_residual_connection_reaches_the_plateau_of_the_bare_system():
    """Uniform leaky attention with V = I: without residual ρ is at the plateau after one layer, with it later, and neither
    decays to 0 (against v2 Thm 3.4 as written)."""
    attention = Attention(2, 1, key=jax.random.key(0), kernel="uniform", leak=True)
    identity = [jnp.eye(2)[:, None, :], jnp.eye(2)[None]]
    equation = MasterEquation(eqx.tree_at(lambda a: [a.wv, a.wo], attention, identity))
    u0 = jax.random.normal(jax.random.key(3), (B, N, D)) + 1.0
    found = residual_necessity(equation, u0, layers=K - 1, refine=4, resamples=FEW)
    mean = jnp.mean(u0, axis=1)
    limit = float(jnp.mean(jnp.sqrt(N * jnp.sum(mean**2, axis=1) / jnp.sum(u0**2, axis=(1, 2)))))
    assert np.asarray(found.bare.rho.value)[1:] == pytest.approx(limit, rel=1e-9)
    # At step ¼ the deviations shrink by ¾ a step, (¾)⁴ a layer.
    square, whole = N * jnp.sum(mean**2, axis=1), jnp.sum(u0**2, axis=(1, 2))
    s = 0.75**8
    two = (square + (whole - square) * s) / jnp.sqrt((square + (whole - square) * s**2) * whole)
    assert float(found.residual.rho.value[2]) == pytest.approx(float(jnp.mean(two)), rel=1e-9)
    assert found.bare.kind == "plateau" and found.residual.kind == "plateau"
    assert float(found.plateau.value) == pytest.approx(0, abs=2e-3)
    gap = found.rho.minus("bare")
    assert float(gap[1]) > 0 and float(gap[0]) == pytest.approx(0)


def test_a_residual_that_keeps_what_a_bare_system_loses():
    t, scales = np.asarray(TS), np.linspace(0.9, 1.0, 4)
    bare = scales[None] * np.exp(-0.5 * t)[:, None]
    kept = scales[None] * (0.6 + 0.4 * np.exp(-0.5 * t))[:, None]
    found = decay_difference(TS, jnp.asarray(bare), jnp.asarray(kept), resamples=FEW)
    assert (found.bare.kind, found.residual.kind) == ("exponential", "plateau")
    assert float(found.plateau.low) > 0.5 and float(found.plateau.value) == pytest.approx(0.57, abs=1e-4)
    assert np.all(np.asarray(found.rho.minus("bare"))[1:] > 0)


def test_bad_input():
    rho = jnp.ones((K, 2))
    with pytest.raises(ValueError, match="increase strictly"):
        residual_decay(TS[::-1], rho)
    with pytest.raises(ValueError, match="25 depths"):
        residual_decay(TS[:4], rho)
    with pytest.raises(ValueError, match="at least 5"):
        residual_decay(TS, rho, start=11.0)
    with pytest.raises(ValueError, match="tolerance=0"):
        residual_decay(TS, rho, tolerance=0.0)
    with pytest.raises(ValueError, match="cosines"):
        residual_decay(TS, 3 * rho)
    with pytest.raises(ValueError, match="mask belongs to states"):
        residual_decay(TS, rho, mask=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="pairs are compared"):
        decay_difference(TS, rho, rho[:, :1])
    equation = MasterEquation(Attention(2, 1, key=jax.random.key(0), leak=True))
    with pytest.raises(ValueError, match="leak=True"):
        residual_necessity(MasterEquation(Attention(2, 1, key=jax.random.key(0))), jnp.ones((3, 2)), layers=6)
    with pytest.raises(ValueError, match="layers=3"):
        residual_necessity(equation, jnp.ones((3, 2)), layers=3)
    with pytest.raises(ValueError, match="refine=1"):
        residual_necessity(equation, jnp.ones((3, 2)), layers=6, refine=1)
