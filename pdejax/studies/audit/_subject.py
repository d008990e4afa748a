"""What is audited: a network, sequences to run it on, and the loss they are read by."""

import json
import math
import os
import pathlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pdejax._check import choice, spoken_by
from pdejax.analysis.jacobian._systems import cross_entropy
from pdejax.data import load
from pdejax.models import Simulator, Transformer
from pdejax.networks import CheckpointError, Network, as_network
from pdejax.studies.audit._config import AuditConfig
from pdejax.studies.study import settings
from pdejax.training._kept import saved_model

_OWNER = "audit"
_IMAGES = (".png", ".jpg", ".jpeg")
LENGTH = 64  # tokens of a sequence of a text
LEAST = 4  # sequences
_TOGETHER = 4  # sequences whose logits are there at once


class Reading(eqx.Module):
    """Cross-entropy of a last state, in nats: of the class, or of the next token, a mean over tokens."""

    head: Any

    def __call__(self, u: Array, mask: Array, label: Array) -> Array:
        return cross_entropy(self.head(u, mask), label, mask)


class Subject(eqx.Module):
    """A network and b sequences: `u0 (b, n, d)`, `mask (b, n)`, and `labels` where there is something to predict.

    `task`: `"classification"`, `"next token"` or `"states"`. `model`: the model the network was made of, or None.
    """

    network: Network
    model: Any
    u0: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    labels: Array | None
    inputs: tuple[Any, ...]
    task: str = eqx.field(static=True)
    data: str = eqx.field(static=True)

    @property
    def loss(self) -> Reading | None:
        """The loss of a last state, or None where there is nothing to predict."""
        return None if self.labels is None else Reading(self.network.head)

    def read(self, us: Float[Array, "k b n d"], reference: Float[Array, "b n d"]) -> dict[str, np.ndarray]:
        """Loss and share of right answers `(k, b)` of k last states, and how far logits are from those of `reference`."""
        if self.labels is None:
            return {}
        return {k: np.asarray(v) for k, v in _read(self.network.head, us, reference, self.mask, self.labels).items()}


@eqx.filter_jit
def _read(head: Any, us: Array, reference: Array, mask: Array, labels: Array) -> dict[str, Array]:
    def one(x):
        us, reference, real, label = x
        before = head(reference, real)  # the logits of a large vocabulary are most of the cost: once for all k

        def each(u):
            logits = head(u, real)
            seen = jnp.ones((), bool) if logits.ndim == 1 else real
            right = jnp.sum(seen & (jnp.argmax(logits, axis=-1).astype(label.dtype) == label)) / jnp.sum(seen)
            weight = seen.astype(logits.dtype)[..., None]
            move = jnp.sqrt(jnp.sum(weight * (logits - before) ** 2) / jnp.sum(weight * before**2))
            return {"loss": cross_entropy(logits, label, real), "accuracy": right, "logits": move}

        return jax.lax.map(each, us)

    found = jax.lax.map(one, (jnp.moveaxis(us, 1, 0), reference, mask, labels), batch_size=_TOGETHER)
    return {name: x.T for name, x in found.items()}


def load_subject(config: AuditConfig) -> Subject:
    """Read the network and its sequences. Raises `ValueError`, naming the option, for what does not fit."""
    if is_training(config.network):
        for name, needed in (("text", "a network with a tokenizer"), ("images", "a checkpoint of images")):
            if getattr(config, name) is not None:
                raise ValueError(f"{_OWNER}: {name}={getattr(config, name)!r} needs {needed}; give a dataset.")
        return _trained(config)
    from pdejax.networks import load_pretrained

    with spoken_by(_OWNER, f"network={config.network!r}: "):
        if not pathlib.Path(config.network).exists():
            raise FileNotFoundError(
                "there is no such folder or file; give a folder that `pdejax train --out` left, a file that pdejax.save_model "
                "wrote, or a checkpoint: nothing is downloaded here, `hf download NAME --local-dir DIR` (of the package "
                "huggingface_hub) gets one."
            )
        network = load_pretrained(config.network, dtype=config.precision)
    if config.images is not None:
        return _of_images(config, network)
    if config.text is None:
        raise ValueError(
            f"{_OWNER}: {config.network!r} is a checkpoint without data of its own; give text=FILE, or images=DIR of a network "
            "of images."
        )
    return _of_text(config, network)


