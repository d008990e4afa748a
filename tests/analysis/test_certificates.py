"""Everything that is called a bound, a certificate or a theorem is attacked: rotations, shears, unequal diffusivities, one token,
kinks.

One entry of `SEARCHES` per bound: it yields pairs (reached, allowed) from a search for violations, in NumPy where it can. A
public name that speaks of bounds and is in no entry fails the last test.
"""

import inspect
import math
import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import pdejax as pj
from pdejax import analysis
from pdejax.analysis import growth, numerics, residual, stability
from pdejax.analysis.growth._energy import decay_bound
from pdejax.analysis.stability import field_lipschitz, step_constants

TURN = np.array([[0.0, 1.0], [-1.0, 0.0]])
SHEAR = np.array([[0.0, 1.0], [0.0, 0.0]])
N = 3


def matrices(rng, count=60, dim=2):
    """Linear fields u' = Ju: rotations, shears, symmetric and random ones, each with some decay or growth."""
    for i in range(count):
        size, shift = rng.uniform(0.1, 3), rng.uniform(-2, 1)
        kind = (TURN, SHEAR, -np.eye(2), np.diag([0.0, -1.0]), rng.standard_normal((dim, dim)))[i % 5]
        yield size * kind + (0.0 if i % 3 == 0 else shift) * np.eye(2)


def token_max(matrix, n, rng, tries=12):
    """The token-max norm of a map of n tokens, from below: unit tokens that maximize one output token, improved in turn."""
    d = len(matrix) // n
    blocks, best = matrix.reshape(n, d, n, d), 0.0
    for _ in range(tries):
        v = rng.standard_normal((n, d))
        for _ in range(20):
            v /= np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300)
            image = np.einsum("idje,je->id", blocks, v)
            i = int(np.argmax(np.linalg.norm(image, axis=1)))
            best = max(best, float(np.linalg.norm(image[i])))
            v = np.einsum("d,dje->je", image[i], blocks[i]) + 1e-12 * v
    return best


def norm_of(matrix, n, norm, rng):
    return float(np.linalg.norm(matrix, 2)) if norm == "frobenius" else token_max(matrix, n, rng)


def linear(matrix, **options):
    """A feed-forward term that is u ↦ u M."""
    m = jnp.asarray(matrix, float)
    term = pj.FeedForward(len(m), len(m), key=jax.random.key(0), activation="identity", **options)
    return eqx.tree_at(lambda r: (r.w1, r.w2), term, (jnp.eye(len(m)), m))


def fields():
    """Fields of three tokens of two features, (name, field); no field is without a trap."""
    grid, key = pj.Grid(N), jax.random.key(3)
    for c in (0.5, 1.0, 2.0):
        yield f"rotation, damping {c}", pj.MasterEquation(reaction=linear(TURN), stabilization=pj.LinearDamping(c))
    yield "shear", pj.MasterEquation(reaction=linear(3 * SHEAR), stabilization=pj.LinearDamping(4.0))
    uneven = pj.LinearDamping(jnp.array([3.0, 0.0, 1.0]))
    yield "a token without damping", pj.MasterEquation(reaction=linear(TURN), stabilization=uneven)
    uneven = pj.LinearDamping(jnp.array([3.0, 1.1, 9.0]))
    yield "uneven damping", pj.MasterEquation(reaction=linear(TURN), stabilization=uneven)
    yield "a leak that is growth", pj.MasterEquation(reaction=linear(TURN, strength=-0.5, leak=True))
    for d in (jnp.array([0.0, 1.0]), jnp.array([[1.0, 0.4], [0.4, 0.2]]), jnp.asarray(0.7)):
        yield f"diffusion {d.tolist()}", pj.MasterEquation(diffusion=pj.Diffusion(grid, d))
    yield (
        "ReLU",
        pj.MasterEquation(
            reaction=pj.FeedForward(2, 5, key=key, activation="relu"),
            stabilization=pj.LinearDamping(6.0),
            diffusion=pj.Diffusion(grid, 0.1),
        ),
    )
    yield (
        "attention",
        pj.MasterEquation(interaction=pj.Attention(2, 1, key=key, leak=True), stabilization=pj.LinearDamping(8.0)),
    )


