"""What the papers' experiments share: settings, trained models, rows of a table, and the study made of them."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pdejax import _check as check
from pdejax._arguments import names_checked
from pdejax._bootstrap import over_seeds
from pdejax._figure import Figure
from pdejax.data import Batch, Dataset, load
from pdejax.runs._files import digest
from pdejax.runs._parts import Parts, forget_programs
from pdejax.runs._records import FEW_SEEDS, Row
from pdejax.studies.papers._judged import judged
from pdejax.studies.study import Evidence, Judgement, Study
from pdejax.training import PRESETS, TrainConfig, load_trained, train


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a study; with the study's name and the seeds they fix its result on one machine.

    - `train`: fields of [`TrainConfig`][pdejax.training.TrainConfig] for the Transformer; the simulators take theirs from it.
    - `student_steps`: training steps of a distilled simulator; `student`: its other fields of `TrainConfig`.
    - `examples`: held-out sequences that are analysed.
    - `options`: what only this study has. `seeds`: how many, if the caller does not say.
    """

    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    student_steps: int = 0
    student: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    examples: int = 64
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: int = 2

    def __post_init__(self):
        for name in ("train", "student", "options"):
            object.__setattr__(self, name, dict(getattr(self, name)))


_ADAMW = {"optimizer": "adamw", "weight_decay": 0.01, "schedule": "cosine"}

# Six layers as in v2; the rest is smaller.
LISTOPS: Mapping[str, Any] = {
    **_ADAMW,
    "dataset": "listops",
    "data": {"min_length": 5, "max_length": 24, "sizes": (20_000, 1_000, 1_000)},
    **{"dim": 64, "ffn": 256, "layers": 6, "batch_size": 32, "learning_rate": 1e-3, "warmup": 50, "clip": 1.0},
    **{"steps": 450, "eval_every": 225, "save_every": 225},
}
# As quick, half as wide: what five seeds need.
LISTOPS_STANDARD: Mapping[str, Any] = {**LISTOPS, "dim": 32, "ffn": 128}
LISTOPS_PAPER: Mapping[str, Any] = dict(PRESETS["listops-paper"])

# v1's ten layers and 64 features, on the images that come with scikit-learn.
IMAGES: Mapping[str, Any] = {
    **_ADAMW,
    "dataset": "digits",
    "data": {"form": "patches", "patch": 2},
    "dim": 64,
    "ffn": 128,
    "layers": 10,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "warmup": 30,
    "steps": 300,
    "eval_every": 100,
    "save_every": 100,
}
# MNIST in as many patches, 16, as the digits have above.
IMAGES_STANDARD: Mapping[str, Any] = {
    **IMAGES,
    **{"dataset": "mnist", "data": {"form": "patches", "patch": 7, "download": False}, "dim": 32, "ffn": 64},
    **{"eval_examples": 500, "eval_every": 150, "save_every": 150},
}
IMAGES_PAPER: Mapping[str, Any] = dict(PRESETS["mnist-paper"])

# v1's four layers; batch 32 and Adam are theirs.
TEXT: Mapping[str, Any] = {
    "dataset": "newsgroups",
    "data": {"length": 48, "vocabulary_size": 5_000},
    "layers": 4,
    "dim": 64,
    "ffn": 128,
    "batch_size": 32,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "steps": 360,
    "eval_every": 45,
    "eval_examples": 256,
    "save_every": 45,
    "keep": 8,
}
# Ten epochs of 160 steps, from which on it overfits: short documents, the 2,000 most frequent words.
TEXT_STANDARD: Mapping[str, Any] = {
    **TEXT,
    **{"data": {"length": 32, "vocabulary_size": 2_000}, "dim": 32, "ffn": 64, "batch_size": 64, "learning_rate": 3e-3},
    **{"steps": 1600, "eval_every": 160, "save_every": 160, "eval_examples": 1000, "keep": 12},
}
TEXT_PAPER: Mapping[str, Any] = {**PRESETS["newsgroups-paper"], "keep": 10, "eval_every": 159, "save_every": 159}

