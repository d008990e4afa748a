"""Tokens on several devices, which are the lanes of a `vmap` with a named axis here; real ones: `test_ring_devices.py`."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax._check import traced
from pdejax.terms import AbstractTerm, _kernels, _ring
from pdejax.terms._token_axis import TokenAxis

N, D = 24, 4
KEY = jax.random.key(0)
U = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)))
# Padding at the end, in the middle and at the start; a causal first token sees none but itself.
MASK = jnp.asarray(~np.isin(np.arange(N), [0, 5, 6, 21, 22, 23]))
LAYOUTS = ("striped", "blocks")


def axis(devices=4, layout="striped", n=N):
    return TokenAxis("tokens", devices, n, layout)


def order(tokens):
    whole = np.arange(tokens.length)
    return whole.reshape(-1, tokens.devices).T if tokens.layout == "striped" else whole.reshape(tokens.devices, -1)


def on_devices(function, tokens, *arrays):
    """`function` on each device's part of the arrays; what it gives in the order of the sequence."""
    places = order(tokens)
    run = jax.vmap(function, axis_name=tokens.name)
    inside = traced(*arrays)
    # A rule for derivatives is traced where it is asked for: inside the lanes, not inside a program that has none left.
    found = run(*(x[places] for x in arrays)) if inside else jax.jit(run)(*(np.asarray(x)[places] for x in arrays))
    found = found if inside else jax.device_get(found)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[np.argsort(places.ravel())], found)


def across(term, tokens, u, mask=None):
    if mask is None:
        return on_devices(lambda v: term.across(tokens)(0.0, v, pj.FieldArgs()), tokens, u)
    return on_devices(lambda v, m: term.across(tokens)(0.0, v, pj.FieldArgs(mask=m)), tokens, u, mask)


@pytest.mark.parametrize(("devices", "layout"), [(1, "striped"), (2, "blocks"), (8, "striped"), (8, "blocks")])
def test_every_token_knows_its_place_and_its_neighbours(devices, layout):
    tokens = axis(devices, layout)
    x = np.arange(1.0, N + 1)
    seams = {"wrap": (N, 1), "edge": (1, N), "constant": (0, 0)}

    def lane(v):
        total = jnp.full(v.shape, tokens.sum(v.sum()))
        return tokens.positions(), tokens.own(jnp.asarray(x)), total, [tokens.neighbours(v, seam) for seam in seams]

    places, own, total, neighbours = on_devices(lane, tokens, x)
    np.testing.assert_array_equal(places, np.arange(N))
    np.testing.assert_array_equal(own, x)
    np.testing.assert_array_equal(total, np.full(N, x.sum()))
    for (first, last), (before, after) in zip(seams.values(), neighbours, strict=True):
        np.testing.assert_array_equal(before, [first, *x[:-1]])
        np.testing.assert_array_equal(after, [*x[1:], last])


@eqx.filter_jit
def whole(term, u, mask=None):
    """The term on one device."""
    return term(0.0, u, pj.FieldArgs(mask=mask))


def attention(**options):
    return pj.Attention(8, 2, key=KEY, bias=True, **options)


TERMS = {
    "plain": attention(),
    "causal": attention(causal=True),
    "grouped": pj.Attention(8, 4, kv_heads=2, key=KEY, causal=True),
    "window": attention(window=5),
    "causal window": attention(window=5, causal=True),
    "alibi": attention(alibi=jnp.asarray([0.5, 0.1]), causal=True),
    "rotary": attention(rotary=100.0, causal=True),
    "cap": attention(logit_cap=2.0, logit_scale=0.7),
    "quadrature": attention(grid=pj.Grid(N, boundary="dirichlet"), leak=True, strength=0.5),
    "l2": attention(kernel="l2", causal=True),
    "linear": attention(kernel="linear"),
    "uniform": attention(kernel="uniform", norm=pj.LayerNorm(8)),
}
WIDE = jnp.asarray(np.random.default_rng(1).normal(size=(N, 8)))


@pytest.mark.parametrize("name", TERMS)
def test_attention_is_that_of_one_device(name, relative):
    term = TERMS[name]
    layout = "striped" if term.causal else "blocks"
    for mask in (None, MASK) if name in ("plain", "causal") else (MASK,):
        found = across(term, axis(4, layout), WIDE, mask)
        assert relative(found, whole(term, WIDE, mask)) < 1e-14


