"""Weights as a function of depth: planted ones that are smooth, a random walk, and independent; the test's level."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax.analysis.spectra import weights_in_depth
from pdejax.analysis.spectra._depth import _detectable, order_test

D, M, L = 12, 20, 16


class Two(eqx.Module):
    """Two matrices on a state of D features, and a vector."""

    a: jax.Array
    b: jax.Array
    bias: jax.Array

    def __call__(self, u):
        return u + jnp.tanh(u @ self.a) @ self.b + self.bias


def network(a, b):
    return pj.network(eqx.filter_vmap(Two)(jnp.asarray(a), jnp.asarray(b), jnp.zeros((len(a), D))))


def planted(kind, seed=0, layers=L):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        x = rng.standard_normal((layers, *shape))
        if kind == "smooth":
            t = np.linspace(0, 1, layers)[:, None, None]
            return x[0] * np.cos(1.5 * t) + x[1] * np.sin(1.5 * t)
        if kind == "walk":
            return 4 * x[0] + np.cumsum(x, axis=0)
        return x

    return network(draw(D, M), draw(M, D))


def test_figures_are_those_of_a_loop_over_pairs():
    net = planted("independent")
    found = weights_in_depth(net, rank=3, dim=D)
    assert [name.split(".")[-1] for name in found.names] == ["a", "b"] and found.independent == 3 / D
    layers = net.discretization.field.stacked.function.layer
    w = [np.asarray(layers.a), np.swapaxes(np.asarray(layers.b), 1, 2)]
    for i, j, k in ((0, 2, 5), (1, 3, 3), (1, 0, 15)):
        a, b = w[i][j], w[i][k]
        distance = np.linalg.norm(a - b) / np.sqrt(np.linalg.norm(a) ** 2 + np.linalg.norm(b) ** 2)
        assert found.distance[i, j, k] == pytest.approx(distance, abs=1e-7)
        s, t = (x @ x.T - np.trace(x @ x.T) / D * np.eye(D) for x in (a, b))
        assert found.correlation[i, j, k] == pytest.approx(np.sum(s * t) / np.linalg.norm(s) / np.linalg.norm(t))
        u, v = (np.linalg.svd(x)[0][:, :3] for x in (a, b))
        assert found.overlap[i, j, k] == pytest.approx(np.linalg.norm(u.T @ v) ** 2 / 3)


def test_hidden_units_in_another_order_are_the_same_weights():
    rng = np.random.default_rng(1)
    one = np.repeat(rng.standard_normal((1, D, M)), 4, axis=0)
    mixed = np.stack([w[:, rng.permutation(M)] for w in one])
    found = weights_in_depth(network(mixed, np.swapaxes(mixed, 1, 2)), dim=D)
    np.testing.assert_allclose(found.correlation, 1, rtol=1e-10)
    np.testing.assert_allclose(found.overlap, 1, rtol=1e-8)
    assert found.distance[0, 0, 1] > 0.8


@pytest.mark.parametrize(
    ("kind", "least", "most"), [("smooth", 0.85, 1.05), ("walk", 0.3, 0.6), ("independent", -0.05, 0.05)]
)
def test_the_exponent_of_planted_weights(kind, least, most):
    found = weights_in_depth(planted(kind), dim=D)
    assert least < float(found.holder) < most
    assert (found.p_value < 0.01) == (kind != "independent")
    assert float(found.adjacent.nulls["layers shuffled"].value) < float(found.adjacent) or kind == "independent"


def test_the_level_of_the_test():
    """Layers that are exchangeable: 10 % of 400 networks of 6 layers are rejected at 10 %, within four standard errors."""
    rng = np.random.default_rng(2)
    p = []
    for _ in range(400):
        noise = np.triu(rng.standard_normal((6, 6)), 1)
        p.append(order_test(noise + noise.T, rng, 199)[2])
    assert abs(np.mean(np.asarray(p) <= 0.1) - 0.1) < 4 * (0.1 * 0.9 / 400) ** 0.5


def test_more_layers_have_more_power():
    """Against the same scatter between far layers, sixteen layers show what five do not."""
    rng, least = np.random.default_rng(3), []
    for layers in (5, L):
        noise = 0.3 * np.triu(rng.standard_normal((layers, layers)), 1)
        least.append(_detectable(np.eye(layers) + noise + noise.T, rng))
    assert 0.1 <= least[1] <= 0.7 and not least[0] <= least[1]


@pytest.mark.parametrize(("heads", "ffn"), [(8, 8), (2, 12)])
def test_the_states_axis_is_that_of_the_weights_role(heads, ffn):
    """Whatever the numbers of heads and hidden units: a change of the state's basis turns what is compared, and that alone."""
    d, layers = 8, 4
    model = pj.Transformer(pj.Architecture(vocab=5, dim=d, heads=heads, ffn=ffn, layers=layers), rngs=nnx.Rngs(0))
    field = pj.as_network(model).discretization.field.stacked
    attention, reaction = field.terms
    wide = {"wq": "ldhk->ldhk", "wk": "ldhk->ldhk", "wv": "ldhk->ldhk", "wo": "lhkd->ldhk"}
    own = {f"interaction.{n}": np.einsum(e, np.asarray(getattr(attention, n))) for n, e in wide.items()}
    own |= {"reaction.w1": np.asarray(reaction.w1), "reaction.w2": np.swapaxes(np.asarray(reaction.w2), 1, 2)}
    found = weights_in_depth(model)
    assert set(found.names) == set(own)
    for i, name in enumerate(found.names):
        w = own[name].reshape(layers, d, -1)
        a, b = (x @ x.T - np.trace(x @ x.T) / d * np.eye(d) for x in w[:2].astype(float))
        expected = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
        assert found.correlation[i, 0, 1] == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: weights_in_depth(pj.network([lambda u: u] * 4)), "no weight matrices"),
        (lambda: weights_in_depth(planted("smooth", layers=2)), "2 layers"),
        (lambda: weights_in_depth(planted("smooth"), dim=5), "dim=5"),
        (lambda: weights_in_depth(planted("smooth")), r"any of \[12, 20\]"),
        (lambda: weights_in_depth(network(np.full((4, D, M), np.nan), np.ones((4, M, D)))), "not finite"),
        (lambda: weights_in_depth(planted("smooth"), rank=D + 1, dim=D), f"rank={D + 1}"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
