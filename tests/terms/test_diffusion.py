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
    np.testing.assert_allclose(Diffusion(grid, d)(0.0, u, None), slow, rtol=1e-12, atol=1e-12)
    slow = [matrix @ row for row in dense(grid, mask=MASK) @ np.asarray(u)]
    masked = Diffusion(grid, d)(0.0, u, FieldArgs(jnp.asarray(MASK)))
    np.testing.assert_allclose(masked, slow, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_full_mask_is_no_mask(boundary):
    term, u = Diffusion(Grid(N, boundary), 0.3), field()
    np.testing.assert_allclose(term(0.0, u, FieldArgs(jnp.ones(N, bool))), term(0.0, u, None), rtol=1e-12, atol=1e-12)


def test_masked_blocks_are_isolated():
    """Runs of real tokens are short Neumann grids of their own; padding feels and sends nothing."""
    term, u = Diffusion(Grid(N, length=LENGTH), 0.3), field()
    du = term(0.0, u, FieldArgs(jnp.asarray(MASK)))
    first = Diffusion(Grid(3, length=3 * LENGTH / N), 0.3)(0.0, u[:3], None)
    second = Diffusion(Grid(2, length=2 * LENGTH / N), 0.3)(0.0, u[4:6], None)
    np.testing.assert_allclose(du[:3], first, rtol=1e-12)
    np.testing.assert_allclose(du[4:6], second, rtol=1e-12)
    np.testing.assert_array_equal(du[np.array([3, 6, 7])], np.zeros((3, D)))
    np.testing.assert_array_equal(du, term(0.0, u.at[3].set(1e6), FieldArgs(jnp.asarray(MASK))))


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
    result = Diffusion(grid, 0.2)(0.0, jnp.asarray(shape), None)
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
        total = np.sum(Diffusion(Grid(N, boundary), full_matrix())(0.0, u, None), axis=0)
        np.testing.assert_allclose(total, 0.0, atol=1e-11)
    errors = []
    for n in (16, 32, 64):
        x = np.asarray(Grid(n).points)[:, None]
        du = Diffusion(Grid(n), 1.0)(0.0, jnp.asarray(np.cos(2 * np.pi * x)), None)
        errors.append(np.abs(np.asarray(du) + 4 * np.pi**2 * np.cos(2 * np.pi * x)).max())
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 2, atol=0.05)


def test_float32_stays_float32():
    u = field()
    for d in DIFFUSIVITIES.values():
        term = Diffusion(Grid(N), d)
        single = term(0.0, u.astype(jnp.float32), FieldArgs(jnp.asarray(MASK)))
        assert single.dtype == jnp.float32
        assert term(0.0, u.astype(jnp.float32), None).dtype == jnp.float32
        np.testing.assert_allclose(single, term(0.0, u, FieldArgs(jnp.asarray(MASK))), rtol=1e-4, atol=1e-3)


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


def twin_coefficient(term, u, mask=None):
    """c |∇P|² Tr(∂FFN/∂u) σ²_att with differences by hand, the trace by finite differences, and the variance of the
    attention kernel as the mean of (x_j − x_k)²/2 over pairs of keys."""
    n, p, x = N, np.asarray(term.positions), np.asarray(term.grid.points)
    dx, h = float(term.grid.spacing), 1e-6
    maps = np.asarray(term.interaction.weights(u, mask))
    traces = sum(
        (term.reaction(0.0, u + h * e, None) - term.reaction(0.0, u - h * e, None))[:, k] / (2 * h)
        for k, e in enumerate(jnp.eye(D)[:, None])
    )
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
    mask = jnp.asarray(MASK) if masked else None
    slow = twin_coefficient(term, u, mask)
    np.testing.assert_allclose(term.coefficient(u, mask), slow, rtol=1e-6, atol=1e-9)
    exact = dense(grid, term.coefficient(u, mask), MASK if masked else None) @ np.asarray(u)
    du = np.asarray(term(0.0, u, FieldArgs(mask)))
    np.testing.assert_allclose(du, exact, rtol=1e-11, atol=1e-11)
    if boundary != "dirichlet":
        np.testing.assert_allclose(du.sum(axis=0), 0.0, atol=1e-11)


def test_raw_coefficient_is_not_sign_definite(getkey):
    """Claim C7: as written it is a backward heat equation somewhere, and then the field's energy grows."""
    grid = Grid(N)
    interaction, reaction = parts(getkey())
    u = jnp.stack([field(seed) for seed in range(20)])
    terms = {
        form: EffectiveDiffusion(grid, interaction, reaction, positions(grid), form=form)
        for form in ("raw", "absolute", "softplus", "clip")
    }
    values = {form: np.stack([term.coefficient(row) for row in u]) for form, term in terms.items()}
    draws = [parts(getkey())[1].jacobian_trace(u.reshape(-1, D)) for _ in range(10)]
    assert 0.25 < np.mean(np.array(draws) < 0) < 0.75  # Gaussian weights: the sign of the trace is a coin's
    np.testing.assert_allclose(values["absolute"], np.abs(values["raw"]), rtol=1e-12)
    np.testing.assert_allclose(values["clip"], np.maximum(values["raw"], 0), rtol=1e-12)
    assert np.all(values["softplus"] > 0) and np.all(values["softplus"] >= values["clip"] * (1 - 1e-12))
    backward = EffectiveDiffusion(grid, interaction, reaction, positions(grid), scale=-1.0, form="softplus")
    assert np.sum(u[0] * backward(0.0, u[0], None)) > 0 > np.sum(u[0] * terms["softplus"](0.0, u[0], None))


def test_effective_diffusion_with_constant_factors_is_diffusion(getkey):
    """Linear P, linear FFN and uniform attention make every factor of v2 (8) a constant."""
    grid = Grid(N, length=LENGTH)
    interaction, reaction = parts(getkey(), activation="identity")
    interaction = eqx.tree_at(lambda m: m.wq, interaction, jnp.zeros_like(interaction.wq))
    slope = jnp.array([1.0, -2.0, 0.5, 0.0])
    term = EffectiveDiffusion(grid, interaction, reaction, grid.points[:, None] * slope[None], form="raw")
    trace = np.trace(np.asarray(reaction.w1) @ np.asarray(reaction.w2))
    constant = 5.25 * trace * np.var(np.asarray(grid.points))
    np.testing.assert_allclose(term.coefficient(field()), np.full(N, constant), rtol=1e-12)
    plain = constant * dense(grid) @ np.asarray(field())
    np.testing.assert_allclose(term(0.0, field(), None), plain, rtol=1e-11, atol=1e-11)


def test_effective_diffusion_turned_off_and_damping(getkey):
    grid = Grid(N)
    term = EffectiveDiffusion(grid, *parts(getkey()), positions(grid), scale=0.0)
    np.testing.assert_array_equal(term(0.0, field(), None), np.zeros((N, D)))
    assert np.isinf(float(term.damping()))
    single = term(0.0, field().astype(jnp.float32), None)
    assert single.dtype == term.coefficient(field().astype(jnp.float32)).dtype == jnp.float32
