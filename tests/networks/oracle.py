"""Small random models of `transformers` as folders, and what they compute: the oracle of the families' tests."""

import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest

from pdejax.networks.families import _parity

VOCAB, DIM, HEADS, LAYERS, LENGTH = 29, 12, 3, 3, 9


@dataclasses.dataclass(frozen=True)
class Case:
    """A class of `transformers` with its configuration, and whether it has logits."""

    model: str
    options: dict[str, Any]
    logits: bool = False
    # What the state after the last layer passes through before transformers shows it: the name of a module, or nothing.
    final_norm: str | None = None


@contextlib.contextmanager
def in_float64() -> Any:
    """The oracle all in float64: its code casts norms, softmax and angles to float32 by that name."""
    pytest.importorskip("torch", reason="the oracle needs torch: pip install 'pdejax[oracle]'")
    with _parity.in_float64():
        yield


def make(case: Case, folder: Any) -> Any:
    """A random model in float64, saved in the folder; skips where transformers and torch are not installed."""
    torch = pytest.importorskip("torch", reason="the oracle needs torch: pip install 'pdejax[oracle]'")
    transformers = pytest.importorskip(
        "transformers", reason="the oracle needs transformers: pip install 'pdejax[oracle]'"
    )
    kind = getattr(transformers, case.model)
    torch.manual_seed(0)
    config = kind.config_class(**case.options)
    config._attn_implementation = "eager"
    model = kind(config).eval().to(torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            # Every number matters: biases are not 0 and scales not 1.
            mean = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
            parameter.copy_(mean + 0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def run(model: Any, ids: np.ndarray, mask: np.ndarray | None = None, **options: Any) -> dict[str, np.ndarray]:
    """Hidden states `(L + 1, n, d)`, maps `(L, H, n, n)` and logits `(n, vocab)` of one sequence."""
    import torch

    given = {name: torch.as_tensor(np.asarray(value))[None] for name, value in options.items()}
    if mask is not None:
        given["attention_mask"] = torch.as_tensor(np.asarray(mask))[None].long()
    with torch.no_grad():
        out = model(torch.as_tensor(ids)[None].long(), output_hidden_states=True, output_attentions=True, **given)
    found = {
        "states": np.stack([state[0].numpy() for state in out.hidden_states]),
        "maps": np.stack([maps[0].numpy() for maps in out.attentions]),
    }
    return found | ({"logits": out.logits[0].numpy()} if "logits" in out else {})
