"""A training run from its configuration: data, model, fit, test, and what is kept of it."""

import dataclasses
import hashlib
import io
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree

from pdejax._arguments import checked
from pdejax._figure import Figure
from pdejax.data import Batch, Batches, Dataset, load, majority_accuracy, root_operator_accuracy, tfidf_accuracy
from pdejax.models import (
    Architecture,
    MultilayerSimulator,
    MultilayerSimulatorConfig,
    Simulator,
    SimulatorConfig,
    Transformer,
    pair,
    save_model,
)
from pdejax.models._saving import Model, model_record
from pdejax.plot._style import COLOURS, SEQUENTIAL
from pdejax.runs._code import provenance
from pdejax.runs._files import check_folder, digest, write_json, write_whole
from pdejax.runs._parts import environment
from pdejax.runs._records import Picture, Result, Row
from pdejax.training._bottleneck import bottleneck_optimizer, bottleneck_step
from pdejax.training._checkpoints import check_run
from pdejax.training._config import TrainConfig
from pdejax.training._distillation import Distillation
from pdejax.training._distributed import data_mesh
from pdejax.training._fit import FitResult, fit
from pdejax.training._kept import metadata, read_parameters, saved_model
from pdejax.training._step import (
    Classification,
    LanguageModel,
    count_parameters,
    make_evaluate,
    make_step,
    merge_model,
    split_model,
    start_training,
)


@checked
def build_model(config: TrainConfig, dataset: Dataset) -> Model:
    """Make the model that `config` names, its ends fitted to the data set, its weights drawn from `config.seed`.

    Raises `ValueError`/`TypeError` for options that the model's own config refuses.
    """
    names = ("dim", "heads", "layers", "ffn", "norm", "activation", "positions")
    sizes: dict[str, Any] = {name: getattr(config, name) for name in names} | _ends(config, dataset)
    options: dict[str, Any] = sizes | {"dtype": config.precision} | dict(config.options)
    if config.model == "transformer":
        return Transformer(Architecture(**options), rngs=nnx.Rngs(config.seed))
    solver = {} if config.solver is None else {"solver": config.solver}
    if config.steps_per_layer != 1:
        names = {field.name for field in dataclasses.fields(Architecture)}
        depth = Architecture(**{name: value for name, value in options.items() if name in names}).depth
        options = {"steps": depth * config.steps_per_layer} | options
    options = solver | options
    key = jax.random.key(config.seed)
    if config.model == "multilayer":
        return MultilayerSimulator(MultilayerSimulatorConfig.of(**options), key=key)
    if config.model == "full" and config.norm == "post":
        options = {"stabilization": "retraction"} | options
    make = {"simulator": SimulatorConfig.of, "bare": SimulatorConfig.bare, "full": SimulatorConfig.full}[config.model]
    return Simulator(make(**options), key=key)


def build_student(config: TrainConfig, teacher: Transformer) -> Simulator:
    """Make the simulator to be fitted to a trained Transformer, with its sizes, embedding and head and a field of its own.

    Of `config` come the kind of field, its solver and steps; sizes are the teacher's.
    """
    changes: dict[str, Any] = dict(config.options)
    if config.solver is not None:
        changes["solver"] = config.solver
    if config.steps_per_layer != 1:
        changes["steps"] = teacher.architecture.depth * config.steps_per_layer
    if config.model == "bare":
        changes = {"leak": True, "norm": "none", "stabilization": "none"} | changes
    if config.model == "full":
        changes = {"stabilization": "layernorm", "diffusion": "feature"} | changes
    return pair(teacher, "distilled", key=jax.random.key(config.seed), **changes)


