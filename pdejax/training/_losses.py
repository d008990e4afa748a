"""What a model is trained on: the loss of a batch and what is recorded with it."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax._check import number
from pdejax.data._batch import Batch

Metrics = dict[str, Float[Array, "..."]]


class AbstractTask(eqx.Module):
    """A loss of a model on a batch. `model(tokens, mask)` gives the logits of one sequence."""

    @abc.abstractmethod
    def loss(self, model: Any, batch: Batch, key: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        """Return the mean loss of the batch and scalars to record, themselves means."""

    @abc.abstractmethod
    def weight(self, batch: Batch) -> Float[Array, ""]:
        """Count how many terms the mean of `loss` has, so that means of batches can be joined."""


class Classification(AbstractTask):
    r"""Cross-entropy of classes, $-\frac1b\sum_i \log p_{y_i}(x_i)$ in nats; v1 (15) with the usual ℓ.

    `label_smoothing` ε puts (1 − ε) on the label and ε/classes on every class. Records `accuracy`.
    """

    label_smoothing: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        number(type(self).__name__, "label_smoothing", self.label_smoothing, least=0, below=1)

    def loss(self, model: Any, batch: Batch, key: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        del key
        logits = jax.vmap(model)(batch.inputs, batch.mask)
        logits = _widened(logits)
        loss = jnp.mean(_cross_entropy(logits, batch.labels, self.label_smoothing))
        right = _predicted(logits, batch.labels) == batch.labels
        return loss, {"accuracy": jnp.mean(right.astype(loss.dtype))}

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return jnp.asarray(len(batch.labels), jnp.float32)


class LanguageModel(AbstractTask):
    r"""Cross-entropy of the next token, a mean over the real tokens of the batch, in nats.

    `batch.labels (b, n)` holds the token to predict at each place; `batch.mask` says which places count. Records `accuracy`.
    """

    label_smoothing: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        number(type(self).__name__, "label_smoothing", self.label_smoothing, least=0, below=1)

    def loss(self, model: Any, batch: Batch, key: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        del key
        logits = jax.vmap(model)(batch.inputs, batch.mask)
        logits = _widened(logits)
        # A mean with weights: `where=` would count a batch without tokens as NaN.
        weights = batch.mask.astype(logits.dtype)
        count = jnp.maximum(jnp.sum(weights), 1.0)
        loss = jnp.sum(weights * _cross_entropy(logits, batch.labels, self.label_smoothing)) / count
        right = (_predicted(logits, batch.labels) == batch.labels).astype(logits.dtype)
        return loss, {"accuracy": jnp.sum(weights * right) / count}

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return jnp.sum(jnp.asarray(batch.mask).astype(jnp.float32))


def _cross_entropy(logits: Float[Array, "... c"], labels, smoothing: float) -> Float[Array, "..."]:
    exact = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if smoothing == 0:
        return exact
    uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - smoothing) * exact + smoothing * uniform


def _predicted(logits: Float[Array, "... c"], labels) -> Array:
    return jnp.argmax(logits, axis=-1).astype(labels.dtype)


def _widened(logits: Float[Array, "... c"]) -> Float[Array, "... c"]:
    return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)
