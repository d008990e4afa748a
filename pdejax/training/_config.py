"""What a training run is put together from, and the papers' settings by name. Imports no JAX: the command line reads it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from pdejax._arguments import checked, names_checked
from pdejax._check import choice, integer, number
from pdejax.models._architecture import config_text
from pdejax.runs._command import setting
from pdejax.training._names import (
    DatasetName,
    Estimate,
    ModelName,
    OptimizerName,
    Precision,
    ScheduleName,
    Signs,
    TaskName,
)

_NAMES: dict[str, tuple[Any, ...]] = {
    "dataset": get_args(DatasetName),
    "model": get_args(ModelName),
    "task": get_args(TaskName),
    "precision": get_args(Precision),
    "optimizer": get_args(OptimizerName),
    "schedule": get_args(ScheduleName),
    "signs": get_args(Signs),
    "bottleneck": (None, *get_args(Estimate)),
}


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run, whole: the same configuration gives the same curve on the same machine.

    **Data**

    - `dataset`: a name of [`pdejax.data.load`][pdejax.data.load]; `data`: its options. `task`: `"classification"`, or `"lm"`,
      next-token prediction with a causal model, for the sets that offer it.

    **Model**

    - `model`: `"transformer"`; `"simulator"`, the field that a Transformer of these sizes discretizes; `"bare"` and `"full"`,
      see `SimulatorConfig`; `"multilayer"`, v1's coupled system (4).
    - `dim`, `heads`, `layers`, `ffn`, `norm`, `activation`, `positions`: as in `Architecture`. `norm="post"` gives a
      simulator the retraction. `solver`, `steps_per_layer`: of a simulator. `options`: more arguments of the model's config.
    - `teacher`: folder of a trained Transformer; the simulator is fitted to its hidden states and attention maps (`distilled`).

    **Optimization**

    - `batch_size`, `steps`; `optimizer`, `learning_rate`, `schedule`, `warmup`, `weight_decay`, `clip` (off by default: it hides
      instability), `label_smoothing`. `precision`: of A, R and the layers; parameters and softmax stay float32.
    - `bottleneck`: an estimate of I(X; T), `"infonce"`, `"club"`, `"barber_agakov"` or `"paper"` (v1 (16)), with `beta`,
      `decay` λ and `signs` of the flow v1 (14); T is the mean token of layer `bottleneck_layer` (default: the last) plus noise of
      standard deviation `noise`.
    - `seed`: of the weights, and of the order of the data. `data_seed`, if given, is that of the order.

    **Record**

    - `save_every` steps a checkpoint, `keep` of them; `eval_every` steps an evaluation on the validation split, of
      `eval_examples` at most. `out`: folder; `None` keeps nothing.

    Raises `ValueError` or `TypeError` naming the argument.
    """

    dataset: DatasetName = "listops"
    data: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, metadata={"help": "further options of the data set, see pdejax.data.load"}
    )
    task: TaskName = setting("classification", "lm: next-token prediction")
    model: ModelName = setting("transformer", "bare, full: see pdejax.SimulatorConfig; multilayer: v1 (4)")
    dim: int = 128
    heads: int = 4
    layers: int = 6
    ffn: int = 512
    norm: Literal["pre", "post", "peri", "none"] = "pre"
    activation: str = "gelu"
    positions: str = "sinusoidal"
    solver: str | None = setting(None, "of a simulator, default one step per layer is a Transformer's block")
    steps_per_layer: int = 1
    options: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, metadata={"help": "further options of the model's config"}
    )
    teacher: str | None = setting(None, "folder of a trained Transformer to fit a simulator to")
    batch_size: int = 64
    steps: int = 1000
    optimizer: OptimizerName = "adam"
    learning_rate: float = 1e-3
    schedule: ScheduleName = "constant"
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float | None = setting(None, "gradient norm, off by default")
    label_smoothing: float = 0.0
    precision: Precision = "float32"
    bottleneck: Estimate | None = setting(None, "estimate of I(X; T) for the flow v1 (14)")
    beta: float = setting(1e-3, "of the bottleneck")
    decay: float = setting(0.0, "λ of the bottleneck")
    signs: Signs = setting("v1 (14)", "v1 (3) and algorithm 1 contradict v1 (14)")
    bottleneck_layer: int = setting(-1, "0 the embedding, -1 the last")
    noise: float = setting(0.1, "standard deviation of the noise on T")
    seed: int = setting(0, "of weights and order")
    data_seed: int | None = setting(None, "of the order alone")
    save_every: int = setting(500, "steps between checkpoints")
    keep: int = setting(3, "best checkpoints kept, besides the latest")
    eval_every: int = setting(500, "steps between evaluations on the validation split")
    eval_examples: int | None = 2000
    out: str | None = setting(None, "folder to keep the run in, and to go on from")

    def __post_init__(self):
        for name, allowed in _NAMES.items():
            choice("TrainConfig", name, getattr(self, name), allowed)
        for name in ("data", "options"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} is a {type(getattr(self, name)).__name__}; it must map names to values.")
            object.__setattr__(self, name, _native(getattr(self, name)))
        positive = (
            "dim",
            "heads",
            "layers",
            "ffn",
            "steps_per_layer",
            "batch_size",
            "steps",
            "save_every",
            "keep",
            "eval_every",
        )
        for name in (*positive, "warmup", "seed", "data_seed", "eval_examples"):
            if getattr(self, name) is not None or name not in ("data_seed", "eval_examples"):
                least = 0 if name in ("warmup", "seed", "data_seed") else 1
                object.__setattr__(self, name, integer("TrainConfig", name, getattr(self, name), least))
        self.make_optimizer()
        number("TrainConfig", "label_smoothing", self.label_smoothing, least=0, below=1)
        self._check_bottleneck()
        self._check_model()
        # Numbers of NumPy are taken as Python's, so that a configuration is JSON and the same run whatever it was made with.
        for name in ("learning_rate", "weight_decay", "clip", "label_smoothing", "beta", "decay", "noise"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))

    def __repr__(self) -> str:
        return config_text(self, "dataset", "model", "steps")

    def make_schedule(self):
        """Return the learning rate of each step."""
        from pdejax.training._step import make_schedule  # brings JAX and optax, which the command's help does not need

        return make_schedule(self.schedule, self.learning_rate, self.steps, self.warmup)

    def make_optimizer(self):
        """Return the optimizer, for the whole run."""
        from pdejax.training._step import make_optimizer

        return make_optimizer(
            self.optimizer, learning_rate=self.make_schedule(), weight_decay=self.weight_decay, clip=self.clip
        )

    def _check_model(self) -> None:
        if self.model == "transformer" and (self.solver is not None or self.steps_per_layer != 1):
            raise ValueError(
                "solver and steps_per_layer are a simulator's: a Transformer takes one step per layer. Use model='simulator'."
            )
        if self.teacher is not None and self.model in ("transformer", "multilayer"):
            raise ValueError(
                f"teacher with model={self.model!r}: distillation fits a simulator; use 'simulator', 'bare' or 'full'."
            )
        if self.teacher is not None and self.bottleneck is not None:
            raise ValueError("teacher and bottleneck cannot be combined: distillation has no task loss. Leave one out.")
        if self.model == "bare" and self.norm != "none":
            # The bare simulator has no normalization: what the papers mean by it.
            object.__setattr__(self, "norm", "none")
        if self.task == "lm" and self.model == "full":
            raise ValueError("task='lm' with model='full': diffusion would leak the future; use 'simulator'.")

    def _check_bottleneck(self) -> None:
        for name in ("beta", "decay"):
            number("TrainConfig", name, getattr(self, name), least=0)
        bijection = "a noiseless flow is a bijection, for which I(X; T) cannot fall"
        number("TrainConfig", "noise", self.noise, above=0, advice=bijection)
        advice = "from 0 (the embedding) to the number of layers, or counted from the end by negative numbers"
        layer = integer(
            "TrainConfig", "bottleneck_layer", self.bottleneck_layer, -self.layers - 1, self.layers, advice=advice
        )
        object.__setattr__(self, "bottleneck_layer", layer)


