import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdejax.models import Architecture, Transformer

TOKENS = np.array([3, 1, 10, 0, 7, 3])


def tiny(**options):
    sizes = {"vocab": 11, "dim": 8, "heads": 2, "layers": 3, "ffn": 5, "dtype": "float64"}
    options = sizes | {"param_dtype": options.get("dtype", "float64")} | options
    if "inputs" in options:
        options["vocab"] = None
    return Architecture(**options)


@functools.cache
def build(architecture):
    """A model of shapes alone: what is refused is refused before anything is computed or compiled."""
    return nnx.eval_shape(lambda: Transformer(architecture, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"heads": 3}, r"heads=3 must divide dim=8; use one of \[1, 2, 4, 8\]"),
        ({"dim": 0}, "Architecture: dim=0 must be an integer of at least 1"),
        ({"layers": -1}, "layers=-1 must be an integer"),
        (
            {"norm": "prenorm"},
            "norm='prenorm' must be one of 'pre', 'post', 'peri', 'none'; did you mean 'pre'",
        ),
        ({"norm_type": "batchnorm"}, "norm_type='batchnorm' must be one of"),
        ({"block": "serial"}, "block='serial' must be one of"),
        ({"residual": "yes"}, "residual='yes' must be one of"),
        ({"activation": "gleu"}, "activation='gleu' must be one of .* did you mean 'gelu'"),
        ({"positions": "rope"}, "positions='rope' must be one of"),
        ({"head": "classifier"}, "head='classifier' must be one of .* did you mean 'classification'"),
        ({"dtype": "int32"}, "dtype='int32' must be one of"),
        ({"param_dtype": "bfloat16"}, "param_dtype='bfloat16' must be one of"),
        ({"residual_scale": 0.0}, "residual_scale=0.0 must be one finite number > 0"),
        ({"residual_scale": math.nan}, "residual_scale=nan must be one finite number > 0"),
        ({"embedding_scale": 0.0}, "embedding_scale=0.0 must be one finite number > 0"),
        ({"norm_eps": -1e-6}, "norm_eps=-1e-06 must be one finite number > 0"),
        ({"residual": "none", "residual_scale": 0.5}, "residual_scale must be 1.0"),
        ({"residual": "gated", "residual_scale": 1.5}, r"residual_scale must be in \(0, 1\]"),
        ({"block": "parallel", "norm": "post"}, "is not defined: post-LN normalizes after each"),
        ({"block": "parallel", "residual": "gated"}, "two readings"),
        ({"block": "parallel", "residual": "none"}, "two readings"),
        ({"block": "macaron", "residual": "none"}, "half steps"),
        ({"positions": "learned"}, "give max_length"),
        ({"positions": "rotary", "heads": 8}, "even head size dim/heads, got 8/8 = 1"),
        ({"head": "classification"}, "classes belongs to head='classification'"),
        ({"classes": 3}, "classes belongs to head='classification'"),
        ({"inputs": 1, "head": "lm"}, "give vocab"),
        ({"vocab": None}, "give either vocab"),
    ],
)
def test_bad_config(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


@pytest.mark.parametrize("options", [{"dim": 8.0}, {"heads": True}, {"causal": 1}, {"norm_eps": "small"}])
def test_bad_config_types(options):
    with pytest.raises(TypeError, match=f"Architecture: {next(iter(options))}=.* must be"):
        tiny(**options)


def test_config_is_a_plain_hashable_value():
    config = tiny(dtype=jnp.float32, dim=np.int64(8))
    assert config.dtype == "float32" and type(config.dim) is int
    assert hash(config) == hash(tiny(dtype="float32")) and config == tiny(dtype="float32")
    with pytest.raises(AttributeError):
        config.dim = 4


@pytest.mark.parametrize(
    "tokens, error, message",
    [
        ([1, 11], ValueError, "Transformer: tokens has ids from 1 to 11; they must lie in .0, 10."),
        ([-1, 3], ValueError, "ids from -1 to 3"),
        ([1.0, 2.0], TypeError, "integer ids for vocab=11"),
        ([True, False], TypeError, "integer ids for vocab=11"),
        ([], ValueError, "tokens is empty"),
        (
            [[1, 2]],
            ValueError,
            r"tokens has shape \(1, 2\); it must be \(n,\), one sequence. For a batch use pdejax.observe",
        ),
        (3, ValueError, r"must be \(n,\)"),
        ([1] * 8, ValueError, "tokens has 8 tokens, more than max_length=7"),
    ],
)
@pytest.mark.parametrize("method", ["embed", "hidden_states", "attention_maps", "__call__"])
def test_bad_tokens(tokens, error, message, method):
    model = build(tiny(max_length=7))
    with pytest.raises(error, match=message):
        getattr(model, method)(np.asarray(tokens))


@pytest.mark.parametrize(
    "values, error, message",
    [
        ([[0.1, math.nan]], ValueError, "tokens has 1 NaN or infinite entries of 2"),
        ([[0.1, math.inf]], ValueError, "tokens has 1 NaN or infinite entries of 2"),
        ([[0.1]], ValueError, r"shape \(1, 1\); it must be \(n, 2\), one sequence"),
        ([0.1, 0.2], ValueError, r"must be \(n, 2\)"),
        ([[1, 2]], TypeError, "floating values for inputs=2"),
        (np.zeros((0, 2)), ValueError, "tokens is empty"),
    ],
)
def test_bad_continuous_inputs(values, error, message):
    with pytest.raises(error, match=message):
        build(tiny(inputs=2)).embed(np.asarray(values))


@pytest.mark.parametrize(
    "mask, error, message",
    [
        (np.ones(5, dtype=bool), ValueError, "must be 6 booleans, one per token"),
        (np.ones((6, 6), dtype=bool), ValueError, "must be 6 booleans, one per token"),
        (np.ones(6), TypeError, "must be 6 booleans, one per token"),
        (np.zeros(6, dtype=bool), ValueError, "mask hides every token"),
    ],
)
def test_bad_mask(mask, error, message):
    model = build(tiny())
    for method in (model, model.hidden_states, model.attention_maps):
        with pytest.raises(error, match=message):
            method(TOKENS, mask)


@pytest.mark.parametrize(
    "u0, error, message",
    [
        (np.zeros((4, 7)), ValueError, r"u0 has shape \(4, 7\); it must be \(n, 8\)"),
        (np.zeros((2, 4, 8)), ValueError, "For a batch use jax.vmap"),
        (np.zeros((0, 8)), ValueError, "u0 is empty"),
        (np.zeros((4, 8), dtype=int), TypeError, "u0 has type int.*real and floating"),
        (np.full((4, 8), np.nan), ValueError, "u0 has 32 NaN"),
    ],
)
def test_bad_initial_field(u0, error, message):
    with pytest.raises(error, match=message):
        build(tiny()).run(u0)


def test_float64_needs_x64():
    model = build(tiny(dtype="float32"))
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match="needs JAX's 64-bit mode"):
            Transformer(tiny(), rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="needs JAX's 64-bit mode"):
            model.astype("float64")


