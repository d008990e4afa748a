"""The analyses of a trained model, all at once: what `pdejax analyze` measures on held-out data."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from pdejax import analysis, plot
from pdejax._arguments import checked
from pdejax._figure import Figure
from pdejax.analysis import information
from pdejax.data import load
from pdejax.models import Simulator, Transformer, observe
from pdejax.models._saving import model_of_record, model_record
from pdejax.networks import as_network
from pdejax.runs._parts import Parts
from pdejax.runs._records import Picture, Result
from pdejax.runs._table import Cell, Column, Table
from pdejax.studies.numerics import _analyze_depth as _depth
from pdejax.studies.numerics._analyze_config import AnalyzeConfig
from pdejax.studies.study import Evidence, Judgement, Study, run, settings
from pdejax.training import TrainConfig
from pdejax.training._kept import SavedModel, saved_model
from pdejax.training._names import DatasetName

RESAMPLES = 200
COLUMNS = (
    Column("figure"),
    Column("first layer", right=True),
    Column("last layer", right=True),
    Column("null, last layer", right=True),
)


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


@checked
def analyze(
    model: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    dataset: DatasetName | None = None,
    data: Mapping[str, Any] | None = None,
    examples: int = 64,
    noise: float = 0.7,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] | None = None,
) -> Result:
    """Run the analyses on a trained model, on the first `examples` held-out sequences.

    - `model`: a folder that `pdejax train` left, or a file that `pdejax.save_model` wrote.
    - `against`: another model for the same data, of as many layers and features, whose states and attention are compared with
      this one's.
    - `dataset`, and its options in `data`: by default what the model was trained on. A file that does not say needs it.
    - `noise` σ of the information estimates, relative to each layer's spread over sequences (`unit_spread`).
    - `out`: folder for `analysis.json`, `analysis.nc` and plots.

    Nulls: the untrained model of the same configuration, shuffled tokens, permuted labels, uniform attention, shuffled weights.
    `verdicts` says what users ask first; `results["depth"]` has its numbers, `results["lines"]` one figure by layer each: `name`,
    `unit`, `values` with ends `low` and `high`, `null`, `first` layer.

    Raises `ValueError` for what holds no Transformer or simulator, models that do not match, and numbers out of range,
    `FileNotFoundError` where there is nothing at the path, `ResultError` where `out` cannot be written.
    """
    config = AnalyzeConfig(
        model=os.fspath(model),
        against=None if against is None else os.fspath(against),
        dataset=dataset,
        data=dict(data or {}),
        examples=examples,
        noise=noise,
        seed=seed,
        out=None if out is None else os.fspath(out),
    )
    return run(ANALYZE, config, out=config.out, report=report)


def measure(config: AnalyzeConfig, seed: int, parts: Parts) -> Evidence:
    """Run every analysis on held-out sequences; `records` draw the pictures."""
    trained = _model(config, "model", config.model)
    other = None if config.against is None else _model(config, "against", config.against)
    dataset, options = _data(config, trained.config)
    test = load(dataset, "test", **options)
    batch = test.take(np.arange(min(config.examples, len(test))))
    inputs, mask, labels = (jnp.asarray(x) for x in (batch.inputs, batch.mask, batch.labels))
    key = jax.random.key(seed)
    headed = trained.model.architecture.head != "none"
    net = as_network(trained.model, length=inputs.shape[1])
    depth = _depth.measured(net, inputs, mask, labels if headed else None, key, parts.say)
    figures = _Figures(key, mask, parts.say)
    for name, figure, unit, first in _depth.curves(depth):
        figures.add(name, figure, "", unit, first)
    _, states, maps = observe(trained.model, inputs, mask)
    null = observe(_untrained(trained), inputs, mask).states
    figures.alone(states, maps, null)
    if labels.ndim == 1 and headed:
        figures.informed(states, labels, float(config.noise))
        figures.derivatives(trained.model, inputs, labels)
    if other is not None:
        theirs = observe(other.model, inputs, mask)[1:]
        if theirs[0].shape != states.shape:
            raise ValueError(
                f"analyze: against={config.against!r} has states {theirs[0].shape}, this model {states.shape} (layers, "
                "sequences, tokens, features); compare models for the same data with as many layers and features."
            )
        figures.pair(states, maps, *theirs, null)
    return {
        "step": trained.step,
        "examples": len(batch.inputs),
        "dataset": dataset,
        "depth": depth,
        "lines": [dataclasses.asdict(line) for line in figures.lines],
        "records": figures.records,
    }


def _model(config: AnalyzeConfig, name: str, path: str) -> SavedModel:
    found = saved_model("analyze", name, path)
    if not isinstance(found.model, Transformer | Simulator):
        raise ValueError(
            f"analyze: {name}={path!r} holds a {type(found.model).__name__}; give a Transformer or a Simulator."
        )
    return found


def _data(config: AnalyzeConfig, trained: TrainConfig | None) -> tuple[str, dict[str, Any]]:
    """The data set and its options: the run's own, unless another is named."""
    if config.dataset is None and trained is None:
        raise ValueError(
            f"analyze: model={config.model!r} does not say what it was trained on; give dataset=, with its options in data=."
        )
    dataset = config.dataset or (trained.dataset if trained is not None else "")
    own: dict[str, Any] = {}
    if trained is not None and trained.dataset == dataset:
        own = dict(trained.data) | ({"task": "lm"} if trained.task == "lm" else {})
    return dataset, own | dict(config.data)


