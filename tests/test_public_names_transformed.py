"""Closed forms, terms, operators, networks inside transformations: closed over, as an argument of jit, in batches by vmap,
lax.map and shard_map, and differentiated. Solves: `test_transformations.py`; analyses: `analysis/test_everywhere.py`."""

import ast
import importlib
import inspect
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax import exact, solvers

KEY = jax.random.key(0)
N, D = 4, 2
U = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)))
M = jnp.asarray([[-0.5, 0.2], [-0.1, -1.0]])
SPHERE = U / jnp.linalg.norm(U, axis=1, keepdims=True)
GRID = pj.Grid(N)
HALF, ONE, TWO = (jnp.asarray(x) for x in (0.5, 1.0, 2.0))
SHARES = jnp.full(N, 1 / N)

EXACT = {
    "antipodal_probability": (lambda g, b: exact.antipodal_probability(g, b, 3), (HALF, ONE)),
    "bivariate_normal_information": (exact.bivariate_normal_information, (HALF,)),
    "circle_mode_rate": (lambda b: exact.circle_mode_rate(b, 2), (ONE,)),
    "diffusion_channel_information": (exact.diffusion_channel_information, (jnp.ones(3), -jnp.arange(3.0), HALF, ONE)),
    "diffusive_step_limit": (lambda d, dx: exact.diffusive_step_limit("rk4", d, dx), (HALF, ONE)),
    "equiangular_cosine": (lambda g, b, t: exact.equiangular_cosine(g, b, 4, t), (HALF, ONE, HALF)),
    "equiangular_rate": (lambda g, b: exact.equiangular_rate(g, b, 4), (HALF, ONE)),
    "equiangular_tokens": (lambda g: exact.equiangular_tokens(3, 4, g), (HALF,)),
    "gaussian_blowup_time": (exact.gaussian_blowup_time, (HALF, ONE)),
    "gaussian_quadrature_tokens": (lambda v: exact.gaussian_quadrature_tokens(N, v), (ONE,)),
    "gaussian_token_variance": (exact.gaussian_token_variance, (HALF, ONE, HALF)),
    "heat_eigenvalues": (lambda d, dx: exact.heat_eigenvalues(N, "neumann", d, dx), (HALF, ONE)),
    "heat_solution": (lambda u, d, t: exact.heat_solution(u, d, t, "neumann"), (U, HALF, HALF)),
    "interaction_energy": (exact.interaction_energy, (SPHERE, ONE)),
    "interaction_energy_rate": (exact.interaction_energy_rate, (SPHERE, ONE)),
    "linear_master_equation": (
        lambda u, m, t, d: exact.linear_master_equation(u, m, t, d, "periodic"),
        (U, M, HALF, HALF),
    ),
    "linear_reaction": (exact.linear_reaction, (U, M, HALF)),
    "mode_amplitudes": (lambda u: exact.mode_amplitudes(u, "dirichlet"), (U,)),
    "mode_sum": (lambda u: exact.mode_sum(u, "neumann"), (U,)),
    "preln_equiangular": (lambda g, r, b, t: exact.preln_equiangular(g, r, b, 4, t), (HALF, ONE, ONE, HALF)),
    "preln_equiangular_rates": (lambda g, r, b: exact.preln_equiangular_rates(g, r, b, 4), (HALF, ONE, ONE)),
    "random_linear_moments": (lambda v: exact.random_linear_moments(3, 4, variance=v), (HALF,)),
    "spatial_norm_basin_radius": (exact.spatial_norm_basin_radius, (ONE, HALF)),
    "spatial_norm_growth_radius": (exact.spatial_norm_growth_radius, (ONE, ONE, HALF, HALF)),
    "spatial_norm_radius": (exact.spatial_norm_radius, (TWO, ONE, HALF, HALF)),
    "spatial_norm_solution": (exact.spatial_norm_solution, (U, ONE, HALF, HALF)),
    "spatial_norm_time": (exact.spatial_norm_time, (TWO, ONE, ONE, HALF)),
    "sphere_attention": (exact.sphere_attention, (SPHERE, ONE)),
    "sphere_noise_cosine": (lambda t: exact.sphere_noise_cosine(3, t), (HALF,)),
    "sphere_retraction_single_token": (exact.sphere_retraction_single_token, (SPHERE, M, HALF)),
    "two_token_exponents": (lambda b: exact.two_token_exponents(b, 4), (ONE,)),
    "two_token_rates": (lambda g, b: exact.two_token_rates(g, b, 4), (HALF, ONE)),
    "uniform_attention": (exact.uniform_attention, (U, M, HALF)),
}


