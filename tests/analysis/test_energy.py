"""Energy: its split against derivatives and differences, v2 (9) against its closed forms, the corrected v2 Thm 3.3."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp

import pdejax as pj
from pdejax.analysis.growth._energy import (
    claimed_energy,
    decay_bound,
    decay_rate,
    energy,
    energy_budget,
    energy_rates,
    extinction_time,
    growth_bound,
)
from pdejax.analysis.numerics._norms import mesh_norm, token_max_norm
from pdejax.exact import spatial_norm_basin_radius

N, D = 6, 4


def full(key, stabilization, **options):
    keys = jax.random.split(key, 2)
    return pj.MasterEquation(
        interaction=pj.Attention(D, 2, key=keys[0], leak=True, **options),
        reaction=pj.FeedForward(D, 9, key=keys[1], **options),
        diffusion=pj.Diffusion(pj.Grid(N), 0.01),
        stabilization=stabilization,
    )


def linear(rate, dim=D):
    """u' = rate·u as a reaction."""
    base = pj.FeedForward(dim, dim, key=jax.random.key(0), activation="identity")
    return eqx.tree_at(lambda r: (r.w1, r.w2), base, (jnp.eye(dim), rate * jnp.eye(dim)))


@eqx.filter_jit
def velocity(equation, u):
    return equation(0.0, u, None)


def flow(equation, u0, ts, rtol=1e-12):
    """The field at the depths `ts` by another library's integrator."""

    def field(t, y):
        return np.asarray(velocity(equation, jnp.asarray(y).reshape(u0.shape))).ravel()

    start = np.asarray(u0).ravel()
    run = solve_ivp(field, (0.0, float(ts[-1])), start, "DOP853", np.asarray(ts), rtol=rtol, atol=1e-2 * rtol)
    assert run.success
    return jnp.asarray(run.y.T.reshape(len(ts), *u0.shape))


@pytest.mark.parametrize("case", ["equal", "weighted", "masked"])
def test_energy_and_its_rates_by_a_loop(case):
    u = jax.random.normal(jax.random.key(0), (N, D))
    equation = full(jax.random.key(1), pj.SpatialNorm(0.7, eps=0.1))
    w = np.arange(1.0, N + 1) if case == "weighted" else np.ones(N)
    mask = np.array([True] * 4 + [False] * 2) if case == "masked" else np.ones(N, bool)
    args = pj.FieldArgs(jnp.asarray(mask)) if case == "masked" else None
    weights = jnp.asarray(w) if case == "weighted" else None
    given = {"weights": weights, "mask": None if args is None else args.mask}
    found, rates, parts = jax.jit(
        lambda u: (energy(u, **given), energy_rates(equation, u, 0.0, **given), equation.contributions(0.0, u, args))
    )(u)
    u, parts = np.asarray(u), {name: np.asarray(part) for name, part in parts.items()}
    total = float(np.sum(w[mask]))
    expected = sum(0.5 * w[i] * float(np.sum(u[i] ** 2)) for i in range(N) if mask[i]) / total
    assert float(found) == pytest.approx(expected, rel=1e-14)
    for name, part in parts.items():
        by_hand = sum(w[i] * float(np.dot(u[i], part[i])) for i in range(N) if mask[i]) / total
        assert float(rates[name]) == pytest.approx(by_hand, rel=1e-12, abs=1e-14)


def test_rates_sum_to_the_derivative_along_the_field_and_to_differences_of_a_trajectory():
    equation = full(jax.random.key(1), pj.LayerNormRelaxation(D, 0.5))
    u0 = jax.random.normal(jax.random.key(2), (N, D))
    ts = jnp.linspace(0.0, 1.0, 201)
    us = flow(equation, u0, ts)
    budget = energy_budget(equation, ts, us)
    k = 57
    along = jax.jvp(energy, (us[k],), (velocity(equation, us[k]),))[1]
    assert float(budget.total[k]) == pytest.approx(float(along), rel=1e-12)
    # Fourth-order central differences of E(t).
    e, h = np.asarray(budget.energy), float(ts[1])
    differences = (e[:-4] - 8 * e[1:-3] + 8 * e[3:-1] - e[4:]) / (12 * h)
    assert np.max(np.abs(differences - np.asarray(budget.total)[2:-2])) < 1e-6 * np.max(np.abs(differences))
    assert np.asarray(budget.energy) == pytest.approx(np.asarray(budget.mean + 0.5 * budget.deviation**2), rel=1e-12)
    assert set(budget.rates) == set(equation.names())


