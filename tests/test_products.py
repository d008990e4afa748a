"""Products laid out for a CPU: values and every kind of derivative equal those of `jnp.tensordot`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import pdejax as pj
from pdejax import _products
from pdejax._products import product
from pdejax.models import _transformer

SHAPES = (((5, 4), (4, 3), 1), ((3, 7), (7, 2, 4), 1), ((6, 2, 4), (2, 4, 5), 2), ((4, 3, 2), (2, 17), 1))


def factors(shapes, dtype=jnp.float64):
    (left, right, over), rng = shapes, np.random.default_rng(0)
    return *(jnp.asarray(rng.normal(size=shape).astype(dtype)) for shape in (left, right)), over


def loss(multiply, over):
    return lambda x, w: jnp.sum(jnp.sin(multiply(x, w, over)))


def alike(found, wanted, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), found, wanted)


QUESTIONS = {
    "value": lambda f, x, w: f(x, w),
    "gradient": lambda f, x, w: jax.grad(f, (0, 1))(x, w),
    "change": lambda f, x, w: jax.jvp(f, (x, w), (jnp.cos(x), jnp.sin(w))),
    "second derivatives": lambda f, x, w: jax.jacfwd(jax.grad(f, (0, 1)), (0, 1))(x, w),
    "reverse twice": lambda f, x, w: jax.grad(lambda a: jnp.sum(jax.grad(f, 1)(a, w) ** 2))(x),
    "batches of both": lambda f, x, w: jax.grad(lambda a: jnp.sum(jax.vmap(f)(a, jnp.stack([w, 2 * w]))))(
        jnp.stack([x, -x])
    ),
    "batches of the left": lambda f, x, w: jax.grad(
        lambda b: jnp.sum(jax.vmap(f, (0, None))(jnp.stack([x, -x, 2 * x]), b))
    )(w),
    "batches of the right": lambda f, x, w: jax.grad(lambda a: jnp.sum(jax.vmap(f, (None, 0))(a, jnp.stack([w, -w]))))(
        x
    ),
    "batches within batches": lambda f, x, w: jax.grad(
        lambda b: jnp.sum(jax.vmap(jax.vmap(f, (None, 0)), (0, None))(jnp.stack([x, -x, 2 * x]), b))
    )(jnp.stack([w, 2 * w])),
}


@pytest.mark.parametrize("question", list(QUESTIONS))
def test_products_and_their_derivatives_equal_those_of_tensordot(question):
    """All shapes in one program: compiled one operation at a time they are hundreds."""
    ask, given = QUESTIONS[question], [factors(shapes) for shapes in SHAPES]

    @jax.jit
    def run(arrays):
        return [
            [ask(loss(multiply, over), x, w) for (x, w), (*_, over) in zip(arrays, given, strict=True)]
            for multiply in (product, jnp.tensordot)
        ]

    alike(*run([(x, w) for x, w, _ in given]))


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16, jnp.float16))
def test_gradients_in_other_types_equal_the_plain_formula_to_rounding(dtype):
    x, w, over = factors(SHAPES[0], dtype)
    wide = functools.partial(product, kind=jnp.float32)

    def plain(x, w, over):
        return jnp.tensordot(x, w, over, preferred_element_type=jnp.float32)

    found, wanted = jax.jit(lambda x, w: [jax.grad(loss(f, over), (0, 1))(x, w) for f in (wide, plain)])(x, w)
    assert [g.dtype for g in found] == [dtype, dtype]
    for a, b in zip(found, wanted, strict=True):
        difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
        assert difference <= 4 * float(jnp.finfo(dtype).eps) * np.abs(np.asarray(b, np.float64)).max()


def test_on_another_platform_and_in_half_precision_products_are_plain(monkeypatch):
    def primitives(dtype):
        x, w, over = factors(SHAPES[0], dtype)
        return {equation.primitive.name for equation in jax.make_jaxpr(lambda a, b: product(a, b, over))(x, w).eqns}

    assert primitives(jnp.float32) == {"pdejax_product"}
    assert primitives(jnp.bfloat16) == {"dot_general"}
    monkeypatch.setattr(_products, "platform_now", lambda: "gpu")
    assert primitives(jnp.float32) == {"dot_general"}


def test_of_the_two_factors_of_a_gradient_the_smaller_is_copied():
    """The right factor's gradient xᵀc: x, of 4 columns, is copied before 40 columns of c, c if it has 2, neither before 9."""

    def swapped(columns):
        x, w = jnp.ones((5, 4)), jnp.ones((4, columns))
        found = jax.make_jaxpr(jax.grad(lambda b: jnp.sum(jnp.sin(product(x, b)))))(w)
        return [
            e.invars[0].aval.shape
            for e in found.eqns
            if e.primitive.name == "optimization_barrier"  # pyright: ignore[reportAttributeAccessIssue]
        ]

    assert swapped(40) == [(4, 5)] and swapped(2) == [(2, 5)] and swapped(9) == []


