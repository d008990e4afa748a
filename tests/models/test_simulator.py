"""The trainable simulator: what it computes, how it is initialized, and that every switch trains."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pdejax as pj
from pdejax.models import Simulator, SimulatorConfig
from pdejax.training import merge_model, split_model

TOKENS = np.array([3, 1, 10, 0, 7, 3, 8])
MASK = np.array([True, True, True, True, True, False, False])
SIZES = {"vocab": 11, "dim": 8, "heads": 2, "layers": 3, "ffn": 12, "head": "classification", "classes": 4}
DOUBLE = {"dtype": "float64", "param_dtype": "float64"}


def make(key=0, config=SimulatorConfig.of, **options) -> Simulator:
    return Simulator(config(**SIZES | DOUBLE | options), key=jax.random.key(key))


# Between them every value of every switch.
SWITCHES = {
    "transformer": {},
    "post": {"norm": "none", "stabilization": "retraction", "bias": True},
    "euler-post": {"norm": "none", "stabilization": "retraction", "solver": "euler"},
    "bare": {"leak": True, "norm": "none"},
    "full": {"diffusion": "feature", "stabilization": "layernorm", "steps": 6},
    "rk4-linear": {"weights": "linear", "solver": "rk4", "diffusion": "scalar", "stabilization": "damping"},
    "cubic": {
        "weights": "cubic",
        "solver": "heun",
        "diffusion": "feature",
        "stabilization": "spatial",
        "norm_type": "rmsnorm",
    },
    "shared": {"weights": "shared", "solver": "tsit5", "norm": "peri", "steps": 6, "train_strength": True},
    "strang": {
        "solver": "strang",
        "diffusion": "scalar",
        "boundary": "periodic",
        "leak": True,
        "t1": 1.5,
        "norm": "peri",
    },
    "etdrk2": {"solver": "etdrk2", "diffusion": "feature", "boundary": "dirichlet", "domain": 1.0, "diffusivity": 0.01},
    "linear-post": {
        "weights": "linear",
        "norm": "none",
        "stabilization": "retraction",
        "positions": "learned",
        "max_length": 9,
    },
    "decoder": {"causal": True, "positions": "rotary", "head": "lm", "classes": None, "activation": "silu"},
}


# Each takes some seconds to compile.
QUICK = ("post", "full", "shared", "decoder")
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SWITCHES]


@functools.cache
def built(name: str):
    """A switch, with logits, states, maps and the gradient of a scalar of the logits, compiled once."""
    model = make(**SWITCHES[name])
    params, static = split_model(model)

    def scalar(params):
        logits, states, maps = merge_model(params, static).observe(TOKENS, None)
        return jnp.sum(jnp.sin(logits)), (logits, states, maps)

    (_, aux), gradient = jax.jit(jax.value_and_grad(scalar, has_aux=True))(params)
    return model, params, static, aux, gradient


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_switch_has_states_maps_and_finite_gradients(name):
    model, _, _, (logits, states, maps), gradient = built(name)
    assert logits.shape == ((7, 11) if model.architecture.head == "lm" else (4,))
    assert states.shape == (4, 7, 8) and maps.shape == (3, 2, 7, 7)
    np.testing.assert_allclose(states[0], model.embed(TOKENS), rtol=1e-14)
    np.testing.assert_allclose(jnp.sum(maps, axis=-1), 1.0, rtol=1e-12)
    flat = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(gradient)}
    assert len(flat) == len(model.parameters())
    dead = [key for key, leaf in flat.items() if not np.isfinite(leaf).all() or not np.any(leaf)]
    assert not dead


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.values[0] in ("full", "cubic", "strang", "euler-post")]
)
def test_gradient_against_finite_differences(name):
    """Along one random direction over all parameters."""
    _, params, static, _, gradient = built(name)
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(1)
    direction = [random.normal(size=leaf.shape) for leaf in leaves]
    slope = sum(float(np.vdot(g, v)) for g, v in zip(jax.tree.leaves(gradient), direction, strict=True))

    @jax.jit
    def value(h):
        moved = [leaf + h * v for leaf, v in zip(leaves, direction, strict=True)]
        return jnp.sum(jnp.sin(merge_model(jax.tree.unflatten(tree, moved), static)(TOKENS)))

    h = 1e-4
    # Five points: error h⁴ u⁽⁵⁾/30, rounding 1e-16/h.
    differences = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    assert abs(slope - differences) <= 1e-7 * max(1.0, abs(slope))


# Not those with grids of a fixed length or a period, nor the decoder, whose logits are per token.
@pytest.mark.parametrize(
    "name",
    ["full", *(pytest.param(n, marks=pytest.mark.slow) for n in ("post", "shared", "rk4-linear", "cubic", "bare"))],
)
def test_padding_changes_nothing(name):
    """With the default length (tokens 1 apart) the padded and the short sequence give the same logits."""
    model = built(name)[0]
    logits, _, maps = model.observe(TOKENS, MASK)
    np.testing.assert_allclose(logits, model(TOKENS[:5]), rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(maps[:, :, :5, 5:], 0.0)


def test_states_are_those_of_simulate():
    """The model is embed, `simulate`, head: done by hand, with the mean and the head in NumPy."""
    model = built("full")[0]
    u0 = model.embed(TOKENS)
    d = pj.Discretization(model.discretization(7).field, "lietrotter", t1=3.0, steps=6)
    us = np.asarray(pj.simulate(d, u0, mask=MASK).us)
    logits, states, _ = model.observe(TOKENS, MASK)
    np.testing.assert_allclose(states, us, rtol=1e-12, atol=1e-13)
    last = us[-1][:5]
    centred = last - last.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
    by_hand = normed.mean(axis=0) @ np.asarray(model.readout.weight) + np.asarray(model.readout.bias)
    np.testing.assert_allclose(logits, by_hand, rtol=1e-11)
    np.testing.assert_allclose(model(TOKENS, MASK), logits, rtol=1e-12)


def test_the_bare_simulator_has_no_residual():
    """One step of the leaky field at h = 1 forgets u: u ← A(u), u ← R(u), in NumPy."""
    model = Simulator.bare(key=jax.random.key(3), **SIZES | DOUBLE | {"layers": 1, "activation": "tanh"})
    w = {k.split("/")[-1]: np.asarray(v)[0] for k, v in model.parameters().items() if k.startswith("stacked")}
    u = np.asarray(model.embed(TOKENS))
    q, k, v = (np.einsum("nd,dhk->nhk", u, w[name]) for name in ("wq", "wk", "wv"))
    z = np.exp(np.einsum("ihk,jhk->hij", q, k) / 2.0)  # dk = 4
    a = np.einsum("hij,jhk,hkd->id", z / z.sum(-1, keepdims=True), v, w["wo"])
    by_hand = np.tanh(a @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]
    np.testing.assert_allclose(model.hidden_states(TOKENS)[-1], by_hand, rtol=1e-11)


@pytest.mark.slow
def test_a_smaller_step_makes_the_bare_simulator_residual():
    """The same weights at h = 1/4: the first Euler substep is (1 − h)u + h A(u)."""
    coarse = make(config=SimulatorConfig.bare, solver="euler")
    config = coarse.config.replace(steps=12)
    fine = Simulator.from_parameters(config, coarse.parameters())
    u0, h = coarse.embed(TOKENS), 0.25
    field = coarse.discretization().field(0.0, u0)
    one = pj.simulate(pj.Discretization(fine.discretization().field, "euler", t1=3.0, steps=12), u0, save="steps").us[1]
    np.testing.assert_allclose(one, u0 + h * field, rtol=1e-12)
    # A(u) + R(u) is what the field is without its two leaks.
    np.testing.assert_allclose(one, (1 - 2 * h) * u0 + h * (field + 2 * u0), rtol=1e-12, atol=1e-12)


def count(**options) -> int:
    """Number of parameters, of weights that are not drawn."""
    return sum(leaf.size for leaf in jax.eval_shape(lambda: make(**options).parameters()).values())


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True}, {"norm": "none", "stabilization": "retraction"}, {"norm": "peri", "norm_type": "rmsnorm"}],
    ids=["pre", "bias", "post", "peri"],
)
def test_as_many_parameters_as_a_transformer(options):
    post = options.get("stabilization") == "retraction"
    shared = {k: v for k, v in options.items() if k != "stabilization"} | ({"norm": "post"} if post else {})
    architecture = pj.Architecture(**SIZES | DOUBLE | shared)
    theirs = jax.eval_shape(lambda: pj.Transformer(architecture, rngs=nnx.Rngs(0)).parameters())
    assert count(**options) == sum(leaf.size for leaf in theirs.values())


def test_parameters_of_the_other_terms():
    base = count()
    assert count(diffusion="feature") == base + 3 * 8
    assert count(diffusion="scalar", stabilization="damping") == base + 3 + 3
    assert count(stabilization="layernorm") == base + 3 * (1 + 2 * 8)
    assert count(weights="cubic", diffusion="scalar") == base + 1
    assert count(train_strength=True) == base + 3 * 2
    layer = 4 * 8 * 8 + 2 * 8 * 12 + 12 + 8 + 4 * 8
    assert count(weights="shared") == base - 2 * layer


def test_lecun_normal_like_the_transformer():
    """Truncated at two standard deviations, of variance 1/fan-in; the moments of Flax's within sampling error."""
    sizes = {"vocab": 50, "dim": 64, "heads": 4, "layers": 4, "ffn": 128}
    model = Simulator(SimulatorConfig(pj.Architecture(**sizes)), key=jax.random.key(0))
    theirs = pj.Transformer(pj.Architecture(**sizes), rngs=nnx.Rngs(0)).layer_weights()
    for name, fan_in in (("wq", 64), ("wk", 64), ("wv", 64), ("wo", 64), ("w1", 64), ("w2", 128)):
        term = "interaction" if name in ("wq", "wk", "wv", "wo") else "reaction"
        ours = np.asarray(model.parameters()[f"stacked/{term}/{name}"], float)
        for w in (ours, np.asarray(theirs[name], float)):
            assert w.size >= 4 * 64 * 64
            assert abs(w.std() * fan_in**0.5 - 1) < 5 / math.sqrt(2 * w.size)
            assert abs(w.mean()) * fan_in**0.5 < 5 / math.sqrt(w.size)
            assert np.abs(w).max() <= 2 / 0.8796256 * fan_in**-0.5 * (1 + 1e-6)
        layers = ours.reshape(4, -1)
        assert abs(np.corrcoef(layers)[0, 1]) < 5 / math.sqrt(layers.shape[1])
    assert abs(float(jnp.std(model.embedding.table)) - 1) < 5 / math.sqrt(2 * 50 * 64)


