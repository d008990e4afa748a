"""Verification of interacting tokens: attention on the sphere and without normalization, its energy and linearization, and
the identity of a Transformer with its field (THEORY §5.5–5.9, 5.12, §2)."""

import math
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pdejax import exact
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax._types import Depth, Field
from pdejax.models import Architecture, Transformer, lift
from pdejax.solvers import Dopri8, Euler, Retract
from pdejax.studies.numerics._verify_case import (
    REACHED,
    ROUNDING,
    TIGHT,
    Check,
    attention,
    normal,
    relative,
    solve,
    with_weights,
)
from pdejax.terms import AbstractTerm, Attention, FieldArgs, RMSNorm, SphereProjection

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
    # RMSNorm with scale 1/√d and ε = 0 is x/‖x‖.
    norm = with_weights(RMSNorm(N, eps=0.0), scale=jnp.full(N, N**-0.5))
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


GROUPS = (equiangular, preln, sphere, gaussian, transformer)
