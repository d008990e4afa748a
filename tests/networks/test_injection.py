"""Injected loops as fields: each input's own source, refined, batched, in every analysis that takes a network."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn
from scipy.linalg import expm

import pdejax as pj
from pdejax.analysis import convergence, depth, field_lipschitz, jacobian, loops
from pdejax.analysis.jacobian._systems import as_system, drawn_weights
from pdejax.studies.numerics._analyze_depth import _without

SIZES = {"vocab": 7, "dim": 8, "heads": 2, "ffn": 16, "dtype": "float64", "param_dtype": "float64", "injection": "add"}
IDS, OTHER = np.asarray([1, 4, 2, 6]), np.asarray([0, 3, 3, 5])
MASK = np.asarray([True, True, True, False])
BOTH, MASKS = np.stack([IDS, OTHER]), np.stack([MASK, MASK])
LABELS = np.asarray([0, 2])


@pytest.fixture(scope="module")
def model():
    head = {"head": "classification", "classes": 3}
    return drawn(pj.Architecture(layers=2, loops=3, coda=1, **SIZES, **head), spread=0.3)


@pytest.fixture(scope="module")
def recall():
    """Two layers before the loop, whose output is what every pass is given."""
    sizes = {"layers": 4, "loops": 3, "prelude": 2, "coda": 1, "head": "classification", "classes": 3}
    return drawn(pj.Architecture(**sizes, **SIZES), seed=1, spread=0.3)


@pytest.fixture(scope="module")
def states(model):
    return np.asarray(model.hidden_states(IDS, MASK))


def test_a_batch_has_a_source_for_each_input(model):
    """Under vmap and jit the network is the model; the source of one input is not that of another."""
    net = pj.as_network(model)
    found = np.asarray(jax.jit(jax.vmap(net.hidden_states))(BOTH))
    for one, tokens in zip(found, BOTH, strict=True):
        np.testing.assert_allclose(one, model.hidden_states(tokens), rtol=1e-11, atol=1e-12)
    d = pj.lift(model).given(model.embed(OTHER))
    own = np.asarray(pj.simulate(d, model.embed(IDS)).us)[-1]
    assert np.linalg.norm(own - found[0][-1]) > 0.1 * np.linalg.norm(own)


def test_source_by_hand(model):
    """Over the layer that begins a pass the source adds e, over the others nothing, in any number of steps."""
    u0 = model.embed(IDS)
    field = pj.lift(model).given(u0).field
    alone = field.only(("injection",))
    assert field.names() == ("interaction", "reaction", "injection") and not field.needs_start
    for layer, adds in enumerate((1, 1, 1, 0)):  # one layer looped over three times, and the coda
        value = alone.layer(layer)(0.0, u0, None)
        np.testing.assert_array_equal(value, adds * np.asarray(u0))
    for k in (1, 4):
        end = pj.simulate(pj.Discretization(alone, "euler", t1=4.0, steps=4 * k), np.zeros(u0.shape)).us
        np.testing.assert_allclose(np.asarray(end)[-1], 3 * np.asarray(u0), rtol=1e-13)


def test_finer_steps_tend_to_a_limit(model):
    """Order 1: each halving halves the distance to the next."""
    net = pj.as_network(model)
    finer = (net.replace(discretization=net.discretization.refine(k)) for k in (16, 32, 64, 128))
    ends = [np.asarray(fine.hidden_states(IDS))[-1] for fine in finer]
    far = [float(np.linalg.norm(b - a)) for a, b in itertools.pairwise(ends)]
    assert far[0] / far[1] == pytest.approx(2, abs=0.15) and far[1] / far[2] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("which", ["model", "recall"])
def test_gradients_go_through_the_source(which, request):
    """Of a loss by all weights, those of the embedding and of a prelude among them, through the lifted network and the model."""
    model = request.getfixturevalue(which)

    @jax.jit
    def gradients(parameters):
        def loss(parameters, seen):
            made = pj.Transformer.from_parameters(model.architecture, parameters)
            return jnp.sum(jnp.sin(seen(made)(IDS, MASK)))

        return [jax.grad(loss)(parameters, seen) for seen in (pj.as_network, lambda m: m)]

    ours, theirs = gradients(model.parameters())
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-9, atol=1e-11, err_msg=name)


def test_analyses_take_it(model, states):
    """Layers one by one, Jacobians of each, exponents, gradients and a parallel solve are those of the model's own map."""
    net, u0 = pj.as_network(model), np.asarray(model.embed(IDS))
    pair = np.stack([u0, np.asarray(model.embed(OTHER))])
    np.testing.assert_allclose(np.asarray(depth.run_layers(net, u0, mask=MASK))[:, MASK], states[:, MASK], rtol=1e-11)
    both = np.asarray(depth.run_layers(net, pair, mask=MASKS))
    np.testing.assert_allclose(both[:, 0][:, MASK], states[:, MASK], rtol=1e-11)

    finer = np.asarray(depth.refine_layers(net, pair, factors=(1, 2), mask=MASKS))
    np.testing.assert_allclose(finer[0, 0][MASK], states[-1][MASK], rtol=1e-11)

    # The first layer of the second pass at fixed e, against a difference of the block written out.
    single = model.architecture.replace(layers=1, loops=1, coda=0, injection="none", head="none", classes=None)
    named = {n: np.asarray(x)[:1] if n.startswith("layers/") else x for n, x in model.parameters().items()}
    named = {n: x for n, x in named.items() if not n.startswith(("head", "final_norm"))}
    block = pj.Transformer.from_parameters(single, named)
    way = np.where(MASK[:, None], np.random.default_rng(0).standard_normal(u0.shape), 0)
    clean = np.where(MASK[:, None], u0, 0)
    there, back = (np.asarray(block.run(states[1] + clean + h * way, MASK))[-1] for h in (1e-6, -1e-6))
    slope = (there - back) / 2e-6
    found = jacobian.layer_jacobian(net.discretization.given(u0), states[1], step=1, mask=MASK)
    np.testing.assert_allclose(np.asarray(found.matvec(jnp.asarray(way)))[MASK], slope[MASK], rtol=1e-6, atol=1e-8)

    parallel = pj.simulate_in_parallel(net.discretization, u0, mask=MASK, coarsening=2)
    # Without its second layer, the block's second time: the last layer's input is the state before.
    surgery = depth.layer_surgery(net.discretization.given(u0), u0, mask=MASK)
    short = np.asarray(depth.run_layers(net, u0, order=(0, 2, 3), mask=MASK))[-1]
    expected = np.linalg.norm((short - states[-1])[MASK]) / np.linalg.norm(states[-1][MASK])
    assert float(np.asarray(surgery.moves[0])[1]) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(np.asarray(parallel.us)[-1][MASK], states[-1][MASK], rtol=1e-4)


