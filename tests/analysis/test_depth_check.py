"""The depth coordinate check: twins by hand, planted recipes by an independent network in NumPy, and error rates over seeds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import pdejax as pj
from pdejax.analysis.limits import Recipe, depth_check
from pdejax.analysis.limits._coordinate import BATCH, depth_verdict, judge_depth, verdict_power
from pdejax.analysis.limits._exponents import settled_exponent

N, D = 4, 8
LAYERS = (8, 16, 32, 64, 128)


def base(key, norm=True):
    layernorm = pj.LayerNorm(D) if norm else None
    return pj.MasterEquation(
        pj.Attention(D, 2, key=key, norm=layernorm), pj.FeedForward(D, 4, key=key, activation="tanh", norm=layernorm)
    )


# A network of its own, in NumPy: u ← u + L^{−α} tanh(u W_l), many draws at once.


BLOCKS = {"pairs": 2, "iid pairs": 2, "fours": 4}  # how often each drawn layer is used in a row


def stack(kind, rng, draws, longest):
    """Weights of all layers of every draw `(draws, longest, d, d)`, as functions of depth on the finest grid."""
    size = 0.4
    if kind in ("tied", "one"):
        return np.repeat(size * rng.standard_normal((draws, 1, D, D)), longest, axis=1)
    common = size * rng.standard_normal((D, D))
    if kind == "smooth":
        s = (np.arange(longest) + 0.5) / longest
        waves = np.stack([np.cos(np.pi * k * s) / k**2 for k in (1, 2, 3)])
        return common + 0.5 * size * np.einsum("kl,bkij->blij", waves, rng.standard_normal((draws, 3, D, D)))
    noise = size * rng.standard_normal((draws, longest, D, D))
    if kind == "rough":
        return common + np.cumsum(noise, axis=1) / math.sqrt(longest)
    if kind in BLOCKS:
        noise = np.repeat(noise, BLOCKS[kind], axis=1)[:, :longest]
        return noise if kind == "iid pairs" else common + noise
    if kind == "alternating":
        return noise[:, np.arange(longest) % 2]
    return noise if kind == "iid" else common + noise


def shown(kind, alpha, rng, *, draws, layers=LAYERS, sphere=False):
    """What `judge_depth` reads, of networks in NumPy."""
    longest = max(layers)
    weights = stack(kind, rng, draws, longest)
    u0 = rng.standard_normal((N, D))
    unit = (lambda u: u / np.linalg.norm(u, axis=-1, keepdims=True)) if sphere else lambda u: u
    u0 = unit(u0)

    def place(index, count):
        return index if kind not in ("smooth", "rough") else (index * longest) // count

    def scale(index, count):
        """One layer that does not shrink, before tied ones: an ODE from where it leaves tokens."""
        return (1.0 if index == 0 else 0.3 / count) if kind == "one" else count**-alpha

    def run(count, stride, offset):
        u, squares = np.broadcast_to(u0, (draws, N, D)), []
        for index in range(offset, count, stride):
            moved = unit(u + stride * scale(index, count) * np.tanh(u @ weights[:, place(index, count)]))
            squares.append(np.sum((moved - u) ** 2, axis=(1, 2)))
            u = moved
        return u, np.stack(squares)

    found = {"end": [], "even": [], "odd": [], "start": [], "increments": [], "largest": [], "equal": []}
    for count in layers:
        end, squares = run(count, 1, 0)
        found["end"].append(end)
        found["increments"].append(squares.mean(axis=0))
        found["largest"].append(squares.max(axis=0))
        found["even"].append(run(count, 2, 0)[0])
        found["odd"].append(run(count, 2, 1)[0])
        found["start"].append(np.broadcast_to(u0, (draws, N, D)))
        own = weights[:, [place(index, count) for index in range(count)]]
        found["equal"].append((own == own[:, :1]).all(axis=(1, 2, 3)) & (kind != "one"))
    return judge_depth(layers, {name: np.stack(x) for name, x in found.items()}, draws)


PLANTED = {
    "tied, 1/L": ("tied", 1.0, "ODE", False),
    "smooth, 1/L": ("smooth", 1.0, "ODE", False),
    "Hölder ½, 1/L": ("rough", 1.0, "ODE", False),
    "tied, L^-3/2": ("tied", 1.5, "ODE", True),
    "mean, 1/L": ("mean", 1.0, "averaged ODE", False),
    "iid, 1/L": ("iid", 1.0, "averaged ODE", True),
    "iid, L^-0.85": ("iid", 0.85, "averaged ODE", True),
    "iid, L^-3/4": ("iid", 0.75, "averaged ODE", True),
    "iid, L^-0.6": ("iid", 0.6, "averaged ODE", True),
    "iid, 1/√L": ("iid", 0.5, "SDE", False),
    "iid, L^-1/4": ("iid", 0.25, "none", False),
    "mean, L^-3/4": ("mean", 0.75, "none", False),
    "tied, 1/√L": ("tied", 0.5, "none", False),
    "one layer, then tied, 1/L": ("one", 1.0, "ODE", False),
    "pairs around a mean, 1/L": ("pairs", 1.0, "averaged ODE", False),
    "fours around a mean, 1/L": ("fours", 1.0, "averaged ODE", False),
    "pairs, 1/L": ("iid pairs", 1.0, "averaged ODE", True),
    "pairs, 1/√L": ("iid pairs", 0.5, "SDE", False),
    "pairs, L^-1/4": ("iid pairs", 0.25, "none", False),
    # What a and b by turns tend to is the ODE of (a + b)/2, which no noise averages: no limit of these is theirs by name.
    "two by turns, 1/L": ("alternating", 1.0, "not decided", False),
    "two by turns, L^-3/2": ("alternating", 1.5, "not decided", False),
}
# Recipes whose verdict must come at 128 draws and 128 layers: the others may be too near to a border to be decided.
DECIDED = (
    "tied, 1/L",
    "smooth, 1/L",
    "tied, L^-3/2",
    "iid, 1/L",
    "iid, 1/√L",
    "iid, L^-3/4",
    "iid, L^-1/4",
    "pairs, L^-1/4",
)


@pytest.mark.parametrize("name", PLANTED)
def test_planted_limits_are_found_or_not_decided(name):
    """Two seeds each: never another limit than there is; for most, the right one at least once."""
    kind, alpha, truth, trivial = PLANTED[name]
    seen = []
    for seed in range(2):
        found = shown(kind, alpha, np.random.default_rng([seed, *name.encode()]), draws=96)
        assert found.verdict in (truth, "not decided"), (name, seed, found.reason)
        if found.verdict == truth:
            assert found.trivial == trivial
        seen.append(found.verdict == truth)
    if name in DECIDED:
        assert any(seen), name


@pytest.mark.slow
def test_error_rate_over_many_seeds():
    """Fifteen seeds of all recipes: an error rate of more than 2 % would show with a chance above 97 %."""
    wrong, decided = [], 0
    for name, (kind, alpha, truth, trivial) in PLANTED.items():
        for seed in range(15):
            found = shown(kind, alpha, np.random.default_rng([7, seed, *name.encode()]), draws=64, layers=LAYERS[:4])
            decided += found.verdict != "not decided"
            right = found.verdict == truth and found.trivial == trivial
            wrong += [] if right or found.verdict == "not decided" else [(name, seed, found.verdict)]
    assert not wrong
    assert decided >= 0.4 * 15 * len(PLANTED)


def test_independent_layers_at_one_over_l_are_not_taken_for_tied_ones():
    """The borderline of the two: the same increments, the same states, told apart by what thinning does."""
    tied = shown("tied", 1.0, np.random.default_rng(1), draws=64)
    mean = shown("mean", 1.0, np.random.default_rng(1), draws=64)
    for found in (tied, mean):
        assert float(found.exponents["increments"]) == pytest.approx(-1, abs=0.05)
        assert float(found.exponents["states"]) == pytest.approx(0, abs=0.05)
    assert tied.verdict == "ODE" and mean.verdict in ("averaged ODE", "not decided")
    assert np.all(tied.values["parity"] == 0) and math.isnan(float(tied.exponents["parity"]))
    assert float(mean.exponents["parity"]) == pytest.approx(-0.5, abs=0.15)


def test_power_says_how_often_a_limit_is_decided():
    """The share of SDEs that are decided at 24 draws and at 256 beside the power that the checks state."""
    for draws, seeds, low, high in ((24, 12, 0.0, 0.5), (256, 3, 0.6, 1.0)):
        found = [
            shown("iid", 0.5, np.random.default_rng([draws, seed]), draws=draws, layers=(8, 16, 32, 64))
            for seed in range(seeds)
        ]
        decided = np.mean([one.verdict == "SDE" for one in found])
        stated = np.mean([one.power for one in found])
        assert low <= decided <= high and abs(decided - stated) < 0.45
        assert all(one.detectable > 0 for one in found)


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("width", [0.03, 0.06, 0.08, 0.13])
def test_power_of_an_ode_rests_on_thinning_too(equal, width):
    """The share of ODEs that are named, of exponents with normal errors about an ODE's own, their intervals `width` wide."""
    parity = math.nan if equal else -1.0
    at = {"states": (0.0, 0.01), "increments": (-1.0, 0.01), "coarse": (-1.0, width), "parity": (parity, width)}
    values = {"parity": np.zeros(4) if equal else np.ones(4)}
    verdict = depth_verdict(figures(**at), values, equal=equal)[0]
    stated, detectable = verdict_power(verdict, False, figures(**at), 128, equal=equal)
    # Normal errors from low-discrepancy points: 128 of them err by less than 1000 at random (interval: t of 127 degrees).
    errors = stats.norm.ppf(stats.qmc.Sobol(4, seed=0).random(128)) / 1.97882
    seen = [
        depth_verdict(
            figures(**{name: (x + e * ci, ci) for (name, (x, ci)), e in zip(at.items(), row.tolist(), strict=True)}),
            values,
            equal=equal,
        )[0]
        for row in errors
    ]
    named = np.mean([one == "ODE" for one in seen])
    if verdict == "ODE" or equal:  # else not decided, and the power is an SDE's
        assert named == pytest.approx(stated, abs=0.04)
    if equal:
        assert detectable == pytest.approx(max(0.1 - width + 0.8416 * width / 1.97882, 0.0942), abs=1e-3)
        assert (verdict, stated < 0.5) == (("not decided", True) if width > 0.1 else ("ODE", False))


