import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn
from flax import nnx

from pdejax.models import Architecture, Transformer
from pdejax.models._block import Block, apply_norm, make_norm, rotate

N = 6
MASK = np.array([True, True, False, True, True, False])


def tiny(**options):
    sizes = {"vocab": 11, "dim": 8, "heads": 2, "layers": 3, "ffn": 5, "dtype": "float64"}
    options = sizes | {"param_dtype": options.get("dtype", "float64")} | options
    if "inputs" in options:
        options["vocab"] = None
    return Architecture(**options)


TOKENS = np.array([3, 1, 10, 0, 7, 3])


# --- A slow twin, one token and one head at a time, in NumPy ------------------------------------------------


def twin_activation(name, x):
    return {
        "relu": lambda: max(x, 0.0),
        "gelu": lambda: 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0))),
        "gelu_tanh": lambda: 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
        "silu": lambda: x / (1.0 + math.exp(-x)),
        "tanh": lambda: math.tanh(x),
        "identity": lambda: x,
    }[name]()


def twin_norm(norm, config, x):
    if config.norm_type == "layernorm":
        mean = sum(x) / len(x)
        variance = sum((x - mean) ** 2) / len(x)
        return (x - mean) / math.sqrt(variance + config.norm_eps) * norm["scale"] + norm["bias"]
    return x / math.sqrt(sum(x**2) / len(x) + config.norm_eps) * norm["scale"]


def twin_rotate(x, position, theta):
    """Features j and j + dk/2 as a complex number, turned."""
    half = len(x) // 2
    out = np.empty_like(x)
    for j in range(half):
        z = complex(x[j], x[j + half]) * np.exp(1j * position * theta ** (-2 * j / len(x)))
        out[j], out[j + half] = z.real, z.imag
    return out


