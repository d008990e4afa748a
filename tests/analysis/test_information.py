"""Information estimates with densities and critics that are known: identities, bounds, limits, gradients, bad input."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma

from pdejax.analysis.information._counting import gaussian_entropy
from pdejax.analysis.information.trained import CLUB, BarberAgakov, ConditionalGaussian, InfoNCE, PaperEstimate
from pdejax.exact import bivariate_normal_information

FLOOR = 1e-3
MAKERS = {
    "infonce": lambda dx, dt, key: InfoNCE(dx, dt, 8, key=key),
    "infonce joint": lambda dx, dt, key: InfoNCE(dx, dt, 8, key=key, critic="joint"),
    "club": lambda dx, dt, key: CLUB(dx, dt, 8, key=key),
    "vclub-s": lambda dx, dt, key: CLUB(dx, dt, 8, key=key, sampled=True, full=True),
    "barber-agakov x": lambda dx, dt, key: BarberAgakov(dx, dt, 8, key=key),
    "barber-agakov t": lambda dx, dt, key: BarberAgakov(dx, dt, 8, key=key, direction="t given x", full=True),
    "paper": lambda dx, dt, key: PaperEstimate(dx, dt, 8, key=key),
}


def gaussian_q(weight, bias, covariance) -> ConditionalGaussian:
    """q(t|x) = N(W x + b, covariance) to rounding."""
    weight, bias = np.atleast_2d(weight).astype(float), np.atleast_1d(bias).astype(float)
    q = ConditionalGaussian(weight.shape[1], weight.shape[0], 0, key=jax.random.key(0), floor=FLOOR, full=True)
    # Precision = FᵀF with F lower triangular, F = U/s: the reversed Cholesky factor.
    precision = np.linalg.inv(np.atleast_2d(covariance))
    factor = np.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1].T
    scale = 1 / np.diag(factor)
    raw = 0.5 * np.log(scale**2 - FLOOR**2)
    leaves = (jnp.asarray(weight), jnp.asarray(bias), jnp.asarray(raw), jnp.asarray(factor * scale[None]))
    return eqx.tree_at(lambda q: (q.mean.w, q.mean.b, q.log_std, q.coupling), q, leaves)


def hermite_pairs(joint, nodes=4):
    """Points and weights that integrate polynomials up to degree 2·nodes − 1 exactly under N(0, joint)."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    d = joint.shape[0]
    points = np.array(list(itertools.product(z, repeat=d))) @ np.linalg.cholesky(joint).T
    return points, np.prod(np.array(list(itertools.product(w, repeat=d))), axis=1)


def kl(mean0, cov0, mean1, cov1):
    """KL(N0 ‖ N1), nats."""
    inverse, gap = np.linalg.inv(cov1), mean1 - mean0
    logs = np.linalg.slogdet(cov1)[1] - np.linalg.slogdet(cov0)[1]
    return 0.5 * (np.trace(inverse @ cov0) + gap @ inverse @ gap - len(mean0) + logs)


def perturbed(estimator, scale=0.1):
    """Other parameters, so that no symmetry of the start is left."""
    rng = np.random.default_rng(4)
    return jax.tree.map(
        lambda a: jnp.asarray(np.asarray(a) + scale * rng.standard_normal(a.shape)) if eqx.is_inexact_array(a) else a,
        estimator,
    )


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]


# Compiled once per kind and shape: parameters are arguments.
@eqx.filter_jit
def bound(estimator, x, t, noise=0.0):
    return estimator.estimate(x, t, noise=noise)


@eqx.filter_jit
def log_prob(q, t, x):
    return q.log_prob(t, x)


def random_joint(rng, dx, dt):
    a = rng.standard_normal((dx + dt, dx + dt))
    joint = a @ a.T / (dx + dt) + 0.3 * np.eye(dx + dt)
    sxx, sxt, stt = joint[:dx, :dx], joint[:dx, dx:], joint[dx:, dx:]
    weight = np.linalg.solve(sxx, sxt).T
    channel = stt - weight @ sxt
    information = 0.5 * (np.linalg.slogdet(stt)[1] - np.linalg.slogdet(channel)[1])
    return joint, weight, channel, information