def test_the_key_decides():
    first, again, other = make(0), make(0), make(1)
    assert all(
        np.array_equal(a, b) for a, b in zip(first.parameters().values(), again.parameters().values(), strict=True)
    )
    assert not np.array_equal(first.parameters()["embedding/table"], other.parameters()["embedding/table"])


def test_no_two_parameters_share_memory():
    """A donated step could not give the same array away twice."""
    for options in (SWITCHES["post"], SWITCHES["full"]):
        leaves = make(**options).parameters().values()
        assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_rates_start_where_asked_and_stay_positive():
    model = make(diffusion="feature", diffusivity=0.3, stabilization="damping", gamma=1e-3)
    equation = model.discretization(5).field
    np.testing.assert_allclose(equation.stacked.diffusion.diffusivity, 0.3, rtol=1e-12)
    np.testing.assert_allclose(equation.stacked.stabilization.gamma, 1e-3, rtol=1e-12)
    pushed = dict(model.parameters())
    for name in ("stacked/diffusivity", "stacked/gamma"):
        pushed[name] = pushed[name] - 1e3
    equation = Simulator.from_parameters(model.config, pushed).discretization(5).field
    assert np.all(equation.stacked.diffusion.diffusivity >= 0) and np.all(equation.stacked.stabilization.gamma >= 0)


