"""`Network`: a model's own states and logits, refinements of its step, and any list of layer functions."""

import functools

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn
from flax import nnx

import pdejax as pj

N, D, L = 6, 8, 3
KEY = jax.random.key(0)
TOKENS = jnp.asarray([1, 4, 2, 0, 3, 3])
MASK = jnp.arange(N) < 5
U = jnp.asarray(np.random.default_rng(0).standard_normal((N, D)))
SIZES = {"vocab": 5, "dim": D, "heads": 2, "layers": L, "ffn": 12, "dtype": "float64", "param_dtype": "float64"}


def transformer(**options):
    return drawn(pj.Architecture(**SIZES | {"head": "classification", "classes": 4} | options))


BLOCKS = [
    {},
    {"norm": "post", "bias": True},
    {"block": "macaron"},
    {"block": "parallel", "head": "lm", "classes": None},
    {"residual": "gated", "residual_scale": 0.5, "positions": "learned", "max_length": 9, "norm_type": "rmsnorm"},
]


@pytest.mark.parametrize("options", BLOCKS, ids=str)
def test_a_transformer_as_a_network(options):
    """Logits, states and maps are the model's own, to rounding, padding included."""
    model = transformer(**options)
    net = pj.as_network(model)
    ours, theirs = (jax.tree.map(np.asarray, seen.observe(TOKENS, MASK)) for seen in (net, model))
    real = slice(None) if model.architecture.head != "lm" else slice(0, 5)
    np.testing.assert_allclose(ours[0][real], theirs[0][real], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-11, atol=1e-13)
    assert ours[2].shape == theirs[2].shape == (L, 2, N, N)
    np.testing.assert_allclose(ours[2][:, :, :5], theirs[2][:, :, :5], rtol=1e-10, atol=1e-13)
    if options == BLOCKS[0]:
        np.testing.assert_allclose(net.hidden_states(TOKENS, MASK), ours[1], rtol=1e-12)
        np.testing.assert_allclose(net(TOKENS, MASK), ours[0], rtol=1e-12)
        np.testing.assert_allclose(net.attention_maps(TOKENS, MASK), ours[2], rtol=1e-12)
    assert pj.as_network(net) is net


def test_a_simulator_as_a_network():
    """With diffusion the grid has one point per token, so that their number must be given."""
    config = pj.SimulatorConfig.full(pj.Architecture(**SIZES), steps=2 * L)
    model = pj.Simulator(config, key=KEY)
    net = pj.as_network(model, length=N)
    np.testing.assert_allclose(net.hidden_states(TOKENS, MASK), model.hidden_states(TOKENS, MASK), rtol=1e-12)
    np.testing.assert_allclose(net(TOKENS, MASK), model(TOKENS, MASK), rtol=1e-12)
    np.testing.assert_allclose(net.attention_maps(TOKENS), model.attention_maps(TOKENS), rtol=1e-12)
    with pytest.raises(ValueError, match="give the number of tokens"):
        pj.as_network(model)


def test_maps_of_fewer_parts_than_layers_are_of_the_layers_they_begin_in():
    """A network of 4 layers shown in 2 parts: states 0, 2, 4 and the maps of layers 0 and 2."""
    net = pj.as_network(transformer(layers=4))
    halves = net.replace(layers=2)
    np.testing.assert_allclose(halves.hidden_states(TOKENS), net.hidden_states(TOKENS)[::2], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(halves.attention_maps(TOKENS), net.attention_maps(TOKENS)[::2], rtol=1e-11, atol=1e-13)


def test_refining_converges_and_keeps_the_states_in_place():
    """States at the layers' ends approach a tight solve at first order, whatever the number of steps between them."""
    net = pj.as_network(transformer())
    tight = net.replace(discretization=net.discretization.replace(solver="dopri8", rtol=1e-11, atol=1e-11))
    limit = tight.hidden_states(TOKENS)
    errors = []
    for k in (4, 8):
        fine = net.replace(discretization=net.discretization.refine(k)).hidden_states(TOKENS)
        assert fine.shape == (L + 1, N, D)
        errors.append(float(jnp.linalg.norm(fine - limit)))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)
    assert tight.attention_maps(TOKENS).shape == (L, 2, N, N)


