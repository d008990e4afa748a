"""Training of Transformers and PDE simulators: `train` from a configuration, or `fit` with any step of one's own."""

from pdejax.data._batch import Batch
from pdejax.training._bottleneck import add_information, bottleneck_flow
from pdejax.training._bottleneck_step import InputProjection, make_bottleneck_step, start_estimator
from pdejax.training._build import build_model
from pdejax.training._checkpoints import CheckpointError, restore
from pdejax.training._config import TrainConfig
from pdejax.training._distillation import Distillation, DistillationReport, distillation_report
from pdejax.training._distributed import data_mesh, initialize_distributed, replicate, shard_batch
from pdejax.training._fit import FitResult, fit
from pdejax.training._losses import AbstractTask, Classification, LanguageModel
from pdejax.training._metrics import read_metrics
from pdejax.training._optimizer import make_optimizer, make_schedule
from pdejax.training._presets import PRESETS, preset
from pdejax.training._run import TrainResult, load_trained, train
from pdejax.training._state import TrainState, merge_model, split_model
from pdejax.training._step import count_parameters, gradient_norms, make_evaluate, make_step, start_training

__all__ = [
    "PRESETS",
    "AbstractTask",
    "Batch",
    "CheckpointError",
    "Classification",
    "Distillation",
    "DistillationReport",
    "FitResult",
    "InputProjection",
    "LanguageModel",
    "TrainConfig",
    "TrainResult",
    "TrainState",
    "add_information",
    "bottleneck_flow",
    "build_model",
    "count_parameters",
    "data_mesh",
    "distillation_report",
    "fit",
    "gradient_norms",
    "initialize_distributed",
    "load_trained",
    "make_bottleneck_step",
    "make_evaluate",
    "make_optimizer",
    "make_schedule",
    "make_step",
    "merge_model",
    "preset",
    "read_metrics",
    "replicate",
    "restore",
    "shard_batch",
    "split_model",
    "start_estimator",
    "start_training",
    "train",
]