def test_from_parameters_refuses_what_does_not_fit():
    config = tiny()
    parameters = {name: np.zeros(value.shape) for name, value in build(config).parameters().items()}
    with pytest.raises(ValueError, match=r"missing \['embedding/embedding'\], unknown \['table'\]"):
        renamed = {("table" if name == "embedding/embedding" else name): v for name, v in parameters.items()}
        Transformer.from_parameters(config, renamed)
    name = "layers/attention/q/kernel"
    with pytest.raises(ValueError, match=rf"'{name}' must have shape \(3, 8, 2, 4\) .* got \(2, 8, 2, 4\)"):
        Transformer.from_parameters(config, parameters | {name: parameters[name][:2]})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"loops": 3}, r"it takes architecture, rngs, and the architecture has loops: Architecture\(loops=…\)\.$"),
        ({"loops": 3, "prelude": 1}, r"has loops and prelude: Architecture\(loops=…, prelude=…\)\.$"),
        ({"loop": 3}, r"it takes architecture, rngs\.$"),
    ],
)
def test_what_belongs_to_the_architecture_is_said_to(given, words):
    with pytest.raises(TypeError, match=words):
        Transformer(Architecture(vocab=5, dim=4, heads=1, layers=2, ffn=4), rngs=nnx.Rngs(0), **given)