@pytest.mark.parametrize("which", ["best", "poor conditional", "poor marginal", "both poor"])
@pytest.mark.parametrize(("dx", "dt"), [(1, 1), (2, 3)])
def test_v1_16_is_information_minus_one_divergence_plus_another(which, dx, dt):
    """Ĩ = I − E_x KL(p(t|x)‖q(t|x)) + KL(p(t)‖q(t)), both sides exact; it lies above and below I (claim C8)."""
    rng = np.random.default_rng(3)
    joint, weight, channel, information = random_joint(rng, dx, dt)
    sxx, stt = joint[:dx, :dx], joint[dx:, dx:]
    qw, qb, qc = weight, np.zeros(dt), channel
    mb, mc = np.zeros(dt), stt
    if which in ("poor conditional", "both poor"):
        qw, qb, qc = weight + rng.standard_normal(weight.shape) / 3, rng.standard_normal(dt) / 2, 1.7 * channel
    if which in ("poor marginal", "both poor"):
        mb, mc = rng.standard_normal(dt), 2.5 * stt + 0.2 * np.eye(dt)
    estimator = eqx.tree_at(
        lambda e: (e.conditional, e.marginal),
        PaperEstimate(dx, dt, 0, key=jax.random.key(0), full=True),
        (gaussian_q(qw, qb, qc), gaussian_q(np.zeros((dt, 0)), mb, mc)),
    )
    points, w = hermite_pairs(joint)
    x, t = jnp.asarray(points[:, :dx]), jnp.asarray(points[:, dx:])
    conditional, marginal = (
        np.asarray(log_prob(q, t, given))
        for q, given in ((estimator.conditional, x), (estimator.marginal, np.zeros((len(t), 0))))
    )
    estimate = float(w @ (conditional - marginal))
    gap = qw - weight
    first = kl(np.zeros(dt), channel, qb, qc) + 0.5 * np.trace(np.linalg.inv(qc) @ gap @ sxx @ gap.T)
    second = kl(np.zeros(dt), stt, mb, mc)
    assert estimate == pytest.approx(information - first + second, abs=1e-10)
    assert min(first, second) > -1e-12
    if which == "best":
        assert estimate == pytest.approx(information, abs=1e-10)
    elif which != "both poor":
        # Not a bound: one q pushes it below I, the other above.
        assert (estimate > information + 0.1) == (which == "poor marginal")
        assert (estimate < information - 0.1) == (which == "poor conditional")
    # The record is the same numbers with equal weights.
    plain = bound(estimator, x, t)
    assert float(plain.value) == pytest.approx(np.mean(conditional - marginal), abs=1e-12)
    assert plain.kind == "neither" and math.isinf(plain.limit)


@pytest.mark.parametrize(("dx", "dt"), [(1, 1), (2, 3)])
def test_barber_agakov_is_exact_with_the_posterior_and_below_with_any_other(dx, dt):
    rng = np.random.default_rng(5)
    joint, weight, channel, information = random_joint(rng, dx, dt)
    points, w = hermite_pairs(joint)
    x, t = jnp.asarray(points[:, :dx]), jnp.asarray(points[:, dx:])
    for direction in ("x given t", "t given x"):
        if direction == "x given t":
            turned = np.block([[joint[dx:, dx:], joint[dx:, :dx]], [joint[:dx, dx:], joint[:dx, :dx]]])
            best = np.linalg.solve(turned[:dt, :dt], turned[:dt, dt:]).T
            posterior = turned[dt:, dt:] - best @ turned[:dt, dt:]
            described, given, own = x, t, turned[dt:, dt:]
        else:
            best, posterior, described, given, own = weight, channel, t, x, joint[dx:, dx:]
        d = own.shape[0]
        entropy = 0.5 * (d * math.log(2 * math.pi * math.e) + np.linalg.slogdet(own)[1])
        exact = entropy + w @ np.asarray(log_prob(gaussian_q(best, np.zeros(d), posterior), described, given))
        assert exact == pytest.approx(information, abs=1e-10)
        for _ in range(20):
            q = gaussian_q(
                best + 0.3 * rng.standard_normal(best.shape),
                0.3 * rng.standard_normal(d),
                posterior * rng.uniform(0.3, 3),
            )
            estimator = BarberAgakov(dx, dt, 0, key=jax.random.key(0), direction=direction, entropy=entropy, full=True)
            estimator = eqx.tree_at(lambda e: e.q, estimator, q)
            logs = np.asarray(log_prob(q, described, given))
            assert entropy + w @ logs < information
            # With equal weights, the record's value.
            value = entropy + np.mean(logs)
            found = bound(estimator, x, t)
            assert float(found.value) == pytest.approx(value, abs=1e-12)
            assert found.kind == "lower" and found.value < found.limit
        assert BarberAgakov(dx, dt, 0, key=jax.random.key(0), direction=direction).kind == "neither"


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9])
def test_club_with_the_true_channel_is_rho2_over_one_minus_rho2(rho):
    """Its mean, by quadrature: ρ²/(1−ρ²) ≥ −½ln(1−ρ²)."""
    q = gaussian_q([[rho]], [0.0], [[1 - rho**2]])
    joint, w = hermite_pairs(np.array([[1, rho], [rho, 1]]))
    apart, v = hermite_pairs(np.eye(2))
    own = w @ np.asarray(log_prob(q, jnp.asarray(joint[:, 1:]), jnp.asarray(joint[:, :1])))
    other = v @ np.asarray(log_prob(q, jnp.asarray(apart[:, 1:]), jnp.asarray(apart[:, :1])))
    assert own - other == pytest.approx(rho**2 / (1 - rho**2), abs=1e-9)
    assert own - other >= float(bivariate_normal_information(rho)) - 1e-12


