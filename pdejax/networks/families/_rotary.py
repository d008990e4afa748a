"""Rotary positions by the keys that Hugging Face's configurations share."""

import math
from typing import Any

from pdejax.networks.families._checkpoint import CheckpointError, fault
from pdejax.networks.families._config import Config
from pdejax.terms import Rotary


def read_rotary(config: Config, size: int, *, share: float = 1.0, theta: float = 10000.0) -> Rotary:
    """The rotary positions of heads of `size` features: `rope_parameters`, or the older `rope_theta` and `rope_scaling`.

    `share` and `theta` are the share of the features that turn (`partial_rotary_factor`) and the base where the configuration
    does not say.
    """
    length = config.integer("max_position_embeddings")
    tables = {}
    for key in ("rope_parameters", "rope_scaling"):
        table = config.get(key, None)
        if table is not None and not isinstance(table, dict):
            raise config.wrong(key, table, "a table of options, or null")
        if table:
            tables[key] = table
    if len(tables) == 2 and tables["rope_parameters"] != tables["rope_scaling"]:
        raise config.wrong("rope_scaling", tables["rope_scaling"], "that of rope_parameters, or null")
    given = next(iter(tables.values()), {})
    defaults = {"rope_theta": theta, "partial_rotary_factor": share}
    known = {key: config.get(key, value) for key, value in defaults.items()}
    # Options of the table are asked for, and refused, as those of the file are.
    options = Config(known | given, config.where, config.family)
    kind = options.get("rope_type", options.get("type", "default"))
    share = options.number("partial_rotary_factor")
    turned = int(size * min(share, 2))
    if not 0 < turned <= size or turned % 2:
        raise config.wrong("partial_rotary_factor", share, f"an even part of {size} features")
    try:
        found = _scaled(options, kind, Rotary(turned, options.number("rope_theta")), length)
    except CheckpointError:
        raise
    except ValueError as error:
        raise fault(config.where, f"rotary positions of config.json, {given}: {error}") from None
    # A length of the original context that a kind does not use is no option.
    options.get("original_max_position_embeddings", None)
    options.finish((), None)
    return found


def _scaled(options: Config, kind: Any, plain: Rotary, length: int) -> Rotary:
    """Rotary positions of a kind of scaling to longer contexts."""
    if kind in ("default", None):
        return plain
    if kind == "linear":
        return plain.linear(options.number("factor"))
    if kind == "llama3":
        original = options.integer("original_max_position_embeddings")
        low, high = options.number("low_freq_factor"), options.number("high_freq_factor")
        return plain.llama3(options.number("factor"), low, high, original)
    if kind == "yarn":
        return _yarn(options, plain, length)
    raise options.wrong("rope_type", kind, "'default', 'linear', 'llama3' or 'yarn'")


def _yarn(options: Config, plain: Rotary, length: int) -> Rotary:
    original = options.integer("original_max_position_embeddings", length)
    factor = options.number("factor", length / original)
    gain, scale, whole = (
        None if options.get(key, None) is None else options.number(key)
        for key in ("attention_factor", "mscale", "mscale_all_dim")
    )
    if gain is None and scale is not None and whole is not None:
        gain = _gain(factor, scale) / _gain(factor, whole)
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
