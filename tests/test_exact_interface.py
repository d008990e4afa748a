"""pdejax.exact as a library: derivatives, jit, broadcasting, types, errors and independence of what it checks."""

import ast
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from pdejax import exact
from pdejax.exact._arguments import count
from pdejax.exact._numerics import increasing_root

SCALAR_CASES = {
    "radius": (exact.spatial_norm_radius, (1.3, 0.7, 0.2, 1.1)),
    "cosine": (lambda g, b, t: exact.equiangular_cosine(g, b, 5, t), (0.2, 2.0, 0.7)),
    "pre-LN": (lambda g, r, b, t: sum(exact.preln_equiangular(g, r, b, 5, t)[1:]), (0.2, 0.5, 2.0, 3.0)),
    "time": (exact.spatial_norm_time, (1.3, 0.6, 0.7, 0.2)),
    "basin": (exact.spatial_norm_basin_radius, (3.0, 0.8, 0.5)),
    "growth": (exact.spatial_norm_growth_radius, (5.0, 3.0, 0.8, 1.3)),
    "rate": (lambda g, b: exact.equiangular_rate(g, b, 5), (0.2, 2.0)),
    "variance": (exact.gaussian_token_variance, (0.9, 0.5, 0.6)),
    "blow-up": (exact.gaussian_blowup_time, (0.9, 0.5)),
    "step": (lambda d, dx: exact.diffusive_step_limit("rk4", d, dx, 7), (0.3, 0.1)),
    "information": (exact.bivariate_normal_information, (0.4,)),
    "eigenvalue": (lambda d, dx: exact.heat_eigenvalues(7, "neumann", d, dx, k=3), (0.3, 0.1)),
}


@functools.cache
def directional_derivative(name):
    function, _ = SCALAR_CASES[name]
    return jax.jit(lambda point, direction: jax.jvp(function, point, direction)[1])


@pytest.mark.parametrize("name", SCALAR_CASES)
def test_derivatives_jit_and_broadcasting(name):
    function, point = SCALAR_CASES[name]
    direction = tuple(0.7**k * value for k, value in enumerate(point))
    # One call, compiled, for the point itself and the four others of a fourth-order difference.
    h = 1e-3 * np.array([0, -2, -1, 1, 2])
    values = np.asarray(jax.jit(function)(*(jnp.asarray(p + h * d) for p, d in zip(point, direction, strict=True))))
    assert values[0] == pytest.approx(float(function(*point)), rel=1e-13)
    difference = (values[1] - 8 * values[2] + 8 * values[3] - values[4]) / 12e-3
    slope = float(directional_derivative(name)(point, direction))
    assert slope == pytest.approx(difference, rel=1e-9)
    if name == "radius":  # the implicit function theorem, backwards
        gradient = jax.jit(jax.grad(function, (0, 1, 2, 3)))(*point)
        assert float(np.dot(gradient, direction)) == pytest.approx(slope, rel=1e-12)


def test_derivatives_at_the_start_and_second_order():
    rate = float(exact.equiangular_rate(0.0, 2.0, 5))
    start = directional_derivative("cosine")((0.0, 2.0, 0.0), (0.0, 0.0, 1.0))
    assert float(start) == pytest.approx(rate, rel=1e-13)
    angular, outward = exact.preln_equiangular_rates(0.0, 0.5, 2.0, 5)
    start = directional_derivative("pre-LN")((0.0, 0.5, 2.0, 0.0), (0.0, 0.0, 0.0, 1.0))  # of gap + radius
    assert float(start) == pytest.approx(float(outward - angular), rel=1e-12)
    s, slope = jax.jvp(lambda t: exact.spatial_norm_radius(1.0, 1.0, 0.3, t), (0.4,), (1.0,))
    curvature = jax.jit(jax.hessian(exact.spatial_norm_radius, 3))(1.0, 1.0, 0.3, 0.4)
    expected = jax.grad(lambda s: -s / jnp.sqrt(s**2 + 0.3))(s) * slope
    assert float(curvature) == pytest.approx(float(expected), rel=1e-11)
    assert float(jax.grad(exact.spatial_norm_radius)(1.0, 1.0, 0.0, 0.3)) == 1.0