def test_growth_that_would_be_missed_in_four_cases_of_five():
    at = figures(states=(0.3, 0.1))
    power, detectable = verdict_power("none", False, at, 128)
    far, noise = 0.3 - 0.1 - 0.1, 0.1 / 1.97882
    assert power == pytest.approx(0.5 * (1 + math.erf(far / noise / math.sqrt(2))), abs=1e-6)
    missed = np.mean(0.3 - detectable + noise * np.random.default_rng(1).normal(size=100_000) - 0.1 <= 0.1)
    assert missed == pytest.approx(0.8, abs=0.01)


def test_alternating_layers_are_not_called_independent():
    """Two layers by turns, at L^-3/2: states are L times an increment, of independent layers √L times."""
    by_turns = figures(states=(-0.5, 0.01), increments=(-1.5, 0.01))
    assert depth_verdict(by_turns, SOME, equal=False)[:2] == ("not decided", False)
    drawn = figures(states=(-0.5, 0.01), increments=(-1.0, 0.01))
    assert depth_verdict(drawn, SOME, equal=False)[:2] == ("averaged ODE", True)
    grown = depth_verdict(figures(increments=(-0.25, 0.01)), SOME, equal=False)
    assert grown[0] == "none" and "even and odd layers differ" in grown[2] and "independent" not in grown[2]