@pytest.mark.parametrize("devices", [1, 3])
def test_attention_in_the_other_layout(devices, relative):
    term = TERMS["rotary"]
    found = across(term, axis(devices, "blocks"), WIDE, MASK)
    assert relative(found, whole(term, WIDE, MASK)) < 1e-14


def test_a_query_that_sees_no_key_is_zero_with_derivatives_zero():
    term = pj.Attention(8, 2, key=KEY, causal=True)
    f = jax.jit(jax.value_and_grad(lambda u: jnp.sum(across(term, axis(), u, MASK)[0] ** 2)))
    value, slope = f(WIDE)
    assert float(value) == 0 and not np.asarray(slope).any()


def test_rotary_positions_of_long_sequences_in_float32():
    """At position 10⁶ an angle in float32 is off by 0.06; composed turns keep float32's own digits."""
    places = jnp.asarray([0, 1, 2047, 2048, 123_457, 1_048_575], jnp.int32)
    x = jnp.ones((6, 1, 4), jnp.float32)
    rotary = pj.terms.Rotary(4)
    with jax.enable_x64(False):
        found = jax.jit(rotary)(x, places)
    angle = np.asarray(places)[:, None] * np.asarray(rotary.frequencies)
    exact = np.concatenate([np.cos(angle) - np.sin(angle), np.cos(angle) + np.sin(angle)], axis=1)
    np.testing.assert_allclose(found[:, 0], exact, atol=5e-7)
    np.testing.assert_array_equal(*jax.jit(lambda x: (rotary(x, jnp.arange(3)), rotary(x)))(x[:3]))


def test_rotary_positions_end_where_their_angles_do():
    plain, turned = (pj.Attention(8, 2, key=KEY, rotary=rotary) for rotary in (None, 10000.0))
    longest = 2048**2
    assert callable(turned.across(axis(n=longest))) and callable(plain.across(axis(n=2 * longest)))
    with pytest.raises(
        ValueError, match=r"rotary positions on devices are known for 4,194,304 tokens, not for 8,388,608"
    ):
        turned.across(axis(n=2 * longest))


# Blocks of queries and pieces of a triangle, all of which a short sequence would have no need of.
@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setitem(_kernels._BLOCK_BYTES, "cpu", 1)
    monkeypatch.setattr(_ring, "_MIN_ROWS", 3)


def test_blocks_and_pieces_change_nothing(small_blocks, relative):
    for name in ("rotary", "grouped", "plain"):
        term = TERMS[name]
        assert relative(across(term, axis(2), WIDE, MASK), whole(term, WIDE, MASK)) < 1e-14


def test_derivatives_are_those_of_one_device(small_blocks, relative):
    """Reverse mode by weights and tokens, forward mode, and a Hessian along a direction: reverse over forward."""
    tokens, term = axis(2), attention(causal=True, rotary=100.0)
    weight, direction = np.random.default_rng(2).normal(size=(2, N, 8))

    def loss(given, sharded):
        term, u = given
        out = across(term, tokens, u, MASK) if sharded else term(0.0, u, pj.FieldArgs(mask=MASK))
        return jnp.sum(weight * out**2)

    def along(sharded):
        def slope(u):
            return jax.jvp(lambda u: loss((term, u), sharded), (u,), (direction,))[1]

        return eqx.filter_jit(jax.value_and_grad(slope))(WIDE)

    both = [eqx.filter_jit(eqx.filter_grad(lambda g, s=s: loss(g, s)))((term, WIDE)) for s in (True, False)]
    for here, there in zip(*map(jax.tree.leaves, both), strict=True):
        assert relative(here, there) < 1e-13
    (slope, second), (exact, expected) = along(True), along(False)
    assert slope == pytest.approx(float(exact), rel=1e-13) and relative(second, expected) < 1e-12