def real_fields():
    """What real networks are made of, with large biases of keys and values: grouped heads, a cap, norms of queries, a gate."""
    keys = iter(jax.random.split(jax.random.key(5), 8))
    kinds = {
        "grouped, capped, rotary": {"kv_heads": 1, "logit_cap": 1.0, "rotary": 3.0, "causal": True},
        "grouped, capped": {"kv_heads": 1, "logit_cap": 0.5, "logit_scale": 2.0},
        "window, alibi": {"window": 2, "alibi": jnp.array([0.5, 2.0])},
        "norms of queries and keys": {"norm_q": pj.RMSNorm(2, eps=0.1), "norm_k": pj.LayerNorm(2, eps=0.1)},
    }
    for name, options in kinds.items():
        term = pj.Attention(2, 2, head_dim=2, bias=True, key=next(keys), **options)
        shifts = [3 * jax.random.normal(next(keys), term.bk.shape)] * 2
        term = eqx.tree_at(lambda a: (a.bk, a.bv), term, shifts)
        yield name, pj.MasterEquation(interaction=term, stabilization=pj.LinearDamping(4.0))
    gated = pj.FeedForward(2, 5, gate=True, activation="silu", norm=pj.RMSNorm(2, eps=0.1), key=jax.random.key(6))
    yield "gated", pj.MasterEquation(reaction=gated, stabilization=pj.LinearDamping(4.0))


FIELDS = dict(fields()) | dict(real_fields())


@eqx.filter_jit
def values_and_jacobians(field, us):
    """Compiled once per structure of a field and serving both."""
    return tuple(jax.vmap(f)(us) for f in (lambda u: field(0.0, u, None), jax.jacfwd(lambda u: field(0.0, u, None))))


@eqx.filter_jit
def normalized(layer, u):
    return layer(u)


def jacobians(field, radius=1.0, count=24):
    """Matrices of the Jacobian at states of the ball: random ones, collinear ones, its edge, near 0."""
    rng = np.random.default_rng(1)
    us = rng.standard_normal((count, N, 2))
    us[::3, :, 1] = 0
    us *= radius * rng.choice([1e-3, 0.5, 1.0], (count, N, 1)) / np.linalg.norm(us, axis=2, keepdims=True)
    return np.asarray(values_and_jacobians(field, us)[1]).reshape(count, 2 * N, 2 * N), us


def search_corrected_step_bound(rng):
    laplacian = np.array([[-1.0, 1, 0], [1, -2, 1], [0, 1, -1]])
    for i, part in enumerate(matrices(rng)):
        mixing = rng.dirichlet(np.full(N, 0.3), N) if i % 2 else np.eye(N)
        rest = np.kron(mixing, part)
        g, d = float(np.linalg.norm(part, 2)), rng.choice([0.0, 0.3, 3.0])
        for leak in (0.0, 0.9 * g, g, 2 * g):
            h = float(analysis.stability.corrected_step_bound(1.0, diffusivity=d, leak=leak, lipschitz=g))
            assert (h == 0) == (g > leak)  # no certificate, and never NaN
            step = np.eye(2 * N) + h * (np.kron(d * laplacian - leak * np.eye(N), np.eye(2)) + rest)
            yield token_max(step, N, rng), 1.0


def search_one_sided_step_bound(rng):
    for j in matrices(rng):
        mu, size = -float(np.linalg.eigvalsh((j + j.T) / 2)[-1]), float(np.linalg.norm(j, 2))
        h = float(analysis.stability.one_sided_step_bound(dissipation=mu, lipschitz=size))
        assert (h == 0) == (mu <= 0)
        yield float(np.linalg.norm(np.eye(2) + h * j, 2)), 1.0
    # A nonlinear field with a kink: −u and −3u on either side.
    h = float(analysis.stability.one_sided_step_bound(dissipation=1.0, lipschitz=3.0))
    u, v = rng.standard_normal((2, 500))
    yield float(np.max(np.abs(u - v + h * (np.minimum(-u, -3 * u) - np.minimum(-v, -3 * v))) / np.abs(u - v))), 1.0


