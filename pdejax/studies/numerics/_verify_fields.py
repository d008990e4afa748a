"""Verification of what acts on positions or on every token alike: diffusion, linear terms, spatial normalization, and the
stability and information that follow from them (THEORY §5.1–5.4, 5.10, 5.11)."""

from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.optimize import brentq

from pdejax import exact
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax.solvers import SOLVERS, Grid
from pdejax.studies.numerics._verify_case import (
    REACHED,
    ROUNDING,
    TIGHT,
    Check,
    attention,
    normal,
    reaction,
    relative,
    solve,
    with_weights,
)
from pdejax.terms import Attention, Diffusion, LinearDamping, SpatialNorm

Boundary = Literal["neumann", "dirichlet", "periodic"]
BOUNDARIES: tuple[Boundary, ...] = ("neumann", "dirichlet", "periodic")
EXPLICIT = ("euler", "heun", "midpoint", "bosh3", "rk4", "tsit5", "dopri5", "dopri8")
N, LENGTH = 8, 2.0
WIDTH = N + 3  # of the fields that diffuse: one feature for each mode, and random ones


def heat() -> Iterator[Check]:
    """§5.1: all modes and random data in one field, each feature with a diffusivity of its own."""
    t1, h, steps = 0.7, 0.02, 5
    rates = 0.05 + 0.01 * np.arange(WIDTH)
    for boundary in BOUNDARIES:
        grid = Grid(N, boundary, LENGTH)
        first = int(boundary == "dirichlet")
        spacing = LENGTH / (N + first)
        modes = np.stack([exact.heat_mode(N, boundary, first + j) for j in range(N)], axis=1)
        u0 = jnp.concatenate([modes, normal(1, N, WIDTH - N)], axis=1)
        equation = MasterEquation(diffusion=Diffusion(grid, rates))
        u = np.asarray(solve(equation, u0, t1))
        growth = [exact.heat_eigenvalues(N, boundary, rates[j], spacing, k=first + j) for j in range(N)]
        errors = [relative(u[:, j], np.exp(t1 * growth[j]) * modes[:, j]) for j in range(N)]
        yield Check(f"heat modes, {boundary}", TIGHT, max(errors), REACHED)
        expected = exact.heat_solution(u0, rates, t1, boundary, LENGTH)
        yield Check(f"heat, random data, {boundary}", TIGHT, relative(u, expected), REACHED)
        u = np.asarray(simulate(Discretization(equation, "euler", t1=steps * h, steps=steps), u0).us[-1])
        factors = [1 + h * growth[j] for j in range(N)]
        errors = [relative(u[:, j], np.asarray(factors[j]) ** steps * modes[:, j]) for j in range(N)]
        yield Check(f"heat modes, factor per step, {boundary}", f"euler, {steps} steps", max(errors), ROUNDING)
    root = normal(2, 4, 4)
    matrix = 0.02 * (root @ root.T) + 0.01 * (root - root.T)  # not symmetric, so that D and its transpose differ
    u0 = normal(3, N, 4)
    u = solve(MasterEquation(diffusion=Diffusion(Grid(N, length=LENGTH), matrix)), u0, t1)
    expected = exact.heat_solution(u0, matrix, t1, "neumann", LENGTH)
    yield Check("heat, matrix diffusivity, neumann", TIGHT, relative(u, expected), REACHED)