def twin_attention(w, config, u, mask):
    n = len(u)
    out, maps = np.zeros_like(u), np.zeros((config.heads, n, n))
    for h in range(config.heads):

        def project(name, x, h=h):
            bias = w["b" + name]
            return x @ w["w" + name][:, h] + (0.0 if bias is None else bias[h])

        q, k, v = ([project(name, x) for x in u] for name in "qkv")
        if config.positions == "rotary":
            q = [twin_rotate(x, i, config.rotary_theta) for i, x in enumerate(q)]
            k = [twin_rotate(x, i, config.rotary_theta) for i, x in enumerate(k)]
        for i in range(n):
            keys = [j for j in range(n) if (mask is None or mask[j]) and not (config.causal and j > i)]
            logits = [q[i] @ k[j] / math.sqrt(config.dim // config.heads) for j in keys]
            total = sum(math.exp(x - max(logits)) for x in logits)
            for j, x in zip(keys, logits, strict=True):
                maps[h, i, j] = math.exp(x - max(logits)) / total
                out[i] += maps[h, i, j] * (v[j] @ w["wo"][h])
    return out + (0.0 if w["bo"] is None else w["bo"]), maps


def twin_feed_forward(w, config, u):
    out = []
    for x in u:
        hidden = np.array([twin_activation(config.activation, y) for y in x @ w["w1"] + w["b1"]])
        out.append(hidden @ w["w2"] + w["b2"])
    return np.array(out)


def twin_layer(w, config, u, mask):
    def normed(name, u):
        return np.array([twin_norm(w[name], config, x) for x in u])

    inner = config.norm in ("pre", "peri")
    norm2 = "norm1" if config.block == "parallel" else "norm2"
    maps = []

    def attention(u):
        change, weights = twin_attention(w, config, normed("norm1", u) if inner else u, mask)
        maps.append(weights)
        return normed("norm1_out", change) if config.norm == "peri" else change

    def feed_forward(u):
        change = twin_feed_forward(w, config, normed(norm2, u) if inner else u)
        return normed("norm2_out", change) if config.norm == "peri" else change

    def substep(u, change, scale, name):
        new = {
            "add": u + scale * change,
            "gated": (1 - scale) * u + scale * change,
            "none": change,
        }[config.residual]
        return normed(name, new) if config.norm == "post" else new

    s = config.residual_scale
    if config.block == "sequential":
        u = substep(u, attention(u), s, "norm1")
        u = substep(u, feed_forward(u), s, "norm2")
    elif config.block == "macaron":
        u = substep(u, feed_forward(u), s / 2, "norm2")
        u = substep(u, attention(u), s, "norm1")
        u = substep(u, feed_forward(u), s / 2, "norm2")
    else:
        u = substep(u, attention(u) + feed_forward(u), s, "norm1")
    return u, maps[0]


def twin(model, u, mask=None):
    weights = jax.tree.map(np.asarray, model.layer_weights())
    states, maps = [np.asarray(u)], []
    for layer in range(model.architecture.layers):
        w = jax.tree.map(lambda x, layer=layer: x[layer], weights)
        u, weights_seen = twin_layer(w, model.architecture, states[-1], mask)
        states.append(u)
        maps.append(weights_seen)
    return np.array(states), np.array(maps)


# Every form of block, with the other options dealt over them in turn.
FORMS = [
    {"block": block, "norm": norm, "residual": residual}
    for block, norm, residual in itertools.product(
        ("sequential", "parallel", "macaron"), ("pre", "post", "peri", "none"), ("add", "gated", "none")
    )
    if not (block == "parallel" and (norm == "post" or residual != "add"))
    and not (block == "macaron" and residual == "none")
]
CASES = [
    form
    | {
        "activation": ("gelu", "relu", "silu", "gelu_tanh", "tanh", "identity")[i % 6],
        "positions": ("sinusoidal", "rotary", "none")[i % 3],
        "norm_type": ("layernorm", "rmsnorm")[(i // 2) % 2],
        "bias": i % 2 == 0,
        "causal": i % 4 == 1,
        "residual_scale": {"add": (1.0, 0.3)[i % 2], "gated": 0.4, "none": 1.0}[form["residual"]],
        "norm_eps": (1e-6, 1e-2)[i % 2],
    }
    for i, form in enumerate(FORMS)
]


@pytest.mark.parametrize("options", CASES, ids=lambda o: f"{o['block']}-{o['norm']}-{o['residual']}")
def test_equals_the_slow_twin(options, relative):
    model = drawn(tiny(**options))
    mask = MASK if CASES.index(options) % 2 else None
    _, found, found_maps = model.observe(TOKENS, mask)
    states, maps = twin(model, found[0], mask)
    assert relative(found, states) < 1e-12
    assert relative(found_maps, maps) < 1e-12


def test_float32_agrees_with_float64(relative):
    wide = drawn(tiny(positions="rotary", head="classification", classes=4))
    narrow = wide.astype("float32")
    assert narrow.hidden_states(TOKENS, MASK).dtype == jnp.float32
    assert narrow(TOKENS).dtype == jnp.float32
    as64 = narrow.hidden_states(TOKENS, MASK).astype(jnp.float64)
    assert 1e-9 < relative(as64, wide.hidden_states(TOKENS, MASK)) < 1e-5
    assert relative(narrow(TOKENS).astype(jnp.float64), wide(TOKENS)) < 1e-5
    assert wide.architecture.dtype == "float64"


@pytest.mark.parametrize("norm_type", ["layernorm", "rmsnorm"])
def test_normalization_survives_a_large_mean(norm_type, relative):
    # In float32, E[x²] − E[x]² has no correct digit here.
    config = tiny(dtype="float32", norm_type=norm_type)
    x = 4096.0 + np.random.default_rng(0).integers(-16, 16, (5, 8)) / 16
    weights = {"scale": 1.0, "bias": 0.0}
    expected = np.array([twin_norm(weights, config, row) for row in x])
    found = apply_norm(make_norm(config, nnx.Rngs(0)), jnp.asarray(x, dtype=jnp.float32))
    assert relative(found.astype(jnp.float64), expected) < 1e-6


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.03), ("float16", 0.004)])
def test_half_precision_keeps_the_softmax_wide(dtype, tolerance, relative):
    config = tiny(dtype=dtype, param_dtype="float32")
    model = drawn(config)
    states = model.hidden_states(TOKENS, MASK)
    assert states.dtype == jnp.dtype(dtype)
    assert relative(states.astype(jnp.float64), model.astype("float64").hidden_states(TOKENS, MASK)) < tolerance
    maps = model.attention_maps(TOKENS, MASK)
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(maps.sum(-1), 1.0, atol=1e-6)


# --- Embedding and positions --------------------------------------------------------------------------------


def test_embedding_is_table_plus_sinusoids():
    model = drawn(tiny(dim=6))
    table = np.asarray(model.parameters()["embedding/embedding"])
    u = model.embed(TOKENS)
    for p, token in enumerate(TOKENS):
        for i in range(3):
            angle = p / 10000 ** (2 * i / 6)
            np.testing.assert_allclose(u[p, 2 * i], table[token, 2 * i] + math.sin(angle), atol=1e-14)
            np.testing.assert_allclose(u[p, 2 * i + 1], table[token, 2 * i + 1] + math.cos(angle), atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"positions": "learned", "max_length": 9}, {"inputs": 2}])