@pytest.mark.parametrize("full", [False, True])
def test_club_equals_its_double_loop(full, getkey):
    estimator = CLUB(2, 3, 8, key=getkey(), full=full)
    estimator = perturbed(estimator, 0.3)
    x, t = normal(0, (7, 2), (7, 3))
    one = jax.vmap(jax.vmap(lambda t, x: estimator.q.log_prob(t[None], x[None])[0], (0, None)), (None, 0))
    table, total = np.asarray(jax.jit(one)(t, x)), 0.0
    for i in range(7):
        others = [table[i, j] for j in range(7) if j != i]
        total += table[i, i] - sum(others) / 6
    assert float(bound(estimator, x, t).value) == pytest.approx(total / 7, rel=1e-11)
    # vCLUB-S has the same mean.
    sampled = eqx.tree_at(lambda e: e.q, CLUB(2, 3, 8, key=getkey(), full=full, sampled=True), estimator.q)
    draws = np.asarray(
        jax.jit(jax.vmap(lambda key: sampled.estimate(x, t, key).value))(jax.random.split(getkey(), 20_000))
    )
    assert np.mean(draws) == pytest.approx(total / 7, abs=5 * np.std(draws) / 20_000**0.5)
    assert np.std(draws) > 0


@pytest.mark.parametrize("full", [False, True])
def test_gaussian_density_is_scipys(full):
    from scipy.stats import multivariate_normal

    covariance = np.array([[1.2, 0.4, 0.1], [0.4, 0.8, -0.2], [0.1, -0.2, 0.5]])
    covariance = covariance if full else np.diag(np.diag(covariance))
    weight, x, t = map(np.asarray, normal(1, (3, 2), (6, 2), (6, 3)))
    bias = np.array([0.3, -1.0, 2.0])
    q = gaussian_q(weight, bias, covariance)
    twin = [multivariate_normal.logpdf(t[i], weight @ x[i] + bias, covariance) for i in range(6)]
    np.testing.assert_allclose(log_prob(q, t, x), twin, rtol=1e-10)
    if not full:
        q = eqx.tree_at(lambda q: q.coupling, q, None, is_leaf=lambda a: a is None)
        np.testing.assert_allclose(log_prob(q, t, x), twin, rtol=1e-10)
    table = [[multivariate_normal.logpdf(t[j], weight @ x[i] + bias, covariance) for j in range(6)] for i in range(6)]
    found = eqx.filter_jit(lambda q, t, x: q.mean_log_prob(t, x))(q, t, x)
    np.testing.assert_allclose(found, np.mean(table, axis=1), rtol=1e-10)


def test_entropy_estimate_is_unbiased_for_gaussians_and_too_high_for_others():
    rng = np.random.default_rng(0)
    d, b, trials = 3, 8, 4000
    mix = rng.standard_normal((d, d))
    exact = 0.5 * (d * math.log(2 * math.pi * math.e) + np.linalg.slogdet(mix @ mix.T)[1])
    draws = np.asarray(jax.jit(jax.vmap(gaussian_entropy))(rng.standard_normal((trials, b, d)) @ mix.T))
    error = draws.std() / trials**0.5
    assert abs(draws.mean() - exact) < 4 * error
    # The correction is far larger than what the test resolves.
    uncorrected = draws.mean() + 0.5 * sum(
        math.log(0.5 * (b - 1)) * -1 + digamma(0.5 * (b - k)) for k in range(1, d + 1)
    )
    assert abs(uncorrected - exact) > 20 * error
    uniform = float(jax.jit(gaussian_entropy)(rng.uniform(0, 1, (20_000, 2))))
    assert uniform == pytest.approx(math.log(2 * math.pi * math.e / 12), abs=0.02) and uniform > 0.3  # H = 0