@pytest.mark.parametrize("parity", [[0.0] * 4, [0.1, 0.1, 0.0, 0.1]])
def test_what_parity_does_not_see_is_not_decided(parity):
    """All exponents are an ODE's: of one layer it is one, of layers in pairs nothing is known."""
    at, values = (
        figures(increments=(-1, 0.01), coarse=(-1, 0.01), parity=(math.nan, math.nan)),
        {"parity": np.asarray(parity)},
    )
    assert depth_verdict(at, values, equal=False)[0] == "not decided"
    assert depth_verdict(at, {"parity": np.zeros(4)}, equal=True)[0] == "ODE"
    assert depth_verdict(at | figures(states=(0.3, 0.01)), values, equal=False)[0] == "none"


def test_one_large_layer_is_no_sde():
    """Its root mean square falls as L^-½, its parity stays, and all exponents but that of the largest share are an SDE's."""
    found = shown("one", 1.0, np.random.default_rng(4), draws=256, layers=(8, 16, 32, 64, 128, 256))
    for name, value in (("states", 0.0), ("increments", -0.5), ("parity", 0.0), ("draws", 0.0), ("largest", 0.0)):
        assert float(found.exponents[name]) == pytest.approx(value, abs=0.04), name
    assert found.verdict == "not decided" and "a few layers may do most of it" in found.reason
    assert found.power > 0.9  # "not decided" says something: an SDE would have been decided


