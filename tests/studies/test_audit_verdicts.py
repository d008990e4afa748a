"""Verdicts of an audit: planted numbers, weights and networks, of which it is known what may be said."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax._bootstrap import over_seeds
from pdejax.analysis.depth import layer_field, refine_layers
from pdejax.analysis.depth._surgery import relative_move
from pdejax.studies.audit import AuditConfig
from pdejax.studies.audit import _measure as measuring
from pdejax.studies.audit._found import Found, among, farther
from pdejax.studies.audit._judge import depth_verdict, identity, loss_verdict, readings
from pdejax.studies.audit._sections import (
    _foreseen,
    fixed_point_verdict,
    operator_verdict,
    operators,
    tokens,
    weights,
    weights_verdict,
)
from pdejax.studies.audit._subject import Subject
from pdejax.studies.study import failed

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def moves(value, count=1, spread=0.1, b=8):
    """Moves of `count` networks on b sequences: their means are `value` times a log-normal of this spread."""
    each = np.exp(spread * np.random.default_rng(count).standard_normal((count, 1)))
    return value * each * (1 + 0.02 * np.random.default_rng(1).standard_normal((count, b)))


# Half the step.


@pytest.mark.parametrize(
    ("ours", "count", "expected"),
    [
        (0.01, 20, "near its continuum: it moves by less than 0.05, less than 20 untrained networks do, p = 0.048"),
        (0.1, 20, "not near its continuum: it moves less than 20 untrained networks do, p = 0.048"),
        (0.9, 20, "not near its continuum: it moves more than 20 untrained networks do, p = 0.048"),
        (0.3, 20, "not near its continuum: it moves as 20 untrained networks do, p = "),
        (
            0.9,
            18,
            "not near its continuum: beside it stands 18 untrained networks, too few to find a difference at 0.05",
        ),
        (0.01, 1, "by little: beside it stands one untrained network, which tells nothing of others"),
        (0.3, 0, "not near its continuum: no null to compare with"),
        (np.nan, 20, "not measured: a move is 0 or not finite"),
        (0.0, 20, "not measured: a move is 0 or not finite"),
    ],
)
def test_the_verdict_on_half_the_step(ours, count, expected):
    own = moves(ours, spread=0)[0]
    beside = among(own, moves(0.3, count), KEY) if count else None
    assert depth_verdict(over_seeds(own), beside).startswith(expected)


def test_a_ratio_without_an_interval_decides_nothing():
    """NaN below or above 1 is no finding, and no finding of its absence, where a p-value decides."""
    own = moves(0.01, spread=0)[0]
    beside = among(own, moves(0.3, 20), KEY)
    assert beside.measured
    for low, high in ((np.nan, 0.1), (0.01, np.nan), (np.nan, np.nan)):
        unknown = dataclasses.replace(beside, ratio=pj.Figure(float(beside.ratio), low, high))
        assert not unknown.measured
        assert depth_verdict(over_seeds(own), unknown) == "not measured: a move is 0 or not finite"


def test_a_network_among_untrained_ones_is_ranked():
    """p is the rank of the distance from the middle of all; the interval of the ratio holds the spread of the draws."""
    theirs = moves(1.0, 20, 0.3)
    found = among(moves(1.4, spread=0)[0], theirs, KEY)
    logs = np.log([moves(1.4, spread=0).mean(), *theirs.mean(axis=1)])
    far = np.abs(logs - logs.mean())
    assert found.p == (1 + np.sum(far[1:] >= far[0])) / 21
    assert float(found.ratio) == pytest.approx(np.exp(logs[0] - logs[1:].mean()), rel=1e-6)
    assert found.smaller == np.sum(logs[1:] < logs[0])
    reach = np.log(float(found.ratio.high) / float(found.ratio))
    assert reach == pytest.approx(2.093 * np.std(logs[1:], ddof=1) * (1 + 1 / 20) ** 0.5, rel=0.02)  # t, 19 degrees


def test_networks_like_their_nulls_are_called_different_at_the_nominal_rate():
    """Whatever their law, here a skewed one: at most 5 % at 5 %, half at ½; and one that lies apart is found."""
    every = np.random.default_rng(0).gamma(1.0, size=(4000, 21))
    p = np.asarray([farther(x) for x in every])
    assert np.mean(p <= 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 4000) ** 0.5
    assert abs(np.mean(p <= 0.5) - 10 / 21) < 4 * (0.25 / 4000) ** 0.5
    assert farther(np.asarray([9.0, *every[0, 1:]])) == 1 / 21


def subject(seed=0, **options):
    sizes = {"vocab": 11, "dim": 16, "heads": 2, "layers": 4, "ffn": 32, "head": "none"}
    model = pj.Transformer(pj.Architecture(**sizes | options), rngs=nnx.Rngs(seed))
    ids = np.random.default_rng(0).integers(0, 11, (6, 8))
    net = pj.as_network(model, length=8)
    u0 = jnp.stack([net.embed(jnp.asarray(x)) for x in ids]).astype(jnp.float32)
    return Subject(net, model, u0, jnp.ones((6, 8), bool), None, tuple(ids), "states", "ids")


@pytest.mark.parametrize(
    ("options", "count", "most"),
    [({}, 16, 3), ({"norm": "post"}, 8, 2), ({"layers": 1, "loops": 12}, 8, 2)],
    ids=str,
)
def test_untrained_networks_are_not_said_to_differ(options, count, most):
    """Audited as if trained, untrained networks: beyond the 5 % level lie so few that less than 1 % of such tests would fail.
    The null of a network of one layer is one layer."""
    different = 0
    for seed in range(count):
        one = subject(seed, **options)
        field = layer_field(one.network, length=8)
        whole, finer = refine_layers(field, one.u0, factors=(1, 2), mask=one.mask)
        ours = np.asarray(relative_move(finer, whole, one.mask))
        theirs = measuring.draws(one, field, jax.random.key(100 + seed), 20, print)["half"]
        verdict = depth_verdict(over_seeds(ours), among(ours, theirs, KEY))
        different += "less than 20" in verdict or "more than 20" in verdict
    assert different <= most


def test_draws_are_the_nulls_moves():
    one = subject(3)
    field = layer_field(one.network, length=8)
    found = measuring.draws(one, field, KEY, 2, print)["half"]
    for draw in range(2):
        key = jax.random.fold_in(jax.random.fold_in(KEY, 1), draw)
        null = pj.analysis.depth.matched_null(one.network, one.u0, mask=one.mask, key=key)
        whole, finer = refine_layers(null, one.u0, factors=(1, 2), mask=one.mask)
        np.testing.assert_allclose(found[draw], relative_move(finer, whole, one.mask), rtol=1e-4)
    assert np.abs(found[1] - found[0]).max() > 1e-3


def test_large_networks_have_fewer_draws(monkeypatch):
    one, config = subject(), AuditConfig(network="net")
    assert measuring.affordable(config, one) == 20
    monkeypatch.setattr(measuring, "WORK", 1e7)
    assert 1 <= measuring.affordable(config, one) < 19
    assert measuring.affordable(AuditConfig(network="net", draws=30), one) == 30


# Weights in depth.

D, M, L = 12, 20, 16


class Six(eqx.Module):
    w: tuple

    def __call__(self, u):
        return u + sum(jnp.tanh(u @ m) @ m.T for m in self.w)


def weighted(kind, layers=L, seed=0):
    rng = np.random.default_rng(seed)

    def draw():
        x = rng.standard_normal((layers, D, M))
        t = np.linspace(0, 1, layers)[:, None, None]
        return {
            "independent": x,
            "exchangeable": 2 * rng.standard_normal((1, D, M)) + x,
            "equal": np.repeat(x[:1], layers, axis=0),
            "smooth": x[0] * np.cos(1.5 * t) + x[1] * np.sin(1.5 * t),
            "walk": 4 * x[0] + np.cumsum(x, axis=0),
        }[kind]

    net = pj.network(eqx.filter_vmap(Six)(tuple(jnp.asarray(draw()) for _ in range(6))))
    u0 = jnp.zeros((4, 3, D))
    return Subject(net, None, u0, jnp.ones((4, 3), bool), None, (), "states", "planted")


@pytest.mark.parametrize(
    ("kind", "layers", "expected"),
    [
        ("independent", L, "SDE"),
        ("exchangeable", L, "neither: layers share a part"),
        ("equal", L, "ODE: all layers are equal"),
        ("smooth", L, "ODE: weights are a smooth function"),
        ("walk", L, "neither: neighbours are nearer than chance, but weights are rough"),
        ("independent", 2, "not measured: 2 layers have no order"),
    ],
)
def test_the_verdict_on_planted_weights(kind, layers, expected):
    out = Found()
    weights({"weights": measuring.weights(weighted(kind, layers), KEY)}, out)
    assert out.verdicts["weights in depth"].startswith(expected)


class Clock(pj.terms.AbstractTerm):
    """A term that looks at the depth."""

    w: jax.Array

    def __call__(self, t, u, args):
        return jnp.sin(t) * (u @ self.w)

    def damping(self):
        return jnp.zeros(())

    def check(self, n, d):
        pass


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (lambda: pj.terms.FeedForward(D, M, key=KEY), "ODE: one field at all depths (autonomous)"),
        (lambda: Clock(jnp.eye(D)), "not measured: there are no weight matrices per layer"),
        (lambda: pj.terms.LinearDamping(1.0), "not measured: there are no weight matrices per layer"),
    ],
)
def test_one_field_at_all_depths_is_an_ode(term, expected):
    """As ALBERT's, whose one layer is all of them; not a field without matrices, or one that looks at the depth."""
    d = pj.Discretization(pj.MasterEquation(term()), "euler", t1=3.0, steps=3)
    net = pj.network([lambda u: u] * 3).replace(discretization=d)
    u0, out = jax.random.normal(KEY, (4, 3, D)), Found()
    found = measuring.weights(Subject(net, None, u0, jnp.ones((4, 3), bool), None, (), "states", "planted"), KEY)
    weights({"weights": found, "subject": {"layers": 3}}, out)
    assert out.verdicts["weights in depth"] == expected
    assert ("applications" in found) == expected.startswith("ODE") == ("fixed point" in out.verdicts)


