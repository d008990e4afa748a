"""Training of Transformers and PDE simulators: `train` from a configuration, or `fit` with any step of one's own."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach

if TYPE_CHECKING:
    from pdejax.training._bottleneck import bottleneck_flow as bottleneck_flow
    from pdejax.training._checkpoints import CheckpointError as CheckpointError
    from pdejax.training._checkpoints import restore as restore
    from pdejax.training._config import PRESETS as PRESETS
    from pdejax.training._config import TrainConfig as TrainConfig
    from pdejax.training._config import preset as preset
    from pdejax.training._distillation import Distillation as Distillation
    from pdejax.training._distributed import data_mesh as data_mesh
    from pdejax.training._distributed import initialize_distributed as initialize_distributed
    from pdejax.training._fit import fit as fit
    from pdejax.training._kept import load_trained as load_trained
    from pdejax.training._metrics import read_metrics as read_metrics
    from pdejax.training._run import build_model as build_model
    from pdejax.training._run import train as train
    from pdejax.training._step import AbstractTask as AbstractTask
    from pdejax.training._step import Classification as Classification
    from pdejax.training._step import LanguageModel as LanguageModel
    from pdejax.training._step import make_evaluate as make_evaluate
    from pdejax.training._step import make_optimizer as make_optimizer
    from pdejax.training._step import make_step as make_step
    from pdejax.training._step import merge_model as merge_model
    from pdejax.training._step import split_model as split_model
    from pdejax.training._step import start_training as start_training
else:
    __getattr__, __dir__ = attach(__name__)
