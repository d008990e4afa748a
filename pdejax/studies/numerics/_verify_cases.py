"""The verification's cases, each a closed form of `pdejax.exact` beside a solve: fields on positions, and interacting tokens."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from scipy.optimize import brentq

from pdejax import exact
from pdejax._discretization import Discretization
from pdejax._equation import AbstractEquation, MasterEquation
from pdejax._simulate import simulate
from pdejax._types import Depth, Field
from pdejax.models import Architecture, Transformer, lift
from pdejax.solvers import SOLVERS, Dopri8, Euler, Grid, Retract
from pdejax.terms import (
    AbstractTerm,
    Attention,
    Diffusion,
    FeedForward,
    FieldArgs,
    LinearDamping,
    RMSNorm,
    SpatialNorm,
    SphereProjection,
)

TIGHT = "dopri8 1e-13"  # how `solve` is named in the table
REACHED = 1e-10  # what such a solve reaches on these cases with room for another machine's rounding
ROUNDING = 1e-12  # a few operations in float64
TOLERANCE = 1e-13
KEY = 2408_09523


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison with a closed form: `error` against what is `expected` of it at most (both relative, unless the case
    says otherwise)."""

    case: str
    scheme: str
    error: float
    expected: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.expected)  # NaN never passes


def solve(
    equation: AbstractEquation, u0: Array, t1: float, save: Sequence[float] | None = None, mask: Array | None = None
) -> Array:
    """The field at t1 `(n, d)`, or at the depths `save` `(k, n, d)`, by a tight-tolerance solve."""
    trajectory = simulate(
        Discretization(equation, "dopri8", t1=t1, rtol=TOLERANCE, atol=1e-2 * TOLERANCE),
        u0,
        mask=mask,
        save="end" if save is None else save,
    )
    us = jnp.where(trajectory.complete, trajectory.us, jnp.nan)
    return us[-1] if save is None else us


def relative(value: Any, exact: Any) -> float:
    """‖value − exact‖ / ‖exact‖, Euclidean over all entries. Shapes must agree."""
    a, b = np.asarray(value, float), np.asarray(exact, float)
    if a.shape != b.shape:
        raise AssertionError(f"compared shapes {a.shape} and {b.shape}")
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def normal(seed: int, *shape: int) -> Array:
    """The same standard normal numbers on every machine and in every version."""
    return jnp.asarray(np.random.default_rng([KEY, seed]).standard_normal(shape))


def attention(logit: float | Array, value: Array, **options: Any) -> Attention:
    r"""One head with logits a⟨x, y⟩, a = `logit`, and value matrix V, W_V = I, W_O = V: $\sum_j K_{ij} u_j V$."""
    dim = value.shape[0]
    term = Attention(dim, key=jax.random.key(0), **options)
    eye = jnp.eye(dim)
    return with_weights(term, wq=(logit * dim**0.5) * eye[:, None], wk=eye[:, None], wv=eye[:, None], wo=value[None])


def reaction(w1: Array, w2: Array, b1: Array, b2: Array, **options: Any) -> FeedForward:
    """A feed-forward term without activation, so that it is linear: M = w1 @ w2, b = b1 @ w2 + b2."""
    term = FeedForward(w1.shape[0], w1.shape[1], key=jax.random.key(0), activation="identity", **options)
    return with_weights(term, w1=w1, w2=w2, b1=b1, b2=b2)


def with_weights(term: Any, **weights: Array) -> Any:
    """The term with these arrays instead of its random ones."""
    return eqx.tree_at(lambda t: [getattr(t, name) for name in weights], term, list(weights.values()))


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


Norm = Literal["pre", "post"]
N = 4  # tokens, and features
NODES, QUADRATURE = np.polynomial.legendre.leggauss(12)