@pytest.mark.parametrize(
    ("factor", "word"),
    [
        (1.0, "none in 30 applications: the last still moves the state by 0.3 to 0.6"),
        (0.99, "none in 30 applications"),
        (0.9, "approached: the move fell to 0.0212"),
        (0.5, "reached: application 30"),
        (np.nan, "not measured"),
    ],
)
def test_a_fixed_point_is_where_moves_end(factor, word):
    """Moves that shrink by a factor with each application, from 0.3 and 0.6."""
    assert fixed_point_verdict(np.asarray([0.3, 0.6]) * factor ** np.arange(30)[:, None]).startswith(word)


def test_a_plateau_approaches_no_fixed_point():
    """A fall that was over before the last quarter says nothing of a fixed point; nor one of some sequences alone."""
    for at in range(60, 85):
        moves = np.where(np.arange(120) < at, 0.61, 0.29)[:, None] * np.asarray([1.0, 2.0])
        assert fixed_point_verdict(moves).startswith("none in 120 applications: the last still moves the state by 0.29")
    falling = 0.6 * 0.98 ** np.arange(120.0)
    assert fixed_point_verdict(np.stack([falling, falling], axis=1)).startswith("approached")
    assert fixed_point_verdict(np.stack([falling, np.full(120, 0.5)], axis=1)).startswith("none")