def test_gradients_of_states_go_through_the_source(model):
    """At the embedding the loss's gradient has the part of every pass, that of e too; a fixed source has another."""
    net, u0 = pj.as_network(model), model.embed(IDS)
    d = net.discretization

    def loss(u, start):
        return jacobian_loss(net.head(pj.simulate(d.given(start), u).us[-1], None))

    def jacobian_loss(logits):
        return -jax.nn.log_softmax(logits)[LABELS[0]]

    whole, fixed = jax.jit(lambda u: (jax.grad(lambda u: loss(u, u))(u), jax.grad(loss)(u, u)))(u0)
    flow = jacobian.gradient_flow(net, IDS[None], LABELS[:1], null=None)
    found = float(np.ravel(np.asarray(flow.states))[0])
    assert found == pytest.approx(float(jnp.linalg.norm(whole)), rel=1e-9)
    assert abs(found / float(jnp.linalg.norm(fixed)) - 1) > 0.1


def test_exponents_are_those_of_the_passes_at_a_fixed_source(model):
    """All of them together: ln |det| of the whole map's Jacobian, by forward mode, per unit depth."""
    u0 = model.embed(IDS)
    d = pj.as_network(model).discretization
    jac = np.asarray(jax.jit(jax.jacfwd(lambda u: pj.simulate(d.given(u0), u).us[-1]))(u0)).reshape(u0.size, u0.size)
    expected = np.log(np.linalg.svd(jac, compute_uv=False)) / float(d.t1 - d.t0)
    found = jacobian.lyapunov_exponents(d.given(u0), u0, k=u0.size, key=jax.random.key(0)).exponents.value
    assert float(np.sum(np.asarray(found))) == pytest.approx(float(np.sum(expected)), rel=1e-8)


