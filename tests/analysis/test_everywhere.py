"""Every analysis inside transformations: closed over, as an argument of jit and lax.map, and under vmap, or refused in words."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax import analysis as an
from pdejax.analysis.growth._energy import decay_bound
from pdejax.analysis.jacobian._operator import marchenko_pastur_cdf
from pdejax.analysis.tokens._clustering import effective_rank

KEY = jax.random.key(0)


def rnd(i, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, i), shape)


L, B, N, D, H = 4, 4, 5, 3, 2
US, US2, U, UU = rnd(1, L, B, N, D), rnd(2, L, B, N, D), rnd(3, N, D), rnd(4, L, N, D)
P, Q = jax.nn.softmax(rnd(5, L, B, H, N, N)), jax.nn.softmax(rnd(6, L, B, H, N, N))
MASK = jnp.ones((B, N), bool)
X, Y, LAB = rnd(7, 24, 2), rnd(8, 24, 2), jnp.arange(24) % 3
STATES24 = rnd(11, 3, 24, 4, 2)
TS = jnp.linspace(0.0, 1.0, 8)
TS4, GAP = TS[:4], jnp.exp(-TS)
GRID = pj.Grid(N)
FIELD = pj.MasterEquation(
    pj.Attention(D, 1, key=KEY), pj.FeedForward(D, 4, key=KEY, activation="tanh"), pj.Diffusion(GRID, 0.01)
)
DISC = pj.Discretization(FIELD, "rk4", t1=1.0, steps=3)
LEAKY = pj.MasterEquation(pj.Attention(D, 1, key=KEY, leak=True))
FEW = {"key": KEY, "resamples": 20}
NOISE, EYE = an.limits.CommonNoise(an.limits.attention_means(0.5), variance=0.1), 0.5 * jnp.eye(2)


LOOP = an.loops.loop_of(jnp.tanh, U)
ANSWERING = an.loops.Loop(jnp.tanh, U, None, (jnp.tanh,), lambda u: jnp.mean(u, axis=0), ("the map",), 1)


def square(v, *args):
    return jnp.sum(v**2)


WORKS = {
    "layer_correlation previous": (lambda u: an.layer_correlation(u, "previous", **FEW), (US,)),
    "adversarial_update": (lambda u: an.residual.adversarial_update(u, 0.5, key=KEY), (U,)),
    "amplitude_spectrum": (lambda u: an.amplitude_spectrum(u, **FEW), (US,)),
    "attention_cosine": (lambda p, q: an.attention.attention_cosine(p, q, MASK), (P, Q)),
    "attention_divergence": (lambda p, q: an.attention.attention_divergence(p, q, MASK), (P, Q)),
    "attention_entropy": (lambda p: an.attention_entropy(p, **FEW), (P,)),
    "attention_fidelity": (lambda p, q: an.attention_fidelity(p, q, **FEW), (P, Q)),
    "attention_rollout": (lambda p: an.attention.attention_rollout(p, **FEW), (P,)),
    "circle_closure": (lambda r: an.limits.circle_closure(r, 1.0, t1=0.1), (1 + 0.1 * jnp.sin(TS),)),
    "claimed_energy": (lambda x: an.growth.claimed_energy(x, 1.0, 0.1, 0.5), (jnp.asarray(1.0),)),
    "fidelity_bound claimed": (lambda x: an.residual.fidelity_bound(x, claimed=True), (jnp.asarray(0.5),)),
    "collapse_rate": (
        lambda t, g: an.collapse_rate(t, g, **FEW),
        (jnp.linspace(0.0, 2.0, 24), jnp.exp(-jnp.linspace(0.0, 2.0, 24))),
    ),
    "data_processing": (
        lambda x, s: an.information.data_processing(x, s, key=KEY, resamples=8, permutations=8, noise=0.1),
        (X, STATES24),
    ),
    "decay_bound": (lambda x: decay_bound(x, -1.0, 0.1, 0.5), (jnp.asarray(1.0),)),
    "decay_difference": (
        lambda a, b: an.residual.decay_difference(jnp.arange(8.0), a, b, **FEW),
        (rnd(20, 8, B, N, D), rnd(21, 8, B, N, D)),
    ),
    "decay_rate": (lambda t, e: an.growth.decay_rate(t, e), (TS, GAP)),
    "effective_rank": (lambda x: effective_rank(x), (GAP,)),
    "energy": (lambda u: an.growth.energy(u), (U,)),
    "energy_budget": (lambda u: an.growth.energy_budget(FIELD, TS4, u), (UU,)),
    "energy_rates": (lambda u: an.growth.energy_rates(FIELD, u), (U,)),
    "entropy": (lambda x: an.information.entropy(x), (X,)),
    "entropy gaussian": (lambda x: an.information.entropy(x, "gaussian"), (X,)),
    "fidelity": (lambda u: an.residual.fidelity(u, u[0]), (UU,)),
    "fidelity_report": (lambda u: an.residual.fidelity_report(u, u[0]), (UU,)),
    "ftle": (lambda u: an.jacobian.ftle(DISC, u, key=KEY), (U,)),
    "gaussian_closure": (
        lambda m, c: an.limits.gaussian_closure(m, c, logits=EYE, values=EYE, t1=0.1),
        (rnd(22, 2), 0.5 * jnp.eye(2)),
    ),
    "gradient_flow": (
        lambda u: an.gradient_flow(DISC, u, loss=lambda v, *a: jnp.sum(v**2), null=None, **FEW),
        (rnd(13, B, N, D),),
    ),
    "information_phases": (lambda c: an.information.information_phases(c, key=KEY, resamples=20), (rnd(14, 12),)),
    "information_plane": (
        lambda s, x, y: an.information_plane(s, x, y, noise=0.1, key=KEY, resamples=8, permutations=8),
        (STATES24, X, LAB),
    ),
    "information_plane ksg": (
        lambda s, x, y: an.information_plane(s, x, y, noise=0.1, key=KEY, resamples=8, permutations=8, estimator="ksg"),
        (STATES24, X, LAB),
    ),
    "layer_correlation input": (lambda u: an.layer_correlation(u, **FEW), (US,)),
    "layer_correlation": (lambda a, b: an.layer_correlation(a, b, **FEW), (US, US2)),
    "layer_entropy": (lambda s: an.information.layer_entropy(s, key=KEY, resamples=8, shuffles=8), (STATES24,)),
    "layer_jacobian": (lambda u: an.layer_jacobian(DISC, u, step=0).matrix(), (U,)),
    "layer_spread": (lambda s: an.information.layer_spread(s), (US,)),
    "linear_cka": (lambda a, b: an.similarity.linear_cka(a, b), (X, Y)),
    "low_pass_ratio": (lambda u: an.spectra.low_pass_ratio(u, **FEW), (US,)),
    "lyapunov_exponents": (lambda u: an.lyapunov_exponents(DISC, u, key=KEY, k=2), (U,)),
    "lyapunov_of_maps": (lambda m: an.jacobian.lyapunov_of_maps(m, key=KEY, k=2), (rnd(15, 4, 3, 3),)),
    "marchenko_pastur_cdf": (lambda x: marchenko_pastur_cdf(x, 2.0), (GAP,)),
    "loop_exponents": (lambda u: an.loops.loop_exponents(an.loops.loop_of(jnp.tanh, u), k=2, loops=8), (U,)),
    "loop_of": (lambda u: an.loops.loop_of(jnp.tanh, u).states(3), (U,)),
    "mean_squared_error": (lambda a, b: an.similarity.mean_squared_error(a, b), (US, US2)),
    "mesh_norm": (lambda u: an.mesh_norm(u), (U,)),
    "mutual_information": (lambda x, y: an.mutual_information(x, y), (X, Y)),
    "mutual_information labels": (lambda x, y: an.mutual_information(x, y), (X, LAB)),
    "mutual_information kde": (lambda x, y: an.mutual_information(y, x, "kde", noise=0.1, key=KEY), (X, LAB)),
    "mutual_information binned": (lambda x, y: an.mutual_information(x, y, "binned"), (X, LAB)),
    "mutual_information gaussian": (lambda x, y: an.mutual_information(x, y, "gaussian"), (X, Y)),
    "mutual_information mixed": (lambda x, y: an.mutual_information(x, y, "ksg", variant="mixed"), (X, LAB)),
    "mutual_information InfoNCE": (
        lambda x, y: an.mutual_information(y, x, "infonce", key=KEY, steps=3, classes=3),
        (X, LAB),
    ),
    "network_ends": (lambda u: an.limits.network_ends(NOISE, u, layers=2, draws=2, key=KEY), (U,)),
    "pearson": (lambda a, b: an.similarity.pearson(a, b), (X[:, 0], Y[:, 0])),
    "perturbation_sensitivity": (
        lambda u: an.perturbation_sensitivity(DISC, u, key=KEY, loss=lambda v, *a: jnp.sum(v**2), draws=2),
        (rnd(13, 2, N, D),),
    ),
    "procrustes_distance": (lambda a, b: an.similarity.procrustes_distance(a, b), (X, Y)),
    "relative_error": (lambda a, b: an.similarity.relative_error(a, b), (US, US2)),
    "representation": (lambda u: an.representation(u, **FEW), (US,)),
    "residual_decay": (lambda u: an.residual_decay(jnp.arange(8.0), u, **FEW), (rnd(20, 8, B, N, D),)),
    "residual_necessity": (
        lambda u: an.residual.residual_necessity(LEAKY, u, layers=6, refine=2, **FEW),
        (rnd(13, B, N, D),),
    ),
    "residual_ratio": (lambda u: an.residual.residual_ratio(u, u[0]), (UU,)),
    "sde_ends": (lambda u: an.limits.sde_ends(NOISE, u, steps=2, draws=2, key=KEY), (U,)),
    "sequence_cosine": (lambda a, b: an.similarity.sequence_cosine(a, b), (US, US2)),
    "fidelity_bound": (lambda x: an.residual.fidelity_bound(x), (jnp.asarray(0.5),)),
    "shuffle_features": (lambda u: an.shuffle_features(u, KEY), (US,)),
    "shuffle_tokens": (lambda u: an.shuffle_tokens(u, MASK, KEY), (US,)),
    "spearman": (lambda a, b: an.similarity.spearman(a, b), (X[:, 0], Y[:, 0])),
    "spectral_similarity": (lambda a, b: an.spectral_similarity(a, b, **FEW), (US, US2)),
    "token_clustering": (lambda u: an.token_clustering(u, **FEW), (US,)),
    "token_cosine": (lambda a, b: an.similarity.token_cosine(a, b), (U, U)),
    "token_max_norm": (lambda u: an.numerics.token_max_norm(u), (U,)),
    "trajectory_fidelity": (lambda a, b: an.trajectory_fidelity(a, b, **FEW), (US, US2)),
    "unit_spread": (lambda u: an.information.unit_spread(u), (US,)),
    "bootstrap": (lambda x: pj.bootstrap(lambda w: w @ x / len(x), 24, key=KEY, resamples=20), (X[:, 0],)),
    "over_seeds": (lambda x: pj.over_seeds(x), (X[:, 0],)),
}
# What works on numbers: at once where they are known, refused in words where they are not.
NUMBERS = {
    "anti_diffusion": (lambda d: an.growth.anti_diffusion(GRID, d), (rnd(12, N),)),
    "corrected_step_bound": (lambda x: an.stability.corrected_step_bound(x, diffusivity=1.0), (jnp.asarray(0.1),)),
    "error_floor": (lambda x: an.numerics.error_floor(x), (jnp.asarray(1e-12),)),
    "extinction_time": (lambda s: an.growth.extinction_time(s, 1.0), (jnp.asarray(1.0),)),
    "field_constants": (lambda u: an.numerics.field_constants(FIELD, TS4, u), (UU,)),
    "fit_power": (lambda e: an.numerics.fit_power([0.1, 0.05, 0.025], e), (jnp.asarray([1e-1, 5e-2, 2.5e-2]),)),
    "curve_noise": (lambda c: an.information.curve_noise(c), (jnp.asarray([0.0, 1.0, 0.5, 2.0, 1.5]),)),
    "fit_order": (lambda e: an.fit_order([0.1, 0.05, 0.025], e), (jnp.asarray([1e-1, 5e-2, 2.5e-2]),)),
    "measure_dt_max": (lambda u: an.stability.measure_dt_max(FIELD, u, "euler", key=KEY, steps=40), (U,)),
    "cheap_radii": (lambda u: an.loops.cheap_radii(LOOP, u, key=KEY, draws=2), (U,)),
    "classify_loop": (lambda u: an.loops.classify_loop(an.loops.loop_of(jnp.tanh, u), loops=32), (U,)),
    "exit_rules": (lambda e: an.loops.exit_rules({"e": e}, e, target=0.5), (jnp.ones((4, 3)),)),
    "exit_scores": (lambda u: an.loops.exit_scores(u), (UU,)),
    "fixed_point": (lambda u: an.loops.fixed_point(LOOP, u), (0.1 * U,)),
    "loop_eigenvalues": (lambda u: an.loops.loop_eigenvalues(LOOP, u), (U,)),
    "predict_change": (lambda u: an.loops.predict_change(ANSWERING, u, horizon=4), (U,)),
    "safe_range": (lambda a: an.loops.safe_range(a, trained=1), (jnp.ones((4, 3), int),)),
    "sublayer_gains": (lambda u: an.loops.sublayer_gains(LOOP, u), (U,)),
    "negative_fraction": (lambda u: an.growth.negative_fraction(FIELD.reaction, u), (U,)),
    "predict_dt_max": (lambda u: an.predict_dt_max(FIELD, u, "euler"), (U,)),
    "spectral_bounds": (lambda u: an.stability.spectral_bounds(FIELD, u), (U,)),
    "stability_factor": (lambda z: an.stability.stability_factor("rk4", z), (jnp.asarray(0.5),)),
    "v1_21": (lambda x: an.stability.v1_21(x, 0.1, diffusivity=1.0), (jnp.asarray(0.1),)),
}


def leaves(record):
    """All numbers of a record, in order; records of plain Python too."""
    out = []
    for x in jax.tree.leaves(record):
        if isinstance(x, jax.Array | np.ndarray | float | int | complex):
            if not jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.extended):
                out.append(jnp.asarray(x))
        elif hasattr(x, "__dataclass_fields__"):
            out += leaves([getattr(x, name) for name in x.__dataclass_fields__])
    return out


def agree(found, expected, name):
    assert len(found) == len(expected), name
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a, complex), np.asarray(b, complex), rtol=1e-6, atol=1e-8, err_msg=name)


def mapping(function):
    """`function` of several arguments under lax.map."""
    return lambda *stacked: jax.lax.map(lambda one: function(*one), stacked)


# fmt: off
SLOW = {"circle_closure", "gaussian_closure", "sde_ends",
        "amplitude_spectrum", "attention_entropy", "attention_fidelity", "attention_rollout",
        "collapse_rate", "data_processing", "decay_difference", "ftle", "gradient_flow", "information_phases",
        "information_plane", "layer_correlation", "layer_entropy", "layer_jacobian", "low_pass_ratio",
        "lyapunov_exponents", "lyapunov_of_maps", "perturbation_sensitivity", "representation", "residual_decay",
        "residual_necessity", "spectral_similarity", "token_clustering", "trajectory_fidelity"}
# fmt: on
PARAMETERS = [
    pytest.param(name, marks=pytest.mark.slow) if name.split()[0] in SLOW or name.endswith("InfoNCE") else name
    for name in WORKS
]


@pytest.mark.parametrize("name", PARAMETERS)
def test_works_everywhere(name):
    function, arguments = WORKS[name]
    stacked = tuple(np.stack([x, x]) for x in arguments)

    @jax.jit  # all at once, which compiles in less than four programs; outside jit they are run by tests of their own
    def transformed(arguments_of_jit, *stacked):
        expected, closed = leaves(function(*arguments_of_jit)), leaves(function(*arguments))
        mapped = mapping(lambda *a: leaves(function(*a)))(*stacked)
        return expected, closed, mapped, jax.vmap(lambda *a: leaves(function(*a)))(*stacked)

    expected, closed, mapped, batch = transformed(arguments, *stacked)
    agree(closed, expected, "closed over")
    agree([x[1] for x in mapped], expected, "in lax.map")
    agree([x[0] for x in batch], expected, "vmap")


@pytest.mark.parametrize("name", NUMBERS)
def test_works_on_numbers(name):
    function, arguments = NUMBERS[name]
    expected = leaves(function(*arguments))
    agree(jax.jit(lambda: leaves(function(*arguments)))(), expected, "closed over")
    stacked = tuple(np.stack([x, x]) for x in arguments)
    for transform, given in ((jax.jit, arguments), (jax.vmap, stacked), (mapping, stacked)):
        with pytest.raises(TypeError, match=f"{name}: works on numbers, not inside jit"):
            transform(lambda *a: leaves(function(*a)))(*given)


# One sequence, one trajectory, one seed: figures without interval.
ONE, ONE_U, ONE_P = US[:, :1], rnd(13, 1, N, D), P[:, :1]
ALONE = {
    "amplitude_spectrum": lambda: an.amplitude_spectrum(ONE, **FEW),
    "attention_entropy": lambda: an.attention_entropy(ONE_P, **FEW),
    "attention_fidelity": lambda: an.attention_fidelity(ONE_P, Q[:, :1], **FEW),
    "attention_rollout": lambda: an.attention.attention_rollout(ONE_P, **FEW),
    "bootstrap": lambda: pj.bootstrap(lambda w: w @ X[:1, 0], 1, key=KEY, resamples=20),
    "collapse_rate": lambda: an.collapse_rate(jnp.linspace(0.0, 2.0, 24), jnp.exp(-jnp.linspace(0.0, 2.0, 24)), **FEW),
    "decay_difference": lambda: an.residual.decay_difference(
        jnp.arange(8.0), rnd(20, 8, 1, N, D), rnd(21, 8, 1, N, D), **FEW
    ),
    "ftle": lambda: an.jacobian.ftle(DISC, U, mask=jnp.arange(N) < 3),
    "gradient_flow": lambda: an.gradient_flow(DISC, ONE_U, loss=square, null=None, **FEW),
    "layer_correlation": lambda: an.layer_correlation(ONE, US2[:, :1], **FEW),
    "low_pass_ratio": lambda: an.spectra.low_pass_ratio(ONE, **FEW),
    "lyapunov_exponents": lambda: an.lyapunov_exponents(DISC.replace(steps=1), U, k=2),
    "over_seeds": lambda: pj.over_seeds(X[:1, 0]),
    "pearson": lambda: an.similarity.pearson(X[:, 0], Y[:, 0]),
    "procrustes_distance": lambda: an.similarity.procrustes_distance(X, Y),
    "representation": lambda: an.representation(ONE, **FEW),
    "residual_decay": lambda: an.residual_decay(jnp.arange(8.0), rnd(20, 8, 1, N, D), **FEW),
    "spectral_similarity": lambda: an.spectral_similarity(ONE, US2[:, :1], **FEW),
    "token_clustering": lambda: an.token_clustering(ONE, **FEW),
    "trajectory_fidelity": lambda: an.trajectory_fidelity(ONE, US2[:, :1], **FEW),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in ALONE])
def test_a_missing_interval_does_not_set_off_debug_nans(name):
    """A figure of one sequence has no interval, which NaN says when it is read; no compiled program makes one before."""
    with jax.debug_nans(True):
        found = ALONE[name]()
        figures = [x for x in jax.tree.leaves(found, is_leaf=is_figure) if is_figure(x)]
        assert figures or name in ("ftle",)
        for figure in figures:
            assert np.shape(figure.low) == figure.shape and np.shape(figure.high) == figure.shape
    if name not in ("collapse_rate", "ftle"):  # whose interval comes from the fit; which has no figures
        assert any(np.isnan(np.asarray(figure.low)).all() for figure in figures)


def is_figure(x):
    return isinstance(x, pj.Figure)


def test_whole_studies_are_refused_inside_jit():
    for name, run in {
        "solve_reference": functools.partial(an.numerics.solve_reference, DISC, U, tolerance=1e-4),
        "convergence": functools.partial(an.convergence, DISC, U, steps=(2, 4)),
    }.items():
        with pytest.raises(TypeError, match=f"{name}: runs and times whole solves"):
            jax.jit(lambda run=run: run())()


def test_labels_that_int32_does_not_hold():
    """Labels {0, 2³²}: JAX makes both 0, and the information 0. They are the classes {0, 1}."""
    x = jnp.where(jnp.arange(24) % 2 == 0, -1.0, 1.0)[:, None] + 0.01 * X
    wide = (np.arange(24, dtype=np.int64) % 2) * 2**32
    for estimator in ("ksg", "binned"):
        one, two = (float(an.mutual_information(x, y, estimator).value) for y in (wide, np.arange(24) % 2))
        assert one == two and one > 0.3