class TangentAttention(AbstractTerm):
    r"""Attention projected on the tangent space of the sphere, $x_i' = D\rho(x)\,A(x)_i$ with ρ(x) = x/‖x‖: the flow that
    Euler steps followed by the retraction ρ tend to as h → 0 (post-LN, arXiv 2312.10794, (2.2)).

    Stepping with the retraction is of first order in h whatever the solver, too coarse to check a closed form with; a solve
    of this field has the solver's own order.
    """

    attention: Attention
    projection: SphereProjection

    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        return jax.jvp(self.projection, (u,), (self.attention(t, u, args),))[1]

    def damping(self) -> Float[Array, ""]:
        return self.attention.damping()

    def check(self, n: int, d: int) -> None:
        self.attention.check(n, d)


def on_sphere(beta: float) -> MasterEquation:
    return MasterEquation(interaction=TangentAttention(attention(beta, jnp.eye(N)), SphereProjection()))


def equiangular() -> Iterator[Check]:
    """§5.5: the common cosine of n tokens, and its gap to 1, along the flow; the rate at its start."""
    t1, depths = _quadrature(1.5)
    for beta, n, gamma in ((0.0, 4, 0.0), (1.0, 4, 0.2), (4.0, 4, -0.1), (9.0, 3, 0.5), (2.0, 2, -0.6)):
        equation = on_sphere(beta)
        u0, mask = _padded(exact.equiangular_tokens(n, N, gamma, jax.random.key(1)))
        us = np.asarray(solve(equation, u0, t1, depths, mask=mask))[:, :n]
        case = f"equiangular tokens, β = {beta:g}, n = {n}"
        expected = exact.equiangular_cosine(gamma, beta, n, jnp.asarray(depths))
        yield Check(f"{case}, cosine", TIGHT, relative(_cosines(us), expected), REACHED)
        expected = exact.equiangular_cosine(gamma, beta, n, jnp.asarray(depths), gap=True)
        gaps = 0.5 * np.sum((us[:, 0] - us[:, 1]) ** 2, axis=-1)
        yield Check(f"{case}, gap", TIGHT, float(np.max(np.abs(gaps / np.asarray(expected) - 1))), REACHED)
        start, velocity = np.asarray(u0)[:n], np.asarray(_evaluate(equation, u0, FieldArgs(mask)))[:n]
        rate = velocity[0] @ start[1] + start[0] @ velocity[1]
        yield Check(f"{case}, rate", "field", relative(rate, exact.equiangular_rate(gamma, beta, n)), ROUNDING)
    yield _retraction_order()


def _retraction_order() -> Check:
    """Steps of the bare attention with the retraction after each of them: first order."""
    beta, gamma, t1 = 1.0, 0.2, 1.5
    u0 = exact.equiangular_tokens(N, N, gamma, jax.random.key(1))
    equation = MasterEquation(interaction=attention(beta, jnp.eye(N)))
    solver = Retract(Euler(), SphereProjection())
    expected = float(exact.equiangular_cosine(gamma, beta, N, t1))
    errors = []
    for steps in (256, 512):
        us = np.asarray(simulate(Discretization(equation, solver, t1=t1, steps=steps), u0).us)
        errors.append(abs(float(_cosines(us)[0]) - expected))
    order = math.log2(errors[0] / errors[1])
    return Check("equiangular tokens, order of retraction − 1", "euler + retraction", abs(order - 1), 0.02)


