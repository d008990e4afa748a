"""Injected loops as fields: each input's own source, refined, batched, in every analysis that takes a network."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax.analysis import convergence, depth, field_lipschitz, jacobian, loops
from pdejax.analysis.jacobian._systems import drawn_weights

SIZES = {"vocab": 7, "dim": 8, "heads": 2, "ffn": 16, "dtype": "float64", "param_dtype": "float64", "injection": "add"}
IDS, OTHER = jnp.asarray([1, 4, 2, 6]), jnp.asarray([0, 3, 3, 5])
MASK = jnp.asarray([True, True, True, False])
LABELS = jnp.asarray([0, 2])


@pytest.fixture(scope="module")
def model():
    head = {"head": "classification", "classes": 3}
    return pj.Transformer(pj.Architecture(layers=2, loops=3, coda=1, **SIZES, **head), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def states(model):
    return model.hidden_states(IDS, MASK)


def test_a_batch_has_a_source_for_each_input(model):
    """Under vmap and jit the network is the model; the source of one input is not that of another."""
    batch = jnp.stack([IDS, OTHER])
    net = pj.as_network(model)
    found = jax.jit(jax.vmap(net.hidden_states))(batch)
    np.testing.assert_allclose(found, jax.vmap(model.hidden_states)(batch), rtol=1e-11, atol=1e-12)
    d = pj.lift(model).given(model.embed(OTHER))
    own = pj.simulate(d, model.embed(IDS)).us[-1]
    assert float(jnp.linalg.norm(own - found[0][-1])) > 0.1 * float(jnp.linalg.norm(own))


def test_source_by_hand(model):
    """Over the layer that begins a pass the source adds e, over the others nothing, in any number of steps."""
    u0 = model.embed(IDS)
    field = pj.lift(model).given(u0).field
    alone = field.only(("injection",))
    assert field.names() == ("interaction", "reaction", "injection") and not field.needs_start
    for layer, adds in enumerate((1, 1, 1, 0)):  # one layer looped over three times, and the coda
        value = alone.layer(layer)(0.0, jnp.ones_like(u0), None)
        np.testing.assert_array_equal(value, adds * u0)
    for k in (1, 4):
        end = pj.simulate(pj.Discretization(alone, "euler", t1=4.0, steps=4 * k), jnp.zeros_like(u0)).us[-1]
        np.testing.assert_allclose(end, 3 * u0, rtol=1e-13)


def test_finer_steps_tend_to_a_limit(model):
    """Order 1: each halving halves the distance to the next."""
    net = pj.as_network(model)
    ends = [net.replace(discretization=net.discretization.refine(k)).hidden_states(IDS)[-1] for k in (16, 32, 64, 128)]
    far = [float(jnp.linalg.norm(b - a)) for a, b in itertools.pairwise(ends)]
    assert far[0] / far[1] == pytest.approx(2, abs=0.15) and far[1] / far[2] == pytest.approx(2, abs=0.1)


def test_gradients_go_through_the_source(model):
    """Of a loss by the embedding table, through the lifted network and through the model."""

    def loss(parameters, call):
        return jnp.sum(jnp.sin(call(pj.Transformer.from_parameters(model.architecture, parameters))))

    ours = jax.grad(loss)(model.parameters(), lambda m: pj.as_network(m)(IDS, MASK))
    theirs = jax.grad(loss)(model.parameters(), lambda m: m(IDS, MASK))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-9, atol=1e-11, err_msg=name)


def test_analyses_take_it(model, states):
    """Layers one by one, Jacobians of each, exponents, gradients and a parallel solve are those of the model's own map."""
    net, u0 = pj.as_network(model), model.embed(IDS)
    np.testing.assert_allclose(depth.run_layers(net, u0, mask=MASK)[:, MASK], states[:, MASK], rtol=1e-11)
    both = depth.run_layers(net, jnp.stack([u0, model.embed(OTHER)]), mask=jnp.stack([MASK, MASK]))
    np.testing.assert_allclose(both[:, 0][:, MASK], states[:, MASK], rtol=1e-11)

    finer = depth.refine_layers(net, jnp.stack([u0, model.embed(OTHER)]), factors=(1, 2), mask=jnp.stack([MASK, MASK]))
    np.testing.assert_allclose(finer[0, 0][MASK], states[-1][MASK], rtol=1e-11)

    # The first layer of the second pass at fixed e, against a difference of the block written out.
    single = model.architecture.replace(layers=1, loops=1, coda=0, injection="none", head="none", classes=None)
    named = {n: x[:1] if n.startswith("layers/") else x for n, x in model.parameters().items()}
    named = {n: x for n, x in named.items() if not n.startswith(("head", "final_norm"))}
    block = pj.Transformer.from_parameters(single, named)
    way = jnp.where(MASK[:, None], jax.random.normal(jax.random.key(0), u0.shape), 0)
    clean = jnp.where(MASK[:, None], u0, 0)
    slope = (
        block.run(states[1] + clean + 1e-6 * way, MASK)[-1] - block.run(states[1] + clean - 1e-6 * way, MASK)[-1]
    ) / 2e-6
    found = jacobian.layer_jacobian(net.discretization.given(u0), states[1], step=1, mask=MASK)
    np.testing.assert_allclose(found.matvec(way)[MASK], slope[MASK], rtol=1e-6, atol=1e-8)

    parallel = pj.simulate_in_parallel(net.discretization, u0, mask=MASK, coarsening=2)
    # Without its second layer, the block's second time: the last layer's input is the state before.
    surgery = depth.layer_surgery(net.discretization.given(u0), u0, mask=MASK)
    short = depth.run_layers(net, u0, order=(0, 2, 3), mask=MASK)[-1]
    expected = np.linalg.norm((short - states[-1])[MASK]) / np.linalg.norm(states[-1][MASK])
    assert float(np.asarray(surgery.moves[0])[1]) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(parallel.us[-1][MASK], states[-1][MASK], rtol=1e-4)


