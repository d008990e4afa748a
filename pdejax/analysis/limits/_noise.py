"""The SDE limit of independent layers: noise that all tokens share, solved by diffrax, beside the networks that tend to it."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax import _check
from pdejax._arguments import checked
from pdejax._types import Field
from pdejax.solvers._written import one_line

Calculus = Literal["ito", "stratonovich"]
Law = Literal["normal", "uniform", "signs"]
BATCH = 512


class CommonNoise(eqx.Module):
    r"""Hold networks of independent layers $u \leftarrow \rho(u + L^{-1/2}m(u)W_l)$, and the SDE that their law tends to:

    $$du = P_u\big(m(u)\,dW\big) - \tfrac12(d-1)\sigma^2\,|m(u)_i|^2u_i\,dt\quad\text{on the sphere},\qquad
      du = m(u)\,dW\quad\text{without normalization},$$

    in **Itô**'s sense, over depth t ∈ [0, 1]: W is a matrix of Brownian motions of variance σ² per unit depth, the same for all
    tokens. In **Stratonovich**'s sense the drift has $-\tfrac12\sum_kDG_k[G_k]$ besides, G_k the columns of the noise: for one
    token on the sphere, whose features are itself, $+\tfrac12(d-1)\sigma^2u$, so that no drift is left; more where attention
    moves with the state.

    - `features` m: `(n, d) → (n, r)`; for random value matrices the attention means (`attention_means`), for random linear layers
      the state itself. `variance` σ² of the entries of W_l `(r, d)`, which have mean 0. `sphere`: whether ρ is the projection
      on the unit sphere, or nothing.

    Gaussian layers without normalization **are** Euler–Maruyama steps of the SDE. Source: arXiv 2206.06929 (scale), 2601.21942
    and 2604.01978 (noise common to all tokens); the drift of the projection derived here.
    """

    features: Callable[[Any], Array]
    variance: float = eqx.field(static=True)
    sphere: bool = eqx.field(static=True)

    __repr__ = one_line

    @checked
    def __init__(self, features: Callable[[Any], Array], *, variance: float | int = 1.0, sphere: bool = False):
        self.features, self.sphere = features, sphere
        self.variance = _check.number("CommonNoise", "variance", variance, above=0)

    def noise(self, u: Field, w: Float[Array, "r d"]) -> Field:
        """What an increment w of the unit Brownian matrix moves the state by."""
        u = self._on_sphere(u)
        moved = self.variance**0.5 * (self.features(u) @ w)
        return moved - jnp.sum(moved * u, axis=-1, keepdims=True) * u if self.sphere else moved

    def drift(self, u: Field, calculus: str = "ito") -> Field:
        """The drift in one of the two senses."""
        place = self._on_sphere(u)
        m = self.features(place)
        found = jnp.zeros_like(u)
        if self.sphere:
            found = -0.5 * (u.shape[-1] - 1) * self.variance * jnp.sum(m**2, axis=-1, keepdims=True) * place
        if calculus == "ito":
            return found
        shape = (m.shape[-1], u.shape[-1])
        basis = jnp.eye(shape[0] * shape[1], dtype=u.dtype).reshape(-1, *shape)

        def along(w):
            return jax.jvp(lambda v: self.noise(v, w), (u,), (self.noise(u, w),))[1]

        return found - 0.5 * jnp.sum(jax.vmap(along)(basis), axis=0)

    def layer(self, u: Field, w: Float[Array, "r d"], scale) -> Field:
        """The state after a layer with weights w of variance 1."""
        moved = u + scale * self.variance**0.5 * (self.features(u) @ w)
        return self._on_sphere(moved)

    def _on_sphere(self, u: Field) -> Field:
        """The state on the sphere, where there is one: off it, where approximations are, fields are those of the nearest point,
        so that they pull back."""
        return u / jnp.linalg.norm(u, axis=-1, keepdims=True) if self.sphere else u


@checked
def attention_means(beta: float | int) -> Callable[[Any], Array]:
    r"""Return $m(u)_i = \sum_j\mathrm{softmax}_j(\beta\langle u_i, u_j\rangle)\,u_j$, the `features` of layers with random value
    matrices. Raises `ValueError` for a β that is not finite."""
    return _AttentionMeans(jnp.asarray(_check.number("attention_means", "beta", beta)))


class _AttentionMeans(eqx.Module):
    beta: Array

    __repr__ = one_line

    def __call__(self, u: Field) -> Field:
        return jax.nn.softmax(self.beta.astype(u.dtype) * (u @ u.T), axis=-1) @ u


@checked
def network_ends(
    system: CommonNoise,
    u0: Field,
    *,
    layers: int,
    draws: int,
    key: PRNGKeyArray,
    law: str = "normal",
    t1: float | int = 1.0,
) -> Float[Array, "draws n d"]:
    r"""Run `draws` networks of `layers` independent layers per unit depth to depth t1, the entries of whose weights are
    `"normal"`, `"uniform"` or random `"signs"`, of mean 0 and variance 1 times `system.variance`.

    Returns their ends `(draws, n, d)`. Raises `ValueError` for counts below 1, an unknown law, or t1 that is no whole number of
    layers.
    """
    _check_features("network_ends", system, u0)
    _check.integer("network_ends", "layers", layers)
    _check.integer("network_ends", "draws", draws)
    _check.choice("network_ends", "law", law, get_args(Law))
    steps = round(layers * float(t1))
    if steps < 1 or abs(steps - layers * t1) > 1e-9:
        raise ValueError(f"network_ends: t1={t1} is no whole number of layers of depth 1/{layers}.")
    return _network_ends(
        system, u0, jnp.asarray(steps), jnp.asarray(layers**-0.5, u0.dtype), jax.random.split(key, draws), law
    )


def _check_features(owner: str, system: CommonNoise, u0: Array) -> None:
    _check.real_array(owner, "u0", u0, "(n, d)")
    found = eqx.filter_eval_shape(system.features, u0)
    if len(getattr(found, "shape", ())) != 2 or found.shape[0] != u0.shape[0]:
        raise ValueError(
            f"{owner}: features of the system gives {getattr(found, 'shape', found)} for u0 of shape {u0.shape}; it must give "
            f"(n, r), here ({u0.shape[0]}, r)."
        )


@eqx.filter_jit
def _network_ends(system: CommonNoise, u0, steps, scale, keys, law: str):
    shape = (jax.eval_shape(system.features, u0).shape[-1], u0.shape[-1])

    def one(key):
        def forward(index, u):
            own = jax.random.fold_in(key, index)
            if law == "normal":
                w = jax.random.normal(own, shape, u.dtype)
            elif law == "uniform":
                w = jax.random.uniform(own, shape, u.dtype, -(3.0**0.5), 3.0**0.5)
            else:
                w = jax.random.rademacher(own, shape).astype(u.dtype)
            return system.layer(u, w, scale)

        return jax.lax.fori_loop(0, steps, forward, u0)

    return jax.lax.map(one, keys, batch_size=min(BATCH, len(keys)))


@eqx.filter_jit
def coupled_ends(system: CommonNoise, u0: Field, layers: Array, keys: Array) -> tuple[Array, Array]:
    """Ends of networks of `layers` and of twice as many along the same Brownian motions, a layer of the first having the sum of
    two of the second's: by their difference a weak order shows with little noise."""
    shape = (jax.eval_shape(system.features, u0).shape[-1], u0.shape[-1])
    scale = jnp.sqrt(1 / layers.astype(u0.dtype))

    def one(key):
        def forward(index, carried):
            coarse, fine = carried
            w = jax.random.normal(jax.random.fold_in(key, index), (2, *shape), u0.dtype)
            for half in w:
                fine = system.layer(fine, half, scale * 0.5**0.5)
            return system.layer(coarse, (w[0] + w[1]) * 0.5**0.5, scale), fine

        return jax.lax.fori_loop(0, layers, forward, (u0, u0))

    return jax.lax.map(one, keys, batch_size=min(BATCH, len(keys)))