def test_nulls_leave_the_source(model):
    """It is of the input: nulls of weights keep it, and draw the matrices around it."""
    u0 = model.embed(IDS)
    d = pj.lift(model).given(u0)

    def source(system):
        return jax.tree.leaves(system.field.only(("injection",)))

    for null in (jacobian.shuffle_weights(d, key=jax.random.key(1)), drawn_weights(d, key=jax.random.key(1))):
        jax.tree.map(np.testing.assert_array_equal, source(null), source(d))
        assert not np.array_equal(null.field.stacked.interaction.wq, d.field.stacked.interaction.wq)
    field = depth.layer_field(d)
    null = depth.matched_null(d, u0, key=jax.random.key(2))
    np.testing.assert_allclose(depth.branch_sizes(null, u0), depth.branch_sizes(field, u0), rtol=1e-10)
    kept = [x for x in jax.tree.leaves(null) if eqx.is_array(x) and x.shape == (4, *u0.shape)]
    assert len(kept) == 1
    np.testing.assert_array_equal(kept[0], np.broadcast_to(u0, kept[0].shape))


def test_the_loop_of_the_lifted_network_is_that_of_the_model(model):
    ours, theirs = loops.loop_of(pj.as_network(model), IDS, mask=MASK), loops.loop_of(model, IDS, mask=MASK)
    assert ours.names == theirs.names == ("injection", "interaction", "reaction") and ours.trained == 3
    np.testing.assert_array_equal(ours.states(5), theirs.states(5))


def test_what_is_no_start_is_refused(model, states):
    """A state on the way is not the one that is injected: nothing takes it for that."""
    net = pj.as_network(model)
    with pytest.raises(
        ValueError, match=r"layer_jacobian: the field adds the state that its loop began with.*d\.given\(start\)"
    ):
        jacobian.layer_jacobian(net, states[2], layer=2)
    for refused in (depth.layer_surgery, lambda system, u: depth.layer_field(system)):
        with pytest.raises(ValueError, match=r"layer_\w+: the field adds the state that its loop began with"):
            refused(net, states[0])
    with pytest.raises(ValueError, match=r"this field adds the state that its loop began with.*d\.given\(start\)"):
        net.discretization.field(0.0, states[0], None)
    late = net.discretization.replace(t0=2.0, steps=net.discretization.steps - 2)
    for name, solve in {
        "simulate": pj.simulate,
        "simulate_in_parallel": lambda d, u: pj.simulate_in_parallel(d, u, coarsening=2),
        "convergence": lambda d, u: convergence(d, u, steps=(2, 4, 8)),
        "run_layers": lambda d, u: depth.run_layers(d.replace(steps=4), u),
        "refine_layers": lambda d, u: depth.refine_layers(d.replace(steps=4), u),
        "lyapunov_exponents": lambda d, u: jacobian.lyapunov_exponents(d, u, k=1, key=jax.random.key(0)),
        "ftle": lambda d, u: jacobian.ftle(d, u, key=jax.random.key(0)),
    }.items():
        with pytest.raises(
            ValueError, match=rf"{name}: the field adds the state that its loop began with.*d\.given\(start\)"
        ):
            solve(late, states[2])
    with pytest.raises(ValueError, match="adds a state of 4 tokens, but the field has 2"):
        pj.simulate(net.discretization.given(states[0]), states[0][:2])
    one, two = net.discretization.given(states[0]), np.stack([states[0], 2 * states[0]])
    for refused in (depth.run_layers, depth.refine_layers, depth.layer_surgery, depth.branch_sizes, depth.matched_null):
        with pytest.raises(
            ValueError, match=rf"{refused.__name__}: the field adds the state that the loop of one input began with"
        ):
            refused(one, two)
    for field in (net.discretization.field, one.field):
        with pytest.raises(ValueError, match=r"shard_tokens: the field adds the state that its loop began with"):
            pj.shard_tokens(field)
    with pytest.raises(ValueError, match=r"given: start has shape \(3, 4, 8\)"):
        net.discretization.given(states[:3])
    with pytest.raises(ValueError, match=r"given: start has 1 NaN or infinite entries of 32"):
        net.discretization.given(np.where(np.arange(32).reshape(4, 8) == 0, np.nan, states[0]))
    plain = pj.lift(drawn(model.architecture.replace(injection="none")))
    assert plain.given(states[0]) is plain