def test_products_pass_shard_map_and_export():
    x, w, over = factors(SHAPES[0])
    gradient = jax.jit(jax.grad(loss(product, over), (0, 1)))
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("rows")
    on_devices = jax.shard_map(gradient, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=(rows, PartitionSpec()))
    alike(jax.jit(on_devices)(x, w), gradient(x, w))
    kept = jax.export.export(gradient)(x, w)
    alike(kept.call(x, w), gradient(x, w))


CONTRACTIONS = {
    "kernel": ((5, 4), (4, 3), (((1,), (0,)), ((), ()))),
    "heads": ((2, 5, 4), (4, 2, 3), (((2,), (0,)), ((), ()))),
    "out of heads": ((5, 2, 4), (2, 4, 3), (((1, 2), (0, 1)), ((), ()))),
    "transposed": ((4, 5), (4, 3), (((0,), (0,)), ((), ()))),
    "batched": ((2, 5, 4), (2, 4, 3), (((2,), (1,)), ((0,), (0,)))),
}


@pytest.mark.parametrize("name", list(CONTRACTIONS))
def test_layers_of_flax_multiply_as_jax_does(name):
    left, right, dimensions = CONTRACTIONS[name]
    x, w, _ = factors((left, right, 1))
    plain, ours = (jax.jit(lambda a, b, f=f: f(a, b, dimensions)) for f in (jax.lax.dot_general, _products.dot_general))
    alike(ours(x, w), plain(x, w))
    program = str(jax.make_jaxpr(ours)(x, w))
    assert ("pdejax_product" in program) == (name not in ("transposed", "batched"))


def test_what_a_product_does_not_know_is_left_to_jax(monkeypatch):
    """A sharding of the result, a precision, or two types."""
    x, w, _ = factors(SHAPES[0])
    given = []
    monkeypatch.setattr(jax.lax, "dot_general", lambda *args, **options: given.append(options) or x)
    plain = (((1,), (0,)), ((), ()))
    for options in ({"out_sharding": PartitionSpec()}, {"precision": "highest"}):
        _products.dot_general(x, w, plain, **options)
    _products.dot_general(x, w.astype(jnp.float32), plain)
    assert [{k: v for k, v in options.items() if v is not None} for options in given] == [
        {"out_sharding": PartitionSpec()},
        {"precision": "highest"},
        {},
    ]


def test_the_gradient_of_a_transformer_repeats_no_product(monkeypatch):
    """As many as where nothing is computed again, and more where only each layer's input is kept."""
    model = pj.Transformer(pj.Architecture(vocab=3, dim=4, heads=2, layers=2, ffn=6), rngs=nnx.Rngs(0))
    graph, weights = nnx.split(model)

    def count(policy):
        monkeypatch.setattr(_transformer, "keep_products", policy)
        jax.clear_caches()
        gradient = jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(jnp.arange(3)) ** 2))
        text = str(jax.make_jaxpr(gradient)(weights))
        return text.count("pdejax_product[") + text.count("dot_general[")

    policies = jax.checkpoint_policies
    kept = count(_products.keep_products)
    assert kept == count(policies.everything_saveable) < count(policies.nothing_saveable)
