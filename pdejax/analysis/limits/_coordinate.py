"""Which limit deep networks have: how states, increments, gradients and draws scale with the number of layers."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from scipy.special import ndtr

from pdejax import _check
from pdejax._arguments import checked
from pdejax._check import on_numbers
from pdejax._depth import take_layer
from pdejax._figure import AbstractRecord, Figure
from pdejax._integrate import terms_of
from pdejax._types import Field
from pdejax.analysis.depth._layers import Layers, layers_as_maps
from pdejax.analysis.limits._exponents import (
    MARGIN,
    above,
    below,
    half_width,
    near,
    relative_spreads,
    settled_exponent,
    student,
)
from pdejax.analysis.limits._recipe import Recipe, is_drawn
from pdejax.solvers import linear_part
from pdejax.solvers._base import fresh_step
from pdejax.terms import FieldArgs

_OWNER = "depth_check"
SHARP = 0.04  # increments have little noise, and their exponent is told apart by so much
FEW = -0.5  # of the largest layer's share: L^-1 (up to logarithms) where layers are alike, L^0 where a few do it all
ADDED, HALFWAY = 0.5, 0.25  # independent layers add up to L^½ of their increments, alike ones to L
BATCH = 64  # draws at a time: the memory of their random numbers
VERDICTS = ("ODE", "averaged ODE", "SDE", "none", "not decided")
# What must be where for each limit: quantity, exponent, margin; and what must lie below a bound.
NEEDS: Mapping[str, tuple[tuple[str, float, float], ...]] = {
    "ODE": (("states", 0.0, MARGIN), ("increments", -1.0, SHARP)),
    "averaged ODE": (("states", 0.0, MARGIN), ("increments", -1.0, SHARP), ("parity", -0.5, MARGIN)),
    "SDE": (
        *(("states", 0.0, MARGIN), ("increments", -0.5, SHARP)),
        *(("draws", 0.0, MARGIN), ("parity", 0.0, MARGIN)),
    ),
}
BELOW: Mapping[str, tuple[tuple[str, float], ...]] = {
    "ODE": (("coarse", -1 + MARGIN), ("parity", -1 + MARGIN)),  # equal layers have no parity
    "SDE": (("largest", FEW),),
}


class DepthCheck(AbstractRecord):
    r"""Which limit networks of L layers have as L grows, from how these quantities scale, `values[name] (layers,)` and
    `exponents[name]` of L:

    - `states` $\|u_L - u_0\|/\|u_0\|$ and `increments` $\|u_{l+1} - u_l\|/\|u_0\|$: root mean squares over draws, and layers.
    - `coarse`: distance to the network that keeps every second layer and takes twice the step; `parity`: distance between
      those of the even and of the odd layers; both relative to `states`. Weights that are a function of depth let both fall
      like 1/L, independent layers let `parity` fall like their noise does beside the rest: L^{-½} if it averages out, L^0 if
      nothing else is left. Equal layers have no `parity` (`values` are 0, the exponent NaN), nor have others that are used twice
      in a row: of those nothing but growth is decided. `equal`: whether the layers of every network have the same weights.
    - `largest`: the share of one layer, that which moves most, in the sum of the squares of increments.
    - `draws`: spread between draws, relative to their mean; `weight gradients` $\|\partial\ell/\partial\theta_l\|$, those of the
      layers' matrices, and `input gradients` $\|\partial\ell/\partial u_0\|$ of a random linear loss
      $\ell = \langle v, u_L\rangle$, $\|v\| = 1$.

    `verdict`: `"ODE"` (a network tends to the solution of its own ODE), `"averaged ODE"` (noise averages out), `"SDE"` (the law
    of networks converges), `"none"`, or `"not decided"`; `trivial` if states stay where they are in the limit, at the rate of
    their exponent; `reason` in words.

    `power`: the chance that a limit with exactly the exponents that it asks for would be decided with the noise that was seen,
    so that "not decided" at a small power says little; for `"none"` the chance that growth as fast as this is seen.
    `detectable`: of the exponents that the verdict rests on but `largest` (where nothing is decided those of an SDE, or of an
    ODE if layers are equal), how far off the noisiest of them would have to be for the verdict to be withheld with a chance of
    0.8; for `"none"` how much less growth would have to be.
    """

    layers: tuple[int, ...] = eqx.field(static=True)
    draws: int = eqx.field(static=True)
    equal: bool = eqx.field(static=True)
    values: dict[str, np.ndarray]
    exponents: dict[str, Figure]
    verdict: str = eqx.field(static=True)
    trivial: bool = eqx.field(static=True)
    reason: str = eqx.field(static=True)
    power: float
    detectable: float


@checked
@on_numbers
def depth_check(
    recipe: Recipe | Mapping[int, Sequence[Any]],
    u0: Field,
    *,
    layers: Sequence[int] = (8, 16, 32, 64, 128, 256, 512),
    draws: int = 64,
    key: PRNGKeyArray | None = None,
    gradients: bool = True,
) -> DepthCheck:
    r"""Find which limit a recipe has as layers grow: the depth coordinate check, with a verdict.

    - `recipe`: a [`Recipe`][pdejax.analysis.limits.Recipe], of which `draws` networks of each number of `layers` are
      run; or trained networks by their number of layers, `{8: [net, …], 16: [net, …], …}`, as many for each, from different
      seeds: models, networks or discretizations of one step per layer, of any solver; where layers are thinned, twice what a
      layer adds. Then `layers` and `draws` are theirs.
    - `u0 (n, d)`: the input. Exponents of L come from the upper half of `layers`; their intervals hold the noise of draws and
      what the exponent still moves between the lower and the upper half. A limit is named only where every interval that it
      rests on lies whole within 0.1 (of increments within 0.04) of what it asks for: what falls between is not decided.
    - `gradients`: measure them too; the verdict does not rest on them.

    Cost: five passes through networks of `layers` for each draw, with the random numbers of 64 draws at a time in memory.
    **Not jit-compatible**. Raises `ValueError` for fewer than four numbers of layers, odd ones, fewer than 8 draws of a
    recipe (3 of trained networks), or an input that is zero or not finite.

    Source: coordinate checks in depth, arXiv 2310.02244 and 2309.16620; scales and limits, arXiv 2206.06929; the use of thinned
    layers and the verdict are derived here.
    """
    _check.finite(_OWNER, "u0", u0)
    if not np.any(np.asarray(u0)):
        raise ValueError(f"{_OWNER}: u0 is zero; states are measured relative to it, give an input that is not.")
    key = jax.random.key(0) if key is None else key
    if isinstance(recipe, Recipe):
        counts = _counts(layers)
        _check.integer(_OWNER, "draws", draws, 8)
        with _check.spoken_by(_OWNER, "u0 does not fit the recipe: "):
            recipe.base.check(u0.shape)
        found = _of_recipe(recipe, u0, counts, draws, key, gradients)
    else:
        counts = _counts(tuple(recipe))
        for count, nets in recipe.items():
            if not isinstance(nets, list | tuple):
                raise TypeError(
                    f"{_OWNER}: recipe[{count}] is a {type(nets).__name__}; give a list of at least 3 networks of {count} "
                    "layers, from different seeds."
                )
        draws = len(next(iter(recipe.values())))
        if any(len(nets) != draws for nets in recipe.values()) or draws < 3:
            raise ValueError(
                f"{_OWNER}: recipe has {[len(nets) for nets in recipe.values()]} networks of {list(recipe)} layers; give at "
                "least 3, and as many for each."
            )
        found = [_of_networks(recipe[count], u0, count, gradients) for count in counts]
    return judge_depth(counts, {name: np.stack([one[name] for one in found]) for name in found[0]}, draws)


def _counts(layers: Sequence[int]) -> tuple[int, ...]:
    counts = tuple(sorted({_check.integer(_OWNER, "layers", count, 2) for count in layers}))
    if len(counts) < 4:
        raise ValueError(
            f"{_OWNER}: layers={tuple(layers)} must hold at least four different numbers, to see whether exponents settle."
        )
    if any(count % 2 for count in counts):
        raise ValueError(
            f"{_OWNER}: layers={tuple(layers)} must be even, for every second layer is left out in a comparison."
        )
    return counts


def _of_recipe(recipe, u0, counts: tuple[int, ...], draws: int, key, gradients: bool) -> list[dict[str, np.ndarray]]:
    """What the networks of each number of layers show, `(draws, …)` each."""
    scales = jnp.asarray([count**-recipe.alpha for count in counts], u0.dtype)
    keys = jax.random.split(key, draws)
    found = _drawn(recipe, u0, jnp.asarray(counts), scales, keys, max(counts), gradients)
    found = {name: np.asarray(value) for name, value in found.items()}
    return [{name: value[:, i] for name, value in found.items()} for i in range(len(counts))]


@eqx.filter_jit
def _drawn(recipe: Recipe, u0, counts, scales, keys, longest: int, gradients: bool):
    def one(key):
        drawn = recipe.draw(longest, key)  # which all numbers of layers share

        def network(run):
            count, scale = run

            def layer(index):
                return recipe.layer(drawn, index, count, longest), None

            def step(layer, u, scale):
                return recipe.step(layer[0], u, scale)

            return _measured(layer, step, u0, count, longest, scale, gradients)

        return jax.lax.map(network, (counts, scales))

    return jax.lax.map(one, keys, batch_size=min(BATCH, len(keys)))


def _of_networks(nets: Sequence[Any], u0, count: int, gradients: bool) -> dict[str, np.ndarray]:
    found = []
    for net in nets:
        maps = layers_as_maps(_OWNER, net, u0, jnp.ones(u0.shape[0], bool))
        if maps.count != count or maps.native != 1 or not maps.d.layers:
            raise ValueError(
                f"{_OWNER}: recipe[{count}] holds a network of {maps.count} layers in {maps.native} step(s) each; it must have "
                f"{count} layers with weights of their own, in a step each."
            )
        found.append(_given(maps, u0, jnp.asarray(count), count, gradients))
    return {name: np.stack([np.asarray(one[name]) for one in found]) for name in found[0]}


@eqx.filter_jit
def _given(maps: Layers, u0, count, longest: int, gradients: bool):
    d, args = maps.d, FieldArgs(jnp.ones(u0.shape[0], bool))
    split = "linear" if linear_part(d.solver) is not None else d.split
    span = jnp.asarray(maps.span, u0.dtype)

    def layer(index):
        place = d.layers[0] + index
        start = jnp.asarray(d.t0, u0.dtype) + span * jnp.asarray(index).astype(u0.dtype)
        return (d.field.layer(place), take_layer(d.solver, place)), start

    def step(layer, u, scale):
        (field, solver), start = layer
        moved = fresh_step(solver, terms_of(field, split, u, args), start, start + span, u, args)[0]
        return u + scale * (moved - u)

    return _measured(layer, step, u0, count, longest, jnp.ones((), u0.dtype), gradients)


def _measured(layer, step, u0, count, longest: int, scale, gradients: bool) -> dict[str, Any]:
    """What one network shows: its end, and those of its even and odd layers; squares of its increments and gradients; and
    whether its layers are one. `layer(index)` is a layer's weights and where it begins."""
    first = layer(0)[0]

    def run(stride, offset):
        """Every layer, or every second one from `offset` in twice the step: the end, all states, the sum of squares of
        increments and the largest of them."""
        states = jnp.zeros((longest + 1 if gradients else 1, *u0.shape), u0.dtype).at[0].set(u0)

        def forward(j, carried):
            u, states, total, most = carried
            moved = step(layer(stride * j + offset), u, stride.astype(u0.dtype) * scale)
            states = states.at[j + 1].set(moved) if gradients else states
            square = jnp.sum((moved - u) ** 2)
            return moved, states, total + square, jnp.maximum(most, square)

        none = jnp.zeros((), u0.dtype)
        return jax.lax.fori_loop(0, count // stride, forward, (u0, states, none, none))

    # One after another, so that the layer is compiled once.
    ends, states, totals, most = jax.lax.map(lambda x: run(*x), (jnp.asarray([1, 2, 2]), jnp.asarray([0, 0, 1])))
    found = {"end": ends[0], "even": ends[1], "odd": ends[2], "start": u0}
    found |= {
        "increments": totals[0] / count.astype(u0.dtype),
        "largest": most[0],
        "equal": _same_as(first, layer, count),
    }
    if gradients:
        probe = jax.random.normal(jax.random.key(1), u0.shape, u0.dtype)
        found |= _gradients(layer, step, states[0], count, scale, probe / jnp.linalg.norm(probe))
    return found


def _same_as(first, layer, count):
    """Whether the weights of all layers are those of the first."""

    def same(index, before):
        pairs = zip(*(jax.tree.leaves(eqx.filter(one, eqx.is_array)) for one in (first, layer(index)[0])), strict=True)
        # Layers without arrays differ by nothing.
        return functools.reduce(jnp.logical_and, (jnp.all(a == b) for a, b in pairs), before)

    return jax.lax.fori_loop(1, count, same, jnp.asarray(True))


def _gradients(layer, step, states, count, scale, probe) -> dict[str, Any]:
    """Mean square over layers of the gradients by each layer's matrices, and the square of that by the input."""

    def back(j, carried):
        cotangent, total = carried
        index = count - 1 - j
        matrices, rest = eqx.partition(layer(index), is_drawn)
        _, pull = jax.vjp(lambda m, u: step(eqx.combine(m, rest), u, scale), matrices, states[index])
        by_weights, by_state = pull(cotangent)
        return by_state, total + sum(jnp.sum(x**2) for x in jax.tree.leaves(by_weights))

    by_input, total = jax.lax.fori_loop(0, count, back, (probe, jnp.zeros((), probe.dtype)))
    return {"weight gradients": total / count.astype(total.dtype), "input gradients": jnp.sum(by_input**2)}


def judge_depth(layers: Sequence[int], found: Mapping[str, np.ndarray], draws: int) -> DepthCheck:
    """The verdict on what networks have shown, `(layers, draws, …)` each."""
    squares = _squares(layers, found)
    values, left_out = {}, {}
    with np.errstate(all="ignore"):
        for name, (top, bottom) in squares.items():
            power = 1.0 if name == "largest" else 0.5  # a share, and root mean squares
            values[name] = (top.sum(axis=1) / bottom.sum(axis=1)) ** power
            without = [x.sum(axis=1, keepdims=True) - x for x in (top, bottom)]
            left_out[name] = ((without[0] / without[1]) ** power).T
        ends = found["end"]
        # Even and odd layers that are the same differ by the rounding of their depths.
        seen = values["parity"] > max(1e-12, 64 * float(np.finfo(ends.dtype).eps))
        values["parity"] = np.where(seen | np.isnan(values["parity"]), values["parity"], 0.0)
        values["draws"] = relative_spreads(ends)
        left_out["draws"] = np.stack([relative_spreads(np.delete(ends, i, axis=1)) for i in range(draws)])
        exponents = {name: _exponent(layers, values[name], left_out[name]) for name in values}
    lost = [str(count) for count, x in zip(layers, values["states"], strict=True) if not math.isfinite(x)]
    # Equal weights in a field that depends on t are no equal layers.
    equal = bool(np.all(found["equal"]) and not _differ(values).any())
    verdict, trivial, reason = depth_verdict(exponents, values, lost, equal=equal)
    power, detectable = verdict_power(verdict, trivial, exponents, draws, equal=equal)
    return DepthCheck(tuple(layers), draws, equal, values, exponents, verdict, trivial, reason, power, detectable)


def _squares(layers: Sequence[int], found: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numerators and denominators `(layers, draws)` whose sums over draws make the square of each quantity, and of `largest`
    the share itself."""

    def distance(a, b):
        return np.sum((found[a] - found[b]) ** 2, axis=(-2, -1))

    size, moved = np.sum(found["start"] ** 2, axis=(-2, -1)), distance("end", "start")
    squares = {
        "states": (moved, size),
        "increments": (found["increments"], size),
        "coarse": (distance("end", "even"), moved),
        "parity": (distance("even", "odd"), moved),
        "largest": (found["largest"], np.asarray(layers)[:, None] * found["increments"]),
    }
    return squares | {
        name: (found[name], np.ones_like(size)) for name in ("weight gradients", "input gradients") if name in found
    }


def _exponent(layers: Sequence[int], values: np.ndarray, left_out: np.ndarray) -> Figure:
    if not (np.all(np.isfinite(values)) and np.all(values > 0)):
        return Figure(math.nan, math.nan, math.nan)
    return settled_exponent(layers, values, left_out)


def depth_verdict(
    exponents: Mapping[str, Figure], values: Mapping[str, np.ndarray], lost: Sequence[str] = (), *, equal: bool
) -> tuple[str, bool, str]:
    """The verdict, whether the limit is trivial, and the reason, from exponents of L and whether all layers are `equal`; a limit
    only where all intervals lie within the margin of what it asks for."""
    shown = {name: f"{name} L^{float(x):+.2f} ± {half_width(x):.2f}" for name, x in exponents.items()}

    def said(*names: str) -> str:
        return ", ".join(shown[name] for name in names if math.isfinite(float(exponents[name])))

    states, increments, parity = (exponents[name] for name in ("states", "increments", "parity"))
    if lost:
        return "not decided", False, f"networks of {', '.join(lost)} layers diverged, which is no evidence"
    if above(states, MARGIN):
        return "none", False, f"states grow without bound: {said('states', 'increments')}"
    if above(increments, -0.5 + SHARP) and near(parity, 0.0):
        return "none", False, f"increments add up to more and more: {said('increments', 'parity')}; {_DIFFER}"
    if not (equal or _differ(values).all()):
        why = "layers are not one, but even and odd ones are the same: what they differ by is not seen"
        return "not decided", False, f"{why}: {said('states', 'increments', 'coarse', 'draws')}"
    function = equal or below(parity, -1 + MARGIN)
    if below(states, -MARGIN):
        why = f"states stay at the input: {said('states', 'coarse', 'parity')}"
        if function and below(exponents["coarse"], -0.5):
            return "ODE", True, f"{why}; weights are a function of depth"
        if near(parity, 0.0) and near(_added(exponents), ADDED, HALFWAY):
            return "averaged ODE", True, f"{why}; {_DIFFER}, and add up as independent ones do"
        return "not decided", False, why
    if _near("ODE", exponents) and _below("ODE", exponents, equal):
        return "ODE", False, f"weights are a function of depth: {said('states', 'increments', 'coarse', 'parity')}"
    if _near("averaged ODE", exponents):
        return "averaged ODE", False, f"what differs between layers averages out: {said(*_SHOWN)}"
    if _near("SDE", exponents):
        if _below("SDE", exponents, equal):
            return "SDE", False, f"what differs between layers stays: {said(*_SHOWN, 'largest')}"
        # One layer that moves by O(1) has the same root mean square as many that move by 1/√L, and no partner of its parity.
        return "not decided", False, f"a few layers may do most of it: {said(*_SHOWN, 'largest')}"
    return "not decided", False, f"between the regimes: {said('states', 'increments', 'coarse', 'parity', 'draws')}"


# All that parity can show: layers that alternate differ as much as independent ones.
_DIFFER = "even and odd layers differ"
_SHOWN = ("states", "increments", "parity", "draws")


def _differ(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether even and odd layers differ, by number of layers."""
    return ~(np.asarray(values["parity"]) == 0)


def _added(exponents: Mapping[str, Figure]) -> Figure:
    """By which power of L states are longer than increments."""
    states, increments = exponents["states"], exponents["increments"]
    value, ci = float(states) - float(increments), half_width(states) + half_width(increments)
    return Figure(value, value - ci, value + ci)


def _near(verdict: str, exponents: Mapping[str, Figure]) -> bool:
    return all(near(exponents[name], target, margin) for name, target, margin in NEEDS[verdict])


def _below(verdict: str, exponents: Mapping[str, Figure], equal: bool) -> bool:
    needs = BELOW.get(verdict, ())
    return all(below(exponents[name], bound) or (equal and name == "parity") for name, bound in needs)


def _rooms(verdict: str, trivial: bool, exponents: Mapping[str, Figure], equal: bool) -> dict[str, tuple[float, int]]:
    """How far each exponent that a verdict rests on, of those that are known, may stray before the verdict is withheld, beside
    the intervals' half-widths, and to how many sides."""
    value = {name: float(x) for name, x in exponents.items()}
    if trivial:
        rooms = {"states": (-MARGIN - value["states"], 1)}
        own = {"coarse": (-0.5 - value["coarse"], 1), "parity": (-1 + MARGIN - value["parity"], 1)}
        rooms |= own if verdict == "ODE" else {"parity": (MARGIN, 2), "added": (HALFWAY, 2)}
    else:
        limit = verdict if verdict in NEEDS else "ODE" if equal else "SDE"
        rooms = {name: (margin, 2) for name, _, margin in NEEDS[limit]}
        # A limit's own are −1; where they fall faster there is more room.
        rooms |= {name: (bound - min(value[name], -1.0), 1) for name, bound in BELOW.get(limit, ())}
    return {name: room for name, room in rooms.items() if math.isfinite(value[name])}


def student_error(exponent: Figure, draws: int) -> float:
    """The standard error that an interval stands for."""
    return half_width(exponent) / student(draws)


def verdict_power(
    verdict: str, trivial: bool, exponents: Mapping[str, Figure], draws: int, *, equal: bool = False
) -> tuple[float, float]:
    """The power of a verdict and what it would have noticed (see `DepthCheck`), with normal errors as wide as the intervals."""
    if verdict == "none":
        name, bound = ("states", MARGIN) if above(exponents["states"], MARGIN) else ("increments", -0.5 + SHARP)
        noise = max(student_error(exponents[name], draws), 1e-12)
        far = float(exponents[name]) - half_width(exponents[name]) - bound
        return float(ndtr(far / noise)), far + 0.8416 * noise
    exponents = {**exponents, "added": _added(exponents)}
    rooms = _rooms(verdict, trivial, exponents, equal)
    errors = {name: max(student_error(exponents[name], draws), 1e-12) for name in rooms}
    if not rooms or not all(math.isfinite(x) for x in errors.values()):
        return math.nan, math.nan
    power, detectable = 1.0, 0.0
    for name, (least, sides) in rooms.items():
        room, noise = least - half_width(exponents[name]), errors[name]
        power *= max(sides * float(ndtr(room / noise)) - (sides - 1), 0.0)
        if name != "largest":  # a share that falls by half as much is far from any layer's doing it all
            detectable = max(detectable, room + 0.8416 * noise)
    return power, detectable
