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
from pdejax.exact import interaction_energy, sphere_attention

_OWNER = "metastability"
TOLERANCE = 1e-9
MOST = 20_000  # steps


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
    of every order take about as many adaptive steps of an implicit solver (Kvaerno5 at 1e-9), for what has merged is stiff. Two
    clusters have merged when the angle of two of their tokens falls to `angle`: an event of the solver, found on its dense
    output to 1e-10.

    `u0 (n, d)`: unit rows. Raises `ValueError` for rows that are not of unit length, β ≤ 0, t1 ≤ 0, an angle outside (0, 1),
    `RuntimeError` where the solver runs out of steps.
    """
    beta = _check.number(_OWNER, "beta", beta, above=0)
    t1 = _check.number(_OWNER, "t1", t1, above=0)
    angle = _check.number(_OWNER, "angle", angle, above=0, below=1)
    _check.integer(_OWNER, "saves", saves, 2)
    lengths = np.linalg.norm(np.asarray(u0), axis=1)
    if not np.all(np.abs(lengths - 1) < 1e-6):
        raise ValueError(f"{_OWNER}: u0 must have rows of length 1; the first is {lengths[0]:.3g} long.")
    end, u, now = math.log1p(t1), u0, 0.0
    wanted = np.linspace(0.0, end, saves)
    group = _joined(np.arange(len(u0)), np.asarray(u0), angle)
    states, merged, clusters, steps = [], [], [], 0
    while True:
        ahead = wanted[len(states) :]
        ts = np.concatenate([np.full(saves - len(ahead), now), ahead])  # of one shape, so that it compiles once
        apart = jnp.asarray(group[:, None] != group[None])
        found, stop, last, taken, event, worked = _until(
            u, *map(jnp.asarray, (beta, math.cos(angle), apart, now, end, ts))
        )
        if not worked:
            raise RuntimeError(f"{_OWNER}: more than {MOST} steps; take a larger angle or a smaller t1.")
        new = np.asarray(found)[saves - len(ahead) :]
        states += list(new[(ahead <= float(stop)) & np.all(np.isfinite(new), axis=(1, 2))])
        steps, u, now = steps + int(taken), last, float(stop)
        if not event:
            break
        # A touch more than the angle: the event is found to a tolerance.
        group = _joined(group, np.asarray(u), angle * (1 + 1e-6))
        merged.append(math.expm1(now))
        clusters.append(len(np.unique(group)))
    kept = np.stack(states)
    energies = np.asarray(jax.lax.map(lambda x: interaction_energy(x, beta), jnp.asarray(kept)))
    return Metastability(
        np.expm1(wanted[: len(kept)]), kept, energies, np.asarray(merged), tuple(clusters), np.asarray(u), steps
    )  # fmt: skip


@eqx.filter_jit
def _until(u, beta, near, apart, start, end, ts):
    """The solve up to the next time that tokens of two clusters are near each other, or to the end."""

    def field(s, x, args):
        del args
        return jnp.exp(s) * sphere_attention(x, beta)

    def gap(t, y, args, **kwargs):
        del t, args, kwargs
        cosines = y @ y.T
        return near - jnp.max(jnp.where(apart, cosines, -2.0))

    found = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Kvaerno5(),
        start,
        end,
        None,
        u,
        saveat=diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t1=True)]),
        stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
        event=diffrax.Event(gap, optx.Bisection(1e-10, 1e-10, flip="detect")),
        max_steps=MOST,
        throw=False,
    )
    assert found.ts is not None and found.ys is not None
    event = diffrax.is_event(found.result)
    worked = diffrax.is_okay(found.result)
    taken = found.stats["num_steps"]
    return found.ys[0], found.ts[1][-1], found.ys[1][-1], taken, event, worked


def _joined(group: np.ndarray, u: np.ndarray, angle: float) -> np.ndarray:
    """Clusters after those with tokens within the angle have become one."""
    group = group.copy()
    for i, j in zip(*np.nonzero(u @ u.T >= math.cos(angle)), strict=True):
        if group[i] != group[j]:
            group[group == group[j]] = group[i]
    return group


@checked
@on_numbers
def waiting_exponent(betas: Sequence[float] | np.ndarray, times: Sequence[float] | np.ndarray) -> Figure:
    r"""Extrapolate d ln T/dβ of waiting times T(β) to β → ∞.

    Between neighbours the slope of ln T is $c + a/\beta + b/\beta^2 + \dots$ (Laplace's method: $T \propto e^{c\beta}/\beta\,(1 +
    O(1/\beta))$), so that a parabola in 1/β through the last slopes gives c. The interval is the distance to what a line gives;
    for two tokens at an angle ω₀ c is 1 − cos ω₀. Raises `ValueError` for fewer than four β, or times that are not positive.
    """
    x, y = np.asarray(betas, float), np.asarray(times, float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 4:
        raise ValueError("waiting_exponent: betas and times must be sequences of one length, at least 4.")
    if not np.all(y > 0) or not np.all(np.diff(x) > 0):
        raise ValueError("waiting_exponent: betas must rise, and times must be positive.")
    # ln T + ln β has no slope a/β of its own: the logarithm is known.
    local = np.diff(np.log(y) + np.log(x)) / np.diff(x)
    # The mean of 1/β² between neighbours, by which c + b/β² is what the local slope is of.
    place = 1 / (x[1:] * x[:-1])
    line = np.polyfit(place[-2:], local[-2:], 1)[-1]
    curve = np.polyfit(place[-3:], local[-3:], 2)[-1]
    half = abs(curve - line)
    return Figure(float(curve), float(curve - half), float(curve + half))
