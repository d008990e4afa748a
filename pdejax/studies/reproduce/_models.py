"""The trained models of the studies: each trained once, kept by a digest of its configuration, and shared."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, no_type_check

import numpy as np

from pdejax.data import Batch, Dataset, load
from pdejax.studies._programs import forget_programs
from pdejax.studies.reproduce._study import Settings, digest
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

    @no_type_check
    def trained(self, config: TrainConfig) -> Trained:
        """The model of a configuration. An interrupted training goes on; a finished one is read."""
        named = dataclasses.asdict(config) | {"out": None}
        if config.teacher is not None:
            named["teacher"] = pathlib.Path(config.teacher).name  # its own digest, wherever it lies
        kind = config.model if config.teacher is None else f"{config.model}-distilled"
        folder = self.folder / f"{config.dataset}-{kind}-{config.seed}-{digest(named)}"
        result = folder / "result.json"
        if not result.exists():
            self._say(f"training {kind} on {config.dataset}, seed {config.seed}, {config.steps} steps")
            own = dataclasses.replace(config, out=str(folder))
            done = train(own, progress=self.progress, baselines=False, plots=False)
            if done.fit.stopped == "interrupted":
                raise KeyboardInterrupt
            if done.fit.stopped != "done":
                raise RuntimeError(
                    f"training of {kind} on {config.dataset}, seed {config.seed}, stopped: {done.fit.stopped}. Its metrics are "
                    f"in {folder}."
                )
            forget_programs()
        found = load_trained(folder)
        return Trained(found.model, config, folder, json.loads(result.read_text())["test"])

    @no_type_check
    def history(self, trained: Trained) -> list[tuple[int, Any]]:
        """(step, model) of every checkpoint that a training kept, the first first."""
        steps = sorted(int(path.name) for path in (trained.folder / "checkpoints").iterdir() if path.name.isdigit())
        return [(step, load_trained(trained.folder, step).model) for step in steps]

    @no_type_check
    def transformer(self, settings: Settings, seed: int, **changes: Any) -> Trained:
        """The Transformer of these settings, `changes` of its `TrainConfig` included."""
        return self.trained(TrainConfig(**{**settings.train, "seed": seed} | changes))

    @no_type_check
    def simulator(self, settings: Settings, seed: int, pairing: str, **changes: Any) -> Trained:
        """The simulator that is set beside the Transformer of that seed.

        - `"distilled"`: fitted to its hidden states and attention maps, for `student_steps`;
        - `"independent"`: the same sizes, trained on the task from another seed (1,000 later);
        - `"bare"`: as `"independent"`, without residual connection and LayerNorm, as v2's simulator.
        """
        base = {**settings.train, "seed": seed}
        if pairing == "distilled":
            teacher = self.transformer(settings, seed)
            own = {"teacher": str(teacher.folder), "model": "simulator", "steps": settings.student_steps}
            own |= {
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "warmup": min(50, settings.student_steps // 10),
                "weight_decay": 0.0,
                "clip": None,
            }
            own |= {"save_every": settings.student_steps, "eval_every": max(settings.student_steps // 4, 1)}
            own |= settings.student
            return self.trained(TrainConfig(**base | own | changes))
        if pairing not in ("independent", "bare"):
            raise ValueError(f"pairing={pairing!r} is unknown; choose 'distilled', 'independent' or 'bare'.")
        model = "simulator" if pairing == "independent" else "bare"
        return self.trained(TrainConfig(**base | {"model": model, "seed": seed + 1000} | changes))

    def _say(self, text: str) -> None:
        if self.report is not None:
            self.report(text)


@no_type_check
def held_out(config: TrainConfig, examples: int) -> tuple[Dataset, Batch]:
    """The test split of a run and its first `examples` as one batch."""
    options = dict(config.data) | ({"task": "lm"} if config.task == "lm" else {})
    dataset = load(config.dataset, "test", **options)
    return dataset, dataset.take(np.arange(min(examples, len(dataset))))
