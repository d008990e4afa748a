"""The stability maps against a slow loop in NumPy, and what counts as unstable and as overflow."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from pdejax.studies.numerics._stability_config import FAMILIES, StabilityConfig
from pdejax.studies.numerics._stability_maps import (
    AXES,
    DIFFUSIVITY,
    EXCESS,
    RANGE,
    SLICES,
    TOKENS,
    VALUE_NORM,
    Measured,
    Parameters,
    classify,
    family,
    points,
    run_chunk,
    start_fields,
)

STEPS = 60
# Two runs of every family, on either side of a limit: h, Δx, α, γ, w.
RUNS = {
    "diffusion": [(0.9, 0.3, 1, 0, 1), (1.2, 0.3, 1, 0, 1)],
    "leak": [(0.6, 0.5, 2, 0.5, 1), (0.9, 0.5, 2, 0.5, 1)],
    "mean attention": [(0.5, 0.5, 1, 0, -3), (0.8, 0.5, 1, 0, -3)],
    "linear reaction": [(0.15, 0.5, 1, 0, 10), (0.25, 0.5, 1, 0, 10)],
    "softmax attention": [(0.5, 0.5, 2, 0, 3), (1.2, 0.5, 2, 0, 3)],
    "pre-LN block": [(0.5, 0.4, 1, 0, 1), (3.0, 0.4, 1, 0, 1)],
}


def as_points(runs):
    return {axis: np.array([float(run[i]) for run in runs]) for i, axis in enumerate(AXES)}


def twin(name, kind, run, u, v):
    """Euler in NumPy, token by token, and the perturbation by central differences of the step."""
    h, dx, alpha, gamma, w = run
    e = kind.equation
    wq, wk, wv = (np.asarray(x)[:, 0] for x in (e.interaction.wq, e.interaction.wk, e.interaction.wv))
    w1, w2 = np.asarray(e.reaction.w1), np.asarray(e.reaction.w2)
    decay = {"leak": alpha + gamma, "softmax attention": alpha + gamma}.get(name, 0.0)

    def norm(x):
        if name != "pre-LN block":
            return x
        return (x - x.mean()) / math.sqrt(x.var() + 1e-6)

    def attend(x):
        if name == "mean attention":
            return [w * np.mean(x, axis=0)] * TOKENS
        size = math.sqrt(abs(w)) if name == "softmax attention" else 1.0
        rows = []
        for i in range(TOKENS):
            logits = np.array([(size * norm(x[i]) @ wq) @ (size * norm(x[j]) @ wk) / 2 for j in range(TOKENS)])
            share = np.exp(logits - logits.max())
            share /= share.sum()
            rows.append(sum(share[j] * (norm(x[j]) @ wv) for j in range(TOKENS)))
        return rows

    def step(x):
        new = np.empty_like(x)
        mixed = attend(x) if name in ("mean attention", "softmax attention", "pre-LN block") else [0 * x[0]] * TOKENS
        for i in range(TOKENS):
            left, right = x[max(i - 1, 0)], x[min(i + 1, TOKENS - 1)]
            rate = DIFFUSIVITY / dx**2 * (left - 2 * x[i] + right) - decay * x[i] + alpha * mixed[i]
            if name == "linear reaction":
                rate = rate - w * x[i]
            if name == "pre-LN block":
                z = norm(x[i]) @ w1
                rate = rate + (0.5 * z * (1 + erf(z / math.sqrt(2)))) @ w2
            new[i] = x[i] + h * rate
        return new

    def size(x):
        return max(np.linalg.norm(token) for token in x)

    grown, spread = 0.0, min(token.std() for token in u)
    for _ in range(STEPS):
        eps = 1e-6 * size(u)
        v, u = (step(u + eps * v) - step(u - eps * v)) / (2 * eps), step(u)
        grown += math.log(size(v))
        v = v / size(v)
        spread = min(spread, min(token.std() for token in u))
    return math.log(size(u)), grown, spread


@pytest.fixture(scope="module")
def fields():
    return start_fields(0)


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_a_slow_loop(name, fields):
    kind, where = family(name, 0), as_points(RUNS[name])
    parameters = Parameters(*(jnp.asarray(x) for x in kind.parameters(where)))
    fast = run_chunk(kind.equation, parameters, *fields, STEPS)
    slow = Measured(*np.array([twin(name, kind, run, *map(np.asarray, fields)) for run in RUNS[name]]).T)
    np.testing.assert_allclose(fast.state, slow.state, atol=1e-8)
    np.testing.assert_allclose(fast.spread, slow.spread, rtol=1e-8)
    # Differences of a state that has blown up straddle the bends of the softmax.
    calm = slow.state < 10 if name in ("softmax attention", "pre-LN block") else np.full(2, True)
    np.testing.assert_allclose(np.asarray(fast.perturbation)[calm], slow.perturbation[calm], atol=1e-3)
    status = classify(kind, where, fast, STEPS)["status"]
    np.testing.assert_array_equal(status, classify(kind, where, slow, STEPS)["status"])
    assert list(status) == [0, 1]


def test_weights_have_the_norms_that_the_bounds_use():
    for name in ("softmax attention", "pre-LN block"):
        a = family(name, 3).equation.interaction
        assert np.linalg.norm(a.wq[:, 0] @ a.wk[:, 0].T, 2) / 2 == pytest.approx(1)
        assert np.linalg.norm(a.wv[:, 0], 2) == pytest.approx(VALUE_NORM)
        np.testing.assert_array_equal(a.wo[0], np.eye(4))
    r = family("linear reaction", 3).equation.reaction
    u = jax.random.normal(jax.random.key(0), (5, 4))
    np.testing.assert_allclose(r.network(u), -u, atol=1e-14)


def judge(name, run, state, perturbation, steps=400):
    found = classify(
        family(name, 0), as_points([run]), Measured(*map(np.atleast_1d, (state, perturbation, 0.5))), steps
    )
    return int(found["status"][0])


def test_overflow_counts_as_such():
    # The flow of mean attention with W = +5 grows by e^{5T}: 400 steps of 0.5 leave the range whatever the run did.
    assert judge("mean attention", (0.5, 1, 1, 0, 5.0), RANGE, RANGE) == 2
    assert judge("mean attention", (0.5, 1, 1, 0, 5.0), 0.0, 0.0) == 2
    # The same growth is the flow's own over a shorter depth, and the scheme's with the other sign.
    assert judge("mean attention", (0.05, 1, 1, 0, 5.0), 100.0, 100.0) == 0
    assert judge("mean attention", (0.05, 1, 1, 0, -5.0), 100.0, 100.0) == 1


def test_a_bounded_state_with_growing_perturbations_is_unstable():
    run = (0.1, 1, 1, 40, 1)
    assert judge("softmax attention", run, 0.0, EXCESS + 1) == 1
    assert judge("softmax attention", run, 0.0, EXCESS - 1) == 0
    # Where the flow may amplify them out of range as well, they are not judged.
    assert judge("softmax attention", (1.0, 1, 1, 0, 30), 0.0, 1e3) == 0


def test_points_are_a_slice_and_draws():
    config = StabilityConfig(resolution=5, draws=200)
    for name, other in SLICES.items():
        where = points(config, name)
        assert all(len(where[axis]) == 225 for axis in AXES)
        cut = {axis: where[axis][:25].reshape(5, 5) for axis in AXES}
        assert np.ptp(cut["step"], axis=1).max() == 0 and np.all(np.diff(cut["step"][:, 0]) > 0)
        assert np.ptp(cut[other], axis=0).max() == 0 and np.all(np.diff(cut[other][0]) > 0)
        assert np.all(where["damping"] >= 0) and 0.3 < np.mean(where["damping"][25:] == 0) < 0.7
    again = points(config, "leak")
    np.testing.assert_array_equal(again["step"], points(config, "leak")["step"])
