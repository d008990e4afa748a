"""What the study of limits measures, section by section; every piece is a part that is kept."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from pdejax import exact
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax.analysis import fit_order, limits
from pdejax.analysis.limits._closures import gaussian_attention
from pdejax.analysis.limits._exponents import exponent_over_draws
from pdejax.analysis.limits._noise import antipodal_exponent, coupled_ends
from pdejax.runs._parts import Parts
from pdejax.studies.limits._config import NAMES, PLANTED, LimitsConfig
from pdejax.terms import Attention, FeedForward, LayerNorm, SphereProjection

EXPONENTS = ("states", "increments", "parity", "draws", "weight gradients", "input gradients")  # in the table
TOKENS, DIM, HIDDEN = 4, 8, 8  # of the networks that are checked
SEEDS = 64  # of a gap, at least
BATCHES = 40  # of samples, over which intervals are taken


def check_key(config: LimitsConfig, name: str, repeat: int) -> Any:
    """From which one check draws all that it draws: another for every recipe, repeat and seed of the study."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), NAMES.index(name)), repeat)


def planted(name: str, key: Any) -> tuple[limits.Recipe, Any]:
    """A recipe whose limit is known, and an input."""
    weights, alpha, sphere = next(row[1:4] for row in PLANTED if row[0] == name)
    keys = jax.random.split(key, 3)
    norm = None if sphere else LayerNorm(DIM)
    base = MasterEquation(
        Attention(DIM, 2, key=keys[0], norm=norm), FeedForward(DIM, HIDDEN, key=keys[1], activation="tanh", norm=norm)
    )
    u0 = jax.random.normal(keys[2], (TOKENS, DIM))
    retraction = SphereProjection() if sphere else None
    recipe = limits.Recipe(base, weights, alpha, retraction=retraction)
    return recipe, u0 if retraction is None else retraction(u0)


def check_section(config: LimitsConfig, parts: Parts) -> list[dict[str, Any]]:
    """Every planted recipe, checked again and again: weights, input and draws all new."""
    records = []
    for name, *_, truth, trivial in PLANTED:
        if config.recipes and name not in config.recipes:
            continue
        for repeat in range(config.repeats):

            def measure(name=name, repeat=repeat, truth=truth, trivial=trivial):
                parts.say(f"coordinate check of {name}: {repeat + 1} of {config.repeats}")
                own = check_key(config, name, repeat)
                one, two = jax.random.split(own)
                recipe, u0 = planted(name, one)
                found = limits.depth_check(
                    recipe, u0, layers=tuple(config.layers), draws=config.draws, key=two, gradients=repeat == 0
                )
                return {
                    "key": np.asarray(jax.random.key_data(own)).tolist(),
                    "equal": found.equal,
                    "recipe": name,
                    "truth": truth,
                    "trivial_truth": trivial,
                    "verdict": found.verdict,
                    "trivial": found.trivial,
                    "reason": found.reason,
                    "power": found.power,
                    "detectable": found.detectable,
                    "values": {key: x.tolist() for key, x in found.values.items()},
                    "exponents": {key: [float(x), float(x.low), float(x.high)] for key, x in found.exponents.items()},
                }

            slug = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
            counts = "-".join(map(str, config.layers))
            records.append(parts.get(f"check-{slug}-{counts}-{config.draws}-{repeat}", measure))
        parts.row(summary(records, name))
    return records


