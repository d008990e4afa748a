"""The analyses of a trained model, all at once: what `pdejax analyze` measures on held-out data."""

import dataclasses
import io
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from pdejax import analysis, plot
from pdejax.analysis import information
from pdejax.data import load
from pdejax.models import Simulator, Transformer
from pdejax.runs._parts import check_folder, environment, write_json, write_whole
from pdejax.training import build_model, load_trained

RESAMPLES = 200


@dataclasses.dataclass(frozen=True)
class Line:
    """One figure by layer: `name`, `unit`, `values (layers,)` with interval ends `low`, `high` (None where there are none), the
    `null` model's values (or None) and its `null_name`. `first`: the number of the first layer."""

    name: str
    unit: str
    values: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    null: np.ndarray | None
    null_name: str
    first: int


@dataclasses.dataclass(frozen=True)
class AnalyzeResult:
    """`lines`, one figure by layer each; `content`, what `analysis.json` holds; `files` written."""

    lines: tuple[Line, ...]
    content: dict[str, Any]
    files: tuple[str, ...]

    def table(self) -> str:
        """First and last layer of every figure beside the last layer's null."""
        rows = [("figure", "first layer", "last layer", "null, last layer")]
        for line in self.lines:
            unit = f" [{line.unit}]" if line.unit else ""
            null = "" if line.null is None else f"{line.null[-1]:.4g} ({line.null_name})"
            rows.append((line.name + unit, f"{line.values[0]:.4g}", _shown(line), null))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        cells = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        cells.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join(cells)

    def to_xarray(self) -> xr.Dataset:
        """Values, intervals and nulls by (figure, layer); NaN where a figure has no such layer."""
        layers = max(line.first + len(line.values) for line in self.lines)
        data = {name: np.full((len(self.lines), layers), np.nan) for name in ("value", "low", "high", "null")}
        for i, line in enumerate(self.lines):
            where = slice(line.first, line.first + len(line.values))
            for name, values in (("value", line.values), ("low", line.low), ("high", line.high), ("null", line.null)):
                if values is not None:
                    data[name][i, where] = values
        return xr.Dataset(
            {name: (("figure", "layer"), values) for name, values in data.items()},
            coords={"figure": [line.name for line in self.lines], "layer": np.arange(layers)},
        )