def test_rate_of_v2_9_is_of_degree_one_and_blind_to_the_mean():
    """⟨u, S⟩ = −γσ²/√(σ²+ε) at any mean: far from −2γE, and 0 on a constant field."""
    gamma, eps = 0.7, 1e-3
    equation = pj.MasterEquation(stabilization=pj.SpatialNorm(gamma, eps=eps))
    deviation = jax.random.normal(jax.random.key(0), (N, D))
    deviation = deviation - jnp.mean(deviation, axis=0, keepdims=True)
    sigma = float(mesh_norm(deviation))
    for scale, mean in ((1.0, 0.0), (100.0, 0.0), (1.0, 5.0)):
        rate = float(energy_rates(equation, scale * deviation + mean)["stabilization"])
        s = scale * sigma
        assert rate == pytest.approx(-gamma * s**2 / math.sqrt(s**2 + eps), rel=1e-12)
    assert float(energy_rates(equation, jnp.full((N, D), 3.0))["stabilization"]) == 0.0


def deviation_field(sigma):
    """A field of mean 0 and ‖u‖_Ω = σ."""
    u = jax.random.normal(jax.random.key(3), (N, D))
    u = u - jnp.mean(u, axis=0, keepdims=True)
    return u * (sigma / mesh_norm(u))


def test_basin_and_extinction_against_simulation():
    """v2 (9) against growth λ: deviations below σ* reach a level when `extinction_time` says, those above grow."""
    gamma, rate, eps = 3.0, 1.0, 1e-2
    equation = pj.MasterEquation(reaction=linear(rate), stabilization=pj.SpatialNorm(gamma, eps=eps))
    edge = float(spatial_norm_basin_radius(gamma, rate, eps))
    assert edge == pytest.approx(math.sqrt(9 - eps), rel=1e-14)
    for sigma, level in ((0.5 * edge, 0.05), (0.95 * edge, 1.0), (0.3, 1e-3)):
        t = extinction_time(sigma, gamma, rate=rate, eps=eps, level=level)
        end = flow(equation, deviation_field(sigma), [t])[-1]
        assert float(mesh_norm(end)) == pytest.approx(level, rel=1e-8)
    grown = flow(equation, deviation_field(1.02 * edge), [2.0])[-1]
    assert float(mesh_norm(grown)) > 1.1 * edge
    assert extinction_time(1.02 * edge, gamma, rate=rate, eps=eps, level=1.0) == math.inf


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.05, 5),
    st.floats(0.1, 5),
    st.floats(-3, 3),
    st.sampled_from([0.0, 1e-5, 0.1, 4.0]),
    st.floats(0.01, 0.99),
)
def test_extinction_time_is_the_integral(sigma, gamma, rate, eps, part):
    level = part * sigma

    def speed(s):
        return gamma * s / math.sqrt(s**2 + eps) - rate * s

    found = extinction_time(sigma, gamma, rate=rate, eps=eps, level=level)
    # σ/(√(σ²+ε)) rises with σ: the margin over growth is least at the upper end.
    if gamma <= rate * math.hypot(sigma, math.sqrt(eps)):
        assert found == math.inf
    elif gamma - rate * math.hypot(sigma, math.sqrt(eps)) > 1e-3:
        expected = quad(lambda s: 1 / speed(s), level, sigma, epsabs=0, epsrel=1e-10, limit=200)[0]
        assert found == pytest.approx(expected, rel=1e-7)


