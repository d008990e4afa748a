"""Slow clustering of tokens on the sphere: integrated in the logarithm of depth, cluster by cluster."""

import math
from collections.abc import Sequence

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Float

from pdejax import _check
from pdejax._arguments import checked
from pdejax._check import on_numbers
from pdejax._figure import AbstractRecord, Figure
from pdejax._types import Field
from pdejax.exact import interaction_energy

_OWNER = "metastability"
TOLERANCE = 1e-9
MOST = 20_000  # steps
TOUCH = 1e-5  # tokens nearer to each other than this are one
PLACE, SOFT = 1e-13, 0.03  # of an event: its tolerance, and what is left of the condition
LONGEST = 1e10  # beyond it s has too few digits for events


class Metastability(AbstractRecord):
    r"""Tokens on the sphere that wait and merge: `ts (k,)` spaced evenly in ln(1 + t), `states (k, n, d)`,
    `energies (k,)` E(t) of [`interaction_energy`][pdejax.exact.interaction_energy], a staircase; `merged (m,)` the depths at
    which two clusters came together, `clusters (m,)` how many there are after each, `end (n, d)` at t1; `steps` taken."""

    ts: Float[np.ndarray, " k"]
    states: Float[np.ndarray, "k n d"]
    energies: Float[np.ndarray, " k"]
    merged: Float[np.ndarray, " m"]
    clusters: tuple[int, ...]
    end: Float[np.ndarray, "n d"]
    steps: int


@checked
@on_numbers
def metastability(
    u0: Field, beta: float | int, *, t1: float | int, angle: float | int = 0.05, saves: int = 200
) -> Metastability:
    r"""Integrate [`sphere_attention`][pdejax.exact.sphere_attention] over depths of many orders of magnitude, and find when
    clusters merge.

    Tokens at an angle ω wait for a depth of about $e^{\beta(1-\cos\omega)}$. In s = ln(1 + t), $du/ds = e^sf(u)$, waiting times
    of every order take about as many steps of an adaptive solver (Tsit5 at 1e-9). Two clusters have merged when the angle of two
    of their tokens falls to `angle`: an event of the solver, found on its dense output. Tokens nearer than 1e-5 to one another
    go on as one that counts several times; what relaxes between them, at a rate of about 1 per unit depth however long the wait,
    would else keep steps short. Once all are one nothing moves.

    `u0 (n, d)`: unit rows. Raises `ValueError` for rows that are not of unit length, β ≤ 0, t1 ≤ 0, t1 > 1e10, an angle outside
    (0, 1), `RuntimeError` where the solver runs out of steps.
    """
    beta = _check.number(_OWNER, "beta", beta, above=0)
    t1 = _check.number(_OWNER, "t1", t1, above=0, most=LONGEST)
    angle = _check.number(_OWNER, "angle", angle, above=0, below=1)
    _check.integer(_OWNER, "saves", saves, 2)
    lengths = np.linalg.norm(np.asarray(u0), axis=1)
    if not np.all(np.abs(lengths - 1) < 1e-6):
        raise ValueError(f"{_OWNER}: u0 must have rows of length 1; the first is {lengths[0]:.3g} long.")
    end, now = math.log1p(t1), 0.0
    wanted = np.linspace(0.0, end, saves)
    tokens = _Tokens(np.asarray(u0), 2 * math.sin(angle / 2))
    tokens.meet(0.0)
    states, merged, clusters, steps = [], [], [], 0
    while now < end and len(np.unique(tokens.same)) > 1:
        ahead = wanted[len(states) :]
        ts = np.concatenate([np.full(saves - len(ahead), now), ahead])  # of one shape, so that it compiles once
        given = (beta, tokens.weights, tokens.reach(), now, end, ts)
        found, stop, last, taken, worked = _until(jnp.asarray(tokens.u), *(jnp.asarray(x, u0.dtype) for x in given))
        if not worked:
            raise RuntimeError(f"{_OWNER}: more than {MOST} steps; take a smaller t1.")
        new = np.asarray(found)[saves - len(ahead) :]
        new = new[(ahead <= float(stop)) & np.all(np.isfinite(new), axis=(1, 2))]
        states += list(new[:, tokens.same])
        steps, now, tokens.u = steps + int(taken), float(stop), np.asarray(last)[tokens.same]
        if tokens.meet(now):
            merged.append(math.expm1(now))
            clusters.append(len(np.unique(tokens.group)))
    states += [tokens.u] * (saves - len(states))
    kept = np.stack([x / np.linalg.norm(x, axis=1, keepdims=True) for x in states])
    energies = np.asarray(jax.lax.map(lambda x: interaction_energy(x, beta), jnp.asarray(kept)))
    return Metastability(np.expm1(wanted), kept, energies, np.asarray(merged), tuple(clusters), kept[-1], steps)