def preln() -> Iterator[Check]:
    """§5.6: cosine, gap and radius of pre-LN tokens, θ = x/‖x‖ being the normalization inside the term."""
    beta, gamma, radius = 1.5, 0.1, 0.7
    _, depths = _quadrature(4.0)
    # RMSNorm with scale 1/√d and ε below rounding is x/‖x‖.
    norm = with_weights(RMSNorm(N, eps=1e-24), scale=jnp.full(N, N**-0.5))
    equation = MasterEquation(interaction=attention(beta, jnp.eye(N), norm=norm))
    u0 = radius * exact.equiangular_tokens(N, N, gamma, jax.random.key(2))
    us = np.asarray(solve(equation, u0, 4.0, depths))
    sizes = np.linalg.norm(us[:, 0], axis=-1)
    expected = exact.preln_equiangular(gamma, radius, beta, N, jnp.asarray(depths))
    yield Check("pre-LN equiangular tokens, cosine", TIGHT, relative(_cosines(us), expected.cosine), REACHED)
    yield Check("pre-LN equiangular tokens, radius", TIGHT, relative(sizes, expected.radius), REACHED)
    gaps = 0.5 * np.sum((us[:, 0] - us[:, 1]) ** 2, axis=-1) / sizes**2
    yield Check(
        "pre-LN equiangular tokens, gap", TIGHT, float(np.max(np.abs(gaps / np.asarray(expected.gap) - 1))), REACHED
    )
    start, velocity = np.asarray(u0), np.asarray(_evaluate(equation, u0, None))
    growth = velocity[0] @ start[0] / radius
    turning = (velocity[0] @ start[1] + start[0] @ velocity[1]) / radius**2 - 2 * gamma * growth / radius
    expected = exact.preln_equiangular_rates(gamma, radius, beta, N)
    yield Check("pre-LN equiangular tokens, rates", "field", relative([turning, growth], expected), ROUNDING)


def sphere() -> Iterator[Check]:
    """§5.7, §5.8, §5.12: field, energy identity and linearization on the sphere; one token alone."""
    beta = 2.0
    equation = on_sphere(beta)
    u0 = SphereProjection()(normal(21, N, N))
    expected = exact.sphere_attention(u0, beta)
    velocity = _evaluate(equation, u0, None)
    yield Check("attention on the sphere", "field", relative(velocity, expected), ROUNDING)
    slope = jax.grad(lambda u: exact.interaction_energy(u, beta))(u0)
    rate = float(np.sum(np.asarray(slope) * np.asarray(velocity)))
    yield Check("energy identity, dE/dt", "field", relative(rate, exact.interaction_energy_rate(u0, beta)), ROUNDING)

    t1, depths = _quadrature(1.5)
    us = solve(equation, u0, t1, depths, mask=jnp.ones(N, bool))
    rates = [float(exact.interaction_energy_rate(u, beta)) for u in us[:-1]]
    gained = exact.interaction_energy(us[-1], beta) - exact.interaction_energy(u0, beta)
    yield Check("energy identity, E(T) − E(0)", TIGHT, relative(0.5 * t1 * QUADRATURE @ rates, gained), REACHED)

    consensus = jnp.broadcast_to(u0[:1], u0.shape)
    jacobian = jax.jit(jax.jacfwd(lambda u: equation(jnp.zeros(()), u, None)))(consensus)
    tangent = np.linalg.svd(np.asarray(u0[:1]))[2][1:]  # rows span what is orthogonal to the common token
    basis = np.kron(np.eye(N), tangent)
    linearized = basis @ np.asarray(jacobian).reshape(N * N, N * N) @ basis.T
    exponents = np.sort(np.linalg.eigvals(linearized).real)[::-1]
    yield Check("consensus exponents", "Jacobian", relative(exponents, exact.consensus_exponents(N, N)), ROUNDING)

    # One token's attention is linear and the retraction commutes with scaling: here it costs no order.
    value, x0 = 0.6 * normal(22, N, N), u0[:1]
    alone = MasterEquation(interaction=attention(1.0, value))
    solver = Retract(Dopri8(), SphereProjection())
    x = simulate(Discretization(alone, solver, t1=2.0, steps=64), x0).us[-1]
    expected = exact.sphere_retraction_single_token(x0, value, 2.0)
    yield Check("one token on the sphere", "dopri8 + retraction", relative(x, expected), REACHED)