def test_moves_of_one_layer_applied_on_and_on():
    """u ← (1 − r) u moves the state by r each time, relative to where it is."""
    d = pj.Discretization(pj.MasterEquation(pj.terms.LinearDamping(0.25)), "euler", t1=3.0, steps=3)
    net = pj.network([lambda u: u] * 3).replace(discretization=d)
    u0 = jax.random.normal(KEY, (4, 3, D))
    moves = measuring._applications(Subject(net, None, u0, jnp.ones((4, 3), bool), None, (), "states", "planted"))
    np.testing.assert_allclose(moves, np.full((30, 4), 0.25), rtol=1e-6)


@pytest.mark.parametrize(
    ("holder", "adjacent", "p", "detectable", "word"),
    [
        ([0.8, 0.6, 1.0], [0.9, 0.8, 1.0], 0.001, 0.1, "ODE"),
        ([0.8, 0.6, 1.0], [0.1, 0.0, 0.2], 0.2, 0.1, "undecided: layers are in no order, but the exponent"),
        ([0.0, -0.1, 0.1], [0.0, -0.1, 0.1], 0.4, 0.3, "SDE"),
        ([0.0, -0.1, 0.1], [0.0, -0.1, 0.31], 0.4, 0.3, "undecided"),
        ([0.0, -0.1, 0.1], [0.7, 0.5, 0.9], 0.4, 0.3, "neither: layers share"),
        ([0.0, -0.1, 0.1], [0.0, -0.1, 0.1], 0.4, 0.31, "undecided"),
        ([0.0, -0.1, 0.1], [0.0, -0.1, 0.1], 0.4, np.nan, "undecided"),
        ([0.1, 0.0, 0.2], [0.5, 0.4, 0.6], 0.001, np.inf, "neither: neighbours are nearer"),
        ([0.5, 0.3, 0.7], [0.5, 0.4, 0.6], 0.001, 0.1, "undecided: the exponent's interval"),
        ([np.nan, 0.3, 0.7], [0.5, 0.4, 0.6], 0.001, 0.1, "not measured"),
        ([0.0, np.nan, np.nan], [0.0, -0.1, 0.1], 0.4, 0.3, "not measured"),
        ([0.0, -0.1, 0.1], [np.nan, -0.1, 0.1], 0.4, 0.3, "not measured"),
        ([0.0, -0.1, 0.1], [0.0, -0.1, 0.1], np.nan, 0.3, "not measured"),
    ],
)
def test_the_verdict_on_weights(holder, adjacent, p, detectable, word):
    assert weights_verdict(pj.Figure(*holder), pj.Figure(*adjacent), p, detectable).startswith(word)


