"""Errors of information estimators on channels whose information is known."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from pdejax.analysis.information._estimate import Estimate, checked_sizes
from pdejax.analysis.information._mutual import mutual_information
from pdejax.analysis.information.channels._channels import Channel, Pairs, standard_channels

if TYPE_CHECKING:
    import xarray

Estimator = Callable[[Pairs, PRNGKeyArray], Estimate | None]


class Calibration(eqx.Module):
    """Estimates (nats) of every estimator on every channel from every seed; NaN where an estimator does not take the
    data.

    - `estimate (E, C, S)`, `saturated (E, C, S)`; `exact (C,)`. `samples`: pairs in each.
    - `error (E, C, S)` = estimate − exact; `median (E, C)` of it; `spread (E, C)`: half the range of the middle half of
      them, the quartile deviation (0.67 standard deviations of a normal law).
    """

    estimate: Float[np.ndarray, "E C S"]
    saturated: Bool[np.ndarray, "E C S"]
    exact: Float[np.ndarray, " C"]
    estimators: tuple[str, ...] = eqx.field(static=True)
    channels: tuple[str, ...] = eqx.field(static=True)
    samples: int = eqx.field(static=True)

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return self.to_xarray()._repr_html_()

    @property
    def error(self) -> np.ndarray:
        return self.estimate - self.exact[None, :, None]

    @property
    def median(self) -> np.ndarray:
        return np.median(self.error, axis=2)

    @property
    def spread(self) -> np.ndarray:
        low, high = np.quantile(self.error, [0.25, 0.75], axis=2)
        return (high - low) / 2

    @property
    def mostly_saturated(self) -> np.ndarray:
        """Whether more than half of the estimates say so, `(E, C)`."""
        return self.saturated.mean(axis=2) > 0.5

    def table(self) -> str:
        """Markdown: median error ± spread in nats; `*` saturated, `–` does not take the data."""
        heads = ["channel", "exact", *self.estimators]
        lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        middle, spread, marks = self.median, self.spread, self.mostly_saturated
        for c, channel in enumerate(self.channels):
            cells = [channel, f"{self.exact[c]:.3f}"]
            for e in range(len(self.estimators)):
                missing = math.isnan(middle[e, c])
                cells.append(
                    "–" if missing else f"{middle[e, c]:+.3f} ± {spread[e, c]:.3f}{'*' if marks[e, c] else ''}"
                )
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def to_xarray(self) -> "xarray.Dataset":
        """Estimates, errors and saturation over `estimator`, `channel`, `seed`."""
        import xarray

        dims = ("estimator", "channel", "seed")
        found = xarray.Dataset(
            {
                "estimate": (dims, self.estimate, {"units": "nats"}),
                "error": (dims, self.error, {"units": "nats"}),
                "saturated": (dims, self.saturated),
                "exact": (("channel",), self.exact, {"units": "nats"}),
            },
            coords={"estimator": list(self.estimators), "channel": list(self.channels)},
        )
        return found.assign_attrs(samples=self.samples)

    def save(self, path: str | pathlib.Path) -> None:
        """Write exact values, median errors, spreads and saturation as JSON."""
        cells = {
            name: {
                channel: None
                if math.isnan(self.median[e, c])
                else {
                    "median_error": round(float(self.median[e, c]), 5),
                    "spread": round(float(self.spread[e, c]), 5),
                    "saturated": bool(self.mostly_saturated[e, c]),
                }
                for c, channel in enumerate(self.channels)
            }
            for e, name in enumerate(self.estimators)
        }
        exact = {channel: round(float(value), 6) for channel, value in zip(self.channels, self.exact, strict=True)}
        found = {
            "unit": "nats",
            "samples": self.samples,
            "seeds": self.estimate.shape[2],
            "exact": exact,
            "errors": cells,
        }
        pathlib.Path(path).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def calibration(
    estimators: Mapping[str, Estimator] | Sequence[str] | None = None,
    channels: Sequence[Channel] | None = None,
    *,
    samples: int = 1000,
    seeds: int = 5,
    key: PRNGKeyArray | None = None,
) -> Calibration:
    """Run every estimator on `samples` pairs of every channel, `seeds` times with fresh pairs (the same for all
    estimators).

    `estimators`: names for [`mutual_information`][pdejax.analysis.information.mutual_information], or a mapping of
    names to functions of [`Pairs`][pdejax.analysis.information.channels.Pairs] and a key; default
    [`standard_estimators`][pdejax.analysis.information.channels.standard_estimators]. `channels`: default
    [`standard_channels`][pdejax.analysis.information.channels.standard_channels]. `key`: default 0.

    An estimator that raises `TypeError` for a channel's kind of data, or returns None, has NaN there. Raises
    `ValueError` for nothing to run, two channels of one name, or sizes below 1. The default takes minutes at 1000
    samples, most of it training.
    """
    checked_sizes("calibration", {"samples": 10}, samples=samples, seeds=seeds)
    known = standard_estimators()
    if estimators is None:
        estimators = known
    elif not isinstance(estimators, Mapping):
        wrong = [name for name in estimators if name not in known]
        if wrong:
            raise ValueError(
                f"calibration: no estimator is called {', '.join(map(repr, wrong))}; choose from {list(known)}."
            )
        estimators = {name: known[name] for name in estimators}
    channels = standard_channels() if channels is None else list(channels)
    names = [channel.name for channel in channels]
    if not estimators or not channels or len(set(names)) < len(names):
        raise ValueError(
            f"calibration: needs an estimator and channels of different names; got {list(estimators)}, {names}."
        )
    key = jax.random.key(0) if key is None else key
    shape = (len(estimators), len(channels), seeds)
    values, saturated = np.full(shape, np.nan), np.zeros(shape, bool)
    for c, channel in enumerate(channels):
        for s in range(seeds):
            drawn, own = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, c), s))
            pairs = channel.draw(drawn, samples)
            for e, estimate in enumerate(estimators.values()):
                try:
                    found = estimate(pairs, own)
                except TypeError:
                    continue
                if found is not None:
                    values[e, c, s], saturated[e, c, s] = float(found.value), bool(found.saturated)
    exact = np.asarray([channel.information for channel in channels])
    return Calibration(values, saturated, exact, tuple(estimators), tuple(names), samples)


def standard_estimators() -> dict[str, Estimator]:
    """KSG, binned, Gaussian, InfoNCE and CLUB with their defaults, and both KDE bounds where a channel tells its
    noise."""

    def named(name: str) -> Estimator:
        return lambda pairs, key: mutual_information(pairs.x, pairs.y, name, **_keyed(name, key))

    def bounded(bound: str) -> Estimator:
        def estimate(pairs, key):
            del key
            if pairs.signal is None:
                return None
            return mutual_information(pairs.x, pairs.signal, "kde", noise=pairs.noise, bound=bound)

        return estimate

    return {
        "ksg": named("ksg"),
        "binned": named("binned"),
        "gaussian": named("gaussian"),
        "kde upper": bounded("upper"),
        "kde lower": bounded("lower"),
        "infonce": named("infonce"),
        "club": named("club"),
    }


def _keyed(name: str, key: PRNGKeyArray) -> dict:
    return {"key": key} if name in ("infonce", "club") else {}
