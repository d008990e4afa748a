"""What a checkpoint gives here beside what `transformers` gives, layer by layer."""

import importlib.util
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax.networks._network import Network
from pdejax.networks.families._checkpoint import fault
from pdejax.networks.families._ends import LastField, Logits
from pdejax.networks.families._load import load_pretrained, read_checkpoint, read_settings

_PACKAGES = ("torch", "transformers")


class Difference(NamedTuple):
    """‖ours − theirs‖/‖theirs‖ of one array, and the largest entry of |ours − theirs|."""

    name: str
    relative: float
    largest: float


class Parity(NamedTuple):
    """The differences by layer, how many tokens they were taken on, and stored tensors that are not read, with the reason."""

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

    The oracle computes in float64, whatever `dtype` is ours. Without a tokenizer the tokens are 16 random ids from `seed`.
    Raises as `load_pretrained`, and `RuntimeError` without the oracle.
    """
    check_oracle()
    checkpoint = read_checkpoint(path)
    family, settings = read_settings(checkpoint)
    with jax.enable_x64(jax.config.jax_enable_x64 or dtype == "float64"):  # pyright: ignore[reportAttributeAccessIssue]
        net = load_pretrained(path, dtype=dtype)  # pyright: ignore[reportArgumentType]
        tokens = _tokens(net, text, seed)
        states = net.hidden_states(tokens)
        theirs, logits = _oracle(pathlib.Path(path), checkpoint.config, tokens)
        if len(theirs) != len(states):
            raise fault(checkpoint.where, f"transformers has {len(theirs)} states, and this network {len(states)}.")
        found = [_difference(f"layer {l}", u, v) for l, (u, v) in enumerate(zip(states[:-1], theirs[:-1], strict=True))]
        found.append(_difference(f"layer {len(states) - 1}", _shown(net, states[-1]), theirs[-1]))
        if logits is not None and isinstance(net.head, Logits):
            found.append(_difference("logits", net.head(states[-1], None), logits))
    return Parity(found, len(tokens), family.left_out(settings, checkpoint))


def _tokens(net: Network, text: str, seed: int) -> np.ndarray:
    if net.tokenizer is not None:
        return net.tokenize(text)
    vocab = net.embed.words.shape[0]  # pyright: ignore[reportFunctionMemberAccess]
    return np.random.default_rng(seed).integers(0, vocab, 16).astype(np.int32)


def _shown(net: Network, last: Array) -> Array:
    """The last state as transformers shows it: through the final norm, with which the head of a pre-LN model begins."""
    head = net.head
    final = isinstance(head, LastField) or (isinstance(head, Logits) and head.weight is None)
    return head.norm(last) if final and head.norm is not None else last  # pyright: ignore[reportFunctionMemberAccess]


def _difference(name: str, ours: Any, theirs: Any) -> Difference:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    apart = ours - theirs
    return Difference(name, float(np.linalg.norm(apart) / np.linalg.norm(theirs)), float(np.abs(apart).max()))


def _oracle(path: pathlib.Path, config: Any, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Hidden states `(L + 1, n, d)` and logits `(n, vocab)`, or None, of transformers in float64 on a CPU."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = config.get("architectures") or []
    if path.is_file():
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    else:
        kind = getattr(transformers, names[0], None) if names else None
        model = (kind or transformers.AutoModel).from_pretrained(path, local_files_only=True)
    double: Any = model.eval().double()
    with torch.no_grad():
        out = double(torch.as_tensor(tokens)[None].long(), output_hidden_states=True)
    states = np.stack([state[0].numpy() for state in out.hidden_states])
    return states, out.logits[0].numpy() if getattr(out, "logits", None) is not None else None


def tolerance(dtype: str) -> float:
    """The largest relative difference that rounding explains."""
    return 1e-12 if dtype == "float64" else 2e-5


def total(differences: list[Difference]) -> float:
    """The largest of the relative differences; NaN counts as infinite."""
    found = jnp.asarray([d.relative for d in differences])
    return float(jnp.max(jnp.where(jnp.isnan(found), jnp.inf, found)))
