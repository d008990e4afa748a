"""Rotary positions against complex numbers and against the published scalings, one frequency at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.terms import Rotary

N, H, DK = 9, 2, 8


def heads(dtype="float64", seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((N, H, DK)), dtype)


@pytest.mark.parametrize("dim", [2, 4, DK])
def test_features_turn_in_pairs(dim):
    rotary, x = Rotary(dim, 30.0), np.asarray(heads())
    turned = np.asarray(rotary(jnp.asarray(x)))
    for m in range(N):
        for h in range(H):
            for j in range(dim // 2):
                z = complex(x[m, h, j], x[m, h, j + dim // 2]) * np.exp(1j * m * 30.0 ** (-2 * j / dim))
                assert turned[m, h, j] == pytest.approx(z.real, rel=1e-13, abs=1e-14)
                assert turned[m, h, j + dim // 2] == pytest.approx(z.imag, rel=1e-13, abs=1e-14)
    np.testing.assert_array_equal(turned[:, :, dim:], x[:, :, dim:])


def test_products_depend_on_distance():
    rotary = Rotary(6, 10.0)
    x = jnp.broadcast_to(heads()[:1], (N, H, DK))
    products = np.asarray(jnp.einsum("ihk,jhk->hij", rotary(x), rotary(2 * x)))
    np.testing.assert_allclose(products[:, 1:, 1:], products[:, :-1, :-1], rtol=1e-12)


def llama3(f, factor, low, high, length):
    """One frequency of Llama 3.1, by its wavelength."""
    wavelength = 2 * math.pi / f
    if wavelength < length / high:
        return f
    if wavelength > length / low:
        return f / factor
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * f / factor + smooth * f


def yarn(j, dim, theta, factor, length, fast, slow, whole):
    """One frequency of YaRN, by the index at which a frequency turns so often."""

    def index(turns):
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index(fast), index(slow)
    if whole:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    f = theta ** (-2 * j / dim)
    ramp = min(max((j - low) / ((high - low) or 0.001), 0.0), 1.0)
    return f / factor * ramp + f * (1 - ramp)


def test_scalings():
    dim, theta = 64, 500000.0
    plain = Rotary(dim, theta)
    f = [theta ** (-2 * j / dim) for j in range(dim // 2)]
    np.testing.assert_allclose(plain.frequencies, f, rtol=1e-14)
    np.testing.assert_allclose(plain.linear(4.0).frequencies, [x / 4 for x in f], rtol=1e-14)
    slow = [llama3(x, 8.0, 1.0, 4.0, 8192) for x in f]
    np.testing.assert_allclose(plain.llama3(8.0, 1.0, 4.0, 8192).frequencies, slow, rtol=1e-13)
    assert slow[0] == f[0] and slow[-1] == f[-1] / 8 and any(a / 8 < b < a for a, b in zip(f, slow, strict=True))
    for whole in (True, False):
        found = plain.yarn(4.0, 4096, whole=whole)
        expected = [yarn(j, dim, theta, 4.0, 4096, 32, 1, whole) for j in range(dim // 2)]
        np.testing.assert_allclose(found.frequencies, expected, rtol=1e-12)
        assert found.gain == pytest.approx(0.1 * math.log(4) + 1, rel=1e-15)
    assert plain.gain == plain.linear(2.0).gain == 1.0 and plain.yarn(4.0, 4096, gain=1.5).gain == 1.5


@pytest.mark.parametrize(
    ("kind", "scaling"),
    [
        ("linear", {"factor": 4.0}),
        ("llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ("yarn", {"factor": 4.0}),
    ],
)
def test_scalings_against_transformers(kind, scaling):
    """The functions that Llama's checkpoints are run with, in float32."""
    transformers = pytest.importorskip("transformers")
    functions = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    length, theta = 1024, 10000.0
    options = {"rope_type": kind, "rope_theta": theta, "original_max_position_embeddings": length, **scaling}
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=4 * length,
        rope_theta=theta,
        rope_scaling=options,
    )
    frequencies, gain = functions[kind](config, "cpu")
    plain = Rotary(32, theta)
    found = {
        "linear": lambda: plain.linear(4.0),
        "llama3": lambda: plain.llama3(8.0, 1.0, 4.0, length),
        "yarn": lambda: plain.yarn(4.0, length),
    }[kind]()
    np.testing.assert_allclose(found.frequencies, np.asarray(frequencies), rtol=2e-6)
    assert found.gain == pytest.approx(gain, rel=1e-6)


def test_stretch_bounds_what_it_does_to_lengths():
    x = heads()
    for rotary in (Rotary(DK), Rotary(4).yarn(8.0, 16), Rotary(DK).yarn(8.0, 16), Rotary(4).yarn(2.0, 16, gain=0.5)):
        ratio = np.linalg.norm(rotary(x), axis=-1) / np.linalg.norm(x, axis=-1)
        assert ratio.max() <= rotary.stretch(DK) * (1 + 1e-12)
        first = rotary(jnp.zeros_like(x).at[..., 0].set(1.0))
        assert np.linalg.norm(first, axis=-1).max() == pytest.approx(rotary.gain)


def test_types_and_derivatives():
    rotary = Rotary(4).yarn(4.0, 8)
    assert rotary(heads("float32")).dtype == jnp.float32 and rotary(heads("bfloat16")).dtype == jnp.bfloat16
    np.testing.assert_allclose(rotary(heads("float32")), rotary(heads()), rtol=1e-5, atol=1e-6)
    x, v = heads(), heads(seed=1)
    np.testing.assert_allclose(jax.jvp(rotary, (x,), (v,))[1], rotary(v), rtol=1e-12)
    assert Rotary(4) == Rotary(4) and hash(Rotary(4)) == hash(Rotary(4)) and Rotary(4) != Rotary(4).linear(2.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rotary(3), "dim=3 must be even"),
        (lambda: Rotary(0), "dim=0 must be an integer of at least 1"),
        (lambda: Rotary(4, -1.0), "theta=-1.0 must be one finite number > 0"),
        (lambda: Rotary(4).linear(0.5), "Rotary.linear: factor=0.5 must be one finite number ≥ 1"),
        (
            lambda: Rotary(4).llama3(8.0, 4.0, 4.0, 100),
            "Rotary.llama3: high=4.0 must be one finite number > 4; it is above low",
        ),
        (lambda: Rotary(4).llama3(8.0, 1.0, 4.0, 0), "Rotary.llama3: length=0"),
        (lambda: Rotary(4).yarn(2.0, 10, slow=32.0), "Rotary.yarn: fast=32.0"),
        (lambda: Rotary(4, 0.5).yarn(2.0, 10), "theta > 1, not theta=0.5"),
        (lambda: Rotary(4)(jnp.ones((5, 4))), r"Rotary: x has shape \(5, 4\); it must be \(tokens, heads, features\)"),
        (
            lambda: Rotary(4)(jnp.ones((5, 2, 3))),
            r"Rotary: x has shape \(5, 2, 3\); .* at least the 4 features that turn",
        ),
        # Beyond, the angles that are looked up would be those of another token.
        (lambda: Rotary(4)(jnp.ones((1, 1, 4)), jnp.asarray([2048**2])), "positions must lie in 0 … 4,194,303"),
        (lambda: Rotary(4)(jnp.ones((1, 1, 4)), jnp.asarray([-1])), "positions must lie in 0 … 4,194,303"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()
