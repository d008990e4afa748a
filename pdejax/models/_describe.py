"""Configurations and models in words, for whoever prints them."""

import dataclasses
from typing import Any


def model_text(kind: str, architecture: Any, parameters: int, *more: str) -> str:
    """Describe a model: its kind, its number of parameters, its layers and its two ends."""
    a = architecture
    norm = "no normalization" if a.norm == "none" else f"{a.norm}-{'LN' if a.norm_type == 'layernorm' else 'RMSNorm'}"
    residual = {"add": "", "gated": f", gated by {a.residual_scale:g}", "none": ", no residual"}[a.residual]
    causal = "causal attention" if a.causal else "attention"
    inputs = f"{a.vocab} token ids" if a.vocab is not None else f"values of {a.inputs} feature{'s' * (a.inputs != 1)}"
    outputs = {"none": "the last state", "classification": f"{a.classes} classes", "lm": "the next token"}[a.head]
    lines = (
        f"{kind}, {parameters:,} parameters",
        f"{a.layers} layers: {causal} + feed-forward ({a.activation}), {a.block}, {norm}{residual}",
        f"d = {a.dim}, {a.heads} heads of {a.head_dim}, feed-forward {a.ffn}, {a.dtype}",
        f"in: {inputs}, {'no' if a.positions == 'none' else a.positions} positions; out: {outputs}",
        *more,
    )
    return "\n  ".join(lines)


def config_text(config: Any, *always: str) -> str:
    """Write a configuration as it is made, with the fields of these names and those that are not as by default."""
    shown = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name in always or (value != default and value is not None):
            shown.append(f"{field.name}={value!r}")
    return f"{type(config).__name__}({', '.join(shown)})"
