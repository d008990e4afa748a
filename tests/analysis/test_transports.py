"""Jacobian transports beside whole Jacobians, closed forms, and the file that holds them."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax.analysis.jacobian import jacobian_transports
from pdejax.networks import save_transports
from pdejax.networks.families._safetensors import read_safetensors

B, N, D, L = 2, 5, 6, 3
RNG = np.random.default_rng(0)
U0 = jnp.asarray(RNG.standard_normal((B, N, D)))
MASK = jnp.asarray([[True] * 5, [True] * 3 + [False] * 2])


class Mixed(eqx.Module):
    """A layer that mixes tokens and features, nonlinear in both."""

    a: jax.Array
    m: jax.Array

    def __call__(self, u):
        return u + jnp.tanh(self.a @ u @ self.m)


def test_transports_are_sums_of_the_whole_jacobian():
    """Every derivative of every token by every token, from JAX's own dense Jacobian."""
    lower = np.tril(np.ones((N, N)))
    layers = [
        Mixed(jnp.asarray(lower * RNG.standard_normal((N, N)) * 0.4), jnp.asarray(RNG.standard_normal((D, D)) * 0.4))
        for _ in range(L)
    ]
    found = np.asarray(jacobian_transports(pj.network(layers), U0, batch_size=4))
    assert found.shape == (L + 1, D, D)

    def run(u, some):
        for layer in some:
            u = layer(u)
        return u

    @jax.jit
    def wholes(u):  # (N, D, N, D) at every depth
        return [jax.jacobian(lambda v, l=l: run(v, layers[l:]))(run(u, layers[:l])) for l in range(L + 1)]

    each = [[np.asarray(x).sum(axis=0).mean(axis=1) for x in wholes(u)] for u in U0]
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-9, atol=1e-12)


def test_of_tokens_alone_they_are_products_of_matrices_whatever_is_masked_or_skipped():
    weights = 0.4 * RNG.standard_normal((L, D, D))
    matrices = [jnp.asarray(m) for m in weights]
    net = pj.network([lambda u, m=m: u @ m for m in matrices])
    for options in ({}, {"mask": MASK}, {"mask": MASK, "skip": 2}):
        found = jacobian_transports(net, U0, **options)
        for l in range(L + 1):
            product = np.eye(D)
            for m in weights[l:]:
                product = product @ m
            np.testing.assert_allclose(found[l], product.T, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="skip=3 leaves no token of a sequence of 3"):
        jacobian_transports(net, U0, mask=MASK, skip=3)
    with pytest.raises(ValueError, match="mask has 1 rows for 2 sequences"):
        jacobian_transports(net, U0, mask=MASK[0])


def test_padding_changes_nothing_in_a_transformer():
    sizes = {"vocab": 7, "dim": D, "heads": 2, "layers": L, "ffn": 8, "head": "none"}
    model = pj.Transformer(pj.Architecture(**sizes, dtype="float64", param_dtype="float64"), rngs=nnx.Rngs(0))
    short = jacobian_transports(model, U0[1, :3])
    np.testing.assert_allclose(jacobian_transports(model, U0[1], mask=MASK[1]), short, rtol=1e-8, atol=1e-10)


def test_the_file_is_read_back_by_name(tmp_path):
    transports = RNG.standard_normal((L + 1, D, D))
    path = save_transports(tmp_path / "lens.safetensors", transports)
    read = read_safetensors(path)
    assert set(read) == {f"jacobian.{l}" for l in range(L + 1)}
    for l, expected in enumerate(transports.astype(np.float32)):
        np.testing.assert_array_equal(read[f"jacobian.{l}"].read(), expected)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + size])["__metadata__"]
    assert size % 8 == 0 and about["format"] == "pdejax.transports.1" and about["states"] == str(L + 1)
    package = pytest.importorskip("safetensors.numpy", reason="compares with the package safetensors")
    np.testing.assert_array_equal(package.load_file(path)["jacobian.1"], transports[1].astype(np.float32))


@pytest.mark.parametrize(
    ("transports", "name", "words"),
    [
        (np.ones((2, 3, 4)), "a.safetensors", r"shape \(2, 3, 4\); it must be \(states, d, d\)"),
        (np.full((1, 2, 2), np.nan), "a.safetensors", "NaN or infinite"),
        (np.ones((1, 2, 2)), "a.pt", r"must end in \.safetensors"),
    ],
)
def test_what_is_no_transport_is_not_written(tmp_path, transports, name, words):
    with pytest.raises(ValueError, match=words):
        save_transports(tmp_path / name, transports)
    assert not list(tmp_path.iterdir())