def search_step_constants(rng):
    for name, field in FIELDS.items():
        found, _ = jacobians(field)
        for norm in ("token_max", "frobenius"):
            try:
                constants = step_constants(field, N, 1.0, norm=norm)
            except ValueError as error:
                assert "diffusion" in name and norm == "token_max" and "maximum principle" in str(error)
                continue
            h = constants.dt_max
            assert (h == 0) == (not constants.rest_at_most_leak) == (constants.why != "")
            for j in found:
                yield norm_of(np.eye(2 * N) + h * j, N, norm, rng), 1.0
    certified = {n for n, f in FIELDS.items() if step_constants(f, N, 1.0, norm="frobenius").dt_max > 0}
    assert {"rotation, damping 1.0", "shear", "uneven damping", "diffusion [0.0, 1.0]"} <= certified
    assert not {"rotation, damping 0.5", "a token without damping", "a leak that is growth"} & certified


def search_field_lipschitz(rng):
    for field in FIELDS.values():
        for radius in (0.3, 2.0):
            found, _ = jacobians(field, radius)
            for norm in ("token_max", "frobenius"):
                bound = field_lipschitz(field, N, radius, norm=norm).bound
                yield max(norm_of(j, N, norm, rng) for j in found), bound


def search_castin_bound(rng):
    eye = jnp.eye(2)
    term = pj.Attention(2, 1, key=jax.random.key(0))
    term = eqx.tree_at(lambda a: (a.wq, a.wk, a.wv, a.wo), term, (eye[:, None], eye[:, None], eye[:, None], eye[None]))
    for radius in (0.1, 1.0, 5.0):
        found, _ = jacobians(term, radius)
        bound = stability.castin_bound(1.0, 1 / math.sqrt(2), radius, N)
        yield max(np.linalg.norm(j, 2) for j in found), bound