def _ends(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    ends: dict[str, Any] = {}
    if dataset.features is not None:
        ends["inputs"] = dataset.features
    else:
        assert dataset.vocabulary is not None
        ends["vocab"] = len(dataset.vocabulary)
    if config.positions == "learned":
        ends["max_length"] = dataset.length
    if config.task == "lm":
        return ends | {"head": "lm", "causal": True}
    return ends | {"head": "classification", "classes": len(dataset.classes)}


TRAIN, VALIDATION, BASELINES = COLOURS[5], COLOURS[0], ("0.35", COLOURS[3], COLOURS[2])


def curves(fit: FitResult, baselines: Mapping[str, float], title: str) -> bytes:
    """Loss, accuracy and the gradient norm of each layer against steps, as a PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure as Canvas

    history, found = fit.history, fit.evaluations
    steps = history["step"]
    figure = Canvas(figsize=(12.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for panel, name, label in ((axes[0], "loss", "loss (nats)"), (axes[1], "accuracy", "accuracy")):
        if name in history:
            smooth = _smoothed(history[name])
            panel.plot(
                steps[len(steps) - len(smooth) :], smooth, color=TRAIN, linewidth=1.2, label="training, running mean"
            )
        points = [(row["step"], row[name]) for row in found if name in row]
        if points:
            panel.plot(
                *zip(*points, strict=True), "o-", color=VALIDATION, markersize=3.5, linewidth=1.2, label="validation"
            )
        panel.set(xlabel="step", ylabel=label)
    for colour, (name, value) in zip(BASELINES, baselines.items(), strict=False):
        axes[1].axhline(value, color=colour, linestyle=":", linewidth=1.4, label=f"{name} (test split)")
    layers = sorted(
        (n for n in history if n.startswith("layer_gradient_norms_")), key=lambda n: int(n.rsplit("_", 1)[1])
    )
    colours = colormaps[SEQUENTIAL](np.linspace(0, 0.9, max(len(layers), 1)))
    for colour, name in zip(colours, layers, strict=False):
        smooth = _smoothed(history[name])
        axes[2].plot(
            steps[len(steps) - len(smooth) :], smooth, color=colour, label=f"layer {int(name.rsplit('_', 1)[1]) + 1}"
        )
    if not layers and "gradient_norm" in history:
        smooth = _smoothed(history["gradient_norm"])
        axes[2].plot(steps[len(steps) - len(smooth) :], smooth, color=TRAIN, label="all parameters")
    axes[2].set(xlabel="step", ylabel="gradient norm", yscale="log")
    for panel in axes:
        panel.grid(True, color="0.92")
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_legend_handles_labels()[0]:
            # Beside the last panel, whose curves may go anywhere.
            place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if panel is axes[2] else {}
            panel.legend(fontsize=7.5, framealpha=0.9, edgecolor="none", **place)
    figure.suptitle(title, fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Means over the last fiftieth of the run, at least one step."""
    width = max(1, len(values) // 50)
    total = np.cumsum(np.insert(np.nan_to_num(values), 0, 0.0))
    return (total[width:] - total[:-width]) / width


_EVALUATED_TOKENS = 2**15


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `train` gives.

    - `config`, `parameters` (how many numbers were trained), `fit`: the curves and how training ended.
    - `model`: the best by the validation split, or the last where nothing was kept.
    - `test`: its figures on the test split. `baselines`: what can be reached on it without a Transformer. Both are empty for a
      run that was interrupted.
    - `seconds`: of this call. `files`: what was written.
    """

    config: TrainConfig
    parameters: int
    fit: FitResult
    model: Model
    test: dict[str, float]
    baselines: dict[str, float]
    seconds: float
    files: tuple[str, ...]

    def __repr__(self) -> str:
        return f"{self.line()}\n{self.model!r}"

    def line(self) -> str:
        """Give the run in a line: how it ended, test figures, baselines."""
        test = ", ".join(f"{name} {value:.4f}" for name, value in self.test.items())
        beside = ", ".join(f"{name} {value:.4f}" for name, value in self.baselines.items())
        return (
            f"{self.config.dataset} {self.config.model} seed {self.config.seed}: {self.fit.stopped} at step {self.fit.step}, "
            f"{self.parameters:,} parameters, {self.seconds:.0f} s"
            + (f"; test {test}" if test else "")
            + (f" (beside: {beside})" if beside else "")
        )


@checked
def train(
    config: TrainConfig,
    *,
    report: Callable[[str], None] | None = None,
    progress: bool = True,
    baselines: bool = True,
    plots: bool = True,
    stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train a model on a data set, test the best of it and set it beside the baselines.

    - `report` takes a line about what is being done; `progress` shows a bar. `baselines=False` leaves them out, `plots=False`
      the picture of the curves: a few seconds each, for whoever trains many models. `stop`: as in [`fit`][pdejax.training.fit].

    With `config.out` everything is kept there, and the same call goes on where it was interrupted, to the same numbers. All
    devices share the work, those of other processes too after `initialize_distributed`.

    Raises `ValueError`, `TypeError` or `FileNotFoundError` before training where data, model or folder do not fit.
    """
    started = time.perf_counter()
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config is a {type(config).__name__}; it must be a pdejax.training.TrainConfig.")
    splits = {split: load(config.dataset, split, **_data_options(config)) for split in ("train", "validation", "test")}
    _say(report, f"{splits['train']!r}, source: {splits['train'].source}")
    model, task = _model_and_task(config, splits["train"])
    params, static = split_model(model)
    optimizer = config.make_optimizer() if config.bottleneck is None else bottleneck_optimizer(config)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    state = start_training(params, optimizer, key)
    batches = Batches(
        splits["train"],
        config.batch_size,
        seed=config.seed if config.data_seed is None else config.data_seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if config.bottleneck is None:
        step = make_step(task, optimizer, static)
    else:
        step, state = bottleneck_step(config, task, static, state, splits["train"])
    evaluate = make_evaluate(task, static)
    held_out = _whole(splits["validation"], config)
    mesh = data_mesh() if jax.device_count() > 1 else None
    best = ("accuracy", "max") if isinstance(task, Classification) else ("loss", "min")
    identity = _identity(config) | {"model_config": model_record(model)}
    if isinstance(task, Distillation):
        identity["teacher_parameters"] = _fingerprint(task.parameters)
    if config.out is not None and jax.process_index() == 0:
        _write_config(config, identity, best)
    fitted = fit(
        state,
        step,
        batches,
        steps=config.steps,
        folder=config.out,
        save_every=config.save_every,
        keep=config.keep,
        best=best,
        evaluate=lambda state: evaluate(state, held_out),
        eval_every=config.eval_every,
        log_every=10,
        progress=progress,
        report=report,
        config=identity,
        mesh=mesh,
        stop=stop,
    )
    final = fitted.state.params
    stopped = fitted.stopped == "interrupted"  # whoever interrupts wants the machine back
    if config.out is not None and fitted.best_step is not None and not stopped:
        final = read_parameters(config.out, final, "best")
    whole = _whole(splits["test"], config, everything=True)
    test = {} if stopped else evaluate(fitted.state._replace(params=final), whole)
    beside = _baselines(config, splits) if baselines and not stopped else {}
    result = TrainResult(
        config=config,
        parameters=count_parameters(params),
        fit=fitted,
        model=merge_model(final, static),
        test=test,
        baselines=beside,
        seconds=time.perf_counter() - started,
        files=fitted.files,
    )
    return result if config.out is None or stopped or jax.process_index() else _kept(result, splits["train"], plots)


def _model_and_task(config: TrainConfig, dataset: Dataset) -> tuple[Model, Any]:
    if config.teacher is None:
        task = LanguageModel if config.task == "lm" else Classification
        return build_model(config, dataset), task(config.label_smoothing)
    teacher = saved_model("train", "teacher", config.teacher).model
    if not isinstance(teacher, Transformer):
        raise ValueError(f"teacher={config.teacher!r} is a {type(teacher).__name__}; it must be a Transformer.")
    return build_student(config, teacher), Distillation(teacher)


def _data_options(config: TrainConfig) -> dict[str, Any]:
    options = dict(config.data)
    if config.task == "lm":
        options["task"] = "lm"
    return options


def _whole(dataset: Dataset, config: TrainConfig, everything: bool = False) -> Sequence[Batch]:
    """All examples, or the first that an evaluation while training may take."""
    count = len(dataset) if everything or config.eval_examples is None else min(len(dataset), config.eval_examples)
    # Parts of nearly equal size, because each size is compiled for; of at most so many tokens, because all attend.
    size = min(max(_EVALUATED_TOKENS // dataset.length, 1), count)
    return [dataset.take(part) for part in np.array_split(np.arange(count), -(-count // size))]


def _baselines(config: TrainConfig, splits: dict[str, Dataset]) -> dict[str, float]:
    if config.task == "lm":
        return {}
    found = {"majority class": majority_accuracy(splits["train"], splits["test"])}
    if config.dataset == "listops":
        found["root operator"] = root_operator_accuracy(splits["train"], splits["test"])
    if config.dataset == "newsgroups":
        found["TF-IDF logistic regression"] = tfidf_accuracy(splits["train"], splits["test"])
    return found


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The configuration as it is saved: without where results and data lie, which is no part of what was measured."""
    values = dataclasses.asdict(config)
    del values["out"]
    if config.teacher is not None:
        values["teacher"] = pathlib.Path(config.teacher).name
    values["data"] = {k: v for k, v in config.data.items() if k not in ("data_dir", "manual_dir", "download")}
    return values


def _identity(config: TrainConfig) -> dict[str, Any]:
    """What makes a run what it is. A run without an end in its schedule may be made longer."""
    values = _settings(config)
    for name in ("save_every", "keep"):
        del values[name]
    if config.schedule in ("constant", "inverse_sqrt"):
        del values["steps"]
    return values


def _fingerprint(parameters: PyTree[Array]) -> str:
    """SHA-256 of all numbers, the first 16 digits: which teacher it was, wherever it lies."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(parameters):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()[:16]


def _write_config(config: TrainConfig, identity: dict[str, Any], best: tuple[str, str]) -> None:
    """What `load_trained` needs, once it is sure that the folder is of this run."""
    assert config.out is not None
    folder = pathlib.Path(config.out)
    check_folder(folder, "out")
    check_run(folder, identity, best)
    write_json(folder / "config.json", {"train": _settings(config), "model": identity["model_config"]})


def outcome(result: TrainResult) -> dict[str, Any]:
    """What is saved of a run besides its curves, and printed as JSON."""
    return {
        "config": _settings(result.config),
        "parameters": result.parameters,
        "test": result.test,
        "baselines": result.baselines,
        "training": result.fit.summary(),
        "evaluations": result.fit.evaluations,
        "seconds": result.seconds,
    }


def _kept(result: TrainResult, dataset: Dataset, plots: bool) -> TrainResult:
    """Write the model as one file, the outcome as JSON and the curves as a picture."""
    config = result.config
    assert config.out is not None
    folder = pathlib.Path(config.out)
    step = result.fit.step if result.fit.best_step is None else result.fit.best_step
    save_model(folder / "model.npz", result.model, metadata(_settings(config), step, result.test))
    pictures: tuple[Picture, ...] = ()
    if plots:
        title = (
            f"{config.dataset}, {config.model}, {config.layers} layers, d = {config.dim}, {result.parameters:,} parameters, "
            f"seed {config.seed}: test {', '.join(f'{k} {v:.3f}' for k, v in result.test.items())}"
        )
        write_whole(folder / "curves.png", curves(result.fit, result.baselines, title))
        pictures = (
            Picture("curves.png", "Loss, accuracy and the gradient norm of each layer against training steps."),
        )
    about = {"source": dataset.source, "license": dataset.license, "examples": len(dataset)}
    shown = _as_result(result, pictures).to_json()
    write_json(folder / "result.json", shown | outcome(result) | {"dataset": about})
    written = ("result.json", "model.npz", *(picture.file for picture in pictures))
    return dataclasses.replace(result, files=(*result.files, *(str(folder / name) for name in written)))


def _as_result(result: TrainResult, pictures: tuple[Picture, ...]) -> Result:
    """A training run as any other result, which `pdejax report` reads."""
    config = result.config
    beside = iter(result.baselines.items())
    name, value = next(beside, (None, None))
    rest = ", ".join(f"{other} {found:.4f}" for other, found in beside)
    rows = [
        Row(
            f"test {figure}",
            Figure(found),
            null=None if value is None or figure != "accuracy" else Figure(value),
            null_name=name if figure == "accuracy" else None,
            note=rest if figure == "accuracy" else "",
        )
        for figure, found in result.test.items()
    ]
    return Result(
        study="train",
        title=f"Training: {config.model} on {config.dataset}",
        question="How well does the model do what it was trained for, on data that it has not seen?",
        config=_settings(config),
        config_hash=digest(_settings(config)),
        seeds=(config.seed,),
        environment=environment(),
        code=provenance(_as_result),
        rows=tuple(rows),
        verdict=result.line(),
        passed=result.fit.stopped != "nan",
        pictures=pictures,
        seconds=result.seconds,
    )


def _say(report, text: str) -> None:
    if report is not None:
        report(text)
