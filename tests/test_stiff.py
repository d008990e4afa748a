"""Fields with diffusion: the linear part taken apart, solvers that use it, and the choice among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import pdejax as pj
from pdejax._choose import choose_solver
from pdejax._linear import split_linear
from pdejax.solvers import DiagonalizableOperator, LinearFlow, TridiagonalOperator
from pdejax.terms import FieldArgs

N, D = 32, 4


def equation(boundary="neumann", diffusivity=0.02, **more):
    key = jax.random.split(jax.random.key(1), 2)
    return pj.MasterEquation(
        interaction=pj.Attention(D, 2, leak=True, strength=0.7, key=key[0]),
        reaction=pj.FeedForward(D, 8, leak=True, strength=1.3, key=key[1]),
        diffusion=pj.Diffusion(pj.Grid(N, boundary), diffusivity),
        **more,
    )


def wave(boundary="neumann"):
    x = np.asarray(pj.Grid(N, boundary).points)
    shape = np.sin(np.pi * x) if boundary == "dirichlet" else np.cos(2 * np.pi * x)
    return jnp.asarray(shape[:, None] * np.asarray([1.0, -0.5, 0.3, 0.8]))


def noise():
    return jnp.asarray(np.random.default_rng(2).normal(size=(N, D)))


STABILIZATIONS = {
    "none": None,
    "damping": pj.terms.LinearDamping(0.4),
    "damping per token": pj.terms.LinearDamping(jnp.linspace(0.1, 0.5, N)),
    "relaxation": pj.terms.LayerNormRelaxation(D, 0.6),
    "spatial norm": pj.terms.SpatialNorm(0.5),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("stabilization", "boundary"),
    [
        ("none", "neumann"),
        ("damping", "dirichlet"),
        ("damping per token", "periodic"),
        ("relaxation", "neumann"),
        ("spatial norm", "dirichlet"),
    ],
)
def test_the_linear_part_and_the_rest_are_the_field(stabilization, boundary, masked, relative):
    field = equation(boundary, jnp.asarray([0.02, 0.01, 0.0, 0.03]), stabilization=STABILIZATIONS[stabilization])
    args = FieldArgs(jnp.arange(N) < N - 5) if masked else FieldArgs()
    operator, rest = split_linear(field, N, args)
    assert isinstance(operator, TridiagonalOperator if masked else DiagonalizableOperator)
    parts, whole = jax.jit(lambda u: (operator(0.0, u, args) + rest(0.0, u, args), field(0.0, u, args)))(noise())
    assert relative(parts, whole) < 1e-14


def test_the_rest_holds_no_linear_rate():
    """With every weight 0 what is left of leaks and damping is nothing: they are all in the operator."""
    field = jax.tree.map(lambda x: x, equation(stabilization=STABILIZATIONS["damping"]))
    field = jax.tree.map(lambda x: 0 * x if jnp.ndim(x) >= 2 else x, field)
    operator, rest = split_linear(field, N)
    np.testing.assert_allclose(rest(0.0, noise(), None), 0.0, atol=1e-15)
    assert float(operator.eigenvalues().max()) == pytest.approx(-(0.7 + 1.3 + 0.4), rel=1e-14)


def test_linear_flow_is_the_matrix_exponential(relative):
    grid = pj.Grid(N)
    operator = DiagonalizableOperator(grid, 0.05, -0.3)
    field = pj.MasterEquation(diffusion=pj.Diffusion(grid, 0.05), stabilization=pj.terms.LinearDamping(0.3))
    dense = np.asarray(jax.vmap(lambda e: operator(0.0, e[:, None], None)[:, 0], in_axes=1, out_axes=1)(jnp.eye(N)))
    u = noise()
    expected = expm(0.7 * dense) @ np.asarray(u)
    for solver in ("strangflow", "etdrk1", "etdrk4"):
        assert (
            relative(pj.simulate(pj.Discretization(field, solver, t1=0.7, steps=1), u).us[-1], jnp.asarray(expected))
            < 1e-13
        )


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["neumann", "periodic"])
def test_stiff_solvers_reach_the_solution(boundary):
    """Against an explicit solve at 1e-11, with the step far beyond the explicit limit (ρh = 5 with 16 steps)."""
    field, u = equation(boundary), wave(boundary)
    reference = pj.simulate(pj.Discretization(field, "dopri8", t1=1.0, rtol=1e-11, atol=1e-11), u).us[-1]
    allowed = {"strangflow": 1e-3, "etdrk1": 3e-2, "etdrk2": 1e-3, "etdrk4": 1e-6, "etdrk4ho": 2e-6}
    for solver, bound in allowed.items():
        coarse, fine = (pj.simulate(pj.Discretization(field, solver, t1=1.0, steps=steps), u) for steps in (16, 32))
        errors = [float(jnp.abs(t.us[-1] - reference).max()) for t in (coarse, fine)]
        order = np.log2(errors[0] / errors[1])
        assert errors[0] < bound
        assert abs(order - pj.solvers.SOLVERS[solver].order) < 0.25, (solver, errors)


def test_layers_are_taken_one_by_one():
    """Layers with different diffusivities: each gets its own operator."""
    layers = [equation(diffusivity=d) for d in (0.01, 0.05)]
    stacked, u = pj.DepthVarying.from_layers(layers, t1=2.0), wave()
    once = pj.simulate(pj.Discretization(stacked, "etdrk4", t1=2.0, steps=16), u).us
    first = pj.simulate(pj.Discretization(layers[0], "etdrk4", t1=1.0, steps=8), u).us[-1]
    second = pj.simulate(pj.Discretization(layers[1], "etdrk4", t1=1.0, steps=8), first).us[-1]
    np.testing.assert_allclose(once[1], first, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(once[2], second, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_gradients_of_adaptive_solves_see_no_unstable_modes():
    """In a rough direction an explicit solve whose steps leave the stability interval has a wild derivative, which its
    own finite differences do not show. The step is kept inside.
    """
    field, u, rough = equation(diffusivity=0.08), wave(), noise()

    def loss(v, solver):
        return jnp.sum(pj.simulate(pj.Discretization(field, solver, t1=0.5, rtol=1e-8, atol=1e-8), v).us[-1] ** 2)

    eps = 1e-5
    for solver in ("tsit5", "dopri5", "etdrk4"):
        difference = (loss(u + eps * rough, solver) - loss(u - eps * rough, solver)) / (2 * eps)
        derivative = jnp.vdot(jax.grad(loss)(u, solver), rough)
        np.testing.assert_allclose(derivative, difference, rtol=2e-6)


@pytest.mark.slow
def test_gradients_with_respect_to_the_diffusivity():
    u = wave()

    def loss(d, **how):
        return jnp.sum(pj.simulate(pj.Discretization(equation(diffusivity=d), "etdrk4", t1=0.5, **how), u).us[-1] ** 2)

    d, eps = jnp.asarray(0.05), 1e-5
    expected = (loss(d + eps, steps=8) - loss(d - eps, steps=8)) / (2 * eps)
    for how in ({"steps": 8}, {"steps": 8, "adjoint": "recursive"}, {"rtol": 1e-9, "atol": 1e-9}):
        np.testing.assert_allclose(jax.grad(loss)(d, **how), expected, rtol=1e-6)
    forward = jax.jvp(lambda x: loss(x, steps=8), (d,), (jnp.ones_like(d),))[1]
    np.testing.assert_allclose(forward, jax.grad(loss)(d, steps=8), rtol=1e-11)


def test_linear_rate_counts_what_is_linear():
    rate = float(equation(stabilization=STABILIZATIONS["spatial norm"]).diffusion.damping()) + 0.7 + 1.3
    for name, more in (("spatial norm", 0.0), ("damping", 0.4), ("relaxation", 0.6)):
        assert float(equation(stabilization=STABILIZATIONS[name]).linear_rate()) == pytest.approx(
            rate + more, rel=1e-12
        )
    assert float(pj.MasterEquation(stabilization=pj.terms.SpatialNorm(1.0)).linear_rate()) == 0.0


def test_auto_picks_by_stiffness():
    grid = pj.Grid(N)
    fast, slow = equation(diffusivity=1.0), equation(diffusivity=1e-4)
    skew = jnp.eye(D) + jnp.triu(jnp.ones((D, D)), 1) * 0.1
    attention, reaction = fast.interaction, fast.reaction
    effective = pj.terms.EffectiveDiffusion(grid, attention, reaction, jnp.zeros((N, D)))
    cases = [
        (slow, {}, "tsit5"),
        (slow, {"steps": 8}, "rk4"),
        (fast, {}, "etdrk4"),
        (fast, {"steps": 8}, "etdrk4"),
        (fast, {"steps": 10**6}, "rk4"),
        (fast, {"mask": jnp.arange(N) < 20}, "ark4"),
        (equation("dirichlet", 1.0), {}, "etdrk4ho"),
        (equation(diffusivity=skew), {}, "etdrk4"),
        (pj.MasterEquation(reaction=reaction, diffusion=effective), {}, "rkc2"),
        (pj.DepthVarying.from_layers([fast, fast], 1.0), {}, "etdrk4"),
        (pj.DepthVarying.from_layers([fast, fast], 1.0, "linear"), {}, "rkc2"),
    ]
    for field, how, expected in cases:
        args = pj.FieldArgs(how.pop("mask", None))
        choice = choose_solver(field, args, n=N, t0=0.0, t1=1.0, **how)
        assert choice.name == expected, (choice, expected)
        assert len(choice.reason) > 10
    traced = jax.jit(
        lambda d: len(choose_solver(equation(diffusivity=d), pj.FieldArgs(), n=N, t0=0.0, t1=1.0).name) * d
    )
    assert float(traced(1.0)) == len("etdrk4")


def test_auto_says_what_it_did():
    trajectory = pj.simulate(pj.Discretization(equation(diffusivity=1.0), "auto", t1=0.5, rtol=1e-5, atol=1e-5), wave())
    assert trajectory.choice.startswith("etdrk4: stiff (")
    assert bool(trajectory.complete) and int(trajectory.stats.steps) < 100


@pytest.mark.parametrize(
    ("make", "how", "words"),
    [
        (lambda: equation(), {"solver": "etdrk4", "mask": jnp.arange(N) < 20}, "padding mask"),
        (lambda: equation(), {"solver": "etdrk4", "split": (("interaction",), ("reaction", "diffusion"))}, "split"),
        (
            lambda: equation(),
            {"solver": pj.solvers.Strang((pj.solvers.Midpoint(), pj.solvers.Midpoint(), LinearFlow()))},
            "exactly one other",
        ),
        (
            lambda: equation(),
            {"solver": pj.solvers.Strang((LinearFlow(), pj.solvers.Midpoint()))},
            "must be the last",
        ),
        (lambda: pj.DepthVarying.from_layers([equation()] * 2, 1.0, "linear"), {"solver": "etdrk4"}, "vary within"),
    ],
)
def test_a_linear_part_without_the_structure_is_refused(make, how, words):
    with pytest.raises(ValueError, match=words):
        mask = how.pop("mask", None)
        pj.simulate(pj.Discretization(make(), t1=1.0, steps=4, **how), wave(), mask=mask)


def test_state_dependent_diffusion_is_refused():
    field = equation()
    effective = pj.terms.EffectiveDiffusion(pj.Grid(N), field.interaction, field.reaction, jnp.zeros((N, D)))
    with pytest.raises(ValueError, match="depends on the state"):
        pj.simulate(pj.Discretization(pj.MasterEquation(diffusion=effective), "etdrk4", t1=1.0, steps=4), wave())


def test_one_token_has_nothing_to_take_exactly():
    with pytest.raises(ValueError, match="one token"):
        pj.simulate(
            pj.Discretization(pj.MasterEquation(reaction=equation().reaction), "etdrk4", t1=1.0, steps=4),
            jnp.ones((1, D)),
        )


def test_tolerances_below_the_precision_of_the_field_are_refused():
    field = pj.MasterEquation(stabilization=pj.terms.LinearDamping(jnp.asarray(1.0, jnp.float32)))
    single, double = jnp.ones((2, D), jnp.float32), jnp.ones((N, D))
    with pytest.raises(ValueError, match=r"rtol=1e-09 and atol=1e-09 lie below the rounding of a float32 .*float64"):
        pj.simulate(pj.Discretization(field, t1=1.0, rtol=1e-9, atol=1e-9), single)
    with pytest.raises(ValueError, match="rounding of a float64 field of size 1"):
        pj.simulate(pj.Discretization(equation(), t1=1.0, rtol=1e-17, atol=0.0), double)
    # One of the two is enough, and the size of the field counts.
    for tolerances in ({"rtol": 0.0, "atol": 1e-3}, {"rtol": 1e-4, "atol": 0.0}):
        end = pj.simulate(pj.Discretization(field, t1=1.0, **tolerances), single)
        np.testing.assert_allclose(end.us[-1], np.exp(-1.0), rtol=2e-3)


class HalfLinear(pj.terms.AbstractTerm):
    """D∇²u + tanh u: an operator that is not the whole term."""

    grid: pj.Grid
    rate: jax.Array

    def operator(self):
        return pj.solvers.DiagonalizableOperator(self.grid, self.rate)

    def __call__(self, t, u, args):
        return self.operator()(t, u, args) + jnp.tanh(u)

    def damping(self):
        return self.operator().spectral_radius()

    def check(self, n, d):
        del n, d

    def linear(self, n, mask=None):
        return pj.terms.Linear(self.operator())


SYMMETRIC = jnp.diag(jnp.arange(1.0, D + 1)) + 0.1


@pytest.mark.parametrize(
    ("one", "two", "masked"),
    [
        (0.02, jnp.linspace(0.01, 0.05, D), False),
        (jnp.linspace(0.01, 0.05, D), 0.01 * SYMMETRIC, False),
        (0.02, 0.01 * SYMMETRIC, False),
        (0.02, jnp.linspace(0.01, 0.05, D), True),
    ],
    ids=["scalar+feature", "feature+matrix", "scalar+matrix", "masked"],
)
def test_the_linear_parts_of_several_terms_add_up(one, two, masked):
    """Two diffusions, damping and a term that is only partly linear: L + N is the equation, and the solve of a sum that is a
    matrix, or masked, is a tight explicit one."""
    grid = pj.Grid(N)
    mask = jnp.arange(N) < N - 5 if masked else None
    terms = {"more": pj.Diffusion(grid, two), "stabilization": pj.LinearDamping(0.3)}
    if not masked:
        terms["half"] = HalfLinear(grid, jnp.asarray(0.03))
    field, args = pj.MasterEquation(pj.Diffusion(grid, one), **terms), pj.FieldArgs(mask)
    if jnp.ndim(one) == 1 and jnp.ndim(two) == 2:
        # They do not commute, and no rotation makes both diagonal; their sum is symmetric all the same.
        assert float(jnp.abs(jnp.diag(one) @ two - two @ jnp.diag(one)).max()) > 0
    operator, rest = split_linear(field, N, args)
    parts, whole = jax.jit(lambda u: (operator(0.0, u, args) + rest(0.0, u, args), field(0.0, u, args)))(noise())
    np.testing.assert_allclose(parts, whole, rtol=1e-9, atol=1e-9)
    if jnp.ndim(one) == 0 and not masked:
        return
    solver = "ark4" if masked else "etdrk4"
    ours = pj.simulate(pj.Discretization(field, solver, t1=0.02, steps=40), wave(), mask=mask).us[-1]
    tight = pj.simulate(pj.Discretization(field, "dopri8", t1=0.02, rtol=1e-11, atol=1e-11), wave(), mask=mask).us[-1]
    real = slice(None) if mask is None else slice(0, N - 5)
    np.testing.assert_allclose(ours[real], tight[real], rtol=1e-6, atol=1e-8)


def test_operators_on_different_grids_have_no_sum():
    field = pj.MasterEquation(pj.Diffusion(pj.Grid(N), 0.1), more=pj.Diffusion(pj.Grid(N, length=2.0), 0.1))
    with pytest.raises(ValueError, match=r"simulate: ETDRK4 needs the linear part .* no common transform on one grid"):
        pj.simulate(pj.Discretization(field, "etdrk4", t1=0.1, steps=2), wave())
    assert (
        choose_solver(field.replace(diffusion=pj.Diffusion(pj.Grid(N), 9.0)), pj.FieldArgs(), n=N, t0=0.0, t1=1.0).name
        == "rkc2"
    )
