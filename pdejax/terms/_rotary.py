"""Rotary position embedding of queries and keys."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pdejax import _check
from pdejax._arguments import checked
from pdejax.terms._base import at_least_float32, with_static

_OWNER = "Rotary"
_SPLIT = 2048  # m = 2048 a + b of traced positions
LONGEST = _SPLIT**2  # so many tokens have angles that are known


class Rotary(eqx.Module):
    r"""Rotary position embedding (Su et al., arXiv 2104.09864, (34)), half-split convention: of the first `dim` features of a
    head, features j and j + dim/2 of token m turn by the angle $m f_j$, $f_j = \theta^{-2j/\mathrm{dim}}$, so that
    $\langle q_m, k_l\rangle$ depends on positions through m − l only. Features beyond `dim` stay (partial rotary).

    `rotary(x)` turns `x (n, H, dk)`, dk ≥ dim. `frequencies` f are radians per token, `gain` multiplies the turned features.
    `linear`, `llama3` and `yarn` return the frequencies that long contexts are trained with. Weights whose pairs are 2j and
    2j + 1 (interleaved) are brought to this convention by a permutation of the features of W_Q and W_K.

    Raises `ValueError` for a `dim` that is odd or a base θ that is not positive.
    """

    frequencies: tuple[float, ...] = eqx.field(static=True)
    theta: float = eqx.field(static=True)
    gain: float = eqx.field(static=True)

    @checked
    def __init__(self, dim: int, theta: float = 10000.0):
        _check.integer(_OWNER, "dim", dim)
        if dim % 2:
            raise ValueError(f"{_OWNER}: positions turn pairs of features, so dim={dim} must be even.")
        self.theta = _check.number(_OWNER, "theta", theta, above=0, advice="it is the base of the frequencies")
        self.frequencies = _known(self.theta ** (-np.arange(0, dim, 2) / dim))
        self.gain = 1.0

    @property
    def dim(self) -> int:
        """How many features of a head turn."""
        return 2 * len(self.frequencies)

    def __call__(self, x: Float[Array, "n H dk"], positions: Int[Array, " n"] | None = None) -> Float[Array, "n H dk"]:
        """Turn queries or keys of tokens 0 … n − 1, or of those at `positions`. Raises `ValueError` for another rank fewer
        than `dim` features, or positions outside 0 … 2048² − 1; traced ones are not looked at."""
        if x.ndim != 3 or x.shape[-1] < self.dim:
            raise ValueError(
                f"{_OWNER}: x has shape {x.shape}; it must be (tokens, heads, features) with at least the {self.dim} features "
                "that turn."
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{_OWNER}: x has type {x.dtype}; it must be floating point, cast it first.")
        dtype = at_least_float32(x.dtype)
        if positions is None:
            # In float64 whatever the field: a float32 angle near m = 1000 is already off by 6e-5.
            angle = np.arange(x.shape[0])[:, None] * np.asarray(self.frequencies)[None, :]
            cos, sin = np.cos(angle), np.sin(angle)
        else:
            if not _check.traced(positions) and not np.all(
                (np.asarray(positions) >= 0) & (np.asarray(positions) < LONGEST)
            ):
                raise ValueError(f"{_OWNER}: positions must lie in 0 … {LONGEST - 1:,}.")
            cos, sin = self._turns(positions)
        cos, sin = (jnp.asarray(self.gain * part[:, None, :], dtype) for part in (cos, sin))
        turned = x if self.dim == x.shape[-1] else x[..., : self.dim]
        first, second = jnp.split(turned.astype(dtype), 2, axis=-1)
        turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
        return turned if self.dim == x.shape[-1] else jnp.concatenate([turned, x[..., self.dim :]], axis=-1)

    def _turns(self, positions: Int[Array, " n"]) -> tuple[Array, Array]:
        """Cosines and sines `(n, dim/2)` of traced positions m = 2048 a + b: the angles of a and of b are known in float64, and
        their turns are composed, so that no angle is ever rounded to float32."""
        split = _SPLIT
        high, low = positions // split, positions % split
        coarse = np.arange(split)[:, None] * split * np.asarray(self.frequencies)[None, :]
        fine = np.arange(split)[:, None] * np.asarray(self.frequencies)[None, :]
        (c, s), (e, f) = (
            tuple(jnp.asarray(part(angle), jnp.result_type(float))[at] for part in (np.cos, np.sin))
            for angle, at in ((coarse, high), (fine, low))
        )
        return c * e - s * f, s * e + c * f

    @checked
    def linear(self, factor: float) -> "Rotary":
        """Return it with positions divided by `factor` ≥ 1 (Chen et al., arXiv 2306.15595, (4))."""
        _check.number("Rotary.linear", "factor", factor, least=1)
        return with_static(self, frequencies=_known(np.asarray(self.frequencies) / factor))

    @checked
    def llama3(self, factor: float, low: float, high: float, length: int) -> "Rotary":
        r"""Return it with slow frequencies divided by `factor` and fast ones kept (Llama 3.1, arXiv 2407.21783, §3.4.2).

        With $r = \mathrm{length}\, f/2\pi$ turns over the context of training: f/factor where r < `low`, f where r > `high`,
        and between them $(1-s)f/\mathrm{factor} + sf$, $s = (r - \mathrm{low})/(\mathrm{high} - \mathrm{low})$.
        """
        owner = "Rotary.llama3"
        _check.number(owner, "factor", factor, least=1)
        _check.number(owner, "low", low, above=0)
        _check.number(owner, "high", high, above=low, advice="it is above low")
        _check.integer(owner, "length", length, advice="it is the length of the context of training, in tokens")
        f = np.asarray(self.frequencies)
        kept = np.clip((length * f / (2 * math.pi) - low) / (high - low), 0, 1)
        return with_static(self, frequencies=_known((1 - kept) * f / factor + kept * f))

    @checked
    def yarn(
        self,
        factor: float,
        length: int,
        *,
        fast: float = 32.0,
        slow: float = 1.0,
        gain: float | None = None,
        whole: bool = True,
    ) -> "Rotary":
        r"""Return it with the frequencies of YaRN (Peng et al., arXiv 2309.00071, (17)–(22)).

        Frequencies that turn more than `fast` times over the `length` of training stay, those that turn less than `slow`
        times are divided by `factor`, a ramp linear in j lies between; its ends are rounded outwards to `whole` numbers.
        `gain` multiplies queries and keys, by default $0.1\ln(\mathrm{factor}) + 1$.
        """
        owner = "Rotary.yarn"
        _check.number(owner, "factor", factor, least=1)
        _check.integer(owner, "length", length, advice="it is the length of the context of training, in tokens")
        _check.number(owner, "slow", slow, above=0)
        _check.number(owner, "fast", fast, above=slow, advice="it is above slow")
        gain = 0.1 * math.log(factor) + 1 if gain is None else _check.number(owner, "gain", gain, above=0)
        if self.theta <= 1:
            raise ValueError(f"{owner}: needs frequencies that fall with j, theta > 1, not theta={self.theta}.")
        half = len(self.frequencies)
        # The index j at which f_j turns so many times over the length.
        ends = [half * math.log(length / (turns * 2 * math.pi)) / math.log(self.theta) for turns in (fast, slow)]
        first, last = (math.floor(ends[0]), math.ceil(ends[1])) if whole else ends
        first, last = max(first, 0), min(last, self.dim - 1)
        slowed = np.clip((np.arange(half) - first) / (last - first if last != first else 1e-3), 0, 1)
        f = np.asarray(self.frequencies)
        return with_static(self, frequencies=_known(f * (1 - slowed) + f / factor * slowed), gain=gain)

    def stretch(self, size: int) -> float:
        """The largest factor by which it makes a vector of `size` features longer."""
        return self.gain if self.dim == size else max(1.0, self.gain)

    def __repr__(self) -> str:
        return f"Rotary({self.dim}, theta={self.theta:g}, slowest={self.frequencies[-1]:.3g}, gain={self.gain:g})"


def _known(values: np.ndarray) -> tuple[float, ...]:
    """Numbers as a static field keeps them, compared by value."""
    return tuple(map(float, values))
