"""Diffusion against dense matrices built face by face, its modes, and the emergent coefficient of v2 (8)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from pdejax import MasterEquation, simulate
from pdejax._discretization import Discretization
from pdejax.solvers import Grid
from pdejax.terms import Attention, Diffusion, EffectiveDiffusion, FeedForward, FieldArgs, LayerNorm

N, D, LENGTH = 8, 4, 1.5
BOUNDARIES = ("neumann", "dirichlet", "periodic")
MASK = np.array([True, True, True, False, True, True, False, True])


def field(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((N, D)))


@eqx.filter_jit
def run(term, u, mask=None):
    """The term as one program: call by call each operation is compiled alone."""
    return term(0.0, u, FieldArgs(mask))


@eqx.filter_jit
def parts_of(term, u, mask=None):
    """Maps of attention, the reaction a little to either side of each feature, the coefficient and the term itself."""
    moved = [[term.reaction(0.0, u + s * e, None) for s in (1e-6, -1e-6)] for e in np.eye(D)[:, None]]
    return term.interaction.weights(u, mask), moved, term.coefficient(u, mask), term(0.0, u, FieldArgs(mask))


def dense(grid, coefficient=None, mask=None):
    """The matrix of ∂x(c ∂x ·), one face at a time: the flux through a face leaves one token and enters the other."""
    n = grid.n
    c = np.ones(n) if coefficient is None else np.asarray(coefficient)
    real = np.ones(n, bool) if mask is None else mask
    dx = grid.length / (n + 1 if grid.boundary == "dirichlet" else n)
    a = np.zeros((n, n))
    faces = [(i, i + 1) for i in range(n - 1)] + ([(n - 1, 0)] if grid.boundary == "periodic" else [])
    for i, j in faces:
        if real[i] and real[j]:
            conductance = (c[i] + c[j]) / 2 / dx**2
            a[i, i] -= conductance
            a[j, j] -= conductance
            a[i, j] += conductance
            a[j, i] += conductance
    if grid.boundary == "dirichlet":
        for i in (0, n - 1):
            a[i, i] -= c[i] / dx**2 if real[i] else 0.0
    return a


def full_matrix():
    """Not symmetric, but with a positive definite symmetric part."""
    skew = np.random.default_rng(3).standard_normal((D, D))
    return jnp.asarray(np.eye(D) + 0.5 * (skew - skew.T))


DIFFUSIVITIES = {"scalar": 0.3, "integer": 2, "features": jnp.array([0.1, 0.0, 2.0, 0.7]), "matrix": full_matrix()}


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kind", DIFFUSIVITIES)
def test_dense_matrix(boundary, kind):
    grid, d, u = Grid(N, boundary, LENGTH), DIFFUSIVITIES[kind], field()
    matrix = np.asarray(d) if kind == "matrix" else np.diag(np.broadcast_to(np.asarray(d), D))
    slow = [matrix @ row for row in dense(grid) @ np.asarray(u)]
    np.testing.assert_allclose(run(Diffusion(grid, d), u), slow, rtol=1e-12, atol=1e-12)
    slow = [matrix @ row for row in dense(grid, mask=MASK) @ np.asarray(u)]
    masked = run(Diffusion(grid, d), u, MASK)
    np.testing.assert_allclose(masked, slow, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_full_mask_is_no_mask(boundary):
    term, u = Diffusion(Grid(N, boundary), 0.3), field()
    np.testing.assert_allclose(run(term, u, np.ones(N, bool)), run(term, u), rtol=1e-12, atol=1e-12)


def test_masked_blocks_are_isolated():
    """Runs of real tokens are short Neumann grids of their own; padding feels and sends nothing."""
    term, u = Diffusion(Grid(N, length=LENGTH), 0.3), field()
    u = np.asarray(u)
    du = np.asarray(run(term, u, MASK))
    first = run(Diffusion(Grid(3, length=3 * LENGTH / N), 0.3), u[:3])
    second = run(Diffusion(Grid(2, length=2 * LENGTH / N), 0.3), u[4:6])
    np.testing.assert_allclose(du[:3], first, rtol=1e-12)
    np.testing.assert_allclose(du[4:6], second, rtol=1e-12)
    np.testing.assert_array_equal(du[np.array([3, 6, 7])], np.zeros((3, D)))
    np.testing.assert_array_equal(du, run(term, np.where(np.arange(N)[:, None] == 3, 1e6, u), MASK))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_modes_decay_exactly(boundary):
    """THEORY 5.1: mode k is an eigenvector, with −4 sin²(·)/Δx² as eigenvalue."""
    grid = Grid(N, boundary, LENGTH)
    dx = float(grid.spacing)
    i, k = np.arange(N), np.arange(N)
    angle, shape = {
        "neumann": (np.pi * k / (2 * N), np.cos(np.pi * np.outer(i + 0.5, k) / N)),
        "dirichlet": (np.pi * (k + 1) / (2 * (N + 1)), np.sin(np.pi * np.outer(i + 1, k + 1) / (N + 1))),
        "periodic": (np.pi * k / N, np.cos(2 * np.pi * np.outer(i, k) / N)),
    }[boundary]
    rate = -4 * np.sin(angle) ** 2 / dx**2
    result = run(Diffusion(grid, 0.2), shape)
    np.testing.assert_allclose(result, 0.2 * rate * shape, atol=1e-12 / dx**2)
    # The whole semigroup, once: an integrated field is the matrix exponential of the dense matrix.
    np.testing.assert_allclose(
        scipy.linalg.expm(0.1 * 0.2 * dense(grid)) @ shape, np.exp(0.1 * 0.2 * rate) * shape, atol=1e-13
    )


def test_integrated_field_is_the_matrix_exponential():
    """Full diffusivity matrix: u(t) = Σ over the Kronecker sum, by SciPy's expm on the n·d system."""
    grid, u = Grid(N, length=LENGTH), field()
    d = full_matrix()
    exact = scipy.linalg.expm(0.2 * np.kron(dense(grid), np.asarray(d))) @ np.asarray(u).ravel()
    solved = simulate(
        Discretization(MasterEquation(diffusion=Diffusion(grid, d)), "dopri8", t1=0.2, rtol=1e-11, atol=1e-12), u
    )
    np.testing.assert_allclose(solved.us[-1].ravel(), exact, atol=1e-10)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kind", DIFFUSIVITIES)
