"""Fitting a PDE simulator to a Transformer by its trajectory."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from pdejax._arguments import checked
from pdejax._check import number
from pdejax.analysis.attention._fidelity import attention_divergence
from pdejax.data._dataset import Batch
from pdejax.models import observe
from pdejax.training._step import AbstractTask, Static, merge_model, split_model

States = Float[Array, "depths b n d"]


class Distillation(AbstractTask):
    r"""Trajectory matching: a student is fitted to a frozen teacher's hidden states and attention maps,

    $$\mathcal{L} = \frac{\lambda_u}{K+1}\sum_{l=0}^{K} \frac{\|u_l - z_l\|^2}{\|z_l\|^2}
      + \frac{\lambda_a}{KH}\sum_{l,h} \frac1n\sum_i \mathrm{KL}(p^{lh}_{i\cdot}\,\|\,q^{lh}_{i\cdot})
      + \lambda_y\,\mathrm{KL}(p_y\,\|\,q_y),$$

    averaged over the batch: z_l, p the teacher's hidden states, attention rows and class (or token) probabilities, u_l, q the
    student's. Norms and sums run over real tokens only. Where the layers differ in number, the more are taken every so many:
    depth as a fraction of t1 is what is matched.

    - `teacher`: a `Transformer` or a simulator; its parameters are kept, and no gradient reaches them. `student`: what will be
      fitted, if its depths are to be checked now; nothing of it is kept.
    - `hidden_weight` λ_u, `attention_weight` λ_a, `logit_weight` λ_y ≥ 0, not all 0; a term of weight 0 is not computed.

    A task: `loss(model, batch, key) -> (scalar, metrics)` with metrics `hidden_error`, `attention_kl` and `logit_kl`, those
    that are computed. Relative errors are ratios of squares: 1 is what a student of zeros has.

    How well a fit went on held-out sequences, beside nulls, say
    [`trajectory_fidelity`][pdejax.analysis.trajectory_fidelity]
    and [`attention_fidelity`][pdejax.analysis.attention_fidelity] of what [`observe`][pdejax.observe] gives of both models;
    [`untrained_field`][pdejax.models.untrained_field] is the student with a fresh field.

    Raises `TypeError` for other teachers, `ValueError` for weights.
    """

    parameters: PyTree[Array]
    static: Static
    hidden_weight: float = eqx.field(static=True)
    attention_weight: float = eqx.field(static=True)
    logit_weight: float = eqx.field(static=True)

    @checked
    def __init__(
        self,
        teacher: Any,
        student: Any = None,
        *,
        hidden_weight: float = 1.0,
        attention_weight: float = 1.0,
        logit_weight: float = 0.0,
    ):
        weights = {"hidden_weight": hidden_weight, "attention_weight": attention_weight, "logit_weight": logit_weight}
        for name, value in weights.items():
            number("Distillation", name, value, least=0)
        if not any(weights.values()):
            raise ValueError(
                "Distillation: hidden_weight, attention_weight and logit_weight are all 0: there is nothing to fit"
            )
        parameters, self.static = split_model(teacher)
        if student is not None:
            check_depths(student.architecture.depth, teacher.architecture.depth)
        # Copies: the teacher may be trained on, which gives its arrays away.
        self.parameters = jax.tree.map(jnp.array, parameters)
        self.hidden_weight, self.attention_weight = float(hidden_weight), float(attention_weight)
        self.logit_weight = float(logit_weight)

    @property
    def teacher(self) -> Any:
        """The teacher, its parameters behind a `stop_gradient`."""
        return merge_model(jax.lax.stop_gradient(self.parameters), self.static)

    def loss(self, model: Any, batch: Batch, key: PRNGKeyArray | None = None) -> tuple[Array, dict[str, Array]]:
        """Return the loss on one batch, and its terms before weighting. `key` is not used."""
        del key
        inputs, mask = jnp.asarray(batch.inputs), jnp.asarray(batch.mask)
        wanted = {"logits": self.logit_weight > 0, "states": self.hidden_weight > 0, "maps": self.attention_weight > 0}
        theirs = jax.lax.stop_gradient(observe(self.teacher, inputs, mask, **wanted))
        ours = observe(model, inputs, mask, **wanted)
        metrics, weighted = {}, []
        if wanted["states"]:
            u, z = matching(ours.states, theirs.states, 1)
            metrics["hidden_error"] = jnp.mean(squared_error(u, z, mask))
            weighted.append(self.hidden_weight * metrics["hidden_error"])
        if wanted["maps"]:
            q, p = matching(ours.maps, theirs.maps, 0)
            metrics["attention_kl"] = jnp.mean(attention_divergence(p, q, mask))
            weighted.append(self.attention_weight * metrics["attention_kl"])
        if wanted["logits"]:
            metrics["logit_kl"] = _logit_divergence(theirs.logits, ours.logits, mask)
            weighted.append(self.logit_weight * metrics["logit_kl"])
        return sum(weighted[1:], start=weighted[0]), metrics

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return jnp.asarray(len(batch.inputs), jnp.float32)


def check_depths(student: int, teacher: int) -> None:
    """Raise `ValueError` unless the depths of one trajectory are among those of the other."""
    if student % teacher and teacher % student:
        raise ValueError(
            f"a student of {student} layers has only the ends in common with a teacher of {teacher}: one number must be a "
            "multiple of the other"
        )


def matching(ours: Array, theirs: Array, ends: int) -> tuple[Array, Array]:
    """Both at the depths they share; axis 0 runs over the layers, and over `ends` more."""
    a, b = len(ours) - ends, len(theirs) - ends
    check_depths(a, b)
    return ours[:: max(a // b, 1)], theirs[:: max(b // a, 1)]


def squared_error(u: States, z: States, mask: Bool[Array, "b n"]) -> Float[Array, "depths b"]:
    """‖u − z‖² / ‖z‖² over real tokens, for each depth and example."""
    real = mask[None, :, :, None]
    size = jnp.sum(jnp.where(real, z, 0) ** 2, axis=(2, 3))
    return jnp.sum(jnp.where(real, u - z, 0) ** 2, axis=(2, 3)) / jnp.where(size > 0, size, 1)


def _logit_divergence(theirs: Array, ours: Array, mask: Bool[Array, "b n"]) -> Float[Array, ""]:
    """KL(teacher ‖ student) of the classes, or of the tokens at real places, in nats."""
    p, q = jax.nn.log_softmax(theirs), jax.nn.log_softmax(ours)
    kl = jnp.sum(jnp.exp(p) * (p - q), axis=-1)
    if kl.ndim == 1:
        return jnp.mean(kl)
    return jnp.mean(jnp.sum(jnp.where(mask, kl, 0), axis=-1) / jnp.sum(mask.astype(kl.dtype), axis=-1))
