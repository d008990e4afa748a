"""The model of a training run."""

from typing import Any

import jax
from flax import nnx

from pdejax.data import Dataset
from pdejax.models import (
    Architecture,
    MultilayerSimulator,
    MultilayerSimulatorConfig,
    Simulator,
    SimulatorConfig,
    Transformer,
    pair,
)
from pdejax.training._config import TrainConfig

Model = Transformer | Simulator | MultilayerSimulator


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
    options = {"steps": config.layers * config.steps_per_layer} | solver | options
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
        changes["steps"] = teacher.architecture.layers * config.steps_per_layer
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