def test_on_the_sphere_growing_noise_is_no_sde():
    """States cannot grow there; increments tell that independent layers add up to more and more."""
    found = shown("iid", 0.25, np.random.default_rng(2), draws=96, sphere=True)
    assert found.verdict in ("none", "not decided") and float(found.exponents["increments"]) > -0.4
    limit = shown("iid", 0.5, np.random.default_rng(3), draws=96, sphere=True)
    assert limit.verdict in ("SDE", "not decided")


def test_an_exponent_that_settles_slowly_has_a_wide_interval():
    """Values L^{−1/2}(1 + L^{−1/2}) without noise: the interval holds −½, and the local slope alone would not."""
    layers = np.array([8, 16, 32, 64, 128, 256])
    values = layers**-0.5 * (1 + layers**-0.5)
    found = settled_exponent(layers.tolist(), values, np.tile(values, (8, 1)))
    assert float(found.low) < -0.5 < float(found.high) and abs(float(found) + 0.5) > 0.02
    exact = settled_exponent(layers.tolist(), layers**-0.5, np.tile(layers**-0.5, (8, 1)))
    assert float(exact) == pytest.approx(-0.5, abs=1e-12) and float(exact.high) == pytest.approx(-0.5, abs=1e-9)


def figures(**values):
    """Exponents with intervals: value, half-width."""
    names = ("states", "increments", "coarse", "parity", "draws", "largest")
    given = {name: values.get(name, (-0.9 if name == "largest" else 0.0, 0.01)) for name in names}
    return {name: pj.Figure(v, v - c, v + c) for name, (v, c) in given.items()}


SOME = {"parity": np.ones(4)}