def test_cubic_weights_never_interpolate_rates():
    model = make(weights="cubic", diffusion="scalar", stabilization="damping")
    equation = model.discretization(5).field
    for t in np.linspace(0, 3, 17):
        np.testing.assert_allclose(equation.at(t).diffusion.diffusivity, 0.1, rtol=1e-12)


@pytest.mark.slow
def test_split_and_merge_round_trip():
    for name in QUICK:
        model, params, static, *_ = built(name)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == model.parameter_count
        assert eqx.tree_equal(merge_model(params, static), model)


def test_split_and_merge_under_jit():
    model, params, static, *_ = built("full")
    inside = jax.jit(lambda p: merge_model(jax.tree.map(lambda x: 1.5 * x, p), static)(TOKENS))(params)
    larger = Simulator.from_parameters(model.config, {k: 1.5 * v for k, v in model.parameters().items()})
    np.testing.assert_allclose(inside, larger(TOKENS), rtol=1e-10)


def test_strength_is_held_unless_it_is_trained():
    held, free = make(strength=0.7), make(strength=0.7, train_strength=True)
    assert "stacked/interaction/strength" not in held.parameters()
    np.testing.assert_allclose(free.parameters()["stacked/interaction/strength"], 0.7)
    np.testing.assert_allclose(held.discretization().field.stacked.interaction.strength, 0.7)