CRITICS = {c: InfoNCE(2, 2, 8, key=jax.random.key(0), critic=c) for c in ("separable", "joint")}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), b=st.sampled_from([2, 3, 33]), scale=st.sampled_from([0.0, 1e-3, 1.0, 8.0]),
    critic=st.sampled_from(["separable", "joint"]), same=st.booleans(), single=st.booleans(),
)  # fmt: skip
def test_infonce_never_exceeds_log_b(seed, b, scale, critic, same, single):
    """For any critic and any pairs, however dependent, also in float32 and at scores of up to about 1e7.

    Beyond 1e9 in float32 the rounding of a score exceeds what exp can hold, and compiled code gives NaN."""
    dtype = jnp.float32 if single else jnp.float64
    x, t = (jnp.asarray(np.asarray(a), dtype) for a in normal(seed, (b, 2), (b, 2)))
    t = x if same else t
    rng = np.random.default_rng(seed)
    estimator = jax.tree.map(lambda a: jnp.asarray(scale * rng.standard_normal(a.shape)), CRITICS[critic])
    found = bound(estimator, x, t)
    assert found.value.dtype == dtype
    assert float(found.value) <= float(found.limit) and float(found.limit) == pytest.approx(math.log(b), rel=1e-6)
    assert found.kind == "lower" and found.samples == b


def density(rho, x, t):
    """The best critic of independent standard normal pairs of correlation ρ: the information density."""
    x, t = x[:, None, :], t[None, :, :]
    return jnp.sum((rho * x * t - 0.5 * rho**2 * (x**2 + t**2)) / (1 - rho**2) - 0.5 * jnp.log1p(-(rho**2)), axis=-1)


@pytest.mark.parametrize("dims", [1, 8])
def test_infonce_says_that_it_saturates(dims, monkeypatch):
    """With the best critic: the flag says on which side of ln b the information lies, and the value stays below both."""
    b, ratios = 64, np.asarray([0.4, 0.7, 1.5, 3.0])
    information = ratios * math.log(b)
    estimator = InfoNCE(dims, dims, 4, key=jax.random.key(0))
    x, noise = np.random.default_rng(1).standard_normal((2, 200, b, dims))

    def draws(rho):
        monkeypatch.setattr(InfoNCE, "scores", lambda self, x, t: density(rho, x, t))
        return jax.vmap(estimator.estimate)(x, rho * x + jnp.sqrt(1 - rho**2) * noise)

    found = jax.jit(jax.vmap(draws))(np.sqrt(-np.expm1(-2 * information / dims)))
    share, values = np.mean(found.saturated, axis=1), np.asarray(found.value)
    assert np.all(share[:2] < 0.05) and np.all(share[2:] > 0.95)
    mean, error = values.mean(axis=1), values.std(axis=1) / 200**0.5
    assert np.all(mean < np.minimum(information, math.log(b)) + 3 * error)
    if dims == 8:
        assert mean[0] > 0.8 * information[0]