@checked
def sde_ends(
    system: CommonNoise,
    u0: Field,
    *,
    steps: int,
    draws: int,
    key: PRNGKeyArray,
    calculus: str = "ito",
    t1: float | int = 1.0,
) -> Float[Array, "draws n d"]:
    """Solve the SDE that networks of independent layers tend to, along `draws` paths to depth t1, by diffrax: Euler–Maruyama in
    Itô's sense, Heun's method in Stratonovich's (`calculus`), in `steps` equal steps on a virtual Brownian tree.

    Returns the ends `(draws, n, d)`. On the sphere the solution stays there, its approximation near it. Both have
    weak order 1; on the sphere Heun's error was the larger one by a factor of 5. Raises `ValueError` for
    counts below 1, an unknown calculus, or t1 ≤ 0.
    """
    _check_features("sde_ends", system, u0)
    _check.integer("sde_ends", "steps", steps)
    _check.integer("sde_ends", "draws", draws)
    _check.choice("sde_ends", "calculus", calculus, get_args(Calculus))
    end = _check.number("sde_ends", "t1", t1, above=0)
    return _sde_ends(system, u0, steps, end, jax.random.split(key, draws), calculus)


@eqx.filter_jit
def _sde_ends(system: CommonNoise, u0, steps: int, t1: float, keys, calculus: str):
    shape = (jax.eval_shape(system.features, u0).shape[-1], u0.shape[-1])
    structure = jax.ShapeDtypeStruct(shape, u0.dtype)
    step = t1 / steps

    def one(key):
        brownian = diffrax.VirtualBrownianTree(0.0, t1, step / 4, structure, key)
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, u, args: system.drift(u, calculus)),
            diffrax.ControlTerm(
                lambda t, u, args: lx.FunctionLinearOperator(lambda w: system.noise(u, w), structure), brownian
            ),
        )
        solver = diffrax.Euler() if calculus == "ito" else diffrax.Heun()
        found = diffrax.diffeqsolve(
            terms, solver, 0.0, t1, step, u0, max_steps=steps + 1, throw=False, adjoint=diffrax.DirectAdjoint()
        )
        assert found.ys is not None
        return found.ys[-1]

    return jax.lax.map(one, keys, batch_size=min(BATCH, len(keys)))