# The network and its layers; the loss; operators; scores; units.


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"layers": [1e-7, 1e-2]}, "NOT: relative difference 1.0e-02"),
        ({"layers": [1e-7], "layer field": [1e-2]}, "NOT: relative difference 1.0e-02"),
        ({"layers": [1e-7, np.nan], "model": [1e-7]}, "NOT measured: a difference is not finite (layers)"),
        ({"layers": [1e-7], "model": [np.nan]}, "NOT measured: a difference is not finite (model)"),
        ({"layers": []}, "NOT measured: a difference is not finite (there is none)"),
        ({"layers": [1e-7], "layer field": [1e-7]}, "yes: relative difference 1.0e-07 (layers, layer field)"),
    ],
)
def test_a_network_that_is_not_its_layers_fails(values, word):
    out = Found()
    identity({"identity": {name: np.asarray(x) for name, x in values.items()}}, "float32", out)
    [answer] = out.verdicts.values()
    assert answer.startswith(word) and bool(failed(out.verdicts)) == (word[:3] == "NOT")


def test_the_layer_field_is_among_what_is_checked():
    one = subject()
    field = layer_field(one.network, length=8)
    found = measuring.identity(one, field)
    assert np.max(found["layer field"]) < 1e-5
    wrong = measuring.identity(one, measuring.shuffle_layers(one.network, length=8))
    assert np.max(wrong["layer field"]) > 0.01 and np.max(wrong["layers"]) < 1e-5


def test_a_loss_that_is_not_finite_is_said_in_words():
    one = subject(head="lm")
    one = eqx.tree_at(lambda s: s.labels, one, jnp.zeros((6, 8), jnp.int32), is_leaf=lambda x: x is None)
    measuring._finite_loss(one, one.u0)
    end = jnp.full_like(one.u0, jnp.inf).at[:2].set(0)
    with pytest.raises(ValueError, match=r"loss is not finite on 4 of 6 sequences, \[2, 3, 4, 5\] among them"):
        measuring._finite_loss(one, end)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ([0.1] * 8, "higher by 0.1 nats, p = 0.0078"),
        ([-0.1] * 8, "lower by 0.1 nats, p = 0.0078"),
        ([0.1, -0.1] * 4, "no change found"),
        ([0.1] * 6, "higher by 0.1 nats, p = 0.031"),
        ([0.1] * 5, "undecidable: +0.1 nats, but of 5 sequences the smallest p there can be is 0.062; take 6"),
        ([0.1] * 7 + [np.nan], "not measured: the loss is not finite on 1 of 8 sequences"),
    ],
)
def test_the_loss_is_tested_in_pairs(change, expected):
    out, loss = Found(), np.ones((3, len(change)))
    loss[1] += change
    ours = {"euler/loss": loss, "euler/factors": np.asarray([1, 2, 4])}
    readings(ours | {"euler/accuracy": loss, "euler/logits": loss}, out)
    assert out.verdicts["loss at half the step"].startswith(expected)
    assert loss_verdict(np.asarray(change), 0.01).startswith(expected[:11]) or expected.startswith("no change")


@pytest.mark.parametrize(
    ("papers", "null", "spread", "word"),
    [
        (0.8, 0.0, 0.01, "they explain most"),
        (0.8, 0.79, 0.01, "they explain nothing"),
        (0.8, 0.3, 2.0, "they explain nothing"),
        (0.2, 0.0, 0.01, "they explain part"),
        (0.0, 0.0, 0.01, "they explain nothing"),
        (0.2, 0.19, 0.0001, "they explain nothing"),
        (-0.1, -0.4, 0.01, "they explain nothing"),
        (np.nan, 0.0, 0.01, "not measured"),
        (0.8, np.nan, 0.01, "not measured"),
    ],
)
def test_the_verdict_on_operators(papers, null, spread, word):
    difference = over_seeds(papers - null + spread * np.asarray([-1.0, 0.0, 1.0, 0.0]))
    assert operator_verdict(papers, null, difference, 0.9).startswith(word)