def test_a_floor_that_sets_the_value_is_reported(getkey):
    [x] = normal(1, (32, 2))
    for make, limit in (
        (lambda **o: CLUB(2, 2, 0, key=getkey(), **o), math.inf),
        (lambda **o: PaperEstimate(2, 2, 0, key=getkey(), **o), math.inf),
        (lambda **o: BarberAgakov(2, 2, 0, key=getkey(), entropy=1.0, **o), 1.0 - math.log(2 * math.pi * 0.25)),
    ):
        estimator = make(floor=0.5)
        assert not bound(estimator, x, x, 0.1).saturated
        name = "conditional" if isinstance(estimator, PaperEstimate) else "q"
        sharp = eqx.tree_at(
            lambda e, name=name: (getattr(e, name).log_std, getattr(e, name).mean.w),
            estimator,
            (jnp.full(2, -9.0), jnp.eye(2)),
        )
        found = bound(sharp, x, x, 0.1)
        assert found.saturated and float(found.limit) == pytest.approx(limit) and float(found.noise) == 0.1
        if math.isfinite(limit):
            assert float(found.value) == pytest.approx(limit, abs=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_estimates_are_jitted_mapped_and_differentiated(name, getkey):
    estimator, key = perturbed(MAKERS[name](2, 3, getkey())), getkey()
    x, t, direction = normal(0, (9, 2), (9, 3), (9, 3))

    def value(t):
        return estimator.estimate(x, t, key).value

    h = 1e-5

    @jax.jit
    def transformed(x, t):
        many = jax.vmap(lambda x, t: estimator.estimate(x, t, key))(jnp.stack([x, x[::-1]]), jnp.stack([t, t]))
        ends = value(t + h * direction) - value(t - h * direction)
        own = eqx.filter_grad(lambda e: e.fit_loss(x, t, key))(estimator)
        return value(t), many, jnp.vdot(jax.grad(value)(t), direction), ends, eqx.filter(own, eqx.is_inexact_array)

    alone, many, slope, ends, own = transformed(x, t)
    if name == "paper":  # outside jit, too
        assert float(value(t)) == pytest.approx(float(alone))
    assert many.value.shape == many.saturated.shape == many.limit.shape == (2,)
    assert float(many.value[0]) == pytest.approx(float(alone))
    assert float(slope) == pytest.approx(float(ends) / (2 * h), rel=1e-6)
    assert abs(slope) > 1e-4
    norms = [np.linalg.norm(leaf) for leaf in jax.tree.leaves(own)]
    assert norms and max(norms) > 1e-3 and all(map(math.isfinite, norms))


@pytest.mark.parametrize("name", MAKERS)
def test_single_precision_agrees(name, getkey):
    estimator, key = MAKERS[name](2, 3, getkey()), getkey()
    x, t = normal(0, (16, 2), (16, 3))

    @jax.jit
    def both(x, t):
        x1, t1 = x.astype(jnp.float32), t.astype(jnp.float32)
        gradient = jax.grad(lambda t: estimator.estimate(x1, t, key).value)(t1)
        return *(estimator.estimate(*given, key, noise=0.5) for given in ((x, t), (x1, t1))), gradient

    double, single, gradient = both(x, t)
    assert single.value.dtype == single.limit.dtype == single.noise.dtype == jnp.float32
    assert float(single.value) == pytest.approx(float(double.value), abs=2e-5)
    assert gradient.dtype == jnp.float32


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("x", "t", "error", "words"),
    [
        (jnp.zeros((4, 3)), jnp.zeros((4, 3)), ValueError, r"x has shape \(4, 3\)"),
        (jnp.zeros((4, 2)), jnp.zeros(4), ValueError, r"t has shape \(4,\)"),
        (jnp.zeros((4, 2)), jnp.zeros((5, 3)), ValueError, "4 rows and t 5"),
        (jnp.zeros((1, 2)), jnp.zeros((1, 3)), ValueError, "1 pairs are too few"),
        (jnp.zeros((4, 2), int), jnp.zeros((4, 3)), TypeError, "one-hot"),
    ],
)
def test_bad_pairs_are_refused(name, x, t, error, words):
    estimator = MAKERS[name](2, 3, jax.random.key(0))
    with pytest.raises(error, match=words):
        estimator.estimate(x, t, jax.random.key(0))
    with pytest.raises(error, match=words):
        estimator.fit_loss(x, t, jax.random.key(0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda k: InfoNCE(0, 1, 8, key=k), "x_dim=0"),
        (lambda k: InfoNCE(1, 1, 0, key=k), "hidden=0"),
        (lambda k: InfoNCE(1, 1, 8, key=k, critic="bilinear"), "critic='bilinear'"),
        (lambda k: CLUB(1, 1.5, 8, key=k), "t_dim=1.5"),
        (lambda k: CLUB(1, 1, 8, key=k, floor=0.0), "floor=0.0"),
        (lambda k: PaperEstimate(1, 1, -1, key=k), "hidden=-1"),
        (lambda k: BarberAgakov(1, 1, 8, key=k, direction="both"), "direction='both'"),
        (lambda k: BarberAgakov(1, 1, 8, key=k, entropy="knn"), "entropy='knn'"),
        (lambda k: BarberAgakov(1, 1, 8, key=k, entropy=math.nan), "entropy=nan"),
        (lambda k: CLUB(1, 1, 8, key=k, sampled=True).estimate(jnp.zeros((3, 1)), jnp.zeros((3, 1))), "give estimate"),
        (lambda k: BarberAgakov(5, 1, 8, key=k).estimate(jnp.zeros((4, 5)), jnp.zeros((4, 1))), "more rows"),
    ],
)
def test_bad_options_are_refused(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make(jax.random.key(0))