def linear() -> Iterator[Check]:
    """§5.2 and §5.3: uniform attention, linear reaction, and all linear terms together."""
    n, d, t1, gamma = 6, 4, 1.3, 0.7
    u0, weights = normal(4, n, d), jnp.arange(1.0, n + 1)
    for leak in (True, False):
        term = Attention(d, 2, key=jax.random.key(0), leak=leak, weights=weights if leak else None)
        term = with_weights(
            term, wk=jnp.zeros((d, 2, 2)), wq=normal(5, d, 2, 2), wv=normal(6, d, 2, 2), wo=0.3 * normal(7, 2, 2, d)
        )
        value = np.einsum("dhk,hke->de", term.wv, term.wo)
        expected = exact.uniform_attention(u0, value, t1, leak, weights if leak else None)
        u = solve(MasterEquation(interaction=term), u0, t1)
        what = "leak, weighted" if leak else "no leak"
        yield Check(f"uniform attention, {what}", TIGHT, relative(u, expected), REACHED)
    w1, w2, b1, b2 = 0.5 * normal(8, d, d), 0.5 * normal(9, d, d), normal(10, d), normal(11, d)
    m, none = w1 @ w2, jnp.zeros(d)
    expected = exact.linear_reaction(u0, m, t1, True, b1 @ w2 + b2)
    u = solve(MasterEquation(reaction=reaction(w1, w2, b1, b2, leak=True)), u0, t1)
    yield Check("linear reaction", TIGHT, relative(u, expected), REACHED)
    for boundary in ("neumann", "periodic"):
        grid = Grid(n, boundary, LENGTH)
        # The same equation with the leak written as a leak, and as linear damping.
        leak = boundary == "neumann"
        equation = MasterEquation(
            interaction=attention(0.0, jnp.eye(d), leak=leak, kernel="uniform", grid=grid),
            reaction=reaction(w1, w2, none, none),
            diffusion=Diffusion(grid, 0.05),
            stabilization=None if leak else LinearDamping(gamma),
        )
        expected = exact.linear_master_equation(u0, m, t1, 0.05, boundary, LENGTH, leak)
        expected = expected if leak else np.exp(-gamma * t1) * expected
        what = "leak" if leak else "damping"
        error = relative(solve(equation, u0, t1), expected)
        yield Check(f"linear master equation, {boundary}, {what}", TIGHT, error, REACHED)


def spatial_norm() -> Iterator[Check]:
    """§5.4 and claim C4: the radius shrinks in place, the mean stays, and linear growth wins outside the basin."""
    gamma, eps, growth = 0.8, 0.05, 0.5
    u0 = normal(12, 6, 4)
    deviations = u0 - jnp.mean(u0, axis=0)[None]
    s0 = float(_radii(u0[None])[0])
    depths = [0.3, 0.9, 1.5]
    us = solve(MasterEquation(stabilization=SpatialNorm(gamma, eps=eps)), u0, depths[-1], depths)
    expected = np.stack([exact.spatial_norm_solution(u0, gamma, eps, t) for t in depths])
    yield Check("spatial normalization, field", TIGHT, relative(us, expected), REACHED)
    radii = _radii(us)
    expected = exact.spatial_norm_radius(s0, gamma, eps, jnp.asarray(depths))
    yield Check("spatial normalization, radius", TIGHT, relative(radii, expected), REACHED)
    times = exact.spatial_norm_time(s0, jnp.asarray(radii), gamma, eps)
    yield Check("spatial normalization, depth of a radius", TIGHT, relative(times, depths), REACHED)
    means = np.mean(us, axis=1)
    expected = np.broadcast_to(np.mean(u0, axis=0), means.shape)
    yield Check("spatial normalization, constant mean", TIGHT, relative(means, expected), ROUNDING)

    # For ε = 0 the radius falls linearly: any radius on the way tells when it vanishes.
    sharp = SpatialNorm(gamma, eps=1e-24)
    depths = [f * s0 / gamma for f in (0.2, 0.5, 0.8)]
    radii = _radii(solve(MasterEquation(stabilization=sharp), u0, depths[-1], depths))
    found, expected = depths + radii / gamma, np.full(3, exact.spatial_norm_time(s0, 0.0, gamma, 0.0))
    yield Check("spatial normalization, extinction", TIGHT, relative(found, expected), REACHED)

    eye, none = jnp.eye(4), jnp.zeros(4)
    growing = MasterEquation(reaction=reaction(growth * eye, eye, none, none), stabilization=sharp)
    edge = float(exact.spatial_norm_basin_radius(gamma, growth))
    starts = (0.7 * edge, 1.3 * edge)
    found = [_radii(solve(growing, deviations * (s / s0), 0.8)[None])[0] for s in starts]
    expected = exact.spatial_norm_growth_radius(jnp.asarray(starts), gamma, growth, 0.8)
    yield Check("spatial normalization against growth", TIGHT, relative(found, expected), REACHED)
    edge = float(exact.spatial_norm_basin_radius(gamma, growth, eps))
    resting = MasterEquation(reaction=growing.reaction, stabilization=SpatialNorm(gamma, eps=eps))
    still = deviations * (edge / s0)
    rate = np.linalg.norm(resting(jnp.zeros(()), still)) / np.linalg.norm(growth * still)
    yield Check("spatial normalization, edge of the basin", "field", float(rate), ROUNDING)