def test_extinction_time_at_its_limits():
    assert extinction_time(2.0, 4.0) == 0.5
    assert extinction_time(2.0, 3.0, rate=1.0) == pytest.approx(-math.log(1 - 2 / 3), rel=1e-14)
    assert extinction_time(2.0, 3.0, rate=1e-9) == pytest.approx(extinction_time(2.0, 3.0), rel=1e-8)
    assert extinction_time(2.0, 3.0, eps=1e-5) == math.inf
    assert extinction_time(3.0, 3.0, rate=1.0) == math.inf
    assert extinction_time(1.0, 3.0, level=1.0) == 0.0
    assert extinction_time(2.0, 0.0, rate=-1.0) == math.inf
    assert extinction_time(2.0, 0.0, rate=-1.0, level=1.0) == pytest.approx(math.log(2), rel=1e-14)
    # γ + λ√ε = 0 is a removable pole: the limit from both sides.
    between = [extinction_time(2.0, 1.0, rate=r, eps=4.0, level=0.5) for r in (-0.5001, -0.5, -0.4999)]
    assert between[1] == pytest.approx((between[0] + between[2]) / 2, rel=1e-6)
    # the same as the closed form of the library without growth
    time = pj.exact.spatial_norm_time(2.0, 0.5, 0.8, 0.3)
    assert extinction_time(2.0, 0.8, eps=0.3, level=0.5) == pytest.approx(float(time), rel=1e-12)


def test_claimed_energy_and_measured_decay():
    """S = −γu keeps what v2 (15) claims, exactly for A + R = λu; v2 (9) does not for any field outside its basin."""
    gamma, rate, ts = 3.0, 1.0, np.linspace(0, 1, 5)
    u0 = deviation_field(4.0) + 1.0
    damped = pj.MasterEquation(reaction=linear(rate), stabilization=pj.LinearDamping(gamma))
    found = energy(flow(damped, u0, ts))
    assert np.asarray(found) == pytest.approx(np.asarray(claimed_energy(found[0], gamma, rate, ts)), rel=1e-9)
    assert float(decay_rate(jnp.asarray(ts), found)) == pytest.approx(2 * (gamma - rate), rel=1e-9)
    spatial = pj.MasterEquation(reaction=linear(rate), stabilization=pj.SpatialNorm(gamma))
    assert float(decay_rate(jnp.asarray(ts), energy(flow(spatial, u0, ts)))) < 0


GROWING = {
    "damped": (lambda k: full(k, pj.LinearDamping(2.0)), ("token_max", "mesh")),
    "spatial": (lambda k: full(k, pj.SpatialNorm(2.0, eps=0.1)), ("token_max", "mesh")),
    "relaxed": (lambda k: full(k, pj.LayerNormRelaxation(D, 1.5)), ("token_max", "mesh")),
    "pre-LN": (lambda k: full(k, pj.LinearDamping(2.0), norm=pj.LayerNorm(D)), ("token_max", "mesh")),
    "peri-LN": (lambda k: full(k, pj.LinearDamping(1.0), norm_out=pj.RMSNorm(D)), ("token_max", "mesh")),
    "biased": (
        lambda k: pj.MasterEquation(
            interaction=pj.Attention(D, 2, key=k, bias=True, strength=-0.5, leak=True),
            reaction=pj.FeedForward(D, 7, key=k, strength=-0.8, activation="silu"),
        ),
        ("token_max", "mesh"),
    ),
    "uniform, weighted": (
        lambda k: pj.MasterEquation(
            interaction=pj.Attention(D, 2, key=k, kernel="uniform", weights=jnp.array([0.3, 0.3, 0.1, 0.1, 0.1, 0.1]))
        ),
        ("token_max", "mesh"),
    ),
}


