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
from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax.solvers import SOLVERS, Grid
from pdejax.studies._verify_case import (
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


def heat() -> Iterator[Check]:
    """§5.1: all modes and random data in one field, each feature with a diffusivity of its own."""
    for boundary in BOUNDARIES:
        grid = Grid(N, boundary, LENGTH)
        spacing = float(grid.spacing)
        first = 1 if boundary == "dirichlet" else 0
        modes = jnp.stack([exact.heat_mode(N, boundary, first + j) for j in range(N)], axis=1)
        rates = 0.05 + 0.01 * jnp.arange(N + 3.0)
        u0 = jnp.concatenate([modes, normal(1, N, 3)], axis=1)
        equation = MasterEquation(diffusion=Diffusion(grid, rates))
        t1 = 0.7
        u = solve(equation, u0, t1)

        def growth(j, k, boundary=boundary, spacing=spacing, rates=rates):
            return exact.heat_mode_eigenvalue(N, boundary, k, rates[j], spacing)

        errors = [
            relative(u[:, j], jnp.exp(t1 * growth(j, j + first)) * modes[:, j]) for j in range(N)
        ]
        yield Check(f"heat modes, {boundary}", TIGHT, max(errors), REACHED)
        expected = exact.heat_solution(u0, rates, t1, boundary, LENGTH)
        yield Check(f"heat, random data, {boundary}", TIGHT, relative(u, expected), REACHED)
        steps, h = 5, 0.02
        stepped = simulate(equation, u0, t1=steps * h, steps=steps, solver="euler").us[-1]
        factors = [exact.heat_mode_factor(N, boundary, j + first, rates[j], spacing, h) for j in range(N)]
        errors = [relative(stepped[:, j], f**steps * modes[:, j]) for j, f in enumerate(factors)]
        yield Check(f"heat modes, factor per step, {boundary}", f"euler, {steps} steps", max(errors), ROUNDING)
    root = normal(2, 3, 3)
    matrix = 0.02 * (root @ root.T) + 0.01 * (root - root.T)  # not symmetric, so that D and its transpose differ
    u0 = normal(3, N, 3)
    u = solve(MasterEquation(diffusion=Diffusion(Grid(N, length=LENGTH), matrix)), u0, 0.7)
    expected = exact.heat_solution(u0, matrix, 0.7, "neumann", LENGTH)
    yield Check("heat, matrix diffusivity, neumann", TIGHT, relative(u, expected), REACHED)


def linear() -> Iterator[Check]:
    """§5.2 and §5.3: uniform attention, linear reaction, and all linear terms together."""
    n, d, t1 = 6, 4, 1.3
    u0, weights = normal(4, n, d), jnp.arange(1.0, n + 1)
    for leak in (True, False):
        term = Attention(d, 2, key=jax.random.key(0), leak=leak, weights=weights if leak else None)
        term = with_weights(
            term, wk=jnp.zeros((d, 2, 2)), wq=normal(5, d, 2, 2), wv=normal(6, d, 2, 2), wo=0.3 * normal(7, 2, 2, d)
        )
        value = jnp.einsum("dhk,hke->de", term.wv, term.wo)
        expected = exact.uniform_attention(u0, value, t1, leak, weights if leak else None)
        u = solve(MasterEquation(interaction=term), u0, t1)
        what = "leak, weighted" if leak else "no leak"
        yield Check(f"uniform attention, {what}", TIGHT, relative(u, expected), REACHED)
    w1, w2, b1, b2 = 0.5 * normal(8, d, 5), 0.5 * normal(9, 5, d), normal(10, 5), normal(11, d)
    m, offset = w1 @ w2, b1 @ w2 + b2
    expected = exact.linear_reaction(u0, m, t1, True, offset)
    u = solve(MasterEquation(reaction=reaction(w1, w2, b1, b2, leak=True)), u0, t1)
    yield Check("linear reaction, leak", TIGHT, relative(u, expected), REACHED)
    damped = MasterEquation(reaction=reaction(w1, w2, b1, b2), stabilization=LinearDamping(0.7))
    expected = exact.linear_reaction(u0, m - 0.7 * jnp.eye(d), t1, False, offset)
    yield Check("linear reaction, linear damping", TIGHT, relative(solve(damped, u0, t1), expected), REACHED)
    for boundary in BOUNDARIES:
        grid = Grid(n, boundary, LENGTH)
        equation = MasterEquation(
            interaction=attention(0.0, jnp.eye(d), leak=True, kernel="uniform", grid=grid),
            reaction=reaction(w1, w2, 0 * b1, 0 * b2),
            diffusion=Diffusion(grid, 0.05),
        )
        means = grid.weights if boundary == "dirichlet" else None
        expected = exact.linear_master_equation(u0, m, t1, 0.05, boundary, LENGTH, True, means)
        u = solve(equation, u0, t1)
        yield Check(f"linear master equation, {boundary}", TIGHT, relative(u, expected), REACHED)


def spatial_norm() -> Iterator[Check]:
    """§5.4 and claim C4: the radius shrinks in place, the mean stays, and linear growth wins outside the basin."""
    gamma, eps = 0.8, 0.05
    u0 = normal(12, 6, 3)

    def radius(u):
        return float(jnp.sqrt(jnp.mean(jnp.sum((u - jnp.mean(u, axis=0)[None]) ** 2, axis=1))))

    s0 = radius(u0)
    depths = [0.3, 0.9, 1.5]
    us = solve(MasterEquation(stabilization=SpatialNorm(gamma, eps=eps)), u0, depths[-1], depths)
    expected = jnp.stack([exact.spatial_norm_solution(u0, gamma, eps, t) for t in depths])
    yield Check("spatial normalization, field", TIGHT, relative(us, expected), REACHED)
    radii = [radius(u) for u in us]
    expected = exact.spatial_norm_radius(s0, gamma, eps, jnp.asarray(depths))
    yield Check("spatial normalization, radius", TIGHT, relative(radii, expected), REACHED)
    times = exact.spatial_norm_time(s0, jnp.asarray(radii), gamma, eps)
    yield Check("spatial normalization, depth of a radius", TIGHT, relative(times, depths), REACHED)
    mean = jnp.broadcast_to(jnp.mean(u0, axis=0), (3, 3))
    yield Check("spatial normalization, constant mean", TIGHT, relative(jnp.mean(us, axis=1), mean), ROUNDING)

    # For ε = 0 the radius falls linearly: one look at it halfway tells when it vanishes.
    end = exact.spatial_norm_extinction_time(s0, gamma)
    half = 0.5 * s0 / gamma
    sharp = SpatialNorm(gamma, eps=1e-24)
    found = half + radius(solve(MasterEquation(stabilization=sharp), u0, half)) / gamma
    yield Check("spatial normalization, extinction", TIGHT, relative(found, end), REACHED)

    growth = 0.5
    deviations = u0 - jnp.mean(u0, axis=0)[None]
    eye, zero = jnp.eye(3), jnp.zeros(3)
    growing = MasterEquation(reaction=reaction(growth * eye, eye, zero, zero), stabilization=sharp)
    basin = float(exact.spatial_norm_basin_radius(gamma, growth))
    starts = (0.7 * basin, 1.3 * basin)
    found = [radius(solve(growing, deviations * (s / s0), 0.8)) for s in starts]
    expected = exact.spatial_norm_growth_radius(jnp.asarray(starts), gamma, growth, 0.8)
    yield Check("spatial normalization against growth", TIGHT, relative(found, expected), REACHED)
    basin = exact.spatial_norm_basin_radius(gamma, growth, eps)
    resting = MasterEquation(growing.interaction, growing.reaction, None, SpatialNorm(gamma, eps=eps))
    still = deviations * (basin / s0)
    rate = jnp.linalg.norm(resting(jnp.zeros(()), still)) / jnp.linalg.norm(growth * still)
    yield Check("spatial normalization, edge of the basin", "field", float(rate), ROUNDING)


def stability() -> Iterator[Check]:
    """§5.10: the step at which the highest mode stops to shrink, and noise below and above it."""
    grid = Grid(N, "neumann", LENGTH)
    equation = MasterEquation(diffusion=Diffusion(grid, 0.3))
    spacing = float(grid.spacing)
    mode, noise = exact.heat_mode(N, "neumann", N - 1)[:, None], normal(13, N, 1)
    for name in EXPLICIT:

        def end(u0: Array, h: float, steps: int, name=name) -> Array:
            return simulate(equation, u0, t1=h * steps, steps=steps, solver=name).us[-1]

        def excess(h: float, end=end) -> float:
            return float(jnp.abs(end(mode, h, 1)[0, 0] / mode[0, 0])) - 1

        limit = float(exact.diffusive_step_limit(name, 0.3, spacing, N))
        # Where |R| touches 1 on both sides a bracket would be lost: report it as a failure, not as a crash.
        inside, outside = excess(0.97 * limit), excess(1.03 * limit)
        found = brentq(excess, 0.97 * limit, 1.03 * limit, xtol=1e-15, rtol=1e-14) if inside < 0 < outside else np.nan
        yield Check("diffusive step limit", f"{name}, 1 step", relative(found, limit), REACHED)
        growth = [float(jnp.linalg.norm(end(noise, f * limit, 400)) / jnp.linalg.norm(noise)) for f in (0.95, 1.05)]
        bounded = growth[0] <= 1 < 1e3 < growth[1]
        note = "" if bounded else f"|u| grows {growth[0]:.1e} times at 0.95 of the limit, {growth[1]:.1e} times at 1.05"
        yield Check("noise at 0.95 and 1.05 of the limit", f"{name}, 400 steps", 0.0 if bounded else np.nan, 0.0, note)
        polynomial = np.polynomial.Polynomial(exact.stability_polynomial(name))
        table, stated = SOLVERS[name].real_limit, exact.real_axis_limit(name)
        measured = float(end(mode, 0.9 * limit, 1)[0, 0] / mode[0, 0])
        errors = relative(table, stated), relative(measured, polynomial(-0.9 * stated))
        yield Check("stability polynomial and table", f"{name}, 1 step", max(errors), REACHED)


def information() -> Iterator[Check]:
    """§5.11: from determinants of covariance matrices, the channel being the library's own solve."""
    rho = jnp.asarray([-0.99, -0.4, 0.1, 0.8])
    determinants = jnp.linalg.det(jax.vmap(lambda r: jnp.array([[1.0, r], [r, 1.0]]))(rho))
    expected = exact.bivariate_normal_information(rho)
    yield Check("information, bivariate normal", "determinant", relative(-0.5 * jnp.log(determinants), expected), ROUNDING)
    grid, t1, sigma = Grid(N, "neumann", LENGTH), 0.7, 0.3
    prior = jnp.exp(-0.5 * jnp.arange(N))
    basis = exact.mode_sum(jnp.eye(N), "neumann")
    covariance = (basis * prior[None]) @ basis.T
    # As wide as the fields of `heat`, so that the solve compiled there is used again.
    start = jnp.concatenate([jnp.eye(N), jnp.zeros((N, 3))], axis=1)
    propagator = solve(MasterEquation(diffusion=Diffusion(grid, jnp.full(N + 3, 0.05))), start, t1)[:, :N]
    output = propagator @ covariance @ propagator.T / sigma**2 + jnp.eye(N)
    found = 0.5 * jnp.linalg.slogdet(output)[1]
    rates = exact.heat_eigenvalues(N, "neumann", 0.05, float(grid.spacing))
    expected = exact.diffusion_channel_information(prior, rates, t1, sigma)
    yield Check("information, diffusion channel", TIGHT, relative(found, expected), REACHED)


GROUPS = (heat, linear, spatial_norm, stability, information)