@pytest.mark.parametrize(
    ("exponents", "verdict"),
    [
        ({"increments": (-0.5, 0.01)}, "SDE"),
        ({"increments": (-0.5, 0.05)}, "not decided"),
        ({"increments": (-0.55, 0.005)}, "not decided"),
        ({"increments": (-0.5, 0.01), "largest": (0.0, 0.01)}, "not decided"),
        ({"increments": (-0.5, 0.01), "largest": (-0.6, 0.2)}, "not decided"),
        ({"increments": (-0.5, 0.01), "draws": (0.0, 0.2)}, "not decided"),
        ({"increments": (-0.5, 0.01), "parity": (0.0, math.nan)}, "not decided"),
        ({"increments": (-1.0, 0.01), "parity": (-0.5, 0.02)}, "averaged ODE"),
        ({"increments": (-1.0, 0.01), "parity": (-0.75, 0.02)}, "not decided"),
        ({"increments": (-1.0, 0.01), "parity": (-1.0, 0.02), "coarse": (-1.0, 0.02)}, "ODE"),
        ({"increments": (-1.0, 0.01), "parity": (-1.0, 0.02), "coarse": (-0.5, 0.02)}, "not decided"),
        ({"states": (0.25, 0.05)}, "none"),
        ({"states": (0.12, 0.05), "increments": (-0.5, 0.01)}, "not decided"),
        ({"states": (-0.25, 0.05), "increments": (-0.75, 0.01)}, "averaged ODE"),
        ({"states": (-0.12, 0.05), "increments": (-0.62, 0.01)}, "not decided"),
        ({"increments": (-0.25, 0.01)}, "none"),
    ],
)
def test_verdicts_from_exponents(exponents, verdict):
    assert depth_verdict(figures(**exponents), SOME, equal=False)[0] == verdict


def test_networks_that_diverge_are_no_evidence():
    verdict, _, reason = depth_verdict(figures(states=(math.nan, math.nan)), SOME, ["64", "128"], equal=False)
    assert verdict == "not decided" and "64, 128 layers diverged" in reason


# The recipe and its networks in JAX


@pytest.fixture(scope="module")
def checked():
    """One check with everything measured, its recipe and its input."""
    recipe = Recipe(base(jax.random.key(1)), "mean", 0.8, amplitude=0.7, retraction=pj.SphereProjection(2.0))
    u0 = jax.random.normal(jax.random.key(2), (N, D))
    return recipe, u0, depth_check(recipe, u0, layers=(2, 4, 6, 8), draws=8, key=jax.random.key(3))


def test_values_are_those_of_networks_run_by_hand(checked):
    recipe, u0, found = checked

    @jax.jit
    @jax.vmap
    def run(key):
        drawn, u, thin, squares = recipe.draw(8, key), u0, [u0, u0], []
        for index in range(4):
            layer = recipe.layer(drawn, index, 4, 8)
            new = recipe.step(layer, u, 4**-0.8)
            squares.append(jnp.sum((new - u) ** 2))
            u = new
            thin[index % 2] = recipe.step(layer, thin[index % 2], 2 * 4**-0.8)
        return u, jnp.stack(squares), thin[0] - thin[1]

    ends, squares, parted = map(np.asarray, run(jax.random.split(jax.random.key(3), 8)))
    grown, most = np.sum(squares) / 4, np.sum(np.max(squares, axis=1))
    moved, thinned = np.sum((ends - np.asarray(u0)) ** 2), np.sum(parted**2)
    size = 8 * np.sum(np.asarray(u0) ** 2)
    assert found.values["states"][1] == pytest.approx(math.sqrt(moved / size), rel=1e-9)
    assert found.values["increments"][1] == pytest.approx(math.sqrt(grown / size), rel=1e-9)
    assert found.values["largest"][1] == pytest.approx(most / (4 * grown), rel=1e-9)
    assert found.values["parity"][1] == pytest.approx(math.sqrt(thinned / moved), rel=1e-9)
    mean = np.mean(ends, axis=0)
    spread = math.sqrt(sum(np.sum((end - mean) ** 2) for end in ends) / 7) / np.linalg.norm(mean)
    assert found.values["draws"][1] == pytest.approx(spread, rel=1e-9)