def test_a_scale_multiplies_the_embedding_and_not_the_positions(options):
    """What a factor 3 adds is twice the row of the table, or twice the map of the values, whatever the positions are."""
    model = drawn(tiny(**options))
    parameters = {name: np.asarray(value) for name, value in model.parameters().items()}
    scaled = Transformer.from_parameters(model.architecture.replace(embedding_scale=3.0), parameters)
    if "inputs" in options:
        tokens = np.random.default_rng(0).random((4, 2), dtype=np.float32)
        expected = tokens.astype(np.float64) @ parameters["embedding/kernel"] + parameters["embedding/bias"]
    else:
        tokens = TOKENS
        expected = parameters["embedding/embedding"][TOKENS]
    np.testing.assert_allclose(scaled.embed(tokens) - model.embed(tokens), 2 * expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("positions", ["rotary", "none"])
def test_no_position_is_added(positions):
    model = drawn(tiny(positions=positions))
    np.testing.assert_array_equal(model.embed(TOKENS), model.parameters()["embedding/embedding"][TOKENS])


def test_learned_positions():
    model = drawn(tiny(positions="learned", max_length=9))
    parameters = model.parameters()
    expected = parameters["embedding/embedding"][TOKENS] + parameters["positions"][:N]
    np.testing.assert_allclose(model.embed(TOKENS), expected, rtol=1e-15)


def test_continuous_inputs():
    config = tiny(inputs=2, positions="none")
    model = drawn(config)
    values = np.random.default_rng(0).random((4, 2), dtype=np.float32)
    parameters = {name: np.asarray(value) for name, value in model.parameters().items()}
    expected = values.astype(np.float64) @ parameters["embedding/kernel"] + parameters["embedding/bias"]
    np.testing.assert_allclose(model.embed(values), expected, rtol=1e-13)
    pixels = drawn(tiny(inputs=1))
    np.testing.assert_array_equal(pixels.embed(values[:, 0]), pixels.embed(values[:, :1]))


def test_without_positions_permutations_commute(relative):
    order = np.array([4, 2, 0, 5, 1, 3])
    model = drawn(tiny(positions="none"))
    permuted = model.hidden_states(TOKENS[order], MASK[order])
    assert relative(permuted, model.hidden_states(TOKENS, MASK)[:, order]) < 1e-13
    for positions in ("sinusoidal", "rotary"):
        model = drawn(tiny(positions=positions))
        assert relative(model.hidden_states(TOKENS[order]), model.hidden_states(TOKENS)[:, order]) > 1e-3


def test_rotary_products_depend_on_the_distance_only(getkey):
    q, k = (jnp.broadcast_to(jax.random.normal(getkey(), (1, 2, 6)), (50, 2, 6)) for _ in range(2))
    products = jnp.einsum("ihk,jhk->hij", rotate(q, 10000.0), rotate(k, 10000.0))
    for shift in (-7, 0, 1, 20):
        diagonal = jnp.diagonal(products, offset=shift, axis1=1, axis2=2)
        np.testing.assert_allclose(diagonal, diagonal[:, :1] * np.ones_like(diagonal), atol=1e-13)
    assert abs(products[0, 0, 1] - products[0, 1, 0]) > 1e-2
    # A rotation keeps lengths, and position 0 is not turned.
    np.testing.assert_allclose(jnp.linalg.norm(rotate(q, 10.0), axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-13)
    np.testing.assert_array_equal(rotate(q, 10.0)[0], q[0])


# --- Attention maps and masks -------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_attention_maps(causal):
    model = drawn(tiny(causal=causal))
    maps = model.attention_maps(TOKENS, MASK)
    assert maps.shape == (3, 2, N, N)
    np.testing.assert_allclose(maps.sum(-1), 1.0, atol=1e-14)
    assert np.all(maps[..., ~MASK] == 0.0)
    forbidden = ~np.tri(N, dtype=bool) if causal else np.zeros((N, N), dtype=bool)
    assert np.all(maps[..., forbidden] == 0.0)
    assert np.all(maps[..., MASK[None, :] & ~forbidden] > 0.0)


def test_a_decoder_does_not_look_ahead():
    model = drawn(tiny(causal=True, head="lm"))
    changed = TOKENS.copy()
    changed[4:] = [9, 2]
    a, b = model.hidden_states(TOKENS), model.hidden_states(changed)
    np.testing.assert_allclose(a[:, :4], b[:, :4], atol=1e-13)
    assert np.all(abs(a - b)[1:, 4:].max(-1) > 1e-3)
    np.testing.assert_allclose(model(TOKENS)[:4], model(changed)[:4], atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing_for_valid_tokens(causal):
    model = drawn(tiny(causal=causal, head="classification", classes=3))
    padded = np.concatenate([TOKENS, [0, 5, 9]])
    mask = np.arange(9) < N
    states = model.hidden_states(padded, mask)
    np.testing.assert_allclose(states[:, :N], model.hidden_states(TOKENS), atol=1e-13)
    assert np.all(np.isfinite(states))
    np.testing.assert_allclose(model(padded, mask), model(TOKENS), atol=1e-12)
    full = np.ones(N, dtype=bool)
    np.testing.assert_allclose(model.hidden_states(TOKENS, full), model.hidden_states(TOKENS), atol=1e-14)


def test_one_token():
    model = drawn(tiny())
    assert model.hidden_states(TOKENS[:1]).shape == (4, 1, 8)
    np.testing.assert_allclose(model.attention_maps(TOKENS[:1]), 1.0, rtol=1e-15)


# --- Heads --------------------------------------------------------------------------------------------------


def test_without_a_head_the_last_state():
    model = drawn(tiny())
    np.testing.assert_allclose(model(TOKENS, MASK), model.hidden_states(TOKENS, MASK)[-1], rtol=1e-14)
    states = model.hidden_states(TOKENS)
    np.testing.assert_array_equal(states[0], model.embed(TOKENS))
    np.testing.assert_array_equal(model.run(states[0]), states)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_classification(norm, relative):
    model = drawn(tiny(head="classification", classes=3, norm=norm))
    parameters = model.parameters()
    u = np.asarray(model.hidden_states(TOKENS, MASK)[-1])
    if norm == "pre":
        final = {name: np.asarray(parameters[f"final_norm/{name}"]) for name in ("scale", "bias")}
        u = np.array([twin_norm(final, model.architecture, x) for x in u])
    assert ("final_norm/scale" in parameters) == (norm == "pre")
    mean = sum(u[i] for i in range(N) if MASK[i]) / MASK.sum()
    assert relative(model(TOKENS, MASK), mean @ parameters["head/kernel"] + parameters["head/bias"]) < 1e-13


def test_language_model(relative):
    model = drawn(tiny(head="lm", norm="none", causal=True))
    parameters = {name: np.asarray(value) for name, value in model.parameters().items()}
    u = model.hidden_states(TOKENS)[-1]
    logits = model(TOKENS)
    assert logits.shape == (N, 11)
    assert relative(logits, np.asarray(u) @ parameters["head/kernel"] + parameters["head/bias"]) < 1e-13


# --- Structure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, norms, outside",
    [
        ({"norm": "none"}, 0, 0),
        ({"norm": "pre", "bias": True}, 2, 0),
        ({"norm": "post", "norm_type": "rmsnorm"}, 2, 0),
        ({"norm": "peri"}, 4, 0),
        ({"norm": "pre", "block": "parallel"}, 1, 0),
        ({"norm": "peri", "block": "parallel"}, 3, 0),
        ({"norm": "peri", "block": "macaron"}, 4, 0),
        ({"norm": "pre", "positions": "learned", "max_length": 20}, 2, 20 * 8),
        ({"norm": "pre", "head": "lm"}, 2, 2 * 8 + 8 * 11 + 11),
        ({"norm": "post", "head": "classification", "classes": 10}, 2, 8 * 10 + 10),
    ],
)
def test_parameter_count(options, norms, outside):
    config = tiny(**options)
    shapes = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)).parameters())
    d, f = 8, 5
    per_norm = d if config.norm_type == "rmsnorm" else 2 * d
    per_layer = 4 * d * d + (4 * d if config.bias else 0) + 2 * d * f + f + d + norms * per_norm
    assert sum(math.prod(s.shape) for s in shapes.values()) == 3 * per_layer + 11 * d + outside