def analyze(
    folder: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    examples: int = 64,
    noise: float = 0.7,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] | None = None,
) -> AnalyzeResult:
    """Run the analyses on a model that `pdejax train` left in `folder`, on the first `examples` held-out sequences.

    - `against`: the folder of another run on the same data, of as many layers and features, whose states and attention are
      compared with this one's.
    - `noise` σ of the information estimates, relative to each layer's spread over sequences (`unit_spread`).
    - `out`: folder for `analysis.json`, `analysis.nc` and plots.

    Nulls: the untrained model of the same configuration, shuffled tokens, permuted labels, uniform attention.

    Raises `ValueError` for folders without a trained Transformer or simulator, runs that do not match, and numbers out of range;
    `ResultError` where `out` cannot be written.
    """
    started = time.perf_counter()
    for name, value, least in (("examples", examples, 2), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be an integer of at least {least}.")
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not (math.isfinite(noise) and noise > 0):
        raise ValueError(f"noise={noise!r} must be a positive number, the standard deviation of the noise.")
    if out is not None:
        check_folder(pathlib.Path(out))
    say = report if report is not None else lambda text: None
    trained = load_trained(folder)
    other = None if against is None else load_trained(against)
    for name, found in (("folder", trained), ("against", other)):
        if found is not None and not isinstance(found.model, Transformer | Simulator):
            raise ValueError(
                f"{name}={str(folder)!r} holds a {type(found.model).__name__}; give a Transformer or a Simulator."
            )
    options = dict(trained.config.data) | ({"task": "lm"} if trained.config.task == "lm" else {})
    test, train = (load(trained.config.dataset, split, **options) for split in ("test", "train"))
    batch = test.take(np.arange(min(examples, len(test))))
    inputs, mask, labels = (jnp.asarray(x) for x in (batch.inputs, batch.mask, batch.labels))
    fresh = build_model(trained.config, train)
    figures = _Figures(jax.random.key(seed), mask, say)
    states, maps = _observe(trained.model, inputs, mask)
    null, _ = _observe(fresh, inputs, mask)
    figures.alone(states, maps, null)
    if labels.ndim == 1:
        figures.informed(states, labels, float(noise))
        figures.derivatives(trained.model, inputs, labels)
    if other is not None:
        theirs = _observe(other.model, inputs, mask)
        if theirs[0].shape != states.shape:
            raise ValueError(
                f"against={str(against)!r} has states {theirs[0].shape}, this run {states.shape} (layers, sequences, tokens, "
                "features); compare runs on the same data with as many layers and features."
            )
        figures.pair(states, maps, *theirs, null)
    content = {
        "study": "analyze",
        "run": pathlib.Path(folder).name,
        "step": trained.step,
        "against": None if against is None else pathlib.Path(against).name,
        "examples": len(batch.inputs),
        "noise": float(noise),
        "seed": seed,
        "environment": environment(),
        "lines": [dataclasses.asdict(line) for line in figures.lines],
        "seconds": time.perf_counter() - started,
    }
    result = AnalyzeResult(tuple(figures.lines), content, ())
    return (
        result if out is None else dataclasses.replace(result, files=_write(pathlib.Path(out), result, figures.records))
    )


class _Figures:
    """Collects the lines of the table, and the records that are plotted."""

    def __init__(self, key, mask, say):
        self.key, self.mask, self.say = key, mask, say
        self.lines: list[Line] = []
        self.records: dict[str, Callable[[], Any]] = {}

    def add(self, name: str, compared, null_name: str, unit: str = "", first: int = 0) -> None:
        """A line from a `Compared`, whose arrays are `(layers,)` or `(layers, heads)`, averaged over heads."""
        one = compared.value
        value = np.asarray(one.value)
        low, high = (
            np.asarray(x) if value.ndim == 1 and np.all(np.isfinite(np.asarray(x))) else None
            for x in (one.low, one.high)
        )
        null = np.asarray(compared.null.value)
        if value.ndim == 2:
            value, null = value.mean(axis=1), null.mean(axis=1)
        self.lines.append(Line(name, unit, value, low, high, null, null_name, first))

    def alone(self, states, maps, null) -> None:
        """What needs the model's states and maps only."""
        draws = {"key": self.key, "resamples": RESAMPLES}
        self.say("correlations")
        kept = analysis.input_correlation(states, self.mask, untrained=null, **draws)
        self.add("correlation with the input", kept.pearson.untrained, "untrained")
        near = analysis.adjacent_correlation(states, self.mask, untrained=null, **draws)
        self.add("correlation with the layer before", near.pearson.untrained, "untrained", first=1)
        self.records["input_correlation"] = lambda: plot.layer_correlation(kept)
        self.say("attention")
        entropy = analysis.attention_entropy(maps, self.mask, **draws)
        self.add("entropy of attention", entropy.entropy, "uniform", "nats", first=1)
        self.records["attention_entropy"] = lambda: plot.attention_entropy(entropy)
        self.say("spectra")
        low = analysis.low_pass_ratio(states, mask=self.mask, **draws)
        self.add("non-constant share of energy", low.share, "random directions")
        self.records["low_pass"] = lambda: plot.low_pass_ratio(low)
        self.say("statistics and clusters of states")
        statistics = analysis.representation(states, mask=self.mask, **draws)
        for name, figure in (
            ("participation ratio / d", statistics.participation_ratio),
            ("effective rank", statistics.effective_rank),
            ("sparsity", statistics.sparsity),
            ("magnitude", statistics.magnitude),
            ("diversity over sequences", statistics.diversity),
        ):
            self.add(name, figure, statistics.null)
        self.records["representation"] = lambda: plot.representation(statistics)[0]
        clusters = analysis.token_clustering(states, mask=self.mask, untrained=null, **draws)
        for name, figure in (
            ("mean cosine of two tokens", clusters.cosine),
            ("clusters of tokens", clusters.clusters),
            ("residual after removing the mean token", clusters.residual),
        ):
            self.add(name, figure, clusters.null)
        self.records["clustering"] = lambda: plot.token_clustering(clusters)[0]

    def informed(self, states, labels, noise: float) -> None:
        """What needs the labels: both informations of every layer."""
        self.say("information")
        scaled = information.unit_spread(states, mask=self.mask)
        plane = information.information_plane(scaled, scaled[0], labels, noise=noise, mask=self.mask, key=self.key)
        for name, figure, null in (
            ("I(X; T + σξ)", plane.input, plane.input_null),
            ("I(T + σξ; Y)", plane.target, plane.target_null),
        ):
            beside = np.asarray(null.value)
            known = bool(np.all(np.isfinite(beside)))
            low, high = _ends(figure)
            self.lines.append(
                Line(name, "nats", np.asarray(figure.value), low, high, beside if known else None, "permuted", 0)
            )
        self.records["information_plane"] = lambda: plot.information_plane(plane)

    def derivatives(self, model, inputs, labels) -> None:
        """Gradients and answers to perturbations, on at most sixteen sequences."""
        few = slice(0, 16)
        draws = {"key": self.key, "resamples": RESAMPLES, "mask": self.mask[few]}
        self.say("gradients")
        flow = analysis.gradient_flow(model, inputs[few], labels[few], **draws)
        null = None if flow.null is None else np.asarray(flow.null.value)
        one = flow.median
        low, high = _ends(one)
        self.lines.append(
            Line("‖∂loss/∂u‖, median", "1/units of u", np.asarray(one.value), low, high, null, "labels exchanged", 0)
        )
        self.records["gradients"] = lambda: plot.gradient_flow(flow)
        self.say("perturbations")
        answer = analysis.perturbation_sensitivity(model, inputs[few], labels[few], draws=4, **draws)
        self.records["perturbation"] = lambda: plot.perturbation_response(answer, of="loss")

    def pair(self, states, maps, their_states, their_maps, null) -> None:
        """This model beside another."""
        self.say("the two runs")
        draws = {"key": self.key, "resamples": RESAMPLES, "mask": self.mask}
        fidelity = analysis.trajectory_fidelity(states, their_states, reference_null=null, **draws)
        for name in ("cosine", "relative_error", "cka_debiased"):
            self.add(
                f"{name.replace('_', ' ')} with the other run", getattr(fidelity.layers, name).untrained, "untrained"
            )
        spectra = analysis.spectral_similarity(their_states, states, untrained=null, **draws)
        self.add("spectral similarity with the other run", spectra.token["untrained"].cosine, "untrained")
        attention = analysis.attention_fidelity(their_maps, maps, **draws)
        self.add("attention cosine with the other run", attention.uniform.cosine, "uniform", first=1)
        self.add("attention KL from the other run", attention.uniform.kl, "uniform", "nats", first=1)
        self.records["fidelity"] = lambda: plot.trajectory_fidelity(fidelity)
        self.records["attention"] = lambda: plot.attention_fidelity(attention)


def _ends(interval) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Both ends of an interval, None where there is none."""
    low, high = np.asarray(interval.low), np.asarray(interval.high)
    return (low, high) if np.all(np.isfinite(low)) and np.all(np.isfinite(high)) else (None, None)


def _observe(model, inputs, mask):
    """States (layers + 1, b, n, d), 0 at padding, and maps (layers, b, H, n, n)."""
    states = jnp.moveaxis(jax.vmap(model.hidden_states)(inputs, mask), 0, 1)
    maps = jnp.moveaxis(jax.vmap(model.attention_maps)(inputs, mask), 0, 1)
    return jnp.where(mask[None, :, :, None], states, 0), maps


def _shown(line: Line) -> str:
    if line.low is None or line.high is None:
        return f"{line.values[-1]:.4g}"
    return f"{line.values[-1]:.4g} [{line.low[-1]:.3g}, {line.high[-1]:.3g}]"


def _write(folder: pathlib.Path, result: AnalyzeResult, records: dict[str, Callable[[], Any]]) -> tuple[str, ...]:
    files = [folder / "analysis.json", folder / "analysis.nc"]
    write_json(files[0], result.content)
    write_whole(files[1], bytes(result.to_xarray().to_netcdf(engine="scipy", format="NETCDF3_64BIT")))
    for name, draw in records.items():
        buffer = io.BytesIO()
        np.ravel(draw())[0].figure.savefig(buffer, format="png", dpi=130)
        files.append(folder / f"{name}.png")
        write_whole(files[-1], buffer.getvalue())
    return tuple(str(path) for path in files)