@pytest.mark.parametrize("name", GROWING)
def test_growth_bound_holds_pointwise(name):
    """d⁺‖u‖/dt ≤ λ‖u‖ + f at random fields of all sizes, in both norms, from the field itself; weights all moved."""
    make, norms = GROWING[name]
    arrays, rest = eqx.partition(make(jax.random.key(4)), eqx.is_inexact_array)
    rng = np.random.default_rng(5)
    moved = jax.tree.map(
        lambda x: (
            jnp.asarray(np.asarray(x) + 0.3 * rng.standard_normal(x.shape) * np.all(np.asarray(x) != 0.1))
            if x.ndim
            else x
        ),
        arrays,
    )
    equation = eqx.combine(moved, rest)
    clusters = np.linspace(0, 1, 200)[:, None, None]
    us = clusters * rng.standard_normal((200, 1, D)) + (1 - clusters) * rng.standard_normal((200, N, D))
    us *= np.geomspace(1e-2, 1e3, 200)[:, None, None]
    rates = np.asarray(jax.jit(jax.vmap(lambda u: equation(0.0, u, None)))(us))
    lengths = np.linalg.norm(us, axis=-1)
    for norm in norms:
        bound = growth_bound(equation, N, norm=norm)
        if norm == "mesh":
            size = np.sqrt(np.mean(lengths**2, axis=-1))
            slope = np.mean(np.sum(us * rates, axis=-1), axis=-1) / size
        else:
            size, at = lengths.max(axis=-1), (np.arange(200), lengths.argmax(axis=-1))
            slope = np.sum(us[at] * rates[at], axis=-1) / size
        room = bound.rate * size + bound.offset - slope
        assert np.min(room / (1 + size)) > -1e-12


def test_corrected_theorem_along_a_trajectory():
    """S = −γu above the growth constants: the norm stays below the bound, which tends to the absorbing radius."""
    equation = full(jax.random.key(8), pj.LinearDamping(9.0))
    biased = eqx.tree_at(lambda e: e.reaction.b2, equation, jnp.full(D, 0.5))
    growth = growth_bound(biased, N)
    assert growth.rate < 0 < growth.offset
    ts = np.linspace(0, 2, 9)
    start = 5 * jax.random.normal(jax.random.key(9), (N, D))
    sizes = np.asarray(token_max_norm(flow(biased, start, ts, rtol=1e-10)))
    assert np.all(sizes <= np.asarray(growth.bound(sizes[0], ts)) * (1 + 1e-9))
    assert 0 < sizes[-1] < growth.absorbing_radius


def test_one_sided_constant_brings_solutions_together():
    """A tanh network with biases, a symmetric diffusivity matrix, damping: in the mesh norm the growth rate is a one-sided
    Lipschitz constant, so two solutions approach at it, and each stays below the bound of Theorem 3."""
    arrays = jax.random.split(jax.random.key(11), 3)
    reaction = pj.FeedForward(D, 6, key=arrays[0], activation="tanh")
    reaction = eqx.tree_at(lambda r: (r.b1, r.b2), reaction, (jnp.linspace(-1, 1, 6), jnp.ones(D)))
    root = jax.random.normal(arrays[1], (D, D))
    equation = pj.MasterEquation(
        reaction=reaction, diffusion=pj.Diffusion(pj.Grid(N), 1e-3 * root @ root.T), stabilization=pj.LinearDamping(6.0)
    )
    growth = growth_bound(equation, N, norm="mesh")
    jacobians = jax.jit(jax.vmap(jax.jacfwd(lambda u: equation(0.0, u, None))))(
        jax.random.normal(arrays[2], (20, N, D))
    )
    matrices = np.asarray(jacobians).reshape(20, N * D, N * D)
    log_norm = np.linalg.eigvalsh((matrices + np.swapaxes(matrices, 1, 2)) / 2)[:, -1].max()
    assert log_norm <= growth.rate < 0
    ts = np.linspace(0, 0.5, 6)
    us, vs = (flow(equation, scale * jnp.ones((N, D)), ts, rtol=1e-10) for scale in (2.0, -1.0))
    gap = np.asarray(mesh_norm(us - vs))
    assert np.all(gap <= gap[0] * np.exp(growth.rate * ts) * (1 + 1e-8))
    assert np.all(np.asarray(mesh_norm(us)) <= np.asarray(growth.bound(mesh_norm(us[0]), ts)) * (1 + 1e-8))


def test_absorbing_ball_of_a_normalized_field_is_reached():
    """Pre-LN with a constant reaction: u' = b − γu ends exactly on the radius f/γ."""
    reaction = pj.FeedForward(D, 3, key=jax.random.key(0), norm=pj.LayerNorm(D))
    reaction = eqx.tree_at(lambda r: (r.w1, r.b2), reaction, (0 * reaction.w1, jnp.array([3.0, 0, 4.0, 0])))
    equation = pj.MasterEquation(reaction=reaction, stabilization=pj.LinearDamping(2.0))
    growth = growth_bound(equation, N)
    assert growth.absorbing_radius == pytest.approx(2.5, rel=1e-14)
    end = flow(equation, jnp.ones((N, D)), [20.0], rtol=1e-10)[-1]
    assert float(token_max_norm(end)) == pytest.approx(2.5, rel=1e-9)