def summary(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """How often the verdicts on one recipe were right, not decided, wrong."""
    own = [r for r in records if r["recipe"] == name]
    right = sum(r["verdict"] == r["truth"] and r["trivial"] == r["trivial_truth"] for r in own)
    undecided = sum(r["verdict"] == "not decided" for r in own)
    powers = [r["power"] for r in own if r["power"] is not None and math.isfinite(r["power"])]
    truth = own[0]["truth"] + (", u' = 0" if own[0]["trivial_truth"] else "")

    def mean(quantity: str) -> float | None:
        values = [r["exponents"][quantity][0] for r in own if quantity in r["exponents"]]
        values = [x for x in values if x is not None]
        values = [x for x in values if math.isfinite(x)]
        return float(np.mean(values)) if values else None

    return {
        "recipe": name,
        "limit": truth,
        "checks": len(own),
        "right": right,
        "undecided": undecided,
        "wrong": len(own) - right - undecided,
        "power": float(np.mean(powers)) if powers else None,
        **{key: mean(key) for key in EXPONENTS},
    }


def closures_section(config: LimitsConfig, parts: Parts) -> list[dict[str, Any]]:
    """Gaps between tokens and their closures as there are more tokens, or more dimensions."""
    counts, seeds = tuple(config.tokens), max(config.repeats, SEEDS)
    name = "-".join(map(str, counts))
    return [
        parts.get(
            f"closure-{kind}-{name}-{seeds}",
            lambda kind=kind, run=run: _closure(kind, run, parts, counts, seeds, config),
        )
        for kind, run in (("Gaussian", _gaussian), ("circle", _circle), ("equiangular", _equiangular))
    ]


def _closure(kind, run, parts: Parts, counts, seeds: int, config: LimitsConfig) -> dict[str, Any]:
    parts.say(f"closure: {kind}")
    measure, closure = run(jax.random.key(config.seed + 17))
    found = limits.closure_gap(measure, closure, tokens=counts, seeds=seeds)
    return {
        "closure": kind,
        "over": "d" if kind == "equiangular" else "N",
        "sizes": list(counts),
        "gaps": found.gaps.tolist(),
        "exponent": [float(found.exponent), float(found.exponent.low), float(found.exponent.high)],
    }


def _gaussian(key):
    """Mean and covariance in two dimensions at depth ½, keys and values that are not symmetric."""
    logits, values = jnp.asarray([[0.3, 0.2], [-0.1, 0.25]]), jnp.asarray([[0.6, -0.4], [0.3, 0.5]])
    mean, covariance = jnp.asarray([0.4, -0.2]), jnp.asarray([[0.8, 0.2], [0.2, 0.5]])
    closure = limits.gaussian_closure(mean, covariance, logits=logits, values=values, t1=0.5)
    root = jnp.linalg.cholesky(covariance)
    d = Discretization(lambda t, u, args: gaussian_attention(u, logits, values), "rk4", t1=0.5, steps=16)

    def measure(n: int, seed: int):
        u0 = mean[None] + jax.random.normal(jax.random.fold_in(key, seed), (n, 2)) @ root.T
        u = np.asarray(_ends(d, u0))
        centred = u - u.mean(axis=0)
        return np.concatenate([u.mean(axis=0), (centred.T @ centred / n).ravel()])

    return measure, np.concatenate([np.asarray(x).ravel() for x in closure])


def _circle(key):
    """The first two Fourier modes at depth ½ of tokens drawn from a density with two humps, β = 3."""
    theta = 2 * np.pi * np.arange(256) / 256
    density = (1 + 0.5 * np.cos(theta) + 0.3 * np.cos(2 * theta - 1)) / (2 * np.pi)
    end = limits.circle_closure(jnp.asarray(density), 3.0, t1=0.5)
    waves = np.exp(1j * np.outer([1, 2], theta))
    closure = waves @ np.asarray(end) * (2 * np.pi / 256)
    d = Discretization(lambda t, u, args: exact.sphere_attention(u, 3.0), "rk4", t1=0.5, steps=16)
    inverse = np.concatenate([[0], np.cumsum(density) * 2 * np.pi / 256])

    def measure(n: int, seed: int):
        drawn = np.random.default_rng([seed, n, *np.asarray(jax.random.key_data(key))]).uniform(size=n)
        # The cumulated density by cells centred on the grid's angles.
        angle = np.interp(drawn, inverse, 2 * np.pi * (np.arange(257) - 0.5) / 256)
        u0 = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1))
        u = np.asarray(_ends(d, u0))
        z = u[:, 0] + 1j * u[:, 1]
        modes = np.array([np.mean(z), np.mean(z**2)])
        return np.concatenate([modes.real, modes.imag])

    return measure, np.concatenate([closure.real, closure.imag])