FIELD_CASES = {
    "heat": lambda u, m, t: exact.heat_solution(u, 0.1, t, "neumann"),
    "uniform": lambda u, m, t: exact.uniform_attention(u, m, t),
    "reaction": lambda u, m, t: exact.linear_reaction(u, m, t, offset=m[0]),
    "master": lambda u, m, t: exact.linear_master_equation(u, m, t, 0.1, "periodic"),
    "single": lambda u, m, t: exact.sphere_retraction_single_token(u, m, t),
    "spatial": lambda u, m, t: exact.spatial_norm_solution(u, 0.5, 0.1, t),
    "field": lambda u, m, t: exact.sphere_attention(u, t),
}


@pytest.mark.parametrize("name", FIELD_CASES)
def test_fields_keep_their_type_and_compile(name):
    function = FIELD_CASES[name]
    rng = np.random.default_rng(8)
    u, m = jnp.asarray(rng.standard_normal((5, 3))), jnp.asarray(0.3 * rng.standard_normal((3, 3)))
    value = function(u, m, 0.6)
    assert value.dtype == jnp.float64
    single = jax.jit(function)(u.astype(jnp.float32), m.astype(jnp.float32), 0.6)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, value, atol=2e-5)


@pytest.mark.parametrize("name", ["heat", "spatial"])
def test_fields_have_gradients(name):
    rng = np.random.default_rng(8)
    u, m = jnp.asarray(rng.standard_normal((5, 3))), jnp.asarray(0.3 * rng.standard_normal((3, 3)))
    loss = jax.jit(jax.value_and_grad(lambda t: jnp.sum(jnp.sin(FIELD_CASES[name](u, m, t)))))
    h = 1e-4
    difference = float(loss(0.6 + h)[0] - loss(0.6 - h)[0]) / (2 * h)
    assert float(loss(0.6)[1]) == pytest.approx(difference, rel=1e-6)


def test_scalars_in_float32():
    for name in ("radius", "cosine", "eigenvalue"):
        function, point = SCALAR_CASES[name]
        value = function(*(jnp.asarray(v, jnp.float32) for v in point))
        assert value.dtype == jnp.float32
        assert float(value) == pytest.approx(float(function(*point)), rel=2e-4)