def test_damping_bounds_the_spectrum(boundary, kind):
    grid, d = Grid(N, boundary, LENGTH), DIFFUSIVITIES[kind]
    matrix = np.asarray(d) if kind == "matrix" else np.diag(np.broadcast_to(np.asarray(d), D))
    radius = np.abs(np.linalg.eigvals(np.kron(dense(grid), matrix))).max()
    bound = float(Diffusion(grid, d).damping())
    assert radius <= bound * (1 + 1e-12)
    assert radius >= (0.9 if kind != "matrix" else 0.5) * bound  # a bound, and not a careless one


def test_conservation_and_order_in_space():
    u = field()
    for boundary in ("neumann", "periodic"):
        total = np.sum(np.asarray(run(Diffusion(Grid(N, boundary), full_matrix()), u)), axis=0)
        np.testing.assert_allclose(total, 0.0, atol=1e-11)
    errors = []
    for n in (16, 32, 64):
        x = np.asarray(Grid(n).points)[:, None]
        du = run(Diffusion(Grid(n), 1.0), np.cos(2 * np.pi * x))
        errors.append(np.abs(np.asarray(du) + 4 * np.pi**2 * np.cos(2 * np.pi * x)).max())
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 2, atol=0.05)


def test_float32_stays_float32():
    u = np.asarray(field())
    for d in DIFFUSIVITIES.values():
        term = Diffusion(Grid(N), d)
        single = run(term, u.astype(np.float32), MASK)
        assert single.dtype == jnp.float32
        assert (
            jax.eval_shape(lambda v, term=term: term(0.0, v, None), jnp.zeros((N, D), jnp.float32)).dtype == jnp.float32
        )
        np.testing.assert_allclose(single, run(term, u, MASK), rtol=1e-4, atol=1e-3)


def test_gradient_with_respect_to_diffusivity():
    """The term is linear in D: the directional derivative along E is the term with E for D."""
    grid, u = Grid(N), field()
    direction = jnp.asarray(np.random.default_rng(8).standard_normal((D, D)))

    def value(d):
        return Diffusion(grid, d)(0.0, u, None)

    tangent = jax.jit(lambda d, v: jax.jvp(value, (d,), (v,))[1])(full_matrix(), direction)
    np.testing.assert_allclose(tangent, dense(grid) @ np.asarray(u) @ np.asarray(direction).T, rtol=1e-11, atol=1e-11)


# --- D_eff of v2 (8) ----------------------------------------------------------------------------------------


def parts(key, **options):
    k1, k2 = jax.random.split(key)
    reaction = FeedForward(D, 6, key=k2, **options)
    reaction = eqx.tree_at(lambda m: m.b1, reaction, jnp.linspace(-1.0, 1.0, 6))
    return Attention(D, 2, key=k1), reaction


def positions(grid):
    """A positional embedding, (n, D), not linear in x."""
    x = np.asarray(grid.points)[:, None]
    return jnp.asarray(np.sin(x * np.array([1.0, 2.0, 3.0, 4.0]) + 0.3))