def _native(value: Any) -> Any:
    """Options with numbers of NumPy as Python's, which JSON and a comparison with what it gives back need."""
    if isinstance(value, Mapping):
        return {name: _native(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(_native(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "listops": {
        "dataset": "listops",
        "data": {"min_length": 5, "max_length": 30},
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup": 200,
        "clip": 1.0,
        "steps": 2500,
        "eval_every": 250,
        "save_every": 250,
    },
    "digits": {
        "dataset": "digits",
        "data": {"form": "patches", "patch": 2},
        "dim": 64,
        "layers": 4,
        "ffn": 256,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup": 50,
        "steps": 800,
        "eval_every": 100,
        "save_every": 100,
    },
    "mnist": {
        "dataset": "mnist",
        "data": {"form": "patches", "patch": 7},
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "learning_rate": 5e-4,
        "schedule": "cosine",
        "warmup": 100,
        "steps": 1700,
        "eval_every": 200,
        "save_every": 200,
    },
    "newsgroups": {
        "dataset": "newsgroups",
        "data": {"length": 128},
        "layers": 4,
        "batch_size": 32,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "learning_rate": 3e-4,
        "schedule": "cosine",
        "warmup": 100,
        "steps": 1600,
        "eval_every": 160,
        "save_every": 160,
    },
    "listops-paper": {
        "dataset": "listops",
        "data": {"lengths": "l1000"},
        "batch_size": 32,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "learning_rate": 3e-4,
        "schedule": "cosine",
        "warmup": 500,
        "steps": 15000,
        "eval_every": 1000,
        "save_every": 1000,
    },
    "mnist-paper": {
        "dataset": "mnist",
        "data": {"form": "pixels"},
        "dim": 64,
        "ffn": 256,
        "layers": 10,
        "batch_size": 32,
        "learning_rate": 3e-4,
        "warmup": 500,
        "steps": 8600,
        "eval_every": 860,
        "save_every": 860,
    },
    "newsgroups-paper": {
        "dataset": "newsgroups",
        "data": {"length": 256},
        "layers": 4,
        "norm": "post",
        "batch_size": 32,
        "optimizer": "adam",
        "learning_rate": 3e-4,
        "steps": 1590,
        "eval_every": 318,
        "save_every": 318,
    },
}


@checked
def preset(name: str, **changes: Any) -> TrainConfig:
    """Return the configuration of a preset, with changes: `preset("digits", dim=32, out="out/digits")`.

    `data` and `options` are added to the preset's, other fields replace them. Fewer `steps` than the preset's keep its share of
    warm-up steps, unless `warmup` is given too. Raises `ValueError` for an unknown name, and as `TrainConfig`.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; choose one of {tuple(PRESETS)}.")
    values = dict(PRESETS[name])
    for field in ("data", "options"):
        if field in changes and isinstance(changes[field], Mapping):
            changes[field] = {**values.get(field, {}), **changes[field]}
    steps = changes.get("steps")
    if isinstance(steps, int | np.integer) and 0 < steps < values["steps"]:
        values["warmup"] = values.get("warmup", 0) * int(steps) // values["steps"]
    return TrainConfig(**values | changes)