@pytest.mark.slow
def test_batches_by_vmap_and_one_optimizer_step():
    model = make(diffusion="scalar", stabilization="layernorm")
    params, static = split_model(model)
    tokens = np.random.default_rng(0).integers(0, 11, (4, 7))
    masks = np.arange(7)[None] < np.array([7, 5, 3, 6])[:, None]
    labels = np.array([0, 1, 2, 3])
    optimizer = optax.adam(1e-2)

    def loss(params):
        logits = jax.vmap(merge_model(params, static))(tokens, masks)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(4), labels])

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in integers
            updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    tokens = tokens.astype(np.int32)
    one_by_one = [model(t, m) for t, m in zip(tokens, masks, strict=True)]
    np.testing.assert_allclose(jax.vmap(model)(tokens, masks), one_by_one, rtol=1e-11)
    state, values = optimizer.init(params), []
    for _ in range(25):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.2 * values[0]


def test_a_decoder_does_not_see_the_future():
    model, *_, (_, _, maps), _ = built("decoder")
    other = TOKENS.copy()
    other[4:] = [1, 2, 9]
    np.testing.assert_array_equal(model(TOKENS)[:4], model(other)[:4])
    assert not np.allclose(model(TOKENS)[4:], model(other)[4:])
    np.testing.assert_array_equal(np.triu(maps, 1), 0)


@pytest.mark.slow
def test_a_half_precision_field_keeps_its_state_in_float32():
    narrow = make(dtype="bfloat16", param_dtype="float32", stabilization="damping", diffusion="scalar")
    wide = Simulator.from_parameters(
        narrow.config.replace(architecture=narrow.architecture.replace(dtype="float32")), narrow.parameters()
    )
    states = narrow.hidden_states(TOKENS, MASK)
    assert states.dtype == jnp.float32 and all(leaf.dtype == jnp.float32 for leaf in narrow.parameters().values())
    error = jnp.linalg.norm(states - wide.hidden_states(TOKENS, MASK)) / jnp.linalg.norm(states)
    assert 1e-5 < error < 3e-2  # the rounding of bfloat16, 2⁻⁹, and nothing worse
    assert narrow.attention_maps(TOKENS).shape == (3, 2, 7, 7)


def test_continuous_inputs():
    model = make(vocab=None, inputs=2)
    values = np.random.default_rng(0).normal(size=(6, 2))
    table, bias = np.asarray(model.embedding.table), np.asarray(model.embedding.bias)
    sinusoidal = make().embed(np.zeros(6, int)) - make().embedding.table[0][None]
    np.testing.assert_allclose(model.embed(values), values @ table + bias + sinusoidal, rtol=1e-10, atol=1e-12)
    assert model(values).shape == (4,)


@pytest.mark.slow
def test_maps_of_a_strang_splitting_come_after_half_a_step():
    """Macaron: A is evaluated at u + h/2 R(u)."""
    model = make(solver="macaron", leak=True, t1=1.5)
    u0 = model.embed(TOKENS)
    first = model.discretization().field.layer(0)
    expected = first.interaction.weights(u0 + 0.25 * first.reaction(0.0, u0, None))
    np.testing.assert_allclose(model.attention_maps(TOKENS)[0], expected, rtol=1e-12)


def test_a_blow_up_is_seen_in_the_logits():
    model = make(norm="none", strength=1e60, activation="identity")
    assert not np.isfinite(model(TOKENS)).any()