U = jnp.ones((4, 3))
V = np.eye(3)
BAD = {
    "n is 0": (lambda: exact.heat_mode(0, "neumann", 0), "n must be at least 1"),
    "n is a float": (lambda: count("n", 2.0), "n must be an integer"),
    "mode too high": (lambda: exact.heat_mode(4, "neumann", 4), "at most 3 for a neumann grid"),
    "Dirichlet mode 0": (lambda: exact.heat_mode(4, "dirichlet", 0), "k must be at least 1"),
    "negative diffusivity": (lambda: exact.heat_solution(U, -1.0, 1.0, "neumann"), "diffusivity"),
    "diffusivity shape": (lambda: exact.heat_solution(U, jnp.ones(2), 1.0, "neumann"), r"\(3,\) or \(3, 3\)"),
    "negative depth": (lambda: exact.heat_solution(U, 1.0, -0.1, "neumann"), "t .* not negative; got -0.1"),
    "depth NaN": (lambda: exact.uniform_attention(U, V, math.nan), "t=nan must be one real number"),
    "length": (lambda: exact.heat_solution(U, 1.0, 1.0, "neumann", 0.0), "length must be positive"),
    "spacing": (lambda: exact.heat_eigenvalues(4, "neumann", 1.0, 0.0), "spacing must be positive"),
    "value matrix": (lambda: exact.uniform_attention(U, np.eye(2), 1.0), r"value_matrix .* \(3, 3\)"),
    "weights shape": (lambda: exact.uniform_attention(U, V, 1.0, weights=np.ones(3)), r"weights .* \(4,\)"),
    "weight 0": (lambda: exact.uniform_attention(U, V, 1.0, weights=np.zeros(4)), "weights must be positive"),
    "offset": (lambda: exact.linear_reaction(U, V, 1.0, offset=np.ones(2)), r"offset .* \(3,\)"),
    "zero token": (lambda: exact.sphere_retraction_single_token(jnp.zeros(3), V, 1.0), "zero tokens"),
    "gamma": (
        lambda: exact.spatial_norm_radius(1.0, -1.0, 0.1, 1.0),
        "gamma must be finite and not negative",
    ),
    "eps": (lambda: exact.spatial_norm_radius(1.0, 1.0, -0.1, 1.0), "eps must be finite and not negative"),
    "no growth": (lambda: exact.spatial_norm_basin_radius(1.0, 0.0), "growth must be positive"),
    "cosine at the simplex": (
        lambda: exact.equiangular_cosine(-0.5, 1.0, 3, 1.0),
        r"\(−1/\(n−1\), 1\].*got -0.5",
    ),
    "cosine above 1": (lambda: exact.equiangular_tokens(3, 4, 1.01), "gamma must be in"),
    "one token": (lambda: exact.equiangular_cosine(0.0, 1.0, 1, 1.0), "n must be at least 2; got 1"),
    "too few dimensions": (lambda: exact.equiangular_tokens(5, 4, 0.1), "d must be at least n=5"),
    "negative beta": (lambda: exact.equiangular_cosine(0.0, -1.0, 3, 1.0), "beta must be finite and not"),
    "large beta": (lambda: exact.equiangular_cosine(0.0, 101.0, 3, 1.0), "beta must be at most 100"),
    "radius 0": (lambda: exact.preln_equiangular(0.0, 0.0, 1.0, 3, 1.0), "radius0 must be positive"),
    "circle": (lambda: exact.consensus_exponents(3, 1), "d must be at least 2"),
    "energy": (lambda: exact.interaction_energy(U, 0.0), "beta must be positive"),
    "variance": (lambda: exact.gaussian_token_variance(0.0, 1.0, 1.0), "variance0 must be positive"),
    "too many nodes": (lambda: exact.gaussian_quadrature_tokens(361), "at most 360 in float64"),
    "scheme": (lambda: exact.real_axis_limit("dopri"), "Did you mean 'dopri[58]'.*Known: euler"),
    "polynomial": (lambda: exact.real_axis_limit([2.0, 1.0]), "starts with 1"),
    "correlation": (lambda: exact.bivariate_normal_information(1.1), r"in \[−1, 1\]; got 1.1"),
    "growing modes": (
        lambda: exact.diffusion_channel_information(np.ones(2), np.ones(2), 1.0, 1.0),
        "eigenvalues",
    ),
    "noise": (
        lambda: exact.diffusion_channel_information(np.ones(2), -np.ones(2), 1.0, 0.0),
        "noise must be",
    ),
    "shapes": (lambda: exact.linear_master_equation(U, np.eye(2), 1.0, 1.0, "neumann"), r"m must have shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    call, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_depends_on_nothing_that_it_checks():
    for path in pathlib.Path(exact.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                # `_axes` says which devices a value lives on: no numbers of what is checked.
                inside = name.startswith(
                    ("pdejax.exact", "pdejax._types", "pdejax._arguments", "pdejax._check", "pdejax._axes")
                )
                assert inside or name.split(".")[0] in {"jax", "jaxtyping", "numpy"} | _STANDARD, (
                    path.name,
                    name,
                )


_STANDARD = {"collections", "difflib", "functools", "math", "numbers", "typing"}


def test_a_root_evaluates_its_residual_in_its_steps_alone():
    """What the carry of the loop differs over is read off shapes: no value is computed before the first step."""

    def outside(jaxpr):
        found = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name != "while":
                found += equation.primitive.name == "tanh"
                found += sum(outside(inner) for inner in jaxprs_in_params(equation.params))
        return found

    def root(y):
        return increasing_root(lambda x: jnp.tanh(x) - y, *map(jnp.asarray, (-3.0, 3.0, 0.0)))

    assert float(root(jnp.asarray(0.5))) == pytest.approx(np.arctanh(0.5), rel=1e-14)
    assert outside(jax.make_jaxpr(root)(0.5).jaxpr) == 0
    assert outside(jax.make_jaxpr(jax.jit(lambda y: jnp.tanh(root(y))))(0.5).jaxpr) == 1  # it does count