def twin_coefficient(term, maps, moved):
    """c |∇P|² Tr(∂FFN/∂u) σ²_att with differences by hand, the trace by finite differences, and the variance of the
    attention kernel as the mean of (x_j − x_k)²/2 over pairs of keys."""
    n, p, x = N, np.asarray(term.positions), np.asarray(term.grid.points)
    dx, h = float(term.grid.spacing), 1e-6
    maps = np.asarray(maps)
    traces = sum((np.asarray(a) - np.asarray(b))[:, k] / (2 * h) for k, (a, b) in enumerate(moved))
    out = np.zeros(n)
    for i in range(n):
        if term.grid.boundary == "periodic":
            slope = (p[(i + 1) % n] - p[(i - 1) % n]) / (2 * dx)
        else:
            low, high = max(i - 1, 0), min(i + 1, n - 1)
            slope = (p[high] - p[low]) / ((high - low) * dx)
        spread = np.mean(
            [sum(m[i, j] * m[i, k] * (x[j] - x[k]) ** 2 / 2 for j in range(n) for k in range(n)) for m in maps]
        )
        trace = float(traces[i])
        trace = {"raw": trace, "absolute": abs(trace), "softplus": np.log1p(np.exp(trace)), "clip": max(trace, 0)}[
            term.form
        ]
        out[i] = float(term.scale) * (slope @ slope) * trace * spread
    return out


@pytest.mark.parametrize(
    "boundary, form, masked",
    [
        ("neumann", "raw", False),
        ("dirichlet", "absolute", False),
        ("periodic", "softplus", False),
        ("neumann", "clip", True),
    ],
)
def test_effective_coefficient_and_flux(boundary, form, masked, getkey):
    grid, u = Grid(N, boundary, LENGTH), field()
    norm = LayerNorm(D) if boundary == "periodic" else None
    term = EffectiveDiffusion(grid, *parts(getkey(), norm=norm), positions(grid), scale=0.7, form=form)
    maps, moved, coefficient, du = parts_of(term, u, MASK if masked else None)
    np.testing.assert_allclose(coefficient, twin_coefficient(term, maps, moved), rtol=1e-6, atol=1e-9)
    exact, du = dense(grid, coefficient, MASK if masked else None) @ np.asarray(u), np.asarray(du)
    np.testing.assert_allclose(du, exact, rtol=1e-11, atol=1e-11)
    if boundary != "dirichlet":
        np.testing.assert_allclose(du.sum(axis=0), 0.0, atol=1e-11)


def test_raw_coefficient_is_not_sign_definite(getkey):
    """Claim C7: as written it is a backward heat equation somewhere, and then the field's energy grows."""
    grid = Grid(N)
    interaction, reaction = parts(getkey())
    u = np.stack([field(seed) for seed in range(20)])
    terms = {
        form: EffectiveDiffusion(grid, interaction, reaction, positions(grid), form=form)
        for form in ("raw", "absolute", "softplus", "clip")
    }
    values = jax.jit(lambda u: {form: jax.lax.map(term.coefficient, u) for form, term in terms.items()})(u)
    values = jax.device_get(values)
    trace = eqx.filter_jit(lambda reaction: reaction.jacobian_trace(jnp.asarray(u.reshape(-1, D))))
    draws = [trace(parts(getkey())[1]) for _ in range(10)]
    assert 0.25 < np.mean(np.array(draws) < 0) < 0.75  # Gaussian weights: the sign of the trace is a coin's
    np.testing.assert_allclose(values["absolute"], np.abs(values["raw"]), rtol=1e-12)
    np.testing.assert_allclose(values["clip"], np.maximum(values["raw"], 0), rtol=1e-12)
    assert np.all(values["softplus"] > 0) and np.all(values["softplus"] >= values["clip"] * (1 - 1e-12))
    backward = EffectiveDiffusion(grid, interaction, reaction, positions(grid), scale=-1.0, form="softplus")
    assert np.sum(u[0] * run(backward, u[0])) > 0 > np.sum(u[0] * run(terms["softplus"], u[0]))


def test_effective_diffusion_with_constant_factors_is_diffusion(getkey):
    """Linear P, linear FFN and uniform attention make every factor of v2 (8) a constant."""
    grid = Grid(N, length=LENGTH)
    interaction, reaction = parts(getkey(), activation="identity")
    interaction = eqx.tree_at(lambda m: m.wq, interaction, jnp.zeros_like(interaction.wq))
    slope = jnp.array([1.0, -2.0, 0.5, 0.0])
    term = EffectiveDiffusion(grid, interaction, reaction, grid.points[:, None] * slope[None], form="raw")
    trace = np.trace(np.asarray(reaction.w1) @ np.asarray(reaction.w2))
    constant = 5.25 * trace * np.var(np.asarray(grid.points))
    _, _, coefficient, du = parts_of(term, field())
    np.testing.assert_allclose(coefficient, np.full(N, constant), rtol=1e-12)
    plain = constant * dense(grid) @ np.asarray(field())
    np.testing.assert_allclose(du, plain, rtol=1e-11, atol=1e-11)


def test_effective_diffusion_turned_off_and_damping(getkey):
    grid = Grid(N)
    term = EffectiveDiffusion(grid, *parts(getkey()), positions(grid), scale=0.0)
    np.testing.assert_array_equal(run(term, field()), np.zeros((N, D)))
    assert np.isinf(float(term.damping()))
    single = jax.eval_shape(lambda u: (term(0.0, u, None), term.coefficient(u)), jnp.zeros((N, D), jnp.float32))
    assert [x.dtype for x in single] == [jnp.float32, jnp.float32]