def is_training(path: str) -> bool:
    """Whether `pdejax train` left this folder, or `pdejax.save_model` this file."""
    if path.endswith(".npz"):
        return True
    try:
        found = json.loads((pathlib.Path(path) / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "train" in found


def _trained(config: AuditConfig) -> Subject:
    found = saved_model(_OWNER, "network", config.network)
    if not isinstance(found.model, Transformer | Simulator):
        raise ValueError(
            f"{_OWNER}: network={config.network!r} holds a {type(found.model).__name__}; give a Transformer or a Simulator."
        )
    inputs, mask, labels, task, name = trained_batch(config, found)
    network = as_network(found.model, length=inputs.shape[1])
    return _subject(config, network, found.model, list(inputs), mask, labels, task, name)


def trained_batch(config: AuditConfig, found: Any) -> tuple[Any, Array, Any, str, str]:
    """Inputs, mask, labels, task and name of the test sequences of a model that was kept, with what it was trained on."""
    run = found.config
    if run is None and config.dataset is None:
        raise ValueError(f"{_OWNER}: network={config.network!r} does not say what it was trained on; give a dataset.")
    own = None if run is None else run.dataset
    name = config.dataset or own or ""
    options: dict[str, Any] = {} if run is None or name != own else dict(run.data)
    options |= {"task": "lm"} if run is not None and run.task == "lm" else {}
    batch = load(name, "test", **options)
    if len(batch) < LEAST:
        raise ValueError(
            f"{_OWNER}: dataset={name!r} has {len(batch)} sequences for tests; give one of at least {LEAST}."
        )
    batch = batch.take(np.arange(min(config.sequences, len(batch))))
    # An empty tail is cut off: it costs, and changes nothing.
    whole = max(int(np.max(np.sum(batch.mask, axis=1))), 1)
    longest = min(whole, config.length or whole)
    if longest < whole and batch.labels.ndim == 1:
        raise ValueError(
            f"{_OWNER}: length={config.length} would cut sequences of up to {whole} tokens of {name!r}, whose classes "
            "are of whole sequences; leave it out."
        )
    inputs, mask = batch.inputs[:, :longest], jnp.asarray(batch.mask[:, :longest])
    labels = batch.labels if batch.labels.ndim == 1 else batch.labels[:, :longest]
    headed = found.model.architecture.head != "none"
    task = "states" if not headed else "next token" if labels.ndim == 2 else "classification"
    return inputs, mask, labels if headed else None, task, name


def _of_text(config: AuditConfig, network: Network) -> Subject:
    assert config.text is not None
    path = pathlib.Path(config.text)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{_OWNER}: text={config.text!r} cannot be read as UTF-8 ({type(error).__name__}).") from None
    if not text.strip():
        raise ValueError(f"{_OWNER}: text={config.text!r} is empty.")
    if network.tokenizer is None:
        raise ValueError(f"{_OWNER}: {config.network!r} has no tokenizer, so that a text cannot be read in.")
    sample = jnp.asarray(network.tokenize("one"))
    field = eqx.filter_eval_shape(network.embed, sample)
    predicts = eqx.filter_eval_shape(network.head, field, None).shape != field.shape
    if predicts and _causal(network):
        return _next_tokens(config, network, text, path.name)
    pieces = [" ".join(part.split()) for part in text.split("\n\n")]
    length = config.length or LENGTH
    rows = [row[:length] for row in (_ids(network, piece, length) for piece in pieces if piece)]
    rows = [row for row in rows if len(row) > 2][: config.sequences]
    if len(rows) < LEAST:
        raise ValueError(
            f"{_OWNER}: text={config.text!r} has {len(rows)} paragraphs of more than two tokens; give at least {LEAST}, blank "
            "lines between them."
        )
    n = max(map(len, rows))
    mask = jnp.asarray(np.arange(n) < np.asarray([len(row) for row in rows])[:, None])
    inputs = [np.pad(row, (0, n - len(row))) for row in rows]
    return _subject(config, network, None, inputs, mask, None, "states", path.name)


def _of_images(config: AuditConfig, network: Network) -> Subject:
    """The first images of a folder by name, a sequence of patches each."""
    from pdejax.networks.families._pixels import read_pixels

    assert config.images is not None
    folder = pathlib.Path(config.images)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in _IMAGES)[: config.sequences]
    if len(paths) < 4:
        raise ValueError(
            f"{_OWNER}: images={config.images!r} has {len(paths)} files that end in {', '.join(_IMAGES)}; give a folder with at "
            "least 4."
        )
    try:
        place = pathlib.Path(config.network)
        pixels = read_pixels(place if place.is_dir() else place.parent, network)
        inputs = [pixels(path) for path in paths]
    except CheckpointError as error:
        raise ValueError(f"{_OWNER}: {str(error).removeprefix('load_pretrained: ')}") from None
    other = [path.name for path, image in zip(paths, inputs, strict=True) if image.shape != inputs[0].shape]
    if other:
        raise ValueError(
            f"{_OWNER}: images={config.images!r}: {other[0]} is of another size than {paths[0].name}, and the checkpoint does "
            "not resize both sides; make all of one size."
        )
    n = eqx.filter_eval_shape(network.embed, jnp.asarray(inputs[0])).shape[0]
    mask = jnp.ones((len(inputs), n), bool)
    return _subject(config, network, None, inputs, mask, None, "states", folder.name)


def _ids(network: Network, text: str, most: int) -> np.ndarray:
    """Tokens of as many words of a text as fit."""
    words = text.split()[:most]
    while True:
        ids = np.asarray(network.tokenize(" ".join(words)))
        if len(ids) <= most or len(words) == 1:
            return ids
        words = words[: max(1, min(len(words) - 1, math.floor(len(words) * most / len(ids))))]


def _next_tokens(config: AuditConfig, network: Network, text: str, name: str) -> Subject:
    """Pieces of `length` tokens, each of which is to predict its next."""
    n, ids = config.length or LENGTH, []
    for part in text.split("\n\n"):
        if part.strip() and len(ids) < config.sequences * (n + 1):
            words = part.split(" ")
            ids += [
                int(i)
                for k in range(0, len(words), 200)
                for i in np.asarray(network.tokenize(" ".join(words[k : k + 200]) + "\n"))
            ]
    count = min(config.sequences, len(ids) // (n + 1))
    if count < LEAST:
        raise ValueError(
            f"{_OWNER}: text={config.text!r} has {len(ids)} tokens; give at least {LEAST * (n + 1)}, {LEAST} sequences of "
            f"length={n}."
        )
    rows = np.asarray(ids[: count * (n + 1)], np.int32).reshape(count, n + 1)
    mask = jnp.ones((count, n), bool)
    return _subject(config, network, None, list(rows[:, :-1]), mask, rows[:, 1:], "next token", name)


def _causal(network: Network) -> bool:
    field = network.discretization.field
    stacked = getattr(field, "stacked", field)
    return any(getattr(term, "causal", False) for term in getattr(stacked, "terms", ()))


def _subject(
    config: AuditConfig, network: Network, model: Any, inputs: Any, mask: Array, labels: Any, task: str, data: str
) -> Subject:
    choice(_OWNER, "task", task, ("classification", "next token", "states"))
    u0 = jnp.stack([network.embed(x) for x in inputs]).astype(config.precision)
    if network.layers < 2:
        raise ValueError(f"{_OWNER}: the network has {network.layers} layer; its depth is nothing to speak of.")
    labels = None if labels is None else jnp.asarray(labels)
    return Subject(network, model, u0, mask, labels, tuple(inputs), task, data)


def name_of(path: str | os.PathLike[str]) -> str:
    """What a network is called: the name of its folder, or of the one above where that says nothing."""
    place = pathlib.Path(path)
    return place.parent.name if place.name in ("model", "checkpoint", "weights") and place.parent.name else place.name


def saved_settings(config: Any) -> dict[str, Any]:
    """The configuration of a study of one network without the machine's paths: files by their names."""
    names = {x: getattr(config, x) for x in ("network", "text", "images")}
    return settings(config) | {x: None if path is None else name_of(path) for x, path in names.items()}