class _Tokens:
    """Tokens, the cluster that each is in, and those that go on for several: `same[i]` is the token that i goes with."""

    def __init__(self, u: np.ndarray, chord: float):
        self.u, self.chord = u, chord
        self.group, self.same = np.arange(len(u)), np.arange(len(u))

    @property
    def weights(self) -> np.ndarray:
        """How many tokens each counts for, 0 for those that go with another."""
        return np.bincount(self.same, minlength=len(self.same)).astype(float)

    def reach(self) -> np.ndarray:
        """Squared distances at which two tokens meet: as clusters, or as one token; 0 for those that have."""
        apart = self.group[:, None] != self.group[None]
        alive = self.weights > 0
        found = np.where(apart, self.chord**2, TOUCH**2) * (alive[:, None] & alive[None])
        return found - np.diag(np.diag(found))

    def meet(self, s: float) -> bool:
        """Join what has met; whether clusters have."""
        distances = np.sum((self.u[:, None] - self.u[None]) ** 2, axis=-1)
        # A touch more: events are found to a tolerance.
        joined = False
        touch = 1 + 1e-6 + 2 * PLACE / SOFT * math.exp(s)
        for i, j in np.argwhere(distances <= self.reach() * touch):
            if self.group[i] != self.group[j]:
                self.group[self.group == self.group[j]] = self.group[i]
                joined = True
            if distances[i, j] <= TOUCH**2 * touch and self.same[i] != self.same[j]:
                self.same[self.same == self.same[j]] = self.same[i]
        return joined


@eqx.filter_jit
def _until(u, beta, weights, reach, start, end, ts):
    """The solve up to the next time that two tokens meet, or to the end."""

    def field(s, x, args):
        del args
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        # Exponents as differences to the largest, at the token itself.
        shares = weights[None] * jnp.exp(beta * (x @ x.T - 1))
        mixed = shares @ x / jnp.maximum(jnp.sum(shares, axis=1, keepdims=True), 1e-300)
        moved = mixed - jnp.sum(mixed * x, axis=1, keepdims=True) * x
        return jnp.exp(s) * jnp.where(weights[:, None] > 0, moved, 0)

    def gap(t, y, args, **kwargs):
        del args, kwargs
        squares = jnp.sum((y[:, None] - y[None]) ** 2, axis=-1)
        ratio = jnp.min(jnp.where(reach > 0, squares / jnp.where(reach > 0, reach, 1), 1e30))
        # Per unit of s, in which it is found, and not of depth; the ratio of squares of 1e-5 has no more than 10 digits.
        return SOFT * (ratio - 1) * jnp.exp(-t)

    found = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        start,
        end,
        None,
        u,
        saveat=diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t1=True)]),
        stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
        event=diffrax.Event(gap, optx.Bisection(PLACE, PLACE, flip="detect")),
        max_steps=MOST,
        throw=False,
    )
    assert found.ts is not None and found.ys is not None
    return found.ys[0], found.ts[1][-1], found.ys[1][-1], found.stats["num_steps"], diffrax.is_okay(found.result)


@checked
@on_numbers
def waiting_exponent(betas: Sequence[float] | np.ndarray, times: Sequence[float] | np.ndarray) -> Figure:
    r"""Extrapolate d ln T/dβ of waiting times T(β) to β → ∞.

    Between neighbours the slope of ln T is $c + a/\beta + b/\beta^2 + \dots$ (Laplace's method: $T \propto e^{c\beta}/\beta\,(1 +
    O(1/\beta))$), and a = −1 is known: to the slopes of ln T + ln β between β₁ and β₂ a parabola in 1/(β₁β₂), the mean of
    1/β² there, is fitted through the last three, which gives c. The interval is the distance to what a line through the last two
    gives; for two tokens at an angle ω₀ c is 1 − cos ω₀. Raises `ValueError` for fewer than four β, for β or times that are not
    positive and finite, or for β that do not rise.
    """
    x, y = np.asarray(betas, float), np.asarray(times, float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 4:
        raise ValueError("waiting_exponent: betas and times must be sequences of one length, at least 4.")
    if not (np.all(x > 0) and np.all(np.isfinite(x)) and np.all(np.diff(x) > 0)):
        raise ValueError(f"waiting_exponent: betas={x.tolist()} must be positive, finite, and rise.")
    if not (np.all(y > 0) and np.all(np.isfinite(y))):
        raise ValueError(f"waiting_exponent: times={y.tolist()} must be positive and finite.")
    # ln T + ln β has no slope a/β of its own: the logarithm is known.
    local = np.diff(np.log(y) + np.log(x)) / np.diff(x)
    # The mean of 1/β² between neighbours, by which c + b/β² is what the local slope is of.
    place = 1 / (x[1:] * x[:-1])
    line = np.polyfit(place[-2:], local[-2:], 1)[-1]
    curve = np.polyfit(place[-3:], local[-3:], 2)[-1]
    half = abs(curve - line)
    return Figure(float(curve), float(curve - half), float(curve + half))
