"""What a checkpoint gives here beside what `transformers` gives, layer by layer."""

import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax.networks._network import Network
from pdejax.networks.families._checkpoint import fault
from pdejax.networks.families._ends import LastField, Logits, TextEmbedding
from pdejax.networks.families._huggingface import onnx_of_folder
from pdejax.networks.families._images import ImageEmbedding
from pdejax.networks.families._load import load_pretrained, read_checkpoint, read_settings

_PACKAGES = ("torch", "transformers")


class Difference(NamedTuple):
    """‖ours − theirs‖/‖theirs‖ of one array, and the largest entry of |ours − theirs|."""

    name: str
    relative: float
    largest: float


class Parity(NamedTuple):
    """The differences by layer, of how many tokens, and stored tensors that are not read, with the reason."""

    differences: list[Difference]
    tokens: int
    left_out: dict[str, str]


def check_oracle() -> None:
    """Raise `RuntimeError`, which says what to install, where the oracle is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"parity: there is nothing to compare with: {' and '.join(missing)} are not installed; pip install 'pdejax[oracle]'."
        )


def parity(path: str | os.PathLike[str], text: str, *, dtype: str, seed: int = 0) -> Parity:
    """Return how far the states of every layer, and the logits, are from those of `transformers`.

    The oracle computes in float64, whatever `dtype` is ours. Without a tokenizer the tokens are at most 16 random ids from
    `seed`, of a network of images the pixels are random.
    Raises as `load_pretrained`, and `RuntimeError` without the oracle.
    """
    check_oracle()
    place = pathlib.Path(path)
    if place.suffix == ".onnx" or (place.is_dir() and onnx_of_folder(place) is not None):
        raise fault(
            place.name,
            "transformers reads no ONNX files; compare net.hidden_states with values inside the graph that onnxruntime gives.",
        )
    checkpoint = read_checkpoint(path)
    family, settings = read_settings(checkpoint)
    with jax.enable_x64(jax.config.jax_enable_x64 or dtype == "float64"):  # pyright: ignore[reportAttributeAccessIssue]
        net = load_pretrained(path, dtype=dtype)  # pyright: ignore[reportArgumentType]
        given = _given(net, text, seed)
        states = net.hidden_states(given)
        names = [] if isinstance(net.head, LastField) else checkpoint.config.get("architectures") or []
        theirs, output = _oracle(pathlib.Path(path), names, given)
        if len(theirs) != len(states):
            raise fault(checkpoint.where, f"transformers has {len(theirs)} states, and this network {len(states)}.")
        found = [_difference(f"layer {l}", u, v) for l, (u, v) in enumerate(zip(states[:-1], theirs[:-1], strict=True))]
        found.append(_difference(f"layer {len(states) - 1}", _shown(net, states[-1]), theirs[-1]))
        found.append(_difference("output", net.head(states[-1], None), output))
    return Parity(found, states.shape[1], family.left_out(settings, checkpoint))


def _given(net: Network, text: str, seed: int) -> np.ndarray:
    """What both read: tokens, or an image as large as the network's positions."""
    if net.tokenizer is not None:
        return net.tokenize(text)
    rng, embed = np.random.default_rng(seed), net.embed
    if isinstance(embed, ImageEmbedding):
        channels, high, wide, _ = embed.weight.shape
        grid = round((embed.positions.shape[0] - 1) ** 0.5)
        return rng.standard_normal((channels, grid * high, grid * wide))
    assert isinstance(embed, TextEmbedding)
    return rng.integers(0, embed.words.shape[0], min(16, embed.longest)).astype(np.int32)


def _shown(net: Network, last: Array) -> Array:
    """The last state as transformers shows it: of text through the final norm, with which the head of a pre-LN model begins."""
    head = net.head
    if not isinstance(net.embed, TextEmbedding):
        return last
    final = isinstance(head, LastField) or (isinstance(head, Logits) and head.weight is None)
    return head.norm(last) if final and head.norm is not None else last  # pyright: ignore[reportFunctionMemberAccess]


def _difference(name: str, ours: Any, theirs: Any) -> Difference:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    apart = ours - theirs
    return Difference(name, float(np.linalg.norm(apart) / np.linalg.norm(theirs)), float(np.abs(apart).max()))


def _oracle(path: pathlib.Path, names: Sequence[str], given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states `(L + 1, n, d)` and logits of transformers in float64 on a CPU by the class that `names` begins with; without
    one those of the bare model, and its last state."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if path.is_file():
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    else:
        kind = getattr(transformers, names[0], None) if names else None
        model = (kind or transformers.AutoModel).from_pretrained(path, local_files_only=True)
    double: Any = model.eval().double()
    with in_float64(), torch.no_grad():
        for module in double.modules():
            if hasattr(module, "inv_freq"):
                module.inv_freq = type(module)(module.config).inv_freq
        whole = np.issubdtype(given.dtype, np.integer)
        out = double(
            torch.as_tensor(given)[None].to(torch.int64 if whole else torch.float64), output_hidden_states=True
        )
    states = np.stack([state[0].numpy() for state in out.hidden_states])
    return states, (out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state)[0].numpy()


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Make torch compute in float64 where a model asks for float32 by that name, as for norms, softmax and rotary angles."""
    import torch  # pyright: ignore[reportMissingImports]

    names: list[tuple[Any, str, Any]] = [(torch, "float32", torch.float64), (torch, "float", torch.float64)]
    names.append((torch.Tensor, "float", torch.Tensor.double))
    before = [getattr(owner, name) for owner, name, _ in names]
    try:
        for owner, name, value in names:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(names, before, strict=True):
            setattr(owner, name, value)


def tolerance(dtype: str) -> float:
    """The largest relative difference that rounding explains."""
    return 1e-12 if dtype == "float64" else 2e-5


def total(differences: list[Difference]) -> float:
    """The largest of the relative differences; NaN counts as infinite."""
    found = jnp.asarray([d.relative for d in differences])
    return float(jnp.max(jnp.where(jnp.isnan(found), jnp.inf, found)))
