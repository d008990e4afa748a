"""Block = field + solver + step: every block a `Transformer` can have, for the whole stack, against Flax."""

import itertools
import typing

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn

import pdejax as pj
from pdejax.models import _architecture
from pdejax.solvers import Euler, LieTrotter, Retract, Strang

# Each entry rides along with some blocks, so that every option meets several of them without the product of all.
OPTIONS = (
    {"positions": "rotary", "activation": "gelu", "dim": 12, "heads": 3},
    {"positions": "learned", "max_length": 20, "activation": "relu", "causal": True, "norm_type": "rmsnorm"},
    {"positions": "sinusoidal", "bias": True, "activation": "silu", "heads": 1, "layers": 2},
    {"positions": "none", "norm_type": "rmsnorm", "activation": "gelu_tanh", "bias": True, "causal": True},
    {"positions": "rotary", "bias": True, "activation": "tanh", "causal": True, "ffn": 20, "norm_eps": 1e-3},
)
TOKENS = np.array([3, 1, 10, 0, 7, 3, 3, 8, 5])
MASK = np.array([True, True, False, True, True, True, False, True, False])


def config(dtype="float64", **options) -> pj.Architecture:
    sizes = {"vocab": 11, "dim": 8, "heads": 2, "layers": 3, "ffn": 5, "dtype": dtype, "param_dtype": dtype}
    return pj.Architecture(**sizes | options)


def allowed_blocks():
    """Every (block, norm, residual) that `Architecture` accepts."""
    found = []
    names = (_architecture.BlockForm, _architecture.Norm, _architecture.Residual)
    for block, norm, residual in itertools.product(*map(typing.get_args, names)):
        scale = 1.0 if residual == "none" else 0.35
        try:
            config(block=block, norm=norm, residual=residual, residual_scale=scale)
        except ValueError:
            continue
        found.append({"block": block, "norm": norm, "residual": residual, "residual_scale": scale})
    return found


BLOCKS = allowed_blocks()


def name(block: dict) -> str:
    return "-".join(str(block[key]) for key in ("block", "norm", "residual"))


def build(**options) -> pj.Transformer:
    """A model with every parameter random: losing a norm's scale or a bias would show."""
    return drawn(config(**options), spread=0.5)


def stack_error(model: pj.Transformer, tokens, mask=None) -> float:
    """Largest relative distance over the layers between `simulate`, one step per layer, and the hidden states."""
    d, layers = pj.lift(model), model.architecture.layers
    theirs = model.hidden_states(tokens, mask)
    ours = pj.simulate(d, theirs[0], mask=mask)
    assert ours.us.shape == theirs.shape == (layers + 1, len(tokens), model.architecture.dim)
    assert ours.us.dtype == theirs.dtype and bool(ours.complete)
    np.testing.assert_allclose(ours.ts, np.linspace(0, d.t1, layers + 1), rtol=1e-6)
    real = slice(None) if mask is None else mask  # the row of a padded query reaches no real token
    ours, theirs = (np.asarray(x, float)[:, real] for x in (ours.us, theirs))
    return float(np.max(np.linalg.norm(ours - theirs, axis=(1, 2)) / np.linalg.norm(theirs, axis=(1, 2))))


def test_every_allowed_block_is_here():
    """4 norms and 3 residuals in sequence; 3 parallel ones; Macaron with 4 norms, added or gated."""
    assert len(BLOCKS) == 4 * 3 + 3 + 4 * 2


@pytest.mark.parametrize("index", range(len(BLOCKS)), ids=map(name, BLOCKS))
def test_block_is_an_identity(index):
    model = build(**BLOCKS[index] | OPTIONS[index % len(OPTIONS)])
    assert stack_error(model, TOKENS, MASK) <= 1e-12


@pytest.mark.parametrize(
    "block",
    [
        {"norm": "post", "norm_type": "rmsnorm", "bias": True},
        {"norm": "peri", "block": "parallel", "causal": True},
        {"norm": "pre", "block": "macaron", "residual": "gated", "residual_scale": 0.3},
    ],
    ids=lambda block: "-".join(map(str, block.values())),
)
def test_float32(block):
    """Single precision, on the sequence without padding."""
    assert stack_error(build(dtype="float32", positions="rotary", **block), TOKENS) <= 1e-5


def test_another_shape():
    assert stack_error(build(norm="post", dim=10, heads=5, layers=5), np.arange(17) % 11) <= 1e-12