def test_gradients_are_those_of_the_whole_network(checked):
    """Reverse mode through two layers at once, by their matrices and by the input, in the same draws."""
    recipe, u0, found = checked

    @jax.jit
    @jax.vmap
    def squares(key):
        probe = jax.random.normal(jax.random.key(1), u0.shape)
        drawn = recipe.draw(8, key)
        layers = [recipe.layer(drawn, index, 2, 8) for index in range(2)]

        def loss(layers, u):
            for layer in layers:
                u = recipe.step(layer, u, 2**-0.8)
            return jnp.sum(probe / jnp.linalg.norm(probe) * u)

        slopes, at_input = jax.grad(loss, argnums=(0, 1))(layers, u0)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(slopes) if x.ndim >= 2) / 2, jnp.sum(at_input**2)

    by_weights, by_input = (float(np.mean(x)) for x in squares(jax.random.split(jax.random.key(3), 8)))
    assert found.values["weight gradients"][0] == pytest.approx(math.sqrt(by_weights), rel=1e-8)
    assert found.values["input gradients"][0] == pytest.approx(math.sqrt(by_input), rel=1e-8)


def test_weights_depend_on_depth_as_the_recipe_says():
    """Smooth: one function of depth at every L. Rough: increments of variance a²σ²/L. Tied: one layer."""
    equation = base(jax.random.key(4), norm=False)
    size = np.sqrt(np.mean(np.asarray(equation.reaction.w1) ** 2))
    key = jax.random.key(5)

    def weights(kind, count, longest=64):
        recipe = Recipe(equation, kind, 1.0, amplitude=0.5)

        @jax.jit
        def layers(key):
            drawn = recipe.draw(longest, key)
            return jax.vmap(lambda index: recipe.layer(drawn, index, count, longest).reaction.w1)(jnp.arange(count))

        return np.asarray(layers(key))

    smooth = weights("smooth", 16), weights("smooth", 32)
    np.testing.assert_allclose(smooth[0], (smooth[1][::2] + smooth[1][1::2]) / 2, atol=0.02 * size)
    rough = weights("rough", 32)
    jumps = np.diff(rough, axis=0)
    assert np.std(jumps) * math.sqrt(32) == pytest.approx(0.5 * size, rel=0.1)
    np.testing.assert_array_equal(rough[::2], weights("rough", 16))
    tied = weights("tied", 4)
    assert np.all(tied == tied[:1])
    # What is no matrix stays as it is.
    recipe = Recipe(equation, "mean")
    layer = jax.eval_shape(lambda key: recipe.layer(recipe.draw(4, key), 1, 4, 4), key)
    assert layer.reaction.b1.shape == (4,)


@pytest.mark.parametrize(
    ("kind", "amplitude", "equal"), [("tied", 0.5, True), ("mean", 0.0, True), ("mean", 0.5, False)]
)
def test_layers_are_equal_if_their_weights_are(kind, amplitude, equal):
    recipe = Recipe(pj.MasterEquation(pj.FeedForward(D, 4, key=jax.random.key(1))), kind, 1.0, amplitude=amplitude)
    found = depth_check(recipe, jnp.ones((N, D)), layers=(2, 4, 6, 8), draws=8, gradients=False)
    assert found.equal == equal == bool(np.all(found.values["parity"] == 0))


