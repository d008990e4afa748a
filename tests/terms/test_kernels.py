"""`attend`: its implementations against a loop in float64, in values, derivatives, batches and memory."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from pdejax.terms import _kernels
from pdejax.terms._kernels import attend

IMPLEMENTATIONS = ["dense", "blocked"]
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of about 16 rows at the sizes of these tests, so that all of them have several."""
    monkeypatch.setitem(_kernels._BLOCK_BYTES, "cpu", 1)


def inputs(n, m=None, heads=2, dk=4, dv=3, dtype="float64", scale=1.0, seed=0):
    m = n if m is None else m
    rng = np.random.default_rng(seed)
    shapes = [(n, heads, dk), (m, heads, dk), (m, heads, dv)]
    q, k, v = (rng.normal(size=s) for s in shapes)
    return tuple(jnp.asarray(np.asarray(x, jnp.dtype(dtype))) for x in (q * scale, k, v))


def shift(arrays, directions, h):
    return tuple(np.asarray(a) + h * np.asarray(d) for a, d in zip(arrays, directions, strict=True))


@functools.partial(jax.jit, static_argnames=("causal", "implementation", "window", "logit_scale", "logit_cap"))
def compiled(q, k, v, bias=None, **options):
    """`attend` as one program: call by call it is thirty, each compiled alone."""
    return attend(q, k, v, bias=bias, **options)


def double(x):
    return np.asarray(x).astype(np.float64)