def _equiangular(key):
    """The pairwise cosine at depth 1 of eight tokens at random on the sphere, which in many dimensions are at right angles."""
    run = Discretization(lambda t, u, args: exact.sphere_attention(u, 1.0), "rk4", t1=1.0, steps=24)

    def measure(d: int, seed: int):
        u0 = jax.random.normal(jax.random.fold_in(key, seed), (8, d))
        u0 = u0 / jnp.linalg.norm(u0, axis=1, keepdims=True)
        u = np.asarray(_ends(run, u0))
        return (u @ u.T)[np.triu_indices(8, 1)]

    return measure, np.full(28, float(exact.equiangular_cosine(0.0, 1.0, 8, 1.0)))


@eqx.filter_jit
def _ends(d: Discretization, u0):
    return simulate(d, u0, save="end").us[-1]


def metastability_section(config: LimitsConfig, parts: Parts) -> dict[str, Any]:
    """Waiting times of two tokens, and a staircase of five."""

    def waiting(angle):
        parts.say(f"waiting times at {angle:g}")
        cosine = math.cos(angle)
        u0 = jnp.asarray([[1.0, 0.0], [cosine, math.sin(angle)]])
        betas = [x / (1 - cosine) for x in sorted(config.waits)]
        runs = [limits.metastability(u0, b, t1=2 * math.exp(b * (1 - cosine)) + 20, saves=2) for b in betas]
        times = [float(run.merged[0]) for run in runs]
        slope = limits.waiting_exponent(betas, times)
        # The same times by the closed form of two equiangular tokens, whose β ends at 100.
        closed = [
            float(exact.equiangular_cosine(cosine, b, 2, t)) for b, t in zip(betas, times, strict=True) if b <= 100
        ]
        return {
            "angle": angle,
            "betas": betas,
            "times": times,
            "steps": [run.steps for run in runs],
            "slope": [float(slope), float(slope.low), float(slope.high)],
            "expected": 1 - cosine,
            "closed_form_error": float(np.max(np.abs(np.asarray(closed) - math.cos(0.05)))),
        }

    name = "-".join(f"{x:g}" for x in sorted(config.waits))
    found = [parts.get(f"waiting-{w:g}-{name}", lambda w=w: waiting(float(w))) for w in config.angles]

    def staircase():
        parts.say("energy staircase")
        angle = np.array([0.0, 0.35, 0.9, 2.1, 3.0])
        u0 = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1))
        run = limits.metastability(u0, 20.0, t1=1e9)
        top = math.exp(20.0) / 40
        return {
            "ts": run.ts.tolist(),
            "energies": (run.energies / top).tolist(),
            "merged": run.merged.tolist(),
            "clusters": list(run.clusters),
            "steps": run.steps,
        }

    return {"waiting": found, "staircase": parts.get("staircase", staircase)}


def noise_section(config: LimitsConfig, parts: Parts) -> dict[str, Any]:
    """Weak orders, the SDE by diffrax, the critical line, and how often two tokens end opposite."""
    paths = config.paths
    return {
        "orders": parts.get(f"weak-orders-{paths}", lambda: _weak_orders(config, parts)),
        "diffrax": parts.get(f"diffrax-{paths}", lambda: _both_senses(config, parts)),
        "critical": [parts.get(f"critical-{d}-{paths}", lambda d=d: _critical(config, parts, d)) for d in config.dims],
        "antipodal": parts.get(f"antipodal-{paths}", lambda: _antipodal(config, parts)),
    }