def test_networks_of_tied_pairs_are_no_ode_by_their_parity():
    """Each drawn layer twice in a row, around a mean at 1/L: even and odd layers are the same, and the limit is an average."""

    def net(count, seed, repeat):
        own = jax.random.fold_in(jax.random.key(6), seed)
        drawn = [
            pj.FeedForward(D, 4, key=jax.random.fold_in(own, i // repeat), activation="tanh") for i in range(count)
        ]
        field = pj.DepthVarying.from_layers([pj.MasterEquation(one) for one in drawn], 1.0)
        return pj.Discretization(field, "euler", t1=1.0, steps=count)

    for repeat, equal in ((2, False), (8, True)):
        nets = {count: [net(count, seed, repeat) for seed in range(3)] for count in (4, 6, 8, 2)}
        found = depth_check(nets, jnp.ones((N, D)), gradients=False)
        assert found.equal == equal and np.all(found.values["parity"] == 0)
        assert found.verdict in (("ODE", "not decided") if equal else ("not decided",))
        assert equal or "what they differ by is not seen" in found.reason


@pytest.mark.slow
def test_trained_networks_by_their_number_of_layers():
    """Networks with smooth weights as if trained, each of its own seed, against ones with independent layers."""
    key, u0 = jax.random.key(6), jax.random.normal(jax.random.key(7), (N, D))

    def net(count, seed, kind):
        own = jax.random.fold_in(key, seed)
        if kind == "smooth":
            field = pj.smooth_random(base(key), 1.0, key=own)
            stacked = [field.at((i + 0.5) / count) for i in range(count)]
            return pj.Discretization(pj.DepthVarying.from_layers(stacked, 1.0), "euler", t1=1.0, steps=count)
        field = pj.iid(base, count, key=own, scaling="1/sqrt(L)")
        return pj.Discretization(field, "euler", t1=1.0, steps=count)

    counts = (8, 16, 32, 64)
    nets = {count: [net(count, seed, "smooth") for seed in range(5)] for count in counts}
    assert depth_check(nets, u0, gradients=False).verdict == "ODE"
    other = {count: [net(count, seed, "iid") for seed in range(12)] for count in counts}
    assert depth_check(other, u0, gradients=False).verdict in ("SDE", "not decided")
    with pytest.raises(ValueError, match=r"recipe\[16\] holds a network of 8 layers in 1 step"):
        depth_check({**nets, 16: nets[8]}, u0)


@pytest.mark.slow
def test_transformers_are_run_as_they_are():
    """Sequential pre-LN blocks: states are those that the models show, and a layer's gradient has its matrices."""
    from flax import nnx

    def net(count, seed):
        shape = pj.Architecture(vocab=5, dim=D, heads=2, layers=count, ffn=8, dtype="float64", param_dtype="float64")
        return pj.as_network(pj.Transformer(shape, rngs=nnx.Rngs(seed)))

    nets = {count: [net(count, seed) for seed in range(3)] for count in (2, 4, 6, 8)}
    tokens = jnp.arange(N) % 5
    u0 = nets[2][0].hidden_states(tokens)[0]
    found = depth_check(nets, u0)
    for place, (count, own) in enumerate(nets.items()):
        ends = [pj.simulate(one.discretization, u0, save="end").us[-1] for one in own]
        moved = sum(float(jnp.sum((end - u0) ** 2)) for end in ends)
        expected = math.sqrt(moved / 3 / float(jnp.sum(u0**2)))
        assert found.values["states"][place] == pytest.approx(expected, rel=1e-9), count
    assert np.all(found.values["weight gradients"] > 0)


def test_the_documented_memory_is_that_of_a_batch():
    assert f"{BATCH} draws at a time" in (depth_check.__doc__ or "")


def test_refusals():
    recipe, u0 = Recipe(base(jax.random.key(1))), jnp.ones((N, D))
    with pytest.raises(ValueError, match=r"weights='smoth' must be one of .* did you mean 'smooth'"):
        Recipe(base(jax.random.key(1)), "smoth")
    with pytest.raises(ValueError, match="alpha"):
        Recipe(base(jax.random.key(1)), alpha=-1.0)
    with pytest.raises(ValueError, match="at least four different numbers"):
        depth_check(recipe, u0, layers=(8, 16, 32))
    with pytest.raises(ValueError, match="must be even"):
        depth_check(recipe, u0, layers=(8, 16, 33, 64))
    with pytest.raises(ValueError, match="draws=4 must be an integer of at least 8"):
        depth_check(recipe, u0, draws=4)
    with pytest.raises(ValueError, match="NaN or infinite"):
        depth_check(recipe, jnp.full((N, D), jnp.nan))
    with pytest.raises(ValueError, match="u0 is zero"):
        depth_check(recipe, jnp.zeros((N, D)))
    with pytest.raises(ValueError, match="at least 3, and as many for each"):
        depth_check({8: [1], 16: [1], 32: [1], 64: [1]}, u0)
