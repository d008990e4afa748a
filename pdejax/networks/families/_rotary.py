"""Rotary positions by the keys that Hugging Face's configurations share."""

import math
from typing import Any

from pdejax.networks.families._config import Config
from pdejax.terms import Rotary


def read_rotary(config: Config, size: int, *, share: float = 1.0, theta: float = 10000.0) -> Rotary:
    """The rotary positions of heads of `size` features: `rope_parameters`, or the older `rope_theta` and `rope_scaling`.

    `share` and `theta` are the share of the features that turn (`partial_rotary_factor`) and the base where the configuration
    does not say.
    """
    length = config.integer("max_position_embeddings")
    given = config.get("rope_parameters", None) or {}
    given = given or config.get("rope_scaling", None) or {}
    if not isinstance(given, dict):
        raise config.wrong("rope_scaling", given, "a table of options")
    defaults = {"rope_theta": theta, "partial_rotary_factor": share}
    known = {key: config.get(key, value) for key, value in defaults.items()}
    # Options of the table are asked for, and refused, as those of the file are.
    options = Config(known | given, config.where, config.family)
    kind = options.get("rope_type", options.get("type", "default"))
    turned = int(size * options.number("partial_rotary_factor"))
    if not 0 < turned <= size or turned % 2:
        raise config.wrong("partial_rotary_factor", turned / size, f"an even part of {size} features")
    plain = Rotary(turned, options.number("rope_theta"))
    if kind in ("default", None):
        found = plain
    elif kind == "linear":
        found = plain.linear(options.number("factor"))
    elif kind == "llama3":
        original = options.integer("original_max_position_embeddings")
        low, high = options.number("low_freq_factor"), options.number("high_freq_factor")
        found = plain.llama3(options.number("factor"), low, high, original)
    elif kind == "yarn":
        found = _yarn(options, plain, length)
    else:
        raise config.wrong("rope_type", kind, "'default', 'linear', 'llama3' or 'yarn'")
    # A length of the original context that a kind does not use is no option.
    options.get("original_max_position_embeddings", None)
    options.finish((), ())
    return found


def _yarn(options: Config, plain: Rotary, length: int) -> Rotary:
    original = options.integer("original_max_position_embeddings", length)
    factor = options.number("factor", length / original)
    gain: Any = options.get("attention_factor", None)
    if gain is None and options.get("mscale", None) and options.get("mscale_all_dim", None):
        gain = _gain(factor, options.number("mscale")) / _gain(factor, options.number("mscale_all_dim"))
    return plain.yarn(
        factor,
        original,
        fast=options.number("beta_fast", 32),
        slow=options.number("beta_slow", 1),
        gain=gain,
        whole=options.boolean("truncate", True),
    )


def _gain(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0