def test_a_trained_simulator_with_injection(model):
    """As a model of its own; its source is no parameter."""
    made = pj.Simulator(pj.SimulatorConfig.of(layers=1, loops=2, **SIZES), key=jax.random.key(0))
    slope = eqx.filter_jit(eqx.filter_grad(lambda m: jnp.sum(m(IDS) ** 2)))(made)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(slope))
    assert not [name for name in made.parameters() if "injection" in name]
    d = made.discretization().given(made.embed(IDS))
    certificate = field_lipschitz(d.field.layer(0).only(("injection",)), 4, 3.0)
    assert certificate.bound == 0


LINEAR = {
    "layers": 3,
    "loops": 4,
    "prelude": 1,
    "coda": 1,
    "norm": "none",
    "activation": "identity",
    "positions": "none",
}


@pytest.fixture(scope="module")
def linear():
    """Layers that are matrices, u ← u (I + A_l), by a feed-forward without curve and no attention, and the A_l."""
    model = drawn(pj.Architecture(**LINEAR, **SIZES), seed=2)
    named = {name: np.array(value) for name, value in model.parameters().items()}
    for end in ("first", "second"):
        named[f"layers/feed_forward/{end}/bias"] *= 0
    rng = np.random.default_rng(0)
    named["layers/attention/out/kernel"] *= 0
    # First d of the hidden features: A_l = W_l, with I + A of the loop well inside the unit circle.
    weights = np.stack([0.3 * rng.normal(size=(8, 8)), -0.6 * np.eye(8) + 0.04 * rng.normal(size=(8, 8)), np.eye(8)])
    named["layers/feed_forward/first/kernel"][:] = np.pad(weights, ((0, 0), (0, 0), (0, 8)))
    named["layers/feed_forward/second/kernel"][:] = np.eye(16, 8)
    return pj.Transformer.from_parameters(model.architecture, named), weights


def recalled(u0, weights, loops, k):
    """Ends of prelude, passes and coda in k steps a layer: e = u₀ P₀ᵏ, then u ← (u + e/k) P, k times, a pass."""
    before, core, after = (np.eye(8) + a / k for a in weights)
    e = u0 @ np.linalg.matrix_power(before, k)
    u, states = e, [u0, e]
    for _ in range(loops):
        u = u @ np.linalg.matrix_power(core, k) + e / k @ sum(np.linalg.matrix_power(core, j) for j in range(1, k + 1))
        states.append(u)
    return np.stack([*states, u @ np.linalg.matrix_power(after, k)])