def _weak_orders(config: LimitsConfig, parts: Parts) -> list[dict[str, Any]]:
    """Distances of networks' moments from the SDE's: in closed form for linear layers, measured for attention on the sphere."""
    parts.say("weak orders")
    found = []
    counts = (64, 128, 256, 512, 1024)
    for index, moment in ((0, "second moment"), (1, "fourth moment")):
        errors = [
            float(abs(exact.random_linear_moments(4, n)[index] - exact.random_linear_moments(4)[index])) for n in counts
        ]
        fit = fit_order([1 / n for n in counts], errors)
        own = {"layers": list(counts), "errors": errors, "order": fit.order, "ci": fit.ci}
        found.append({"system": "linear layers", "moment": moment, **own})
    # Attention on the sphere: how far the mean cosine of two tokens moves from L layers to 2L, on the same noise.
    system = limits.CommonNoise(limits.attention_means(1.0), sphere=True)
    u0 = jnp.zeros((2, 4)).at[0, 0].set(1.0).at[1, 1].set(1.0)
    layers, per, rows = (8, 16, 32), 6 * config.paths // BATCHES, []
    for count in layers:
        parts.say(f"weak order on the sphere: {count} layers")
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), count), per * BATCHES)
        coarse, fine = (jnp.sum(x[:, 0] * x[:, 1], axis=-1) for x in coupled_ends(system, u0, jnp.asarray(count), keys))
        rows.append(np.asarray(fine - coarse).reshape(BATCHES, per).mean(axis=1))
    samples = np.stack(rows)
    value, ci = exponent_over_draws(layers, lambda x: np.abs(x.mean(axis=1)), samples)
    errors = np.abs(samples.mean(axis=1)).tolist()
    own = {"layers": list(layers), "errors": errors, "order": -value, "ci": ci}
    return [*found, {"system": "attention on the sphere", "moment": "mean cosine, L to 2L", **own}]


def expected_cosine(gamma0: float, beta: float, d: int, t: float, *, points: int = 1201, reach: float = 9.0) -> float:
    """Mean cosine of two tokens at depth t: Kolmogorov's backward equation in x = artanh γ by second-order differences."""
    x = np.linspace(-reach, reach, points)
    step, g = x[1] - x[0], np.tanh(x)
    tau = np.tanh(beta * (1 - g) / 2) ** 2
    drift, half = 0.5 * ((d - 2) * (1 - tau) + g * (1 + tau)), 0.5 * (1 + tau)

    def rate(_, v):
        out = np.zeros_like(v)  # both ends absorb
        out[1:-1] = drift[1:-1] * (v[2:] - v[:-2]) / (2 * step) + half[1:-1] * (v[2:] - 2 * v[1:-1] + v[:-2]) / step**2
        return out

    end = solve_ivp(rate, (0.0, t), g, method="RK23", rtol=1e-6, atol=1e-9)
    return float(np.interp(math.atanh(gamma0), x, end.y[:, -1]))