def _untrained(trained: SavedModel) -> Any:
    """A model of the same configuration with weights as they are before training."""
    return model_of_record(model_record(trained.model), seed=0 if trained.config is None else trained.config.seed)


def judge(config: AnalyzeConfig, evidence: Sequence[Evidence]) -> Judgement:
    """Answer what users ask first, and show every figure's first and last layer beside the last layer's null."""
    [found] = evidence
    lines, depth = found["lines"], found.get("depth", {"notes": []})
    drawn = {
        name: (CAPTIONS[name], functools.partial(_titled, draw, CAPTIONS[name]))
        for name, draw in found.get("records", {}).items()
    }
    return Judgement(
        sentence=f"{len(lines)} figures of {pathlib.Path(config.model).name} on {found['examples']} held-out sequences",
        verdicts=_depth.sentences(depth),
        tables=(*_depth.tables(depth), Table(COLUMNS, [cells(line) for line in lines], "By layer")),
        notes=tuple(depth["notes"]),
        results={key: found[key] for key in ("step", "examples", "lines")} | {"depth": _depth.saved(depth)},
        dataset=_dataset(lines),
        pictures=[
            Picture(f"{name}.png", caption, draw) for name, (caption, draw) in (_depth.pictures(depth) | drawn).items()
        ],
    )


# What each picture shows.
CAPTIONS = {
    "input_correlation": "Correlation of each layer's states with the input",
    "attention_entropy": "Entropy of attention, layer by layer",
    "low_pass": "Share of the states' energy that is not constant over tokens",
    "representation": "Statistics of the states, layer by layer",
    "clustering": "How alike tokens become: cosines and clusters",
    "information_plane": "Information about input and label, layer by layer",
    "gradients": "Gradient of the loss by each layer's states",
    "perturbation": "Answer of the loss to perturbations of each layer",
    "fidelity": "States of the two models beside each other",
    "attention": "Attention of the two models beside each other",
}


def _titled(draw: Callable[[], Any], caption: str) -> Any:
    """A record's picture with its caption as the title."""
    canvas = np.ravel(draw())[0].figure
    canvas.suptitle(caption, fontsize=10)
    return canvas