def test_gradients_of_states_go_through_the_source(model):
    """At the embedding the loss's gradient has the part of every pass, that of e too; a fixed source has another."""
    net, u0 = pj.as_network(model), model.embed(IDS)
    d = net.discretization

    def loss(u, start):
        return jacobian_loss(net.head(pj.simulate(d.given(start), u).us[-1], None))

    def jacobian_loss(logits):
        return -jax.nn.log_softmax(logits)[LABELS[0]]

    whole = jax.grad(lambda u: loss(u, u))(u0)
    fixed = jax.grad(loss)(u0, u0)
    flow = jacobian.gradient_flow(net, IDS[None], LABELS[:1], null=None)
    found = float(np.ravel(np.asarray(flow.states))[0])
    assert found == pytest.approx(float(jnp.linalg.norm(whole)), rel=1e-9)
    assert abs(found / float(jnp.linalg.norm(fixed)) - 1) > 0.1


def test_exponents_are_those_of_the_passes_at_a_fixed_source(model):
    """All of them together: ln |det| of the whole map's Jacobian, by forward mode, per unit depth."""
    u0 = model.embed(IDS)
    d = pj.as_network(model).discretization
    jac = jax.jacfwd(lambda u: jnp.ravel(pj.simulate(d.given(u0), u).us[-1]))(u0).reshape(u0.size, u0.size)
    expected = np.log(np.linalg.svd(np.asarray(jac), compute_uv=False)) / float(d.t1 - d.t0)
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
    np.testing.assert_array_equal(kept[0], jnp.broadcast_to(u0, kept[0].shape))


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
    one, two = net.discretization.given(states[0]), jnp.stack([states[0], 2 * states[0]])
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
    plain = pj.lift(pj.Transformer(model.architecture.replace(injection="none"), rngs=nnx.Rngs(0)))
    assert plain.given(states[0]) is plain


def test_a_trained_simulator_with_injection(model):
    """As a model of its own; its source is no parameter."""
    made = pj.Simulator(pj.SimulatorConfig.of(layers=1, loops=2, **SIZES), key=jax.random.key(0))
    slope = eqx.filter_grad(lambda m: jnp.sum(m(IDS) ** 2))(made)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(slope))
    assert not [name for name in made.parameters() if "injection" in name]
    d = made.discretization().given(made.embed(IDS))
    certificate = field_lipschitz(d.field.layer(0).only(("injection",)), 4, 3.0)
    assert certificate.bound == 0