@checked
def antipodal_exponent(
    beta: float | int, d: int, *, step: float | int = 1 / 256, draws: int = 100_000, key: PRNGKeyArray
) -> Float[Array, " draws"]:
    r"""Sample the Lyapunov exponent of the angle to the antipode of two nearly opposite tokens in networks of random value
    matrices: $\frac1{2h}\ln(\varepsilon'/\varepsilon)$ of one layer of scale √h, ε = 1 + cosine, from ε = 1e-8.

    Each sample `(draws,)` is the mean over W and −W, which takes the noise of order √h away, extrapolated from `step` h and h/2
    to h → 0 on the same W; what is left of the noise is mostly a quadratic form in W, which regression on its terms, whose means
    are known, takes away. Their mean is [`two_token_exponents`][pdejax.exact.two_token_exponents] up to O(h²). Raises
    `ValueError` for d < 2 or numbers out of range.
    """
    _check.integer("antipodal_exponent", "d", d, 2)
    _check.integer("antipodal_exponent", "draws", draws, 2)
    h = _check.number("antipodal_exponent", "step", step, above=0)
    b = _check.number("antipodal_exponent", "beta", beta, least=0)
    rates, terms = _antipodal(jnp.asarray(b), d, h, draws, key)
    slopes = jnp.linalg.lstsq(terms - jnp.mean(terms, axis=0, keepdims=True), rates - jnp.mean(rates))[0]
    return rates - terms @ slopes


@eqx.filter_jit
def _antipodal(beta, d: int, h: float, draws: int, key):
    start = 1e-8
    angle = (2 * start) ** 0.5
    u = jnp.zeros((2, d), beta.dtype).at[0, 0].set(1.0).at[1, 0].set(-jnp.cos(angle)).at[1, 1].set(jnp.sin(angle))
    system = CommonNoise(_AttentionMeans(beta), sphere=True)

    def rate(w, step):
        def grown(w):
            # 1 + ⟨x, y⟩ = |x + y|²/2 keeps its digits.
            return jnp.log(
                jnp.sum(jnp.sum(system.layer(u, w, step**0.5), axis=0) ** 2) / jnp.sum(jnp.sum(u, axis=0) ** 2)
            )

        return (grown(w) + grown(-w)) / (4 * step)

    def one(key):
        w = jax.random.normal(key, (d, d), beta.dtype)
        (a, b), (c, e) = w[0, :2], w[1, :2]
        rest = jnp.sum(w[:2, 2:] ** 2, axis=1) - (d - 2)
        terms = jnp.stack([a * a - 1, b * b - 1, c * c - 1, e * e - 1, a * e, b * c, a * b, c * e, *rest])
        return 2 * rate(w, h / 2) - rate(w, h), terms

    return jax.lax.map(one, jax.random.split(key, draws), batch_size=min(4096, draws))