def cells(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """One figure as a line of the table."""
    unit = f" [{line['unit']}]" if line["unit"] else ""
    low, high = (None if line[end] is None else line[end][-1] for end in ("low", "high"))
    null = "" if line["null"] is None else Cell(float(line["null"][-1]), small=line["null_name"])
    return line["name"] + unit, float(line["values"][0]), Figure(line["values"][-1], low, high), null


def _dataset(lines: Sequence[Mapping[str, Any]]) -> xr.Dataset:
    """Values, intervals and nulls by (figure, layer); NaN where a figure has no such layer."""
    layers = max(line["first"] + len(line["values"]) for line in lines)
    data = {name: np.full((len(lines), layers), np.nan) for name in ("value", "low", "high", "null")}
    for i, line in enumerate(lines):
        where = slice(line["first"], line["first"] + len(line["values"]))
        for name, key in (("value", "values"), ("low", "low"), ("high", "high"), ("null", "null")):
            if line[key] is not None:
                data[name][i, where] = line[key]
    return xr.Dataset(
        {name: (("figure", "layer"), values) for name, values in data.items()},
        coords={"figure": [line["name"] for line in lines], "layer": np.arange(layers)},
    )


def _saved(config: AnalyzeConfig) -> dict[str, Any]:
    """The configuration without the machine's paths: models by the names of their files."""
    names = {
        key: None if value is None else pathlib.Path(value).name
        for key, value in (("model", config.model), ("against", config.against))
    }
    data = {key: value for key, value in config.data.items() if key not in ("data_dir", "manual_dir", "download")}
    return settings(config) | names | {"data": data}


class _Figures:
    """Collects the lines of the table, and the records that are plotted."""

    def __init__(self, key, mask, say):
        self.key, self.mask, self.say = key, mask, say
        self.lines: list[Line] = []
        self.records: dict[str, Callable[[], Any]] = {}

    def add(self, name: str, figure: Figure, null_name: str, unit: str = "", first: int = 0, shown: str = "") -> None:
        """A line from a `Figure`, whose arrays are `(layers,)` or `(layers, heads)`, averaged over heads, beside the null of this
        name if it has it; `shown` is what the table calls it."""
        value = np.asarray(figure)
        low, high = _ends(figure) if value.ndim == 1 else (None, None)
        null = np.asarray(figure.nulls[null_name]) if null_name in figure.nulls else None
        if value.ndim == 2:
            value, null = value.mean(axis=1), None if null is None else null.mean(axis=1)
        self.lines.append(Line(name, unit, value, low, high, null, shown or null_name, first))

    def alone(self, states, maps, null) -> None:
        """What needs the model's states and maps only."""
        draws = {"key": self.key, "resamples": RESAMPLES}
        self.say("correlations")
        kept = analysis.layer_correlation(states, mask=self.mask, untrained=null, **draws)
        self.add("correlation with the input", kept.pearson, "untrained")
        near = analysis.layer_correlation(states, "previous", self.mask, untrained=null, **draws)
        self.add("correlation with the layer before", near.pearson, "untrained", first=1)
        self.records["input_correlation"] = lambda: plot.plot(kept)
        self.say("attention")
        entropy = analysis.attention_entropy(maps, self.mask, **draws)
        self.add("entropy of attention", entropy.entropy, "uniform", "nats", first=1)
        self.records["attention_entropy"] = lambda: plot.plot(entropy)
        self.say("spectra")
        low = analysis.spectra.low_pass_ratio(states, mask=self.mask, **draws)
        self.add("non-constant share of energy", low.share, "random directions")
        self.records["low_pass"] = lambda: plot.plot(low)
        self.say("statistics and clusters of states")
        statistics = analysis.representation(states, mask=self.mask, **draws)
        for name, figure in (
            ("participation ratio / d", statistics.participation_ratio),
            ("effective rank", statistics.effective_rank),
            ("sparsity", statistics.sparsity),
            ("magnitude", statistics.magnitude),
            ("diversity over sequences", statistics.diversity),
        ):
            self.add(name, figure, next(iter(figure.nulls)))
        self.records["representation"] = lambda: plot.plot(statistics)[0]
        clusters = analysis.token_clustering(states, mask=self.mask, untrained=null, **draws)
        for name, figure in (
            ("mean cosine of two tokens", clusters.cosine),
            ("clusters of tokens", clusters.clusters),
            ("residual after removing the mean token", clusters.residual),
        ):
            self.add(name, figure, next(iter(figure.nulls)))
        self.records["clustering"] = lambda: plot.plot(clusters)[0]

    def informed(self, states, labels, noise: float) -> None:
        """What needs the labels: both informations of every layer."""
        self.say("information")
        scaled = information.unit_spread(states, mask=self.mask)
        plane = information.information_plane(scaled, scaled[0], labels, noise=noise, mask=self.mask, key=self.key)
        self.add("I(X; T + σξ)", plane.input, "x permuted", "nats", shown="permuted")
        self.add("I(T + σξ; Y)", plane.target, "y permuted", "nats", shown="permuted")
        self.records["information_plane"] = lambda: plot.plot(plane)

    def derivatives(self, model, inputs, labels) -> None:
        """Gradients and answers to perturbations, on at most sixteen sequences."""
        few = slice(0, 16)
        draws = {"key": self.key, "resamples": RESAMPLES, "mask": self.mask[few]}
        self.say("gradients")
        flow = analysis.gradient_flow(model, inputs[few], labels[few], **draws)
        one = flow.median
        null = np.asarray(one.nulls["labels"]) if "labels" in one.nulls else None
        low, high = _ends(one)
        self.lines.append(
            Line("‖∂loss/∂u‖, median", "1/units of u", np.asarray(one.value), low, high, null, "labels exchanged", 0)
        )
        self.records["gradients"] = lambda: plot.plot(flow)
        self.say("perturbations")
        answer = analysis.perturbation_sensitivity(model, inputs[few], labels[few], draws=4, **draws)
        self.records["perturbation"] = lambda: plot.plot(answer, of="loss")

    def pair(self, states, maps, their_states, their_maps, null) -> None:
        """This model beside another."""
        self.say("the two models")
        draws = {"key": self.key, "resamples": RESAMPLES, "mask": self.mask}
        fidelity = analysis.trajectory_fidelity(states, their_states, reference_null=null, **draws)
        for name in ("cosine", "relative_error", "cka_debiased"):
            self.add(f"{name.replace('_', ' ')} with the other model", fidelity.layers[name], "untrained")
        spectra = analysis.spectral_similarity(their_states, states, untrained=null, **draws)
        self.add("spectral similarity with the other model", spectra.token["cosine"], "untrained")
        attention = analysis.attention_fidelity(their_maps, maps, **draws)
        self.add("attention cosine with the other model", attention.cosine, "uniform", first=1)
        self.add("attention KL from the other model", attention.kl, "uniform", "nats", first=1)
        self.records["fidelity"] = lambda: plot.plot(fidelity)
        self.records["attention"] = lambda: plot.plot(attention)


def _ends(interval) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Both ends of an interval, None where there is none."""
    low, high = np.asarray(interval.low), np.asarray(interval.high)
    return (low, high) if np.all(np.isfinite(low)) and np.all(np.isfinite(high)) else (None, None)


ANALYZE = Study(
    name="analyze",
    title="The analyses of a trained model",
    question="How far is it from its continuum limit, what do its layers do, and which of them does it need?",
    source="",
    measure=measure,
    judge=judge,
    saved=_saved,
    stem="analysis",
    double=False,
)