def stability() -> Iterator[Check]:
    """§5.10: where the highest mode stops to shrink, and whether noise stays bounded just below and grows just above."""
    grid = Grid(N, "neumann", LENGTH)
    # As wide as in `heat`, so that the steps compiled there are used again.
    equation = MasterEquation(diffusion=Diffusion(grid, np.full(WIDTH, 0.3)))
    highest = np.asarray(exact.heat_mode(N, "neumann", N - 1))
    mode, noise = jnp.broadcast_to(highest[:, None], (N, WIDTH)), normal(13, N, WIDTH)
    for name in EXPLICIT:

        def end(u0: Array, h: float, steps: int, name=name) -> np.ndarray:
            return np.asarray(simulate(Discretization(equation, name, t1=h * steps, steps=steps), u0).us[-1])

        def excess(h: float, end=end) -> float:
            return abs(float(end(mode, h, 1)[0, 0] / highest[0])) - 1

        limit = float(exact.diffusive_step_limit(name, 0.3, LENGTH / N, N))
        low, high = 0.97 * limit, 1.03 * limit
        found = brentq(excess, low, high, xtol=1e-15) if excess(low) < 0 < excess(high) else np.nan
        polynomial = np.polynomial.Polynomial(exact.stability_polynomial(name))
        stated = exact.real_axis_limit(name)
        factor = float(end(mode, 0.9 * limit, 1)[0, 0] / highest[0])
        errors = [relative(found, limit), relative(SOLVERS[name].real_limit, stated)]
        errors.append(relative(factor, polynomial(-0.9 * stated)))
        yield Check("diffusive step limit and factor per step", name, max(errors), REACHED)
        ends = [np.linalg.norm(end(noise, f * limit, 400)) / np.linalg.norm(noise) for f in (0.95, 1.05)]
        below, above = np.where(np.isnan(ends), np.inf, ends)  # NaN: the solve ended as a blow-up
        note = "" if below <= 1 <= above else f"noise grows {below:.1e} times below the limit, {above:.1e} times above"
        yield Check(
            "growth of noise at 0.95, decay at 1.05 of it",
            f"{name}, 400 steps",
            float(max(below, 1 / above)),
            1.0,
            note,
        )


def information() -> Iterator[Check]:
    """§5.11: from determinants of covariance matrices, the channel being the library's own solve."""
    rho = np.array([-0.99, -0.4, 0.1, 0.8])
    found = [-0.5 * np.linalg.slogdet([[1, r], [r, 1]])[1] for r in rho]
    expected = exact.bivariate_normal_information(jnp.asarray(rho))
    yield Check("information, bivariate normal", "determinant", relative(found, expected), ROUNDING)
    grid, t1, sigma = Grid(N, "neumann", LENGTH), 0.7, 0.3
    prior = np.exp(-0.5 * np.arange(N))
    amplitudes = exact.mode_amplitudes(jnp.eye(N), "neumann")
    covariance = np.asarray(exact.mode_sum(jnp.asarray(prior)[:, None] * amplitudes, "neumann"))
    start = jnp.eye(N, WIDTH)
    propagator = np.asarray(solve(MasterEquation(diffusion=Diffusion(grid, np.full(WIDTH, 0.05))), start, t1))[:, :N]
    found = 0.5 * np.linalg.slogdet(np.eye(N) + propagator @ covariance @ propagator.T / sigma**2)[1]
    rates = exact.heat_eigenvalues(N, "neumann", 0.05, LENGTH / N)
    expected = exact.diffusion_channel_information(prior, rates, t1, sigma)
    yield Check("information, diffusion channel", TIGHT, relative(found, expected), REACHED)


def _radii(us: Array) -> np.ndarray:
    """Root mean square distance of tokens from their mean, `us (k, n, d)` to `(k,)`."""
    centred = np.asarray(us) - np.mean(us, axis=1, keepdims=True)
    return np.sqrt(np.mean(np.sum(centred**2, axis=2), axis=1))


GROUPS = (heat, linear, spatial_norm, stability, information)