def test_initial_weights():
    model = Transformer(Architecture(vocab=64, dim=64, heads=4, layers=5, ffn=256), rngs=nnx.Rngs(0))
    weights = model.layer_weights()
    for name, fan_in in (("wq", 64), ("wk", 64), ("wv", 64), ("wo", 64), ("w1", 64), ("w2", 256)):
        w = np.asarray(weights[name]).reshape(5, -1)
        np.testing.assert_allclose(w.std(axis=1), fan_in**-0.5, rtol=0.06)
        # The layers are drawn independently of each other, as are the projections.
        assert np.all(abs(np.corrcoef(w) - np.eye(5)) < 0.08)
    assert abs(np.corrcoef(np.ravel(weights["wq"]), np.ravel(weights["wk"]))[0, 1]) < 0.03
    np.testing.assert_allclose(np.std(model.parameters()["embedding/embedding"]), 1.0, rtol=0.05)
    assert weights["w1"].dtype == jnp.float32
    assert not np.any(weights["b1"]) and weights["bq"] is None
    again = Transformer(model.architecture, rngs=nnx.Rngs(0)).parameters()
    assert all(np.array_equal(value, again[name]) for name, value in model.parameters().items())


def test_layer_weights():
    weights = drawn(tiny(bias=True, norm="peri", norm_type="rmsnorm")).layer_weights()
    shapes = {name: w.shape for name, w in weights.items() if not name.startswith("norm")}
    assert shapes == {
        **{"wq": (3, 8, 2, 4), "wk": (3, 8, 2, 4), "wv": (3, 8, 2, 4), "wo": (3, 2, 4, 8)},
        **{"bq": (3, 2, 4), "bk": (3, 2, 4), "bv": (3, 2, 4), "bo": (3, 8)},
        **{"w1": (3, 8, 5), "b1": (3, 5), "w2": (3, 5, 8), "b2": (3, 8)},
    }
    for name in ("norm1", "norm2", "norm1_out", "norm2_out"):
        assert weights[name]["scale"].shape == (3, 8) and weights[name]["bias"] is None
    shared = drawn(tiny(block="parallel")).layer_weights()
    np.testing.assert_array_equal(shared["norm1"]["bias"], shared["norm2"]["bias"])
    assert shared["norm1_out"] is None
    assert drawn(tiny(norm="none")).layer_weights()["norm1"] is None