def loop(q, k, v, bias=None, causal=False, *, alibi=None, window=None, logit_scale=None, logit_cap=None):
    """The definition, a query at a time, in float64 and without JAX."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    n, heads, dk = q.shape
    k, v = (np.repeat(x, heads // x.shape[1], axis=1) for x in (k, v))
    scale = 1 / math.sqrt(dk) if logit_scale is None else logit_scale
    cap = (lambda z: z) if logit_cap is None else (lambda z: logit_cap * math.tanh(z / logit_cap))
    slopes = np.zeros(heads) if alibi is None else np.asarray(alibi, np.float64)
    reach = max(q.shape[0], k.shape[0]) if window is None else window
    b = np.broadcast_to(0.0 if bias is None else np.asarray(bias, np.float64), (heads, k.shape[0]))
    out = np.zeros((n, heads, v.shape[2]))
    for i in range(n):
        for h in range(heads):
            keys = [j for j in range(k.shape[0]) if b[h, j] > -np.inf and (j <= i or not causal) and abs(i - j) < reach]
            z = [cap(scale * float(q[i, h] @ k[j, h])) + b[h, j] - slopes[h] * abs(i - j) for j in keys]
            p = [math.exp(x - max(z)) for x in z]
            for j, weight in zip(keys, p, strict=True):
                out[i, h] += weight / math.fsum(p) * v[j, h]
    return out


def biases(m, heads, seed=1):
    rng = np.random.default_rng(seed)
    masked = rng.normal(size=(m,))
    masked[m // 2 :] = -np.inf
    return {
        "none": None,
        "keys": rng.normal(size=(m,)),
        "heads": rng.normal(size=(heads, m)),
        "masked": masked,
    }


# Each size with each implementation; float32 where there are several blocks. "auto" is one of the two, see below.
VALUES = [
    *((name, "float64", *size) for name in IMPLEMENTATIONS for size in ((1, 1), (37, 37), (20, 53))),
    *((name, "float32", 37, 37) for name in IMPLEMENTATIONS),
    ("blocked", "float64", 16, 16),
    ("auto", "float64", 20, 53),
]


@pytest.mark.parametrize(("implementation", "dtype", "n", "m"), VALUES)
def test_values(implementation, dtype, n, m, relative):
    q, k, v = inputs(n, m, dtype=dtype)
    given = {name: None if x is None else np.asarray(x, dtype) for name, x in biases(m, 2).items()}
    if m == 1:
        del given["masked"]
    cases = [(name, causal) for name in given for causal in {False, n == m}]

    @jax.jit
    def run(q, k, v, given):
        options = {"implementation": implementation}
        return [attend(q, k, v, bias=given[name], causal=causal, **options) for name, causal in cases]

    for (name, causal), out in zip(cases, run(q, k, v, given), strict=True):
        assert out.shape == (n, 2, 3) and out.dtype == dtype
        assert relative(double(out), loop(q, k, v, given[name], causal)) < TOLERANCE[dtype], (name, causal)


SLOPES = np.array([0.5, 0.2, 0.1, 0.0])
OPTIONS = {
    "groups": {},
    "window": {"window": 7},
    "causal window": {"window": 5, "causal": True},
    "alibi": {"alibi": SLOPES, "causal": True},
    "cap": {"logit_cap": 0.8, "logit_scale": 1.7},
    "all": {"alibi": SLOPES, "window": 20, "logit_cap": 2.0, "logit_scale": 0.3, "causal": True},
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, implementation, relative):
    """Grouped heads in every company; 37 queries in three blocks, so that positions are those of the whole."""
    options = OPTIONS[name]
    groups = {"groups": 1, "all": 2}.get(name, 4)
    q, _, _ = inputs(37, heads=4)
    _, k, v = inputs(37, heads=groups, seed=2)
    bias = jnp.asarray(biases(37, 4)["masked"])
    given = {key: jnp.asarray(x) if isinstance(x, np.ndarray) else x for key, x in options.items()}

    @jax.jit
    def run(q, k, v, bias):
        one = functools.partial(attend, implementation=implementation, **given)
        single = one(*(x.astype(jnp.float32) for x in (q, k, v)))
        return one(q, k, v, bias=bias), single

    found, single = run(q, k, v, bias)
    assert relative(found, loop(q, k, v, bias, **options)) < 1e-12
    assert single.dtype == jnp.float32
    assert relative(double(single), loop(q, k, v, **options)) < 1e-5


def test_derivatives_of_options_agree_between_implementations(relative):
    """Reverse over forward through the blocks, the slopes of ALiBi and the keys of groups included."""
    q, _, _ = inputs(35, heads=4)
    _, k, v = inputs(35, heads=2, seed=2)
    alibi = jnp.asarray(SLOPES)

    def gradient(implementation):
        def f(q, k, v, alibi):
            options = {"window": 9, "logit_cap": 1.5, "causal": True}
            return jnp.sum(attend(q, k, v, alibi=alibi, implementation=implementation, **options) ** 3)

        return jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3)))

    x, dense, blocked = (q, k, v, alibi), gradient("dense"), gradient("blocked")
    _, found = dense(*x)
    for a, b in zip(blocked(*x)[1], found, strict=True):
        assert relative(a, b) < 1e-11
    d = tuple(np.random.default_rng(4).normal(size=y.shape) for y in x)
    ahead, behind = (float(dense(*shift(x, d, h))[0]) for h in (1e-5, -1e-5))
    slope = sum(float(np.vdot(g, y)) for g, y in zip(found, d, strict=True))
    assert slope == pytest.approx((ahead - behind) / 2e-5, rel=1e-7)


def test_options_that_are_off_add_no_operations():
    def operations(**options):
        program = str(jax.make_jaxpr(lambda *x: attend(*x, implementation="dense", **options))(*inputs(16)))
        return {name for name in ("iota", "tanh", "abs", "lt", "le", "gather") if re.search(rf"= {name}\b", program)}

    assert operations() == set()
    assert operations(causal=True) == {"iota", "le"}
    assert {"iota", "abs", "lt"} <= operations(window=3) and "tanh" in operations(logit_cap=1.0)


def test_a_window_may_be_traced(relative):
    window = jax.jit(lambda w: attend(*inputs(16), window=w, implementation="dense"))
    for size in (1, 4):
        assert relative(window(jnp.asarray(size)), loop(*inputs(16), window=size)) < 1e-12
    with pytest.raises(TypeError, match="window is traced as float64"):
        window(jnp.asarray(4.0))


@pytest.mark.parametrize("causal", [True, False])
def test_options_against_torch(causal, relative):
    """`scaled_dot_product_attention` with grouped heads, a window and ALiBi as a mask of its own."""
    torch = pytest.importorskip("torch")
    q, _, _ = inputs(21, heads=4)
    _, k, v = inputs(21, heads=2, seed=2)
    slopes, far = SLOPES, np.arange(21)[:, None] - np.arange(21)[None, :]
    seen = (abs(far) < 6) & ((far >= 0) | (not causal))
    bias = np.where(seen[None], -slopes[:, None, None] * abs(far)[None], -np.inf)
    given = [torch.tensor(np.asarray(x)).permute(1, 0, 2)[None] for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *given, attn_mask=torch.tensor(bias)[None], scale=0.7, enable_gqa=True
    )
    found = compiled(q, k, v, alibi=jnp.asarray(slopes), window=6, causal=causal, logit_scale=0.7)
    assert relative(found, expected[0].permute(1, 0, 2).numpy()) < 1e-12


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_large_logits_neither_overflow_nor_lose_the_maximum(implementation, dtype):
    q, k, v = inputs(24, dtype=dtype, scale=2e4)
    logits = np.einsum("ihk,jhk->hij", *(np.asarray(x, np.float64) for x in (q, k))) / 2
    assert np.abs(logits).max() > 1e4

    def square(*a):
        found = attend(*a, implementation=implementation)
        return jnp.sum(found**2), found

    (out, found), grads = jax.jit(jax.value_and_grad(square, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    assert np.isfinite(out) and all(np.isfinite(g).all() for g in grads)
    # float32 keeps a logit of 1e4 to about 1e-3 only: ask for what its rounding allows.
    error = np.abs(double(found) - loop(q, k, v)).max()
    assert error < {"float64": 1e-10, "float32": 1e-1}[dtype]
    one_sided = compiled(q, k, v, jnp.asarray(np.full(24, -1e4, dtype)), implementation=implementation)
    assert np.isfinite(one_sided).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_query_without_keys_gives_zero_and_zero_derivatives(implementation):
    q, k, v = inputs(20)

    def f(*a):
        found = attend(*a, bias=jnp.full((20,), -jnp.inf), implementation=implementation)
        return jnp.sum(found + found**2), found

    grads, found = jax.jit(jax.grad(f, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    assert all((np.asarray(x) == 0).all() for x in (found, *grads))
    # Causal, the first three keys masked: exactly the first three queries are left without a key.
    bias = np.where(np.arange(20) < 3, -np.inf, 0.0)
    out = np.asarray(compiled(q, k, v, bias, causal=True, implementation=implementation))
    assert (out[:3] == 0).all() and (out[3:] != 0).all() and np.isfinite(out).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equal_finite_biases_change_nothing(implementation, relative):
    q, k, v = inputs(20)
    low = compiled(q, k, v, np.full(20, -50.0), implementation=implementation)
    assert relative(low, compiled(q, k, v, implementation=implementation)) < 1e-12


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_l2_kernel_through_a_bias_per_head(implementation, relative):
    q, k, v = inputs(19)
    q, k, v = map(np.asarray, (q, k, v))
    out = compiled(2 * q, k, v, -np.sum(k**2, -1).T / 2.0, implementation=implementation)
    p = scipy.special.softmax(-np.sum((q[:, None] - k[None]) ** 2, -1) / 2.0, axis=1)
    assert relative(out, np.einsum("ijh,jhd->ihd", p, v)) < 1e-12


def weighted(implementation, causal, weights):
    """A scalar of q, k, v and bias whose derivatives have no symmetry to hide behind."""

    def f(q, k, v, bias):
        return jnp.sum(weights * attend(q, k, v, bias=bias, causal=causal, implementation=implementation) ** 2)

    return f


@pytest.mark.parametrize("causal", [False, True])
def test_derivatives(causal, relative):
    """Blocked against dense in every kind of derivative, and dense against differences of blocked values and gradients."""
    n = 35
    x = (*inputs(n), jnp.asarray(biases(n, 2)["heads"]))
    d = tuple(np.random.default_rng(2).normal(size=y.shape) for y in x)
    weights = np.random.default_rng(3).normal(size=(n, 2, 3))

    def everything(implementation):
        f = weighted(implementation, causal, weights)
        grad = jax.grad(f, argnums=(0, 1, 2, 3))
        forward = jax.jvp(f, x, d)[1]
        gradients, forward_over_reverse = jax.jvp(grad, x, d)
        reverse_over_reverse = jax.grad(lambda *a: sum(jnp.vdot(g, t) for g, t in zip(grad(*a), d, strict=True)))(*x)
        return gradients, forward, forward_over_reverse, reverse_over_reverse

    dense = jax.jit(lambda: everything("dense"))()
    blocked = jax.jit(lambda: everything("blocked"))()
    for a, b in zip(jax.tree.leaves(blocked), jax.tree.leaves(dense), strict=True):
        assert relative(a, b) < 1e-11
    gradients, forward, second, _ = dense
    f, h = weighted("blocked", causal, weights), 1e-5

    grad = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3)))
    (ahead, plus), (behind, minus) = (grad(*shift(x, d, s)) for s in (h, -h))
    difference = (np.asarray(ahead) - np.asarray(behind)) / (2 * h)
    assert relative(forward, difference) < 1e-8
    assert relative(sum(np.vdot(g, t) for g, t in zip(gradients, d, strict=True)), difference) < 1e-8
    for a, b, c in zip(second, plus, minus, strict=True):
        assert relative(a, (np.asarray(b) - np.asarray(c)) / (2 * h)) < 1e-7


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_against_a_loop(implementation, relative):
    batch = [inputs(35, 21, seed=s) for s in range(3)]
    q, k, v = (np.stack(x) for x in zip(*batch, strict=True))
    bias = np.stack([biases(21, 2, seed=s)["masked"] for s in range(3)])

    def f(q, k, v, bias):
        return attend(q, k, v, bias=bias, implementation=implementation)

    def g(*a):
        return jax.grad(lambda *b: jnp.sum(f(*b) ** 3), argnums=(0, 1, 2))(*a)

    for function in (f, g):
        together = jax.jit(jax.vmap(function))(q, k, v, bias)
        one = jax.jit(function)
        alone = jax.tree.map(lambda *x: np.stack(x), *(one(*b, c) for b, c in zip(batch, bias, strict=True)))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            assert relative(a, b) < 1e-12
    shared = np.asarray(jax.jit(jax.vmap(f, in_axes=(0, None, None, None)))(q, k[0], v[0], bias[0]))
    assert relative(shared[2], jax.jit(f)(q[2], k[0], v[0], bias[0])) < 1e-12


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_accumulates_in_single(implementation, dtype):
    q, k, _ = inputs(300, dtype=dtype, scale=0.0)
    v = jnp.ones((300, 2, 3), dtype)
    out = compiled(q, k, v, implementation=implementation)
    assert out.dtype == dtype
    # A sum of 300 ones kept in bfloat16 stops at 256.
    assert np.abs(double(out) - 1.0).max() < 1e-2


@pytest.mark.parametrize("gradient", [False, True])
def test_blocked_memory_grows_linearly(gradient, monkeypatch):
    monkeypatch.undo()

    def temporary(n, implementation):
        def f(q, k, v):
            return attend(q, k, v, implementation=implementation)

        if gradient:
            f = jax.grad(lambda *a: jnp.sum(attend(*a, implementation=implementation) ** 2), argnums=(0, 1, 2))
        x = jax.ShapeDtypeStruct((n, 4, 32), jnp.float32)
        return jax.jit(f).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    one_map = 4000 * 4000 * 4
    small, large = temporary(4000, "blocked"), temporary(8000, "blocked")
    assert temporary(4000, "dense") > 4 * one_map
    assert small < 0.5 * one_map and temporary(4000, "auto") == small
    assert large < 2.1 * small


def test_auto_keeps_small_maps_and_blocks_large_ones(monkeypatch):
    monkeypatch.undo()

    def blocked(n):
        return "scan" in str(jax.make_jaxpr(attend)(*inputs(n, heads=4, dtype="float32")))

    assert not blocked(128) and blocked(1000)


def test_platform_is_that_of_the_default_device():
    with jax.default_device(jax.devices("cpu")[0]):
        assert _kernels.platform_now() == "cpu"


def test_fused_only_where_cudnn_can(monkeypatch, relative):
    calls = []
    original = jax.nn.dot_product_attention

    def recorded(*args, implementation, **options):
        calls.append(implementation)
        return original(*args, implementation="xla", **options)

    half = inputs(12, dk=8, dv=8, dtype="bfloat16")
    with pytest.raises(ValueError, match="='fused' needs an NVIDIA GPU, not the platform 'cpu'"):
        attend(*half, implementation="fused")
    monkeypatch.setattr(_kernels, "platform_now", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    for causal in (False, True):
        out = jax.jit(lambda *a, causal=causal: attend(*a, causal=causal))(*half)
        assert out.dtype == jnp.bfloat16 and out.shape == (12, 2, 8)
        assert relative(double(out), loop(*half, causal=causal)) < 2e-2
    grouped = (half[0], half[1][:, :1], half[2][:, :1])
    scaled = jax.jit(lambda *a: attend(*a, logit_scale=0.7))(*grouped)
    assert relative(double(scaled), loop(*grouped, logit_scale=0.7)) < 2e-2
    assert calls == ["cudnn"] * 3
    refused = [
        ((*inputs(12, dk=8, dv=8),), {}, "float16 or bfloat16"),
        (inputs(12, dk=128, dv=128, dtype="bfloat16"), {"bias": jnp.zeros(12)}, "a multiple of 8 up to 120"),
        (inputs(12, dk=8, dv=8, dtype="float16"), {"bias": jnp.zeros(12)}, "bfloat16 for a bias"),
        (grouped, {"bias": jnp.zeros((2, 12))}, "one bias for all heads"),
        (half, {"window": 3}, "window=None"),
        (half, {"alibi": jnp.ones(2)}, "alibi=None"),
        (half, {"logit_cap": 2.0}, "logit_cap=None"),
        (inputs(12, dk=8, dv=16, dtype="bfloat16"), {}, "dk = 8 and dv = 16"),
        (inputs(12, dk=4, dv=4, dtype="bfloat16"), {}, "multiple of 8"),
    ]
    for arguments, options, words in refused:
        jax.eval_shape(lambda *a, o=options: attend(*a, **o), *arguments)  # another implementation serves it
        with pytest.raises(ValueError, match=words):
            attend(*arguments, implementation="fused", **options)
    assert len(calls) == 3


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_fused_takes_padding_and_weights_of_keys(monkeypatch, relative, causal, groups):
    """cuDNN has no biases of keys: they go into the keys, and padding, quadrature and grouped heads are served fused."""
    calls, original = [], jax.nn.dot_product_attention

    def recorded(q, *args, implementation, **options):
        calls.append((implementation, q.shape[-1]))
        return original(q, *args, implementation="xla", **options)

    q, k, v = inputs(12, dk=8, dv=8, dtype="bfloat16")
    k, v = k[:, :groups], v[:, :groups]
    weights, places = np.log(np.linspace(0.01, 3.0, 12)) + 70.0, np.arange(12)
    biases = {
        "weights": weights,
        "padding": np.where(places < 9, 0.0, -np.inf),
        "padding first": np.where(places > 2, weights, -np.inf),
        "none left": np.full(12, -np.inf),
        "far below": np.full(12, -1e5),
    }

    def values(q, k, v, bias, implementation):
        out = attend(q, k, v, bias=bias, causal=causal, implementation=implementation)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    both = jax.value_and_grad(values, (0, 1, 2), has_aux=True)
    dense = jax.jit(lambda *a: both(*a, "dense")[1])
    # The implementation is left open: cuDNN is what it becomes.
    fused = jax.jit(lambda *a: both(*a, "auto"))
    whole = (k, v) if groups == 2 else (np.repeat(k, 2, 1), np.repeat(v, 2, 1))
    for name, bias in biases.items():
        bias = np.asarray(bias, np.float32)
        plain = dense(q, k, v, bias)
        with monkeypatch.context() as patch:
            patch.setattr(_kernels, "platform_now", lambda: "gpu")
            patch.setattr(jax.nn, "dot_product_attention", recorded)
            # JAX's plain attention, which stands in for cuDNN's, mixes types in reverse mode.
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                (_, out), found = fused(q, k, v, bias)
        assert out.shape == (12, 2, 8) and out.dtype == jnp.bfloat16
        assert relative(double(out), loop(q, *whole, bias=bias, causal=causal)) < 2e-2, name
        for a, b in zip(found, plain, strict=True):
            assert a.dtype == jnp.bfloat16
            assert np.abs(double(a) - double(b)).max() < 4e-2, name
    assert set(calls) == {("cudnn", 16)}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda q, k, v: ((q[0], k, v), {}), ValueError, "q has shape"),
        (lambda q, k, v: ((q[:0], k, v), {}), ValueError, "q has shape"),
        (lambda q, k, v: ((q, k[..., :2], v), {}), ValueError, "k has shape"),
        (lambda q, k, v: ((q, k, v[:3]), {}), ValueError, "v has shape"),
        (lambda q, k, v: ((q, k, v[:, :1]), {}), ValueError, "v has shape"),
        (lambda q, k, v: ((q, k, v), {"bias": jnp.zeros(3)}), ValueError, "bias has shape"),
        (lambda q, k, v: ((q[:3], k, v), {"causal": True}), ValueError, "causal"),
        (lambda q, k, v: ((q[:3], k, v), {"window": 2}), ValueError, "window needs as many queries as keys"),
        (lambda q, k, v: ((q[:3], k, v), {"alibi": jnp.ones(2)}), ValueError, "alibi needs as many queries as keys"),
        (lambda q, k, v: ((q, k, v), {"alibi": jnp.ones(3)}), ValueError, "alibi has shape"),
        (lambda q, k, v: ((q, k, v), {"window": 0}), ValueError, "window=0 must be an integer in 1"),
        (lambda q, k, v: ((q, k, v), {"window": 2.0}), TypeError, "window=2.0 must be an integer in 1"),
        (lambda q, k, v: ((q, k, v), {"logit_cap": 0.0}), ValueError, "logit_cap=0.0 must be"),
        (lambda q, k, v: ((q, k, v), {"logit_scale": -1.0}), ValueError, "logit_scale=-1.0 must be"),
        (lambda q, k, v: ((jnp.repeat(q, 2, 1)[:, :3], k, v), {}), ValueError, "its heads divide 3"),
        (
            lambda q, k, v: ((q, k, v), {"implementation": "flash"}),
            ValueError,
            "implementation='flash' must be one of 'auto'",
        ),
        (lambda q, k, v: ((q, k, v.astype(jnp.float32)), {}), TypeError, "types"),
        (lambda q, k, v: ((q.astype(int), k, v), {}), TypeError, "q has type int64; it must be floating point"),
        (lambda q, k, v: ((q, k, v), {"alibi": jnp.ones(2, int)}), TypeError, "alibi has type int64"),
        (lambda q, k, v: ((q, k, v), {"alibi": jnp.array([1.0, jnp.nan])}), ValueError, "alibi has 1 NaN or infinite"),
        (
            lambda q, k, v: ((q, k, v), {"implementation": "fused"}),
            ValueError,
            "implementation='fused' needs an NVIDIA",
        ),
    ],
)
def test_bad_input(change, error, words):
    arguments, options = change(*inputs(5))
    with pytest.raises(error, match=f"^attend: .*{words}"):
        attend(*arguments, **options)


@pytest.mark.parametrize("implementation", ["dense", "blocked"])
def test_nan_stays_nan(implementation):
    """A row of zeros means that a query sees no key. A row that NaN has spoilt is no such row, in the map nor in the result."""
    q, k, v = inputs(5)
    bias = jnp.zeros((q.shape[1], 5)).at[0].set(-jnp.inf)  # the first head sees no key at all
    spoilt = q.at[2, 1].set(jnp.nan)
    options = {"alibi": None, "causal": False, "window": None, "logit_scale": None, "logit_cap": None}
    found = np.asarray(jax.jit(lambda q: _kernels.attention_map(q, k, bias=bias, **options))(spoilt))
    out = np.asarray(compiled(spoilt, k, v, bias, implementation=implementation))
    expected = np.zeros((q.shape[1], 5), bool)
    expected[1, 2] = True
    np.testing.assert_array_equal(np.isnan(found), np.broadcast_to(expected[:, :, None], found.shape))
    np.testing.assert_array_equal(np.isnan(out), np.broadcast_to(expected.T[:, :, None], out.shape))
    np.testing.assert_array_equal(found[0], 0.0)
    np.testing.assert_allclose(found[1:].sum(-1)[~expected[1:]], 1.0, rtol=1e-14)