def test_the_null_of_the_operators_is_kept_with_the_difference():
    """What the verdict says in words, in numbers: pairs of four sequences, each 0.1 to 0.4 above another's operators."""
    null = 0.1 + np.asarray([0.0, 0.05, 0.1, 0.15])
    r2 = null + np.asarray([0.1, 0.2, 0.3, 0.4])
    ours = {"groups": np.asarray(["the papers' operators"])}
    ours |= {"r2": r2[None, None] + np.zeros((1, 3, 1)), "null": null[None, None] + np.zeros((1, 3, 1))}
    out = Found()
    operators({"operators": ours | {"rollout": r2[None], "persistence": null[None]}}, KEY, out)
    kept, expected = out.results["operators"], over_seeds(r2 - null)
    assert kept["null"] == pytest.approx(null.mean()) and kept["the papers' operators"] == pytest.approx(r2.mean())
    assert [kept["difference"][end] for end in ("value", "low", "high")] == pytest.approx(
        [float(expected), float(expected.low), float(expected.high)]
    )
    assert kept["difference"]["low"] > 0 and "explain part" in out.verdicts["operators of the papers"]


def test_ranks_of_scores_share_ties_and_nan_is_no_rank():
    value = np.repeat(np.asarray([1.0, 1.0, 2.0, 3.0])[:, None], 5, axis=1)
    score = np.repeat(np.asarray([1.0, 2.0, 2.0, 3.0])[:, None], 5, axis=1)
    found = _foreseen(value, score, KEY)
    assert float(found) == pytest.approx(5 / 6, abs=1e-6)  # ranks 1.5, 1.5, 3, 4 and 1, 2.5, 2.5, 4
    assert np.isnan(float(_foreseen(np.full((4, 5), np.nan), score, KEY)))


def test_exponents_and_growth_are_per_layer():
    """Layers u → 1.2 u that count for half a unit of depth: every rate is log 1.2."""
    span = 0.5
    net = pj.network([lambda u: 1.2 * u] * 4)
    d = layer_field(net, length=3)
    d = pj.Discretization(pj.DepthVarying(d.field.stacked, 4 * span), "euler", t1=4 * span, steps=4)
    d = eqx.tree_at(lambda d: d.field.stacked.function.gain, d, jnp.full(4, 1 / span))
    u0 = jnp.asarray(RNG.standard_normal((4, 3, 2)))
    one = Subject(net, None, u0, jnp.ones((4, 3), bool), None, (), "states", "planted")
    config = AuditConfig(network="net", tokens=3, exponents=2, derivatives=1)
    found = measuring.jacobians(config, one, d, KEY, lambda text: None)
    for name in ("exponents", "ftle", "growth"):
        np.testing.assert_allclose(found[name], np.log(1.2), rtol=1e-6)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (np.exp(-0.5 * np.arange(16)), "the data favour the exponential law"),
        ((1 + np.arange(16.0)) ** -2, "the data favour the algebraic law"),
        (np.where(np.arange(16) == 5, np.nan, 1.0), "not measured"),
    ],
)
def test_the_law_of_collapse_is_what_the_fit_states(gap, expected):
    found = {name: np.ones((3, 16)) for name in measuring.TOKEN_FIGURES} | {"gap": gap} | measuring._collapse(gap)
    out = Found()
    tokens({"tokens": found}, {"normalization": "inside the branch"}, out)
    verdict = out.verdicts["collapse of tokens"]
    assert verdict.startswith(expected)
    assert "attention alone gives the algebraic law" in verdict or expected == "not measured"


@pytest.mark.parametrize(
    ("fit", "told"),
    [
        ((0.5, 0.4, 0.6), True),
        ((-0.5, -0.6, -0.4), True),
        ((5493.0, -6.69e6, 6.7e6), False),
        ((0.05, 0.01, 0.09), False),
        ((0.5, np.nan, 0.6), False),
    ],
)
def test_a_rate_whose_interval_is_wider_than_it_is_large_is_no_figure(fit, told):
    found = {name: np.ones((3, 16)) for name in measuring.TOKEN_FIGURES} | {"gap": np.ones(16)}
    out = Found()
    tokens(
        {"tokens": found | {"law": np.asarray("undecided"), "algebraic": np.asarray(fit)}},
        {"normalization": "inside the branch"},
        out,
    )
    rows = [row for row in out.rows if row.quantity == "algebraic law of the gap, fitted"]
    assert bool(rows) == told == (out.results["tokens"]["rate"] is not None)
    assert ("not decided" in out.verdicts["collapse of tokens"]) == (not told)