def _both_senses(config: LimitsConfig, parts: Parts) -> list[dict[str, Any]]:
    """The mean cosine at depth 1 by networks of 64 layers and by diffrax in both senses, beside that of its equation."""
    system = limits.CommonNoise(limits.attention_means(1.0), sphere=True)
    u0 = jnp.zeros((2, 4)).at[0, 0].set(1.0).at[1, 1].set(1.0)
    draws = max(config.paths // 10, 1000)
    key, found = jax.random.key(config.seed + 3), []
    for name in ("network", "ito", "stratonovich"):
        parts.say(f"mean cosine: {name}")
        if name == "network":
            ends = limits.network_ends(system, u0, layers=64, draws=draws, key=key, law="signs")
        else:
            # Heun's first-order error is some five times that of Euler–Maruyama here: −0.073 to −0.016 in 16 steps.
            steps = 64 if name == "ito" else 256
            own = jax.random.fold_in(key, len(name))
            ends = limits.sde_ends(system, u0, steps=steps, draws=draws, key=own, calculus=name)
        unit = ends / jnp.linalg.norm(ends, axis=-1, keepdims=True)
        cosines = np.asarray(jnp.sum(unit[:, 0] * unit[:, 1], axis=-1))
        found.append({"by": name, "mean": float(cosines.mean()), "ci": float(1.96 * cosines.std() / math.sqrt(draws))})
    return [*found, {"by": "Kolmogorov's equation", "mean": expected_cosine(0.0, 1.0, 4, 1.0), "ci": 0.0}]


def _critical(config: LimitsConfig, parts: Parts, d: int) -> dict[str, Any]:
    """The zero of the sampled exponent over five β around the expected one, with an interval for noise and for the step."""
    parts.say(f"critical line: d = {d}")
    expected = exact.two_token_critical_beta(d)
    betas = expected * np.array([0.9, 0.95, 1.0, 1.05, 1.1])
    key = jax.random.fold_in(jax.random.key(config.seed + 5), d)
    draws = config.paths // BATCHES * BATCHES

    def sampled(step):
        found = [np.asarray(antipodal_exponent(float(b), d, step=step, draws=draws, key=key)) for b in betas]
        return np.stack([x.reshape(BATCHES, -1).mean(axis=1) for x in found])

    # The same samples at every β, so that the curve is smooth: the zero of a parabola through it.
    rates = sampled(1 / 256)
    zeros = np.array([_zero(betas, row) for row in rates.T])
    value = _zero(betas, rates.mean(axis=1))
    noise = 2.02 * zeros.std(ddof=1) / math.sqrt(BATCHES)
    # What the step still does, of order h²: from twice the step it moves by three times as much, on the same samples.
    moved = abs(value - _zero(betas, sampled(1 / 128).mean(axis=1)))
    return {
        "d": d,
        "critical": value,
        "ci": math.hypot(noise, moved),
        "noise": float(noise),
        "step": float(moved),
        "expected": expected,
        "betas": betas.tolist(),
        "rates": rates.mean(axis=1).tolist(),
        "rate_errors": (rates.std(axis=1, ddof=1) / math.sqrt(BATCHES)).tolist(),
    }


def _zero(x: np.ndarray, y: np.ndarray) -> float:
    """Where a parabola fitted to y(x) vanishes, the zero nearest to the middle of x."""
    centre = x[len(x) // 2]
    roots = np.roots(np.polyfit(x - centre, y, 2))
    return float(centre + min(roots.real, key=abs))


def _antipodal(config: LimitsConfig, parts: Parts) -> list[dict[str, Any]]:
    """How often two tokens at right angles end opposite in networks of 64 layers per unit depth, at depth 12."""
    found = []
    u0 = jnp.zeros((2, 4)).at[0, 0].set(1.0).at[1, 1].set(1.0)
    draws = max(config.paths // 50, 1000)
    for beta in (0.3, 1.0, 2.0, 4.0):
        parts.say(f"opposite tokens at β = {beta:g}")
        system = limits.CommonNoise(limits.attention_means(beta), sphere=True)
        ends = limits.network_ends(system, u0, layers=64, draws=draws, key=jax.random.key(config.seed + 7), t1=12.0)
        share = opposite_share(np.asarray(jnp.sum(ends[:, 0] * ends[:, 1], axis=-1)))
        expected = float(exact.antipodal_probability(0.0, beta, 4))
        error = math.sqrt(max(share * (1 - share), 1 / draws) / draws)
        found.append({"beta": beta, "d": 4, "share": share, "ci": 1.96 * error, "expected": expected})
    return found


def opposite_share(cosines: np.ndarray) -> float:
    """The share of cosines near −1; NaN where one is not finite, which is no evidence of anything."""
    return float(np.mean(cosines < -0.5)) if np.all(np.isfinite(cosines)) else math.nan