# What a student on two cores takes: small batches suffice, for its targets have no noise.
STUDENT: Mapping[str, Any] = {"batch_size": 16, "learning_rate": 1e-2}

# Where the text is not there: short ListOps, so that the whole set still runs. The result's settings say which it was.
NO_TEXT: Mapping[str, Any] = {**TEXT, "dataset": "listops", "data": dict(LISTOPS["data"])}

NO_IMAGES: Mapping[str, Any] = {"dataset": "digits", "data": dict(IMAGES["data"])}


RESAMPLES = 20  # few: intervals are taken over seeds


def presets(
    quick: Mapping[str, Any],
    standard: Mapping[str, Any],
    paper: Mapping[str, Any],
    *,
    sizes: tuple[int, int, int],
    students=(0, 0, 0),
    **both: Any,
):
    """Settings of a study that differ between `quick`, `standard` and `paper` only in the training, the `sizes` (examples), the
    steps of the `students`, which all but the paper's fit with `STUDENT`, and the seeds: two, then five."""
    student: Mapping[str, Any] = STUDENT if students[0] else {}
    return {
        "quick": Settings(train=quick, examples=sizes[0], student_steps=students[0], student=student, **both),
        "standard": Settings(
            train=standard, examples=sizes[1], student_steps=students[1], student=student, seeds=5, **both
        ),
        "paper": Settings(train=paper, examples=sizes[2], student_steps=students[2], seeds=5, **both),
    }


def text_or(train: Mapping[str, Any], fallback: Mapping[str, Any]) -> Mapping[str, Any]:
    """`train`, if its data can be had without a download that takes minutes, else `fallback`."""
    if train["dataset"] not in ("newsgroups", "mnist"):
        return train
    try:
        load(train["dataset"], "test", limit=1, **{**train["data"], "download": False})
    except FileNotFoundError:
        return fallback
    return train


def with_text(settings: Settings) -> Settings:
    """These settings, on short ListOps where the text is not there."""
    return dataclasses.replace(settings, train=text_or(settings.train, {**settings.train, **NO_TEXT}))


def with_images(settings: Settings) -> Settings:
    """These settings, on the digits of scikit-learn where MNIST is not there. The result's settings say which it was."""
    return dataclasses.replace(settings, train=text_or(settings.train, {**settings.train, **NO_IMAGES}))


class Trained(NamedTuple):
    """A trained model: `model`, the best on the validation split; `config`; `folder` of the run; `test` figures."""

    model: Any
    config: TrainConfig
    folder: pathlib.Path
    test: Mapping[str, float]


# What a field can be that is fitted to a Transformer's states. The first is the Transformer's own form.
NATIVE = "Lie–Trotter, 1 step a layer"
KINDS: Mapping[str, Mapping[str, Any]] = {
    NATIVE: {},
    "Euler, 4 steps a layer": {"solver": "euler", "steps_per_layer": 4},
    "RK4, 4 steps a layer": {"solver": "rk4", "steps_per_layer": 4},
    "weights shared in depth": {"options": {"weights": "shared"}},
    "weights smooth in depth": {"options": {"weights": "cubic"}},
    "leaky field, Euler, 4 steps a layer": {"options": {"leak": True}, "solver": "euler", "steps_per_layer": 4},
    "bare (leaky, no LayerNorm, h = 1)": {"model": "bare"},
    "with D and S": {"model": "full"},
}