def test_a_linear_loop_after_a_prelude_in_closed_form(linear):
    """States by matrix powers, in whole layers and in finer steps, of the model, the field and the simulator; the fixed point
    is e M (I − M)⁻¹ with M the matrix of a pass."""
    model, weights = linear
    u0 = np.asarray(model.embed(IDS))
    np.testing.assert_allclose(model.hidden_states(IDS), recalled(u0, weights, 4, 1), rtol=1e-12, atol=1e-13)
    for k in (1, 3):
        expected = recalled(u0, weights, 4, k)
        lifted, made = pj.lift(model).refine(k), pj.pair(model, "shared", steps=6 * k)
        np.testing.assert_allclose(pj.simulate(lifted, model.embed(IDS)).us, expected, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(made.hidden_states(IDS), expected, rtol=1e-12, atol=1e-13)
    traced = jax.jit(jax.vmap(lambda k: pj.simulate(pj.lift(model).refine(k), model.embed(IDS)).us[-1]))
    ends = np.stack([recalled(u0, weights, 4, k)[-1] for k in (1, 2, 5)])
    np.testing.assert_allclose(traced(jnp.asarray([1, 2, 5])), ends, rtol=1e-12, atol=1e-13)

    loop = loops.loop_of(model, IDS)
    matrix, e = np.eye(8) + weights[1], u0 @ (np.eye(8) + weights[0])
    np.testing.assert_allclose(loop.start, e, rtol=1e-12, atol=1e-13)
    rest = e @ matrix @ np.linalg.inv(np.eye(8) - matrix)
    found = loops.classify_loop(loop)
    assert found.kind == "fixed point"
    np.testing.assert_allclose(found.point.state, rest, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(loop(jnp.asarray(rest)), rest, rtol=1e-11, atol=1e-12)
    largest = np.max(np.abs(np.linalg.eigvals(matrix)))
    assert float(found.rate) == pytest.approx(largest, rel=1e-6)


def test_an_adaptive_solve_finds_what_the_prelude_gives(linear):
    """exp(A) in the place of I + A, a source of e over the layer: u e^A + e A⁻¹(e^A − I)."""
    model, weights = linear
    u0 = np.asarray(model.embed(IDS))
    before, core, after = map(expm, weights)
    e = u = u0 @ before
    for _ in range(4):
        u = u @ core + e @ np.linalg.inv(weights[1]) @ (core - np.eye(8))
    d = pj.lift(model)
    d = pj.Discretization(d.field, "tsit5", t1=6.0, rtol=1e-10, atol=1e-10)
    found = pj.simulate(d, model.embed(IDS))
    np.testing.assert_allclose(found.us[-1], u @ after, rtol=1e-7, atol=1e-8)
    start = loops.loop_of(d.replace(solver="auto", steps=12), model.embed(IDS)).start  # by RK4, two steps a layer
    half = weights[0] / 2
    step = sum(np.linalg.matrix_power(half, j) / math.factorial(j) for j in range(5))
    np.testing.assert_allclose(start, u0 @ step @ step, rtol=1e-12, atol=1e-13)
    implicit = pj.Discretization(pj.lift(model).field, "kvaerno5", t1=6.0, steps=96)
    np.testing.assert_allclose(pj.simulate(implicit, model.embed(IDS)).us[-1], u @ after, rtol=1e-6, atol=1e-7)


def test_a_batch_after_a_prelude(recall):
    """Each input's own prelude, padding left out of it: what lies there changes no real token."""
    batch, masks = np.stack([IDS, OTHER, [*IDS[:3], 0]]), np.stack([MASK, MASK, MASK])
    net = pj.as_network(recall)
    found = np.asarray(jax.jit(jax.vmap(net.hidden_states))(batch, masks))
    for one, tokens in zip(found, batch, strict=True):
        np.testing.assert_allclose(one, recall.hidden_states(tokens, MASK), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found[2, :, :3], found[0, :, :3], rtol=1e-13)
    np.testing.assert_allclose(found[0, :, :3], recall.hidden_states(IDS[:3]), rtol=1e-11, atol=1e-12)


def test_what_is_given_after_a_prelude(recall):
    """The prelude's output, not the embedding: with it the solve is the model's, from the beginning and from within the loop."""
    states, u0 = np.asarray(recall.hidden_states(IDS, MASK)), recall.embed(IDS)
    net = pj.as_network(recall)
    d = net.discretization.given(states[2])
    np.testing.assert_allclose(pj.simulate(d, u0, mask=MASK).us, states, rtol=1e-11, atol=1e-12)
    wrong = np.asarray(pj.simulate(net.discretization.given(u0), u0, mask=MASK).us)[-1] - states[-1]
    assert np.linalg.norm(wrong[MASK]) > 0.1
    alone = d.field.only(("injection",))
    for layer, adds in enumerate((0, 0, 1, 1, 1, 0)):
        np.testing.assert_array_equal(alone.layer(layer)(0.0, u0, None), adds * states[2])
    late = d.replace(t0=3.0, steps=3)
    np.testing.assert_allclose(pj.simulate(late, states[3], mask=MASK).us, states[3:], rtol=1e-11, atol=1e-12)
    with pytest.raises(ValueError, match=r"simulate: the field adds the state that its loop began with"):
        pj.simulate(net.discretization.replace(t0=3.0, steps=3), states[3], mask=MASK)


def test_no_layers_no_prelude(recall):
    """Between weights that vary within a layer there is no end of a prelude: the embedding is not taken for it."""
    stacked, u0 = pj.lift(recall).field.stacked, recall.embed(IDS)
    d = pj.Discretization(pj.DepthVarying(stacked, 4.0, "linear", prelude=2), "rk4", t1=4.0, steps=8)
    with pytest.raises(ValueError, match=r"simulate: .*prelude of 2 layers.*'linear'.*d\.given\(start\)"):
        pj.simulate(d, u0)
    assert np.all(np.isfinite(pj.simulate(d.given(u0), u0).us))


def test_analyses_find_what_the_prelude_gives(recall):
    """Layers of a batch, in parallel, of a part of the depth; maps between which the loop begins."""
    _, states, maps = jax.tree.map(np.asarray, recall.observe(IDS, MASK))
    u0, net = states[0], pj.as_network(recall)
    both = np.stack([u0, np.asarray(recall.embed(OTHER))])
    found = np.asarray(depth.run_layers(net, both, mask=MASKS))
    np.testing.assert_allclose(found[:, 0][:, MASK], states[:, MASK], rtol=1e-11, atol=1e-12)
    parallel = pj.simulate_in_parallel(net.discretization, u0, mask=MASK, coarsening=2)
    np.testing.assert_allclose(np.asarray(parallel.us)[-1][MASK], states[-1][MASK], rtol=1e-4)
    # Within the prelude there is nothing to add; beside it the loop begins between the states that are shown.
    short = net.discretization.replace(t1=1.0, steps=1)
    np.testing.assert_allclose(pj.simulate(short, u0, mask=MASK).us, states[:2], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        np.asarray(depth.run_layers(short, u0, mask=MASK))[-1][MASK], states[1][MASK], rtol=1e-12
    )
    np.testing.assert_allclose(net.replace(layers=2).attention_maps(IDS, MASK), maps[::3], rtol=1e-10)


@pytest.mark.slow
def test_gradients_of_a_simulator_with_a_prelude(recall):
    """At two steps a layer a central difference; and by states, through the maps that analyses differentiate, the solve's."""
    made = pj.pair(recall, "shared", steps=12)
    slope = eqx.filter_grad(lambda m: jnp.sum(jnp.sin(m(IDS, MASK))))(made)

    def moved(s):
        return eqx.tree_at(lambda m: m.stacked.reaction.w1, made, made.stacked.reaction.w1 + s * way)

    way = jax.random.normal(jax.random.key(0), made.stacked.reaction.w1.shape)
    ends = [float(jnp.sum(jnp.sin(moved(s)(IDS, MASK)))) for s in (1e-6, -1e-6)]
    along = float(jnp.vdot(slope.stacked.reaction.w1, way))
    assert along == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)

    flow = jacobian.gradient_flow(pj.as_network(recall), IDS[None], LABELS[:1], null=None)

    def label_loss(u, d):
        return -jax.nn.log_softmax(recall.readout(pj.simulate(d, u).us[-1], None))[LABELS[0]]

    def in_the_loop(u, e, layer):
        d = pj.lift(recall).given(e)
        return label_loss(u, d.replace(t0=float(layer), steps=6 - layer))

    # What changes within the prelude changes what is added; in the loop that is what it is.
    states, whole = recall.hidden_states(IDS), pj.lift(recall)
    second = pj.Discretization(whole.field.given(states[2]), whole.solver, t0=1.0, t1=2.0, steps=1)

    def from_the_second(u):
        e = pj.simulate(second, u).us[-1]
        return in_the_loop(e, e, 2)

    slopes = [
        jax.grad(lambda u: label_loss(u, whole))(states[0]),
        jax.grad(from_the_second)(states[1]),
        jax.grad(lambda u: in_the_loop(u, u, 2))(states[2]),
        *(jax.grad(in_the_loop)(states[i], states[2], i) for i in (3, 4, 5)),
    ]
    expected = [float(jnp.linalg.norm(slope)) for slope in slopes]
    np.testing.assert_allclose(np.asarray(flow.states)[0, :6], expected, rtol=1e-9)


@pytest.mark.parametrize("left_out", [1, 3])
def test_a_layer_left_out_of_a_prelude_is_left_out_of_what_is_added(recall, left_out):
    """The layer is not there for the loop either; one within the loop changes nothing of what is added."""
    system, batch = as_system("test", recall, IDS[None], None, None, None)
    found = np.asarray(_without(system, batch.inputs, jnp.asarray(MASK[None]), 6))
    states, d = np.asarray(recall.hidden_states(IDS, MASK)), pj.lift(recall)
    u = states[left_out]
    d = d.given(u if left_out == 1 else states[2]).replace(t0=left_out + 1.0, steps=5 - left_out)
    end = pj.simulate(d, u, mask=MASK, save="end").us[-1]
    np.testing.assert_allclose(found[left_out, 0], recall.readout(end, jnp.asarray(MASK)), rtol=1e-10)
    np.testing.assert_allclose(found[6, 0], recall(IDS, MASK), rtol=1e-10)