def calls(function):
    count = []

    def counted(u):
        count.append(1)
        return function(u)

    return counted, count


def test_a_sweep_of_refinements_compiles_once():
    counted, count = calls(lambda u: u + 0.1 * jnp.tanh(u))
    net = pj.network([counted, counted])
    for k in (1, 2, 3):
        net.replace(discretization=net.discretization.refine(k))(U)
    before = len(count)
    net.replace(discretization=net.discretization.refine(7))(U)
    assert len(count) == before


def test_differentiable_in_its_weights():
    """The gradient of a refined network is that of finite differences."""
    net = pj.as_network(transformer())
    fine = net.replace(discretization=net.discretization.refine(2))

    def loss(net):
        return jnp.sum(net(TOKENS) ** 2)

    gradient = eqx.filter_grad(loss)(fine)
    w = fine.discretization.field.stacked.interaction.wq
    direction = jnp.cos(jnp.arange(w.size).astype(w.dtype)).reshape(w.shape)

    def moved(e):
        return eqx.tree_at(lambda n: n.discretization.field.stacked.interaction.wq, fine, w + e * direction)

    eps = 1e-6
    difference = (loss(moved(eps)) - loss(moved(-eps))) / (2 * eps)
    ours = jnp.vdot(gradient.discretization.field.stacked.interaction.wq, direction)
    assert float(ours) == pytest.approx(float(difference), rel=1e-6)


# --- Layers of one's own ----------------------------------------------------------------------------------------------


class FlaxBlock(nnx.Module):
    """A hand-written block: LayerNorm, one-head attention, a two-layer perceptron."""

    def __init__(self, rngs):
        options = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": rngs}
        self.norm = nnx.LayerNorm(D, **options)
        self.q, self.k, self.v = (nnx.Linear(D, D, **options) for _ in range(3))
        self.up, self.down = nnx.Linear(D, 16, **options), nnx.Linear(16, D, **options)

    def __call__(self, u):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            x = self.norm(u)
            weights = jax.nn.softmax(self.q(x) @ self.k(x).T / D**0.5, axis=-1)
            u = u + weights @ self.v(x)
            return u + self.down(jnp.tanh(self.up(u)))


class EquinoxBlock(eqx.Module):
    w: jax.Array

    def __call__(self, u, args):
        kept = u if args.mask is None else jnp.where(args.mask[:, None], u, 0)
        return u + jnp.tanh(kept @ self.w)


def flax_blocks():
    return [FlaxBlock(nnx.Rngs(seed)) for seed in range(L)]


def by_hand(blocks, u):
    states = [u]
    for block in blocks:
        states.append(block(states[-1]))
    return jnp.stack(states)


def test_hand_written_flax_blocks():
    """States are those of the blocks called one after the other; one program for all of them."""
    blocks = flax_blocks()
    net = pj.network(blocks, head=lambda u, mask: u.mean(axis=0))
    expected = by_hand(blocks, U)
    np.testing.assert_allclose(net.hidden_states(U), expected, rtol=1e-12)
    np.testing.assert_allclose(net(U), expected[-1].mean(axis=0), rtol=1e-12)
    assert repr(net.discretization) == "3 layers: FlaxBlock | Euler | 3 steps over t in [0, 3]"
    with pytest.raises(ValueError, match="no attention term"):
        net.attention_maps(U)


def test_everything_works_on_flax_blocks():
    """Orders, stable steps, Jacobians and exponents of a network of hand-written blocks."""
    blocks = flax_blocks()
    net = pj.network(blocks)
    d = net.discretization
    limit = pj.simulate(d.replace(solver="dopri8", rtol=1e-11, atol=1e-11), U).us[-1]
    errors = [float(jnp.linalg.norm(pj.simulate(d.refine(k), U).us[-1] - limit)) for k in (8, 16)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)
    exponents = pj.analysis.lyapunov_exponents(d, U, k=N * D).exponents.value
    product = jnp.eye(N * D)
    u = U
    for block in blocks:
        product = jax.jacobian(block)(u).reshape(N * D, N * D) @ product
        u = block(u)
    assert float(jnp.sum(exponents) * L) == pytest.approx(float(jnp.linalg.slogdet(product)[1]), rel=1e-8)