@dataclasses.dataclass(frozen=True)
class Models:
    """Trains what the studies ask for, or reads what an earlier run trained.

    - `folder`: where the runs are kept, one folder each. `report`: takes a line about what is being done.
    """

    folder: pathlib.Path
    report: Callable[[str], None] | None = None
    progress: bool = False
    stopped: threading.Event = dataclasses.field(default_factory=threading.Event, repr=False)

    def trained(self, config: TrainConfig) -> Trained:
        """The model of a configuration. An interrupted training goes on; a finished one is read."""
        folder, kind = self._folder(config), _kind(config)
        result = folder / "result.json"
        if not result.exists():
            self._say(f"training {kind} on {config.dataset}, seed {config.seed}, {config.steps} steps")
            own = dataclasses.replace(config, out=str(folder))
            done = train(own, progress=self.progress, baselines=False, plots=False, stop=self.stopped.is_set)
            if done.fit.stopped == "interrupted":
                raise KeyboardInterrupt
            if done.fit.stopped != "done":
                raise RuntimeError(
                    f"training of {kind} on {config.dataset}, seed {config.seed}, stopped: {done.fit.stopped}. Its metrics are "
                    f"in {folder}."
                )
            if threading.current_thread() is threading.main_thread():
                forget_programs()
        found = load_trained(folder)
        return Trained(found.model, config, folder, found.test)

    def history(self, trained: Trained) -> list[tuple[int, Any]]:
        """(step, model) of every checkpoint that a training kept, the first first."""
        steps = sorted(int(path.name) for path in (trained.folder / "checkpoints").iterdir() if path.name.isdecimal())
        return [(step, load_trained(trained.folder, step).model) for step in steps]

    def transformer_config(self, settings: Settings, seed: int) -> TrainConfig:
        """What the Transformer of a seed is trained with."""
        return TrainConfig(**{**settings.train, "seed": seed})

    def student_config(self, settings: Settings, seed: int, kind: str = NATIVE) -> TrainConfig:
        """What the `"distilled"` simulator of a seed is trained with; `kind`: of `KINDS`."""
        steps = settings.student_steps
        own: dict[str, Any] = {
            "teacher": str(self._folder(self.transformer_config(settings, seed))),
            "model": "simulator",
            "steps": steps,
            "learning_rate": 3e-3,
            "schedule": "cosine",
            "warmup": min(50, steps // 10),
            "weight_decay": 0.0,
            "clip": None,
            "save_every": steps,
            "eval_every": max(steps // 4, 1),
        }
        return TrainConfig(**{**settings.train, "seed": seed, **own, **settings.student, **KINDS[kind]})

    def transformer(self, settings: Settings, seed: int) -> Trained:
        """The Transformer of these settings."""
        return self.trained(self.transformer_config(settings, seed))

    def simulator(self, settings: Settings, seed: int, pairing: str) -> Trained:
        """The simulator that is set beside the Transformer of that seed.

        - `"distilled"`: fitted to its hidden states and attention maps, for `student_steps`;
        - `"independent"`: the same sizes, trained on the task from another seed (1,000 later);
        - `"bare"`: as `"independent"`, without residual connection and LayerNorm, at h = 1: our reading of v2's simulator, of
          which v2 states no step.
        """
        if pairing == "distilled":
            self.transformer(settings, seed)
            return self.trained(self.student_config(settings, seed))
        return self.trained(_simulator(settings, seed, pairing))

    def prepare(self, settings: Settings, seed: int, pairings: Sequence[str] = ()) -> None:
        """Train the Transformer and the simulators of these pairings, side by side where they do not need each other."""
        alone = [_simulator(settings, seed, pairing) for pairing in pairings if pairing in _ALONE]
        beside = len(alone) // 2 if "distilled" in pairings else len(alone)
        self.together([self.transformer_config(settings, seed), *alone[:beside]])
        if "distilled" in pairings:
            self.transformer(settings, seed)
            self.together([self.student_config(settings, seed), *alone[beside:]])

    def together(self, configs: Sequence[TrainConfig]) -> None:
        """Train models of several configurations, on CPUs two at a time: compiling takes one core, and small steps little more.

        One whose loss becomes NaN is left out; `trained` will raise for it.
        """
        missing = [config for config in configs if not (self._folder(config) / "result.json").exists()]
        workers = 2 if jax.default_backend() == "cpu" and (os.cpu_count() or 1) > 1 else 1
        if workers == 1 or len(missing) < 2:
            return
        for start in range(0, len(missing), _AT_ONCE):
            self._side_by_side(missing[start : start + _AT_ONCE], workers)
            forget_programs()  # here, where no other thread compiles

    def _side_by_side(self, configs: Sequence[TrainConfig], workers: int) -> None:
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            jobs = [pool.submit(self.trained, config) for config in configs]
            try:
                concurrent.futures.wait(jobs)
            except BaseException:
                self.stopped.set()  # trainings under way are saved where they are
                pool.shutdown(cancel_futures=True)
                self.stopped.clear()
                raise
        for job in jobs:
            error = job.exception()
            if error is not None and not isinstance(error, RuntimeError):
                raise error

    def _folder(self, config: TrainConfig) -> pathlib.Path:
        named = dataclasses.asdict(config) | {"out": None}
        if config.teacher is not None:
            named["teacher"] = pathlib.Path(config.teacher).name  # its own digest, wherever it lies
        return self.folder / f"{config.dataset}-{_kind(config)}-{config.seed}-{digest(named)}"

    def _say(self, text: str) -> None:
        if self.report is not None:
            self.report(text)


_AT_ONCE = 8  # trainings between two looks at the memory maps
_ALONE = {"independent": "simulator", "bare": "bare"}


def _kind(config: TrainConfig) -> str:
    return config.model if config.teacher is None else f"{config.model}-distilled"


def _simulator(settings: Settings, seed: int, pairing: str) -> TrainConfig:
    check.choice("simulator", "pairing", pairing, ("distilled", *_ALONE))
    return TrainConfig(**{**settings.train, "model": _ALONE[pairing], "seed": seed + 1000})


def held_out(config: TrainConfig, examples: int) -> tuple[Dataset, Batch]:
    """The test split of a run and its first `examples` as one batch."""
    options: dict[str, Any] = dict(config.data) | ({"task": "lm"} if config.task == "lm" else {})
    dataset = load(config.dataset, "test", **options)
    return dataset, dataset.take(np.arange(min(examples, len(dataset))))


def experiment(
    *,
    name: str,
    title: str,
    question: str,
    source: str,
    presets: Mapping[str, Settings],
    measure: Callable[[Settings, int, Models], Evidence],
    judge: Callable[[Settings, Sequence[Evidence]], Judgement],
    pairing: str | None = None,
    resolve: Callable[[Settings], Settings] | None = None,
    headline: str = "",
    lacking: Sequence[str] = (),
    failed: str | None = None,
) -> Study:
    """Make a study of an experiment.

    - `presets`: its settings as `"quick"` (two cores, minutes), `"standard"` and `"paper"` (the papers' sizes).
      `resolve(settings)`: what becomes of settings on this machine, such as without the text.
    - `measure(settings, seed, models)` gives arrays of numbers, kept seed by seed; models are shared between experiments.
    - `judge(settings, evidence)`, `pairing`, `headline`: as in [`Study`][pdejax.studies.Study]. Of evidence that is not finite
      nothing is concluded.
    - `lacking`: names of evidence that may hold NaN, such as a null model that is not there. `failed`: the evidence that says of
      which models the training failed, whose NaN is a finding.
    """

    def one_seed(settings: Settings, seed: int, parts: Parts) -> Evidence:
        def measured() -> Evidence:
            parts.say(f"{name}: seed {seed}")
            with _folder(parts) as folder:
                return measure(settings, seed, Models(folder, parts.say))

        return parts.arrays(f"seed-{seed}", measured)

    one_seed.__module__ = measure.__module__  # whose code it is that measures
    return Study(
        name=name,
        command=f"reproduce {name}",
        title=title,
        question=question,
        source=source,
        pairing=pairing,
        headline=headline,
        presets=presets,
        resolve=resolve,
        measure=one_seed,
        judge=functools.partial(judged, judge, lacking=lacking, failed=failed),
        seeds=lambda settings: range(settings.seeds),
        stem="result",
        double=False,
    )


@contextlib.contextmanager
def _folder(parts: Parts) -> Iterator[pathlib.Path]:
    """Where models are kept: beside the experiments, or nowhere if nothing is to be kept."""
    if parts.shared is not None:
        yield parts.shared / "models"
        return
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


CORRELATION, SHARE = (-1.0, 1.0), (0.0, 1.0)  # ranges of bounded figures
RATIO = (0.0, float("inf"))  # of quotients, whose logarithms are averaged


def over(values: Sequence[float] | np.ndarray, within: tuple[float, float] | None = None) -> Figure:
    """Return the mean over seeds with the interval of `over_seeds`; for fewer than `FEW_SEEDS` the range of the values, whose
    level for their median is 1 − 2^{1−n}; without ends for one. Of a `RATIO` all that is taken of its logarithm: the mean is the
    geometric one, and a ratio and its inverse have the same interval."""
    x = np.asarray(values, float)
    if within == RATIO:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = over(np.log(x))
        low, high = (None, None) if found.ends is None else (np.exp(end) for end in found.ends)
        return Figure(np.exp(found.value), low, high, level=found.level)
    if len(x) >= FEW_SEEDS or len(x) < 2 or not np.all(np.isfinite(x)):
        return over_seeds(x, within=within)
    return Figure(x.mean(), x.min(), x.max(), level=1 - 2.0 ** (1 - len(x)))


def sign(values: Sequence[float] | np.ndarray) -> int:
    """Return 1 or −1 where the whole interval of a change lies on that side of 0, and 0 where it does not or where seeds are too
    few for one: two agree by chance in every other case."""
    if len(values) < FEW_SEEDS:
        return 0
    found = over(values)
    return int(found.low > 0) - int(found.high < 0)  # NaN ends, of one seed, decide nothing


def spread(seeds: int) -> str:
    """Return what the ends of `over` are for so many seeds."""
    return "interval over seeds" if seeds >= FEW_SEEDS else "range over seeds" if seeds > 1 else "value of the one seed"


def surely(seeds: int) -> str:
    """Return when `sign` calls a change sure, for so many seeds."""
    return (
        "sure: the whole interval over seeds"
        if seeds >= FEW_SEEDS
        else f"nothing is sure of fewer than {FEW_SEEDS} seeds"
    )


def signed_range(values: np.ndarray) -> str:
    """Write the least and the largest of some differences with their signs."""
    return f"{float(np.min(values)):+.2g} to {float(np.max(values)):+.2g}"


def signed(figure: Figure) -> str:
    """Write a difference with its sign and its ends."""
    ends = "" if np.isnan(figure.low) else f" [{float(figure.low):+.2g}, {float(figure.high):+.2g}]"
    return f"{float(figure):+.2g}{ends}"


def shown(figure: Figure, digits: int = 2) -> str:
    """Write a figure with its ends."""
    ends = "" if np.isnan(figure.low) else f" [{float(figure.low):.{digits}f}, {float(figure.high):.{digits}f}]"
    return f"{float(figure):.{digits}f}{ends}"


def times(ratio: Figure) -> str:
    """Write a ratio with its ends, to three digits."""
    if not np.isfinite(float(ratio)):
        return "an unknown figure"
    ends = f" [{float(ratio.low):.3g}, {float(ratio.high):.3g}]" if np.isfinite(ratio.low) else ""
    return f"{float(ratio):.3g}{ends}"


def row(
    quantity: str,
    ours: Sequence[float] | np.ndarray,
    *,
    paper: str | None = None,
    null: Sequence[float] | np.ndarray | None = None,
    null_name: str | None = None,
    unit: str = "",
    note: str = "",
    within: tuple[float, float] | None = None,
) -> Row:
    """Make a line of the table from the values of each seed; `within`: the range of a bounded figure."""
    beside = () if null is None else tuple(float(x) for x in null)
    return Row(
        quantity,
        over(ours, within),
        tuple(float(x) for x in ours),
        unit=unit,
        paper=paper,
        null=over(beside, within) if beside else None,
        null_seeds=beside,
        null_name=null_name if beside else None,
        note=note,
    )


def first_of(
    evidence: Sequence[Evidence], name: str, dims: Sequence[str]
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Return what a picture shows of the first seed, as a variable of a data set; nothing of evidence that does not have it."""
    found = evidence[0].get(name)
    return {} if found is None else {name: (tuple(dims), np.asarray(found))}


def stacked(evidence: Sequence[Evidence], name: str) -> np.ndarray:
    """Return the array `name` of all seeds, seeds in front."""
    return np.stack([np.asarray(found[name]) for found in evidence])