def search_continuum_bounds(rng):
    t1 = 1.0
    for j in [*matrices(rng, 40), 10 * TURN, -9 * np.eye(2), 8 * SHEAR]:
        u0, flow = rng.standard_normal(2), scipy.linalg.expm(j * t1 / 256)
        truth = [u0]
        for _ in range(256):
            truth.append(flow @ truth[-1])
        truth = np.stack(truth)
        constants = numerics.FieldConstants(
            log_norm_on_trajectory=float(np.linalg.eigvalsh((j + j.T) / 2)[-1]),
            lipschitz_on_trajectory=float(np.linalg.norm(j, 2)),
            curvature_on_trajectory=float(np.linalg.norm(truth @ (j @ j).T, axis=1).max()),
        )
        for steps in (1, 4, 32):
            u, error = u0, 0.0
            for k in range(steps):
                u = u + t1 / steps * j @ u
                error = max(error, float(np.linalg.norm(u - truth[(k + 1) * 256 // steps])))
            bounds = analysis.numerics.continuum_bounds(t1 / steps, constants, t1)
            yield error, bounds.v2_12_by_lipschitz
            yield error, bounds.one_sided_by_log_norm_and_lipschitz
            yield bounds.one_sided_by_log_norm_and_lipschitz, bounds.v2_12_by_lipschitz


def search_growth_bound(rng):
    """⟨u_i, F_i⟩ ≤ (λ|||u||| + f)‖u_i‖ at tokens of largest norm, and ⟨u, F⟩ ≤ (λ‖u‖ + f)‖u‖ in the mesh norm."""
    extra = {
        # F(0) = 0, and no growth constant: the offset is √d.
        "pre-LN": pj.MasterEquation(
            reaction=linear(np.eye(2), norm=pj.LayerNorm(2)), stabilization=pj.LinearDamping(1.0)
        ),
        "v2 (9)": pj.MasterEquation(reaction=linear(TURN), stabilization=pj.SpatialNorm(1.0)),
    }
    for name, field in (FIELDS | extra).items():
        for norm in ("token_max", "mesh"):
            try:
                bound = analysis.growth.growth_bound(field, N, norm=norm)
            except ValueError as error:
                assert "diffusion" in name and "maximum principle" in str(error)
                continue
            _, us = jacobians(field, rng.choice([0.1, 1.0, 30.0]))
            forces = np.asarray(values_and_jacobians(field, us)[0])
            for u, force in zip(us, forces, strict=True):
                sizes = np.linalg.norm(u, axis=1)
                if norm == "mesh":
                    size = math.sqrt(np.mean(sizes**2))
                    yield np.mean(np.sum(u * force, axis=1)) / size, bound.rate * size + bound.offset
                else:
                    i = int(np.argmax(sizes))
                    yield float(u[i] @ force[i] / sizes[i]), bound.rate * sizes[i] + bound.offset


def search_decay_bound(rng):
    for j in matrices(rng):
        u0, b = rng.standard_normal((2, 2))
        rate = float(np.linalg.eigvalsh((j + j.T) / 2)[-1])
        whole = np.block([[j, b[:, None]], [np.zeros((1, 3))]])
        for t in (0.1, 1.0, 3.0):
            u = (scipy.linalg.expm(whole * t) @ np.append(u0, 1.0))[:2]
            bound = decay_bound(np.linalg.norm(u0), rate, np.linalg.norm(b), t)
            yield float(np.linalg.norm(u)), float(bound)


def search_fidelity_bound(rng):
    """1 − ρ against 1 − √(1 − r²), for random integrals and for those that touch the ball."""
    for r in (0.01, 0.5, 0.9, 0.999, 1.5):
        angles = np.linspace(0, 2 * np.pi, 4001)
        u = np.array([1.0, 0.0]) + r * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        yield float(1 - (u[:, 0] / np.linalg.norm(u, axis=1)).min()), float(1 - residual.fidelity_bound(r))


def search_spectral_bounds(rng):
    for j in [*matrices(rng, 5), 7 * TURN, 5 * SHEAR - np.eye(2)]:
        found = stability.spectral_bounds(pj.MasterEquation(reaction=linear(j.T)), jnp.ones((1, 2)))["field"]
        for t in (0.05, 0.5):
            flow = scipy.linalg.expm(j * t)
            yield float(np.linalg.norm(flow, 2)), math.exp(found.log_norm * t)
            yield math.exp(found.lower_log_norm * t), float(np.linalg.svd(flow)[1][-1])
        yield float(np.linalg.norm(j, 2)), found.lipschitz
        v = rng.standard_normal((200, 2)) + 1j * rng.standard_normal((200, 2))
        values = np.einsum("ki,ij,kj->k", v.conj(), j, v) / np.sum(np.abs(v) ** 2, axis=1)
        polygon = found.field_of_values
        for angle in np.linspace(0, 2 * np.pi, 17):
            turned = np.exp(1j * angle)
            yield float((turned * values).real.max()) + 20, float((turned * polygon).real.max()) + 20


def search_anti_diffusion(rng):
    for boundary in ("neumann", "dirichlet", "periodic"):
        for n in (2, 3, 9):
            for d in (rng.standard_normal(n), -np.ones(n), np.where(np.arange(n) % 2, 1.0, -1.0)):
                found = analysis.growth.anti_diffusion(pj.Grid(n, boundary=boundary), jnp.asarray(d))
                yield found.rate, found.bound
                if np.all(d < 0) and n == 9 and boundary != "dirichlet":
                    yield 0.9 * found.bound, found.rate  # a stretch of constant D comes close


def search_layernorm(rng):
    """Pairs of tokens far apart, close by and constant; globally ‖diag(g)P‖₂/√ε and not ‖g‖_∞/√ε."""
    for g in ([1.0, 0.0], [1.0, 1.0], [2.0, -0.5, 0.1]):
        for kind in (pj.LayerNorm, pj.RMSNorm):
            d = len(g)
            layer = eqx.tree_at(lambda x: x.scale, kind(d, eps=1e-2), jnp.asarray(g))
            u = rng.standard_normal((400, d)) * rng.choice([1e-4, 0.1, 10.0], (400, 1)) + (kind is pj.LayerNorm)
            v = u + rng.standard_normal((400, d)) * rng.choice([1e-4, 1.0], (400, 1))
            out = np.linalg.norm(np.asarray(normalized(layer, u)) - np.asarray(normalized(layer, v)), axis=1)
            ratio, bound = float((out / np.linalg.norm(u - v, axis=1)).max()), layer.lipschitz()
            yield ratio, bound
            yield 0.9 * bound, ratio  # sharp: the search comes within a tenth
    narrow = eqx.tree_at(lambda x: x.scale, pj.LayerNorm(2, eps=1e-2), jnp.array([1.0, 0.0]))
    yield abs(narrow.lipschitz() - 10 * math.sqrt(0.5)), 1e-12
    centre, reach = narrow.ball(5.0)
    u = np.asarray(normalized(narrow, rng.standard_normal((400, 2)) * 3))
    yield float(np.linalg.norm(u - centre, axis=1).max()), reach


SEARCHES = {
    "corrected_step_bound": search_corrected_step_bound,
    "one_sided_step_bound": search_one_sided_step_bound,
    "step_constants": search_step_constants,
    "field_lipschitz": search_field_lipschitz,
    "castin_bound": search_castin_bound,
    "continuum_bounds": search_continuum_bounds,
    "growth_bound": search_growth_bound,
    "growth_bound over depth": search_decay_bound,
    "fidelity_bound": search_fidelity_bound,
    "spectral_bounds": search_spectral_bounds,
    "anti_diffusion": search_anti_diffusion,
    "LayerNorm": search_layernorm,
}
# Names that speak of bounds and give none of their own, or whose search stands elsewhere.
ELSEWHERE = {
    **dict.fromkeys(
        ("Certificate", "LipschitzEstimate", "adversarial_lipschitz", "sampled_lipschitz"), "test_lipschitz.py"
    ),
    **dict.fromkeys(("FieldConstants", "field_constants", "ContinuumBounds"), "test_bounds.py"),
    **dict.fromkeys(("measure_constants", "measure_scheme"), "test_convergence.py"),
    "fidelity_report": "test_residual.py",
    "SpectralBounds": "test_stability_spectrum.py",
    "StepConstants": "test_stability_bound.py",
}


@pytest.mark.parametrize("name", SEARCHES)
def test_no_search_breaks_a_bound(name):
    pairs = list(SEARCHES[name](np.random.default_rng(7)))
    assert len(pairs) >= 3
    for reached, allowed in pairs:
        assert np.isfinite(reached) and not np.isnan(allowed)
        assert reached <= allowed + 1e-9 * max(1.0, abs(allowed)), name


def test_what_the_searches_are_for():
    """The statements that were false, with their figures: each breaks what was promised once."""
    # 2/(4D/Δx² + c + G) = 2 with G = 1 > c = 0: Euler on u' = uJ, 60 steps.
    grown = [np.linalg.norm(np.linalg.matrix_power(np.eye(2) + h * TURN, 60), 2) for h in (0.5, 1.0, 1.9)]
    assert grown == pytest.approx([8.08e2, 1.07e9, 8.9e19], rel=0.15)
    # D = (0, 1), three tokens: a step of 0.9 · 2/(4D/Δx²) in the token-max norm.
    laplacian = np.array([[-1.0, 1, 0], [1, -2, 1], [0, 1, -1]])
    step = np.eye(6) + 0.45 * np.kron(laplacian, np.diag([0.0, 1.0]))
    assert token_max(step, N, np.random.default_rng(0)) > 1.3


def test_every_bound_has_its_search():
    speaks = re.compile(r"bound|certificate|theorem|lipschitz", re.IGNORECASE)
    found = set()
    for module in (analysis, growth, numerics, residual, stability):
        for name in dir(module):
            thing = getattr(module, name)
            if not name.startswith("_") and callable(thing):
                first = (inspect.getdoc(thing) or "").split("\n\n")[0]
                if speaks.search(f"{name} {first}"):
                    found.add(name)
    assert found <= SEARCHES.keys() | ELSEWHERE.keys()
    for name in SEARCHES.keys() | ELSEWHERE.keys():
        public = name.split()[0]
        assert hasattr(pj, public) or any(hasattr(m, public) for m in (analysis, growth, numerics, residual, stability))
    folder = pathlib.Path(__file__).parent
    for name, file in ELSEWHERE.items():
        # Records are what the functions of the file return.
        assert (folder / file).is_file() and (name[0].isupper() or name in (folder / file).read_text()), name
