"""Information estimates after a short training, against closed forms, on pairs they have not seen."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.analysis.information.trained import CLUB, BarberAgakov, InfoNCE, PaperEstimate, fit
from pdejax.exact import bivariate_normal_information, diffusion_channel_information, heat_eigenvalues

BATCH = 256


def fitted(estimator, sample, *, steps=500, batches=100, b=BATCH, rate=5e-3, seed=0):
    """Mean over fresh batches after training, its standard error, and the share of saturated ones."""
    k1, k2, k3 = jax.random.split(jax.random.key(seed), 3)
    x, t = sample(k1, 8192)
    estimator, _ = fit(estimator, x, t, key=k2, steps=steps, batch_size=b, learning_rate=rate)

    def one(key):
        k1, k2 = jax.random.split(key)
        return estimator.estimate(*sample(k1, b), k2)

    found = jax.jit(jax.vmap(one))(jax.random.split(k3, batches))
    value = np.asarray(found.value)
    return value.mean(), value.std() / batches**0.5, float(jnp.mean(found.saturated))


def correlated(rho, dims):
    """Independent pairs of coordinates with these correlations."""
    rho = jnp.broadcast_to(jnp.asarray(rho, float), (dims,))

    def sample(key, count):
        k1, k2 = jax.random.split(key)
        x, noise = jax.random.normal(k1, (count, dims)), jax.random.normal(k2, (count, dims))
        return x, rho[None] * x + jnp.sqrt(1 - rho**2)[None] * noise

    return sample


def normal_entropy(dims):
    return 0.5 * dims * math.log(2 * math.pi * math.e)


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "dims"), [(0.8, 1), (0.6, 4)])
def test_gaussian_channels(rho, dims):
    """−½Σln(1−ρ²): what each estimate is known to give on it."""
    exact = dims * float(bivariate_normal_information(rho))
    sample, key = correlated(rho, dims), jax.random.key(7)
    known = BarberAgakov(dims, dims, 16, key=key, entropy=normal_entropy(dims))
    for estimator in (known, BarberAgakov(dims, dims, 16, key=key, direction="t given x"),
                      PaperEstimate(dims, dims, 16, key=key)):  # fmt: skip
        value, error, saturated = fitted(estimator, sample)
        assert value == pytest.approx(exact, abs=0.04 + 3 * error) and saturated == 0
        if estimator is known:
            assert value < exact + 3 * error
    value, error, _ = fitted(InfoNCE(dims, dims, 32, key=key), sample)
    assert value < exact + 3 * error
    assert value > exact - 0.12
    value, error, _ = fitted(CLUB(dims, dims, 16, key=key), sample)
    assert value > exact - 3 * error
    # With a q that can be the channel and no more. 8192 pairs tell a variance to 1.6 %, which enters (1+ρ²)/(1−ρ²)/2 times.
    value, error, _ = fitted(CLUB(dims, dims, 0, key=key), sample)
    tolerance = 3 * dims**0.5 * 0.016 * (1 + rho**2) / (1 - rho**2) / 2
    assert value == pytest.approx(dims * rho**2 / (1 - rho**2), abs=tolerance + 3 * error)


@pytest.mark.slow
def test_independent_pairs_have_none():
    def sample(key, count):
        k1, k2 = jax.random.split(key)
        return jax.random.normal(k1, (count, 2)), jax.random.normal(k2, (count, 2))

    key = jax.random.key(3)
    for estimator in (
        InfoNCE(2, 2, 16, key=key),
        CLUB(2, 2, 16, key=key),
        CLUB(2, 2, 16, key=key, sampled=True),
        BarberAgakov(2, 2, 16, key=key, entropy=normal_entropy(2)),
        PaperEstimate(2, 2, 16, key=key),
    ):
        value, error, saturated = fitted(estimator, sample, steps=300)
        assert abs(value) < 0.03 + 3 * error, type(estimator).__name__
        assert saturated == 0


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.0, 0.05])
def test_diffusion_channel(t):
    """THEORY §5.11: what noise leaves of the initial field after diffusion over depth t."""
    modes, noise = 4, 0.5
    variances = jnp.asarray([1.0, 0.5, 0.25, 0.125])
    eigenvalues = heat_eigenvalues(modes, boundary="neumann", diffusivity=1.0)
    exact = float(diffusion_channel_information(variances, eigenvalues, t, noise))
    gain = jnp.exp(eigenvalues * t)

    def sample(key, count):
        k1, k2 = jax.random.split(key)
        x = jnp.sqrt(variances)[None] * jax.random.normal(k1, (count, modes))
        return x, x * gain[None] + noise * jax.random.normal(k2, (count, modes))

    entropy = normal_entropy(modes) + 0.5 * float(jnp.sum(jnp.log(variances)))
    key = jax.random.key(11)
    low, error, _ = fitted(BarberAgakov(modes, modes, 16, key=key, entropy=entropy), sample)
    assert exact - 0.08 < low < exact + 3 * error
    low, error, _ = fitted(InfoNCE(modes, modes, 32, key=key), sample)
    assert exact - 0.3 < low < exact + 3 * error
    # The channel adds exactly this noise, so q's floor may be the noise itself.
    high, error, _ = fitted(CLUB(modes, modes, 16, key=key, floor=noise), sample)
    assert high > exact - 3 * error
    level = float(PaperEstimate(modes, modes, 16, key=key).estimate(*sample(key, 64), noise=noise).noise)
    assert level == noise


@pytest.mark.slow
def test_a_trained_critic_saturates_below_log_b():
    """I = 8.3 nats in batches of 64: the value stops at ln 64 = 4.16 and says so; a channel of 1.4 nats does not."""
    for rho, saturated in ((0.992, True), (0.7, False)):
        value, _, share = fitted(InfoNCE(4, 4, 32, key=jax.random.key(0)), correlated(rho, 4), b=64, steps=600)
        assert value < math.log(64)
        assert share > 0.9 if saturated else share < 0.1


@pytest.mark.slow
def test_training_lowers_the_loss_in_both_precisions():
    for dtype, makers in ((jnp.float32, (InfoNCE, CLUB, BarberAgakov, PaperEstimate)), (jnp.float64, (InfoNCE,))):
        x, t = (a.astype(dtype) for a in correlated(0.9, 2)(jax.random.key(0), 512))
        for make in makers:
            _, losses = fit(make(2, 2, 8, key=jax.random.key(1)), x, t, key=jax.random.key(2), steps=60, batch_size=64)
            assert losses.shape == (60,) and float(losses[-5:].mean()) < float(losses[:5].mean()) - 0.1


def test_bad_training_options_are_refused():
    x, t = correlated(0.5, 1)(jax.random.key(0), 16)
    good = InfoNCE(1, 1, 4, key=jax.random.key(0))
    with pytest.raises(TypeError, match="estimator='infonce' must be an AbstractInformation"):
        fit("infonce", x, t, key=jax.random.key(0))
    with pytest.raises(ValueError, match="steps=0"):
        fit(good, x, t, key=jax.random.key(0), steps=0)
    with pytest.raises(ValueError, match="batch_size=1"):
        fit(good, x, t, key=jax.random.key(0), batch_size=1)
    with pytest.raises(ValueError, match="learning_rate=-1"):
        fit(good, x, t, key=jax.random.key(0), learning_rate=-1.0)
    with pytest.raises(ValueError, match="x has shape"):
        fit(good, jnp.zeros((16, 2)), t, key=jax.random.key(0))
