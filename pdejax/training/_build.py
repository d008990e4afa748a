"""The model of a training run."""

from typing import Any

import jax
from flax import nnx

from pdejax.data import Dataset
from pdejax.models import (
    MultilayerSimulator,
    MultilayerSimulatorConfig,
    Simulator,
    SimulatorConfig,
    Transformer,
    TransformerConfig,
    distilled_simulator,
)
from pdejax.training._config import TrainConfig

Model = Transformer | Simulator | MultilayerSimulator


def build_model(config: TrainConfig, dataset: Dataset) -> Model:
    """The model that `config` names, its ends fitted to the data set, its weights drawn from `config.seed`.

    Raises `ValueError`/`TypeError` for options that the model's own config refuses.
    """
    sizes: dict[str, Any] = {
        name: getattr(config, name) for name in ("dim", "heads", "layers", "ffn", "activation", "positions")
    }
    options: dict[str, Any] = sizes | _ends(config, dataset)
    options["dtype"] = config.precision
    if config.model == "transformer":
        options["norm"] = config.norm
        return Transformer(TransformerConfig(**options | dict(config.options)), rngs=nnx.Rngs(config.seed))
    key = jax.random.key(config.seed)
    if config.model == "multilayer":
        options["solver"] = config.solver or "euler"
        options["steps"] = config.layers * config.steps_per_layer
        options["norm"] = "none" if config.norm == "post" else config.norm
        if config.norm == "post":
            options["stabilization"] = "retraction"
        return MultilayerSimulator(MultilayerSimulatorConfig(**options | dict(config.options)), key=key)
    return Simulator(_simulator_config(config, options), key=key)


def build_student(config: TrainConfig, teacher: Transformer) -> Simulator:
    """The simulator to be fitted to a trained Transformer, with its sizes, embedding and head and a field of its own.

    Of `config` come the kind of field, its solver and steps; sizes are the teacher's.
    """
    changes: dict[str, Any] = dict(config.options)
    if config.solver is not None:
        changes["solver"] = config.solver
    if config.steps_per_layer != 1:
        changes["steps"] = teacher.config.layers * config.steps_per_layer
    if config.model == "bare":
        changes = {"leak": True, "norm": "none", "stabilization": "none"} | changes
    if config.model == "full":
        changes = {"stabilization": "layernorm", "diffusion": "feature"} | changes
    return distilled_simulator(teacher, key=jax.random.key(config.seed), **changes)


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


def _simulator_config(config: TrainConfig, common: dict[str, Any]) -> SimulatorConfig:
    post = config.norm == "post"
    options: dict[str, Any] = common | {"steps": config.layers * config.steps_per_layer}
    if config.solver is not None:
        options["solver"] = config.solver
    if config.model != "bare":
        options["norm"] = "none" if post else config.norm
    if post:
        options["stabilization"] = "retraction"
    make = {"simulator": SimulatorConfig, "bare": SimulatorConfig.bare, "full": SimulatorConfig.full}[config.model]
    return make(**options | dict(config.options))