def test_rotary_positions_far_out_in_float32():
    """Angles near 1000 radians have lost four digits of single precision: both sides must take them in double."""
    model = build(dtype="float32", positions="rotary", layers=1, norm="pre")
    assert stack_error(model, np.arange(1000) * 7 % 11) <= 1e-5


def test_a_wrong_weight_would_be_seen():
    index = BLOCKS.index({"block": "sequential", "norm": "pre", "residual": "add", "residual_scale": 0.35})
    model = build(**BLOCKS[index] | OPTIONS[index % len(OPTIONS)])
    moved = dict(model.parameters())
    key = next(k for k in moved if k.endswith("scale") and "norm2" in k)
    moved[key] = moved[key] + 1e-6
    other = pj.Transformer.from_parameters(model.architecture, moved)
    theirs = model.hidden_states(TOKENS, MASK)
    run = pj.simulate(pj.lift(other), theirs[0], mask=MASK)
    assert float(np.linalg.norm((run.us - theirs)[:, MASK]) / np.linalg.norm(theirs[:, MASK])) > 1e-9


@pytest.mark.parametrize(
    "options", [OPTIONS[0], OPTIONS[3] | {"norm": "post"}, {"block": "parallel"}], ids=("rotary", "post", "parallel")
)
def test_attention_maps_are_the_models(options):
    """For blocks whose attention reads the state of the layer (Macaron's reads it after half a feed-forward)."""
    model = build(**{"norm": "pre"} | options)
    equation, maps, states = (
        pj.lift(model).field,
        model.attention_maps(TOKENS, MASK),
        model.hidden_states(TOKENS, MASK),
    )
    weights = eqx.filter_jit(lambda layer, u: layer.interaction.weights(u, jnp.asarray(MASK)))
    for l in range(model.architecture.layers):
        ours = np.asarray(weights(equation.layer(l), states[l]))
        np.testing.assert_allclose(ours[:, MASK], maps[l][:, MASK], atol=1e-13)
        np.testing.assert_array_equal(ours[..., ~MASK], 0.0)


def test_native_solvers_are_those_of_the_table():
    def solver(**block):
        return pj.lift(build(**block)).solver

    assert eqx.tree_equal(solver(norm="pre"), LieTrotter((Euler(), Euler())))
    assert eqx.tree_equal(solver(norm="none", block="macaron"), Strang((Euler(), Euler())))
    assert eqx.tree_equal(solver(norm="pre", block="parallel"), Euler())
    post = solver(norm="post")
    assert type(post) is LieTrotter
    assert all(type(sub) is Retract and type(sub.solver) is Euler for sub in post.solvers)


def test_field_of_a_residual_and_of_a_leak():
    """`add` gives A and R with the scale as strength over depth L; `gated` the leaky field over depth L·s."""
    add = pj.lift(build(norm="pre", residual_scale=0.35)).field
    assert add.t1 == 3.0 and not add.stacked.interaction.leak
    np.testing.assert_allclose(add.stacked.interaction.strength, np.full(3, 0.35))
    for residual, scale, depth in (("gated", 0.3, 0.9), ("none", 1.0, 3.0)):
        leaky = pj.lift(build(norm="pre", residual=residual, residual_scale=scale)).field
        assert leaky.t1 == pytest.approx(depth) and leaky.stacked.reaction.leak
        np.testing.assert_array_equal(leaky.stacked.reaction.strength, np.ones(3))


def test_gates_are_smaller_steps_of_the_non_residual_network():
    """Four gated layers with s = ¼ and equal weights are four steps h = ¼ of the one leaky layer whose h = 1 step has
    no residual at all (v2 Thm 3.4 is about the step)."""
    single = build(norm="pre", residual="none", layers=1, positions="rotary", bias=True)
    repeated = {
        key: jnp.concatenate([value] * 4) if key.startswith("layers/") else value
        for key, value in single.parameters().items()
    }
    gates = pj.Transformer.from_parameters(
        config(norm="pre", residual="gated", residual_scale=0.25, layers=4, positions="rotary", bias=True), repeated
    )
    theirs = gates.hidden_states(TOKENS)
    native = pj.lift(single).solver
    ours = pj.simulate(pj.Discretization(pj.lift(single).field, native, t1=1.0, steps=4), theirs[0], save="steps")
    np.testing.assert_allclose(ours.us, theirs, rtol=1e-12, atol=1e-12)


def test_a_layered_retraction_needs_its_own_equation():
    model = build(norm="post")
    with pytest.raises(ValueError, match="but the field has 1"):
        pj.simulate(
            pj.Discretization(pj.lift(model).field.layer(0), pj.lift(model).solver, t1=1.0, steps=1),
            model.embed(TOKENS),
        )