def test_growth_constants_are_attained():
    """Attention as an average of equal tokens, M = I: exactly e^t. FFN = −100u by its one-sided constant: e^{−100t}."""
    eye = jnp.eye(D)
    attention = eqx.tree_at(
        lambda a: (a.wv, a.wo), pj.Attention(D, 1, key=jax.random.key(0)), (eye[:, None], eye[None])
    )
    assert growth_bound(pj.MasterEquation(interaction=attention), N).rate == pytest.approx(1, rel=1e-14)
    assert growth_bound(pj.MasterEquation(reaction=linear(-100.0)), N).rate == pytest.approx(-100, rel=1e-14)


def test_decay_bound_is_the_solution_of_its_equation():
    for rate, f in ((-2.0, 0.7), (0.0, 0.7), (1.5, 0.0)):
        equation = pj.MasterEquation(reaction=eqx.tree_at(lambda r: r.b2, linear(rate, 1), jnp.array([f])))
        end = float(flow(equation, jnp.array([[1.3]]), [1.1])[-1, 0, 0])
        assert float(decay_bound(1.3, rate, f, 1.1)) == pytest.approx(end, rel=1e-10)


def test_bad_input_of_energies():
    u = jnp.ones((N, D))
    equation = full(jax.random.key(0), pj.SpatialNorm(1.0))
    varied = pj.MasterEquation(stabilization=pj.SpatialNorm(jnp.ones(N)))
    uneven = pj.MasterEquation(diffusion=pj.Diffusion(pj.Grid(N), jnp.array([1.0, 2.0, 1.0, 1.0])))
    emergent = pj.EffectiveDiffusion(
        pj.Grid(N), full(jax.random.key(0), None).interaction, linear(1.0), jnp.zeros((N, D))
    )
    cubic = pj.MasterEquation(interaction=pj.Attention(D, 1, key=jax.random.key(0), kernel="linear"))
    sourced = pj.MasterEquation(reaction=pj.FeedForward(D, 2, key=jax.random.key(0), source=lambda x, t: x[:, None]))
    for call, error, words in (
        (lambda: energy_rates(equation, u[:, :2]), ValueError, "2 features"),
        (lambda: energy_budget(equation, jnp.zeros(2), u[None]), ValueError, "ts has 2 depths, but us has 1"),
        (lambda: decay_rate(jnp.zeros(1), jnp.ones(1)), ValueError, "at least two"),
        (lambda: extinction_time(-1.0, 1.0), ValueError, "sigma=-1.0"),
        (lambda: extinction_time(1.0, math.nan), ValueError, "gamma=nan"),
        (lambda: extinction_time(1.0, 1.0, rate=math.inf), ValueError, "rate=inf"),
        (lambda: decay_bound(-1.0, 1.0, 0.0, 1.0), ValueError, "initial must be"),
        (lambda: growth_bound(equation, N, norm="l2"), ValueError, "norm='l2' must be one of"),
        (lambda: growth_bound(equation, 0), ValueError, "n=0"),
        (
            lambda: growth_bound(pj.LayerNorm(D), N),
            TypeError,
            "field=an object of type LayerNorm must be a MasterEquation",
        ),
        (
            lambda: growth_bound(pj.MasterEquation(diffusion=emergent), N),
            ValueError,
            "EffectiveDiffusion knows no growth",
        ),
        (lambda: growth_bound(varied, N, norm="mesh"), ValueError, "norm='token_max'"),
        (lambda: growth_bound(uneven, N), ValueError, "norm='mesh'"),
        (lambda: growth_bound(cubic, N), ValueError, "cubically"),
        (lambda: growth_bound(sourced, N), ValueError, "source"),
    ):
        with pytest.raises(error, match=words):
            call()
