"""The trained models of the studies: each trained once, kept by a digest of its configuration, and shared."""

import concurrent.futures
import dataclasses
import os
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pdejax import _check as check
from pdejax.data import Batch, Dataset, load
from pdejax.runs._files import digest
from pdejax.runs._parts import forget_programs
from pdejax.studies.papers._settings import Settings
from pdejax.training import TrainConfig, load_trained, train


class Trained(NamedTuple):
    """A trained model: `model`, the best on the validation split; `config`; `folder` of the run; `test` figures."""

    model: Any
    config: TrainConfig
    folder: pathlib.Path
    test: Mapping[str, float]


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
        steps = sorted(int(path.name) for path in (trained.folder / "checkpoints").iterdir() if path.name.isdigit())
        return [(step, load_trained(trained.folder, step).model) for step in steps]

    def transformer_config(self, settings: Settings, seed: int) -> TrainConfig:
        """What the Transformer of a seed is trained with."""
        return TrainConfig(**{**settings.train, "seed": seed})

    def student_config(self, settings: Settings, seed: int) -> TrainConfig:
        """What the `"distilled"` simulator of a seed is trained with."""
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
        return TrainConfig(**{**settings.train, "seed": seed, **own, **settings.student})

    def transformer(self, settings: Settings, seed: int) -> Trained:
        """The Transformer of these settings."""
        return self.trained(self.transformer_config(settings, seed))

    def simulator(self, settings: Settings, seed: int, pairing: str) -> Trained:
        """The simulator that is set beside the Transformer of that seed.

        - `"distilled"`: fitted to its hidden states and attention maps, for `student_steps`;
        - `"independent"`: the same sizes, trained on the task from another seed (1,000 later);
        - `"bare"`: as `"independent"`, without residual connection and LayerNorm, as v2's simulator.
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

        One whose loss becomes NaN is left out; [`trained`][pdejax.studies.papers.Models.trained] will raise for it.
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
