"""The bottleneck flow for a training configuration."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from pdejax.analysis.information.trained import CLUB, AbstractInformation, BarberAgakov, InfoNCE, PaperEstimate
from pdejax.data import Dataset
from pdejax.training._bottleneck import bottleneck_flow
from pdejax.training._bottleneck_step import InputProjection, make_bottleneck_step, start_estimator
from pdejax.training._config import TrainConfig
from pdejax.training._state import Static, TrainState
from pdejax.training._step import Step

_ESTIMATES: dict[str, Callable[..., AbstractInformation]] = {
    "infonce": InfoNCE,
    "club": CLUB,
    "barber_agakov": BarberAgakov,
    "paper": PaperEstimate,
}
PROJECTED = 16
"""Numbers a sequence is projected to, as the X of the estimate."""


def bottleneck_optimizer(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """v1 (14), or its contradictory signs. With `"sgd"` the flow itself by explicit Euler, with λ and β as rates per step;
    else the sum of its terms in front of Adam, whose step they then share."""
    terms = {"weight_decay": config.decay, "beta": config.beta, "signs": config.signs}
    if config.optimizer == "sgd":
        return bottleneck_flow(config.make_schedule(), **terms)
    return bottleneck_flow(1.0, **terms, optimizer=config.make_optimizer())


def bottleneck_step(
    config: TrainConfig, task: Any, static: Static, state: TrainState, dataset: Dataset
) -> tuple[Step, TrainState]:
    """The step of the flow for `config.bottleneck`, and the state with its estimator, which is trained by Adam at 1e-3."""
    assert config.bottleneck is not None
    project_key, estimator_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2))
    ends: dict[str, Any] = {"features": dataset.features}
    if dataset.features is None:
        assert dataset.vocabulary is not None
        ends = {"vocab": len(dataset.vocabulary)}
    summary = InputProjection(PROJECTED, length=dataset.length, key=project_key, **ends)
    estimator = _ESTIMATES[config.bottleneck](PROJECTED, config.dim, key=estimator_key)
    fitting = optax.adam(1e-3)
    step = make_bottleneck_step(
        task,
        bottleneck_optimizer(config),
        static,
        estimator,
        noise=config.noise,
        estimator_optimizer=fitting,
        representation=config.bottleneck_layer,
        summary=summary,
    )
    return step, state._replace(extra=start_estimator(estimator, fitting))