def test_scan_equals_a_loop(relative):
    model = drawn(tiny(block="macaron", causal=True))
    graph, stacked = nnx.split(model.layers)
    allowed = jnp.tril(jnp.ones((N, N), dtype=bool))[None]
    u = model.embed(TOKENS)
    states = [u]
    for layer in range(3):
        block = nnx.merge(graph, jax.tree.map(lambda x, layer=layer: x[layer], stacked))
        u, _ = block(u, allowed, False)
        states.append(u)
    assert relative(model.hidden_states(TOKENS), jnp.stack(states)) < 1e-14


def test_the_block_is_traced_once_whatever_the_depth(monkeypatch):
    traces = []
    original = Block.__call__

    def counting(self, *args):
        traces.append(self.architecture.layers)
        return original(self, *args)

    monkeypatch.setattr(Block, "__call__", counting)
    equations = {}
    for layers in (2, 24):
        model = drawn(tiny(layers=layers, ffn=7))
        for _ in range(3):
            model.hidden_states(TOKENS)
        assert traces == [layers]
        other = drawn(tiny(layers=layers, ffn=7), seed=1)
        other.hidden_states(TOKENS)
        assert traces == [layers]
        equations[layers] = str(jax.make_jaxpr(model.run)(jnp.zeros((N, 8)))).count(" = ")
        traces.clear()
    assert equations[2] == equations[24] > 20


def test_batches_by_vmap():
    model = drawn(tiny(head="classification", classes=3))
    tokens = np.stack([TOKENS, TOKENS[::-1]])
    masks = np.stack([MASK, ~MASK])
    together = jax.vmap(model)(tokens, masks)
    for row, t, m in zip(together, tokens, masks, strict=True):
        np.testing.assert_allclose(row, model(t, m), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(model)(TOKENS), model(TOKENS), rtol=1e-12)


def test_gradients_agree_with_finite_differences():
    model = drawn(tiny(norm="peri", bias=True, head="classification", classes=3, activation="silu"))
    graph, state = nnx.split(model)

    @jax.jit
    def loss(state):
        return jnp.sum(jnp.sin(nnx.merge(graph, state)(TOKENS, MASK)))

    gradient = jax.jit(jax.grad(loss))(state)
    random = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape)), state)
    step = 1e-5
    ahead, behind = (loss(jax.tree.map(lambda x, d, s=s: x + s * step * d, state, direction)) for s in (1.0, -1.0))
    slope = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-7)
    # Softmax does not see a constant added to all logits of a row: the key bias alone has no gradient.
    for path, leaf in jax.tree.leaves_with_path(gradient):
        size = float(jnp.abs(leaf).max())
        assert size < 1e-14 if "'k'" in str(path) and "bias" in str(path) else size > 1e-8
    # Through flax's own transform as well.
    through_nnx = nnx.jit(nnx.grad(lambda m: jnp.sum(jnp.sin(m(TOKENS, MASK)))))(model)
    for a, b in zip(*map(jax.tree.leaves, (gradient, through_nnx)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