def term(made):
    return lambda u: made(0.3, u, None)


ATTENTION, FEED = pj.Attention(D, 1, key=KEY, norm=pj.LayerNorm(D)), pj.FeedForward(D, 3, key=KEY, activation="tanh")
COUPLED = solvers.CoupledOperator(GRID, jnp.asarray([[1.0, 0.3], [-0.3, 1.0]]))
DIAGONAL, MASKED = solvers.DiagonalizableOperator(GRID, 0.1), solvers.TridiagonalOperator(GRID, jnp.full(N, 0.1))
LAYERS = [
    pj.MasterEquation(ATTENTION),
    pj.MasterEquation(pj.Attention(D, 1, key=jax.random.key(1), norm=pj.LayerNorm(D))),
]
NET = pj.network([jnp.tanh, jnp.sin])
ACTING = {
    "Attention": (term(ATTENTION), (U,)),
    "Diffusion": (term(pj.Diffusion(GRID, 0.1)), (U,)),
    "EffectiveDiffusion": (term(pj.EffectiveDiffusion(GRID, ATTENTION, FEED, jnp.ones((N, D)))), (U,)),
    "FeedForward": (term(FEED), (U,)),
    "LayerNormRelaxation": (term(pj.LayerNormRelaxation(D)), (U,)),
    "LinearDamping": (term(pj.LinearDamping(1.0)), (U,)),
    "SpatialNorm": (term(pj.SpatialNorm(1.0)), (U,)),
    "MasterEquation": (term(pj.MasterEquation(ATTENTION, FEED)), (U,)),
    "DepthVarying": (term(pj.DepthVarying.from_layers(LAYERS, 1.0, "linear")), (U,)),
    "MultilayerEquation": (term(pj.MultilayerEquation(LAYERS, [pj.Exchange(D, key=KEY)])), (jnp.stack([U, 2 * U]),)),
    "LayerNorm": (pj.LayerNorm(D), (U,)),
    "RMSNorm": (pj.RMSNorm(D), (U,)),
    "SphereProjection": (pj.SphereProjection(), (U,)),
    "Laplacian": (pj.Laplacian(GRID), (U,)),
    "DiagonalizableOperator": (lambda u: DIAGONAL.solve(0.1, u), (U,)),
    "CoupledOperator": (lambda u: COUPLED.solve(0.1, u), (U,)),
    "TridiagonalOperator": (lambda u: MASKED.solve(0.1, u), (U,)),
    "divergence": (lambda c, u: solvers.divergence(GRID, c, u), (jnp.full(N, 0.1), U)),
    "attend": (lambda q, k, v: pj.terms.attend(q, k, v), tuple(jnp.ones((3, 1, 2)) * x for x in (0.1, 0.2, 0.3))),
    "Network": (lambda u: NET(u), (U,)),
    "Network.hidden_states": (lambda u: NET.hidden_states(u), (U,)),
    "Discretization": (lambda u: pj.simulate(pj.Discretization(term_field, "rk4", t1=1.0, steps=2), u).us, (U,)),
    "bounds of a certificate": (lambda u: jnp.sum(u) / pj.analysis.field_lipschitz(ATTENTION, N, 1.0).bound, (U,)),
}


def term_field(t, u, args):
    return jnp.sin(u) * t


TABLE = EXACT | ACTING


def floats(found):
    return [x for x in jax.tree.leaves(found) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)]