def gaussian() -> Iterator[Check]:
    """§5.9: Gauss–Hermite tokens with quadrature weights stand for the Gaussian, until close to the blow-up."""
    # The mean of finitely many tokens is unstable with rate v: v·t* = 1/(2a s0²) keeps rounding from showing.
    variance, logit, speed, steps, ratio = 0.9, 0.05, 8.0, 1000, 4.0
    tokens, weights = exact.gaussian_quadrature_tokens(120, variance)
    w = np.asarray(weights)
    end = float(exact.gaussian_blowup_time(variance, speed * logit))
    depths = [0.5 * end, 0.8 * end]
    for value in (-speed, speed):
        equation = MasterEquation(interaction=attention(logit, jnp.full((1, 1), value), weights=weights))
        us = np.asarray(solve(equation, tokens, depths[-1], depths))[..., 0]
        expected = exact.gaussian_token_variance(variance, value * logit, jnp.asarray(depths))
        case = f"Gaussian tokens, variance, {'growing' if value > 0 else 'contracting'}"
        yield Check(case, TIGHT, relative(us**2 @ w, expected), REACHED)
    # 1/s² is linear in t, so the two variances of the growing tokens tell when it vanishes.
    first, second = 1 / (us**2 @ w)
    found = depths[0] + (depths[1] - depths[0]) * first / (first - second)
    yield Check("Gaussian tokens, blow-up depth", TIGHT, relative(found, end), REACHED)
    # A bound on the field is crossed shortly before, and reported as the end of that step.
    limit = ratio * float(np.max(np.abs(np.asarray(tokens))))
    trajectory = simulate(Discretization(equation, "rk4", t1=end, steps=steps), tokens, blowup=limit)
    late = float(trajectory.blowup_time) / end - (1 - ratio**-2)
    reported = bool(trajectory.diverged)
    error = late if reported and late >= 0 else math.nan
    note = "" if reported else "the solve was not reported as diverged"
    yield Check("Gaussian tokens, reported blow-up", f"rk4, {steps} steps", error, 1 / steps, note)


def transformer() -> Iterator[Check]:
    """§2: a Flax Transformer is its lifted field at one step of its native solver per layer."""
    tokens, mask = jnp.asarray([3, 1, 4, 1, 5, 0]), jnp.asarray([True] * 5 + [False])
    kinds: tuple[tuple[Norm, bool], ...] = (("pre", False), ("post", True))
    for norm, causal in kinds:
        config = Architecture(
            vocab=6, dim=8, heads=2, layers=3, ffn=12, norm=norm, causal=causal, dtype="float64", param_dtype="float64"
        )
        shapes = jax.eval_shape(lambda c=config: Transformer(c, rngs=nnx.Rngs(0)).parameters())
        weights = {name: 0.4 * normal(30 + i, *shapes[name].shape) for i, name in enumerate(sorted(shapes))}
        model = Transformer.from_parameters(config, weights)
        states = np.asarray(model.hidden_states(tokens, mask))
        equation, solver = lift(model).field, lift(model).solver
        us = np.asarray(simulate(Discretization(equation, solver, t1=3.0, steps=3), model.embed(tokens), mask=mask).us)
        name = f"Transformer, {norm}-LN{', causal' if causal else ''}, 3 layers"
        yield Check(name, f"{type(solver).__name__}, 3 steps", relative(us[:, :5], states[:, :5]), ROUNDING)


def _evaluate(equation: MasterEquation, u: Array, args: FieldArgs | None) -> Array:
    return equation(jnp.zeros(()), u, args)


def _quadrature(t1: float) -> tuple[float, list[float]]:
    """Gauss–Legendre depths on [0, t1], and t1 after them."""
    return t1, [*(0.5 * t1 * (NODES + 1)).tolist(), t1]


def _padded(tokens: Array) -> tuple[Array, Array]:
    """Tokens padded to N of them and the mask of the real ones: one compiled solve serves every n."""
    n = tokens.shape[0]
    return jnp.concatenate([tokens, jnp.broadcast_to(tokens[:1], (N - n, N))]), jnp.arange(N) < n


def _cosines(us: np.ndarray) -> np.ndarray:
    """Mean cosine of pairs of tokens at each depth: `us (k, n, d)` to `(k,)`."""
    x = us / np.linalg.norm(us, axis=-1, keepdims=True)
    n = us.shape[1]
    return (np.sum(x @ np.swapaxes(x, 1, 2), axis=(1, 2)) - n) / (n * (n - 1))