def test_equinox_blocks_stacked_or_listed():
    layers = [EquinoxBlock(0.3 * jax.random.normal(jax.random.key(i), (D, D))) for i in range(L)]
    states = [U]
    for layer in layers:
        states.append(layer(states[-1], pj.FieldArgs(MASK)))
    stacked = EquinoxBlock(jnp.stack([layer.w for layer in layers]))
    for given in (layers, stacked):
        np.testing.assert_allclose(pj.network(given).hidden_states(U, MASK), jnp.stack(states), rtol=1e-12)


def test_functions_of_different_make():
    """A linen module, a plain function and an equinox module in one network; each is compiled on its own."""
    dense = flax.linen.Dense(D, param_dtype=jnp.float64)
    params = dense.init(KEY, U)
    linen = functools.partial(dense.apply, params)
    blocks = [linen, lambda u, args: u - 0.5 * u**3 / (1 + u**2), EquinoxBlock(jnp.eye(D) * 0.1)]
    net = pj.network(blocks, embed=lambda tokens: jax.nn.one_hot(tokens, D, dtype=jnp.float64))
    u = jax.nn.one_hot(TOKENS, D, dtype=jnp.float64)
    one = linen(u)
    two = blocks[1](one, None)
    three = blocks[2](two, pj.FieldArgs())
    np.testing.assert_allclose(net.hidden_states(TOKENS), jnp.stack([u, one, two, three]), rtol=1e-12, atol=1e-14)
    assert "different functions" in repr(net)


def test_gradients_reach_weights_in_modules():
    layers = [EquinoxBlock(0.3 * jax.random.normal(jax.random.key(i), (D, D))) for i in range(L)]
    net = pj.network(layers)
    gradient = eqx.filter_grad(lambda net: jnp.sum(net(U) ** 2))(net)
    found = gradient.discretization.field.stacked.function.layer.w

    def plain(w):
        u = U
        for i in range(L):
            u = EquinoxBlock(w[i])(u, pj.FieldArgs())
        return jnp.sum(u**2)

    np.testing.assert_allclose(found, jax.grad(plain)(jnp.stack([layer.w for layer in layers])), rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: pj.network([]), ValueError, "network: layers is empty"),
        (lambda: pj.network([3]), TypeError, r"network: layers=\[3\] must be a sequence \(each entry a function\)"),
        (lambda: pj.network([EquinoxBlock]), TypeError, "must be a sequence .each entry a function"),
        (lambda: pj.network(5), TypeError, "network: layers=5 must be"),
        (lambda: pj.network(lambda u, args: u), TypeError, "Of plain functions give a list"),
        (lambda: pj.network([lambda u, args: u[:1]])(U), ValueError, "must keep the shape"),
        (lambda: pj.as_network(U), TypeError, "pdejax.network"),
        (lambda: pj.as_network("nowhere"), FileNotFoundError, "model='nowhere' does not exist"),
        (lambda: pj.network([jnp.tanh])(U, jnp.ones(2, bool)), ValueError, r"Network.__call__: mask has shape \(2,\)"),
        (lambda: pj.network([jnp.tanh]).replace(depth=3), TypeError, r"\['depth'\] are no parts of a network"),
        (lambda: pj.as_network(transformer())(jnp.asarray([9, 1])), ValueError, r"Network: tokens has ids from 1 to 9"),
        (
            lambda: pj.as_network(transformer())(jnp.zeros((2, 3), int)),
            ValueError,
            r"Network: tokens has shape \(2, 3\)",
        ),
        (lambda: pj.network([jnp.tanh], head=3), TypeError, "network: head=3 must be a function or None"),
        (
            lambda: pj.Network(jnp.asarray, pj.Discretization(lambda t, u, a: u, t1=1.0, steps=1), jnp.sum),
            ValueError,
            "layers=",
        ),
    ],
)
def test_bad_input(make, kind, text):
    with pytest.raises(kind, match=text):
        make()