def agree(found, expected, name):
    for a, b in zip(floats(found), floats(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", TABLE)
def test_works_everywhere(name):
    """The same values closed over and as arguments of `lax.map`, and of `vmap` inside `shard_map`; reverse mode against a central
    difference along the arguments' own direction. All in one program, since compilation takes the time."""
    function, arguments = TABLE[name]
    mesh = jax.make_mesh((1,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))

    def plain(*a):
        return floats(function(*a))

    def loss(a):
        return sum(jnp.sum(jnp.sin(x)) for x in plain(*a))

    @jax.jit
    def everywhere(one, stacked):
        spread = jax.shard_map(lambda *a: jax.vmap(plain)(*a), mesh=mesh, in_specs=jax.P("b"), out_specs=jax.P("b"))
        return (
            plain(*arguments),
            jax.lax.map(lambda a: plain(*a), stacked),
            spread(*stacked),
            jax.grad(loss)(one),
        )

    stacked = tuple(np.stack([(1 + s * 1e-5) * np.asarray(x) for s in (0, 1, -1)]) for x in arguments)
    closed, mapped, spread, slopes = jax.device_get(everywhere(arguments, stacked))
    agree([x[0] for x in mapped], closed, "lax.map")
    agree(spread, mapped, "vmap inside shard_map")
    _, ahead, behind = (sum(np.sum(np.sin(x[k])) for x in mapped) for k in range(3))
    along = sum(np.vdot(g, x) for g, x in zip(slopes, arguments, strict=True))
    assert float(along) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-5, abs=1e-8)


def test_models_inside_transformations():
    """Tokens as an argument and closed over, with the model closed over: `observe`, a network, a simulator."""
    model = pj.Transformer(
        pj.Architecture(vocab=5, dim=4, heads=2, layers=2, ffn=4, head="classification", classes=2), rngs=nnx.Rngs(0)
    )
    tokens = np.arange(4)
    net = pj.as_network(model)
    functions = (lambda t: pj.observe(model, t).states, lambda t: net(t), lambda t: net.hidden_states(t))

    @jax.jit
    def everywhere(t):
        return [(f(tokens), jax.vmap(f)(t)[0], jax.lax.map(f, t)[0]) for f in functions]

    found = everywhere(tokens[None])
    for closed, *others in found:
        for other in others:
            np.testing.assert_allclose(other, closed, rtol=1e-5, atol=1e-6)
    # As plain calls give them.
    np.testing.assert_allclose(found[2][0], net.hidden_states(tokens), rtol=1e-5, atol=1e-6)


# Public functions that no table of transformations holds, and why. Classes are settings, solvers and records, or above.
ELSEWHERE = {
    "solves: test_transformations.py": "simulate",
    "solves in parallel: test_parallel.py": "simulate_in_parallel mgrit newton predict_iterations gradient_bias",
    "takes tokens: above": "observe",
    "makes or reads models, on the host": "as_network lift network pair untrained_field load_model load_pretrained save_model "
    "save_transports iid smooth_random",
    "puts tokens on devices: terms/test_ring.py, test_ring_devices.py": "shard_tokens",
    "numbers of Python in, numbers out, no array to trace": "two_token_critical_beta attention_means consensus_exponents "
    "heat_mode real_axis_limit stability_polynomial castin_bound critical_path expected_order evaluations get_solver linear_part "
    "real_stability_limit stability_function continuum_bounds",
    "works on numbers: refused inside jit by the decorator that the tables of analyses test": "depth_check closure_gap "
    "metastability waiting_exponent field_lipschitz step_constants "
    "growth_bound random_negative_fraction one_sided_step_bound adversarial_lipschitz sampled_lipschitz measure_constants "
    "measure_scheme convergence solve_reference information_stages",
    "takes a whole network or samples on the host: tests of their own": "states branch_sizes layer_field layer_surgery "
    "matched_null refine_layers run_layers shuffle_layers identify_operators paper_operators weights_in_depth permutation_test "
    "jacobian_transports",
    "draws, trains, reads or draws pictures, on the host": "calibration binary_symmetric_channel class_channel "
    "diffusion_channel discrete_channel gaussian_channel standard_channels transformed fit shuffle_weights "
    "stack_gradient_flows attention_spectra BlowupGuard",
}


def rows_of(file: str, *tables: str) -> set[str]:
    """The functions that tables of another file are of: the first word of each key."""
    tree = ast.parse((pathlib.Path(__file__).parent / file).read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict):
            found[node.targets[0].id] = {ast.literal_eval(key).split()[0] for key in node.value.keys}
    return set().union(*(found[table] for table in tables))


def forgotten(known: set[str]) -> list[str]:
    """Public functions that are not known."""
    names = json.loads((pathlib.Path(__file__).parent / "public_names.json").read_text())
    missing = []
    for package, public in names.items():
        if package.startswith(("pdejax.studies", "pdejax.training", "pdejax.runs", "pdejax.data", "pdejax.plot")):
            continue  # commands, training and files: no functions of arrays
        module = importlib.import_module(package)
        for name in public:
            found = getattr(module, name, None)
            if inspect.isfunction(found) and name != "attach" and name not in known:
                missing.append(f"{package}.{name}")
    return missing


def test_no_public_function_is_forgotten():
    """Every public function is in a table of transformations, or named above with the reason; and in no reason twice."""
    rows = set(TABLE) | rows_of("analysis/test_everywhere.py", "WORKS", "NUMBERS")
    named = [name for group in ELSEWHERE.values() for name in group.split()]
    assert not forgotten(rows | set(named))
    assert len(named) == len(set(named)) and not set(named) & rows
    # The guard is not asleep: it misses each name that is in one place alone.
    for name in ("heat_solution", "attention_cosine", "simulate"):
        assert [text.rsplit(".", 1)[1] for text in forgotten((rows | set(named)) - {name})].count(name) >= 1