def products(jaxpr, times=1):
    """Multiplications of all matrix products of a program, loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pdejax_product":
            # (rows × summed) (summed × columns) (rows × columns), each once for what all three have in common
            sizes = [math.prod(x.aval.shape) for x in (*equation.invars, *equation.outvars)]
            common = math.prod(equation.invars[0].aval.shape[: equation.params["batch"]])
            total += times * math.isqrt(math.prod(sizes) // common)
        inside = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            total += products(inner, inside) if hasattr(inner, "eqns") else 0
    return total


def test_stripes_share_a_causal_mask_out_and_leave_half_of_it():
    """Every device runs one program: in blocks the last one needs all pairs, on stripes each about half of them."""
    n, devices = 256, 2
    x = jnp.ones((devices, n // devices, 2, 4))

    def work(causal, layout):
        tokens = axis(devices, layout, n)
        options = {
            "bias": None,
            "alibi": None,
            "window": None,
            "logit_scale": None,
            "logit_cap": None,
            "causal": causal,
        }
        run = jax.vmap(lambda x: _ring.ring_attend(tokens, q=x, k=x, v=x, **options), axis_name="tokens")
        return products(jax.make_jaxpr(run)(x).jaxpr)

    everything = 2 * n * n * 2 * 4  # two products of n² pairs, 2 heads of 4 features
    assert work(False, "striped") == work(True, "blocks") == everything
    assert work(True, "striped") == everything * (_ring.PIECES + 1) / (2 * _ring.PIECES)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("boundary", ["neumann", "dirichlet", "periodic"])
def test_diffusion_by_halos(boundary, layout, relative):
    """Each boundary with each layout, with and without padding; a matrix couples features on one device alone."""
    matrix = np.kron(np.eye(2), [[0.3, 0.1], [0.0, 0.2]])
    for d, mask in ((matrix, None), (np.arange(4.0), MASK)) if layout == "blocks" else ((0.3, None), (matrix, MASK)):
        term = pj.Diffusion(pj.Grid(N, boundary=boundary), jnp.asarray(d))
        assert relative(across(term, axis(4, layout), U, mask), whole(term, U, mask)) < 1e-14


def test_other_terms(relative):
    rates = jnp.linspace(0, 1, N)
    terms = (
        pj.SpatialNorm(rates),
        pj.SpatialNorm(0.5, grid=pj.Grid(N, boundary="dirichlet")),
        pj.LinearDamping(rates),
        pj.LinearDamping(0.5),
        pj.LayerNormRelaxation(D, rates),
        pj.FeedForward(D, 8, key=KEY, gate=True),
    )
    for term in terms:
        found = across(term, axis(), U, MASK)
        assert relative(found, whole(term, U, MASK)) < 1e-14
    assert relative(across(terms[0], axis(), U), whole(terms[0], U)) < 1e-14


def test_half_precision_is_accumulated_in_float32(relative):
    term = pj.Attention(8, 2, key=KEY, causal=True)
    u = WIDE.astype(jnp.bfloat16)
    found = across(term, axis(), u)
    assert found.dtype == jnp.bfloat16
    assert relative(found.astype(float), np.asarray(whole(term, u)).astype(float)) < 0.01


class Shuffle(AbstractTerm):
    def __call__(self, t, u, args):
        return u[::-1]

    def damping(self):
        return jnp.zeros(())

    def check(self, n, d):
        pass


@pytest.mark.bad_input
def test_what_cannot_be_sharded_says_so():
    equation = pj.MasterEquation(pj.Attention(D, key=KEY))
    sharded = pj.shard_tokens(equation)
    assert sharded.describe() == "attention, tokens on 1 devices" and sharded.names() == ("interaction",)
    np.testing.assert_array_equal(sharded.collect(sharded.place(U)), U)
    with pytest.raises(ValueError, match="Shuffle does not say how it acts on tokens that lie on several devices"):
        pj.shard_tokens(pj.MasterEquation(Shuffle()))(0.0, U, None)
    with pytest.raises(ValueError, match="a source g"):
        source = pj.FeedForward(D, 8, key=KEY, source=lambda x, t: U)
        pj.shard_tokens(pj.MasterEquation(source))(0.0, U, None)
    with pytest.raises(ValueError, match="devices is empty"):
        pj.shard_tokens(equation, [])
    with pytest.raises(ValueError, match="layout='stripes'"):
        pj.shard_tokens(equation, layout="stripes")
    with pytest.raises(TypeError, match="shard_tokens: field"):
        pj.shard_tokens(lambda t, u, args: u)
    with pytest.raises(ValueError, match="no transform goes over several devices"):
        pj.simulate(pj.Discretization(sharded, "etdrk4", t1=1.0, steps=2), U)


def test_a_field_like_any_other(relative):
    equation = pj.MasterEquation(pj.Attention(D, key=KEY, causal=True), pj.FeedForward(D, 8, key=KEY))
    sharded = pj.shard_tokens(equation)
    plain, other = (
        pj.simulate(pj.Discretization(f, "lietrotter", t1=1.0, steps=2), U, mask=MASK).us[-1]
        for f in (equation, sharded)
    )
    assert relative(other, plain) < 1e-14
