"""Operator identification: planted coefficients come back, operators agree with loops, nulls explain nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax.analysis.operators import identify_operators, paper_operators

B, N, D, L = 6, 7, 5, 3
RNG = np.random.default_rng(0)
U0 = jnp.asarray(RNG.standard_normal((B, N, D)))
MASK = jnp.asarray(np.arange(N)[None] < np.asarray([7, 7, 5, 6, 4, 7])[:, None])
PLANTED = np.asarray([[0.11, 0.07, 0.05, 0.3], [0.02, 0.2, -0.04, 0.1], [0.2, -0.05, 0.1, 0.0]])


class Step:
    def __init__(self, c):
        self.c = c

    def __call__(self, u, args):
        parts = paper_operators(u, mask=args.mask)
        return u + sum(float(c) * x for c, x in zip(self.c, parts.values(), strict=True))


def with_noise(step, u, args):
    return step(u, args) + 0.002 * jnp.sin(7 * u)


def test_operators_are_those_of_loops_over_tokens():
    for causal in (False, True):
        found = jax.jit(lambda u, mask, causal=causal: paper_operators(u, mask=mask, causal=causal))(U0[2], MASK[2])
        u = np.asarray(U0[2])[:5]
        mean, spread = u.mean(0), np.sqrt(np.mean(np.sum((u - u.mean(0)) ** 2, 1)) + 1e-5)
        for i in range(5):
            near = [u[j] - u[i] for j in (i - 1, i + 1) if 0 <= j < 5]
            seen = u[: i + 1] if causal else u
            expected = {
                "heat": sum(near),
                "mean attention": seen.mean(0) - u[i],
                "damping": -u[i],
                "spatial normalization": -(u[i] - mean) / spread,
            }
            for name, value in expected.items():
                np.testing.assert_allclose(found[name][i], value, rtol=1e-9, atol=1e-12)
        assert all(np.all(x[5:] == 0) for x in map(np.asarray, found.values()))


def test_planted_coefficients_are_recovered():
    """To 1 % with noise of 1 % of the increments, exactly without; the rollout then follows the network on held-out sequences."""
    net = pj.network([Step(c) for c in PLANTED])
    found = identify_operators(net, U0, mask=MASK)
    papers = found.groups.index("the papers' operators")
    np.testing.assert_allclose(found.coefficients[papers], PLANTED, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.r2[papers], 1, atol=1e-9)
    assert np.all(found.rollout < 1e-9) and np.all(found.persistence[1:] > 0.01)
    assert found.train == (0, 2, 4) and found.test == (1, 3, 5)
    noisy = pj.network([functools.partial(with_noise, Step(c)) for c in PLANTED])
    nearly = identify_operators(noisy, U0, mask=MASK)
    np.testing.assert_allclose(nearly.coefficients[papers], PLANTED, rtol=0.01, atol=0.005)


def test_r2_is_that_of_predictions_and_another_sequence_explains_less():
    net = pj.network([Step(PLANTED[0])])
    found = identify_operators(net, U0)
    place = found.groups.index("damping")
    c = found.coefficients[place, 0, 2]
    y = np.asarray(jax.jit(jax.vmap(lambda u: Step(PLANTED[0])(u, pj.FieldArgs(None)) - u))(U0))
    u = np.asarray(U0)
    assert c == pytest.approx(-np.sum(u[::2] * y[::2]) / np.sum(u[::2] ** 2))
    expected = 1 - np.sum((y + c * u) ** 2, (1, 2))[1::2] / np.sum(y**2, (1, 2))[1::2]
    np.testing.assert_allclose(found.r2[place, 0], expected, rtol=1e-9)
    assert np.all(found.null[place, 0] < found.r2[place, 0])


def test_a_parallel_block_is_its_own_terms():
    """u + A(u) + R(u): both coefficients are 1 and explain all; in a sequential block R is taken elsewhere."""
    sizes = {"vocab": 9, "dim": 8, "heads": 2, "layers": 2, "ffn": 8, "dtype": "float64", "param_dtype": "float64"}
    tokens = RNG.integers(0, 9, (4, N))
    for block, exact in (("parallel", True), ("sequential", False)):
        model = pj.Transformer(pj.Architecture(**sizes, block=block, causal=True, head="lm"), rngs=nnx.Rngs(0))
        u0 = jnp.stack([model.embed(x) for x in tokens])
        found = identify_operators(model, u0)
        own = found.groups.index("own terms")
        assert found.operators[4:] == ("own interaction", "own reaction")
        assert np.all(found.r2[own] > 1 - 1e-9) == exact and np.all(found.r2[own] > 0.5)
        if exact:
            np.testing.assert_allclose(found.coefficients[own, :, 4:], 1, rtol=1e-8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: identify_operators(pj.network([lambda u: u]), U0[:3]), "3 sequences"),
        (lambda: identify_operators(pj.network([lambda u: u]), U0[0]), "1 sequences"),
        (lambda: identify_operators(3, U0), "system"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
