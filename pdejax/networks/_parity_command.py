"""The command `parity` and its configuration. Imports no JAX, so that help comes at once."""

import dataclasses
from typing import Any, Literal

from pdejax._arguments import names_checked
from pdejax.runs._command import Command, Console, setting


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """Configure the comparison: the checkpoint, the text that both read, the precision of ours."""

    path: str = setting(help="a Hugging Face folder or a GGUF file", metavar="PATH", positional=True)
    text: str = setting("The capital of France is Paris.", "what both read, where there is a tokenizer")
    dtype: Literal["float32", "float64"] = setting("float64", "precision of our computation; the oracle's is float64")


def _run(given: dict[str, Any], console: Console) -> int:
    """Print a line per layer; 0 where all differences are those of rounding, else 1."""
    config = ParityConfig(**given)
    console.say("reading the checkpoint twice")
    from pdejax.networks.families._parity import parity, tolerance, total
    from pdejax.runs._table import Column, Table

    found = parity(config.path, config.text, dtype=config.dtype)
    columns = (
        Column("state", width=10),
        Column("relative difference", ".1e", 19, True),
        Column("largest", ".1e", 10, True),
    )
    console.result(Table(columns, [tuple(row) for row in found.differences]).text())
    if found.left_out:
        console.result("\nnot read:")
        for name, reason in sorted(found.left_out.items()):
            console.result(f"  {name}: {reason}")
    worst, allowed = total(found.differences), tolerance(config.dtype)
    same = worst <= allowed
    verdict = "the same to rounding" if same else "NOT the same"
    console.result(f"\n{found.tokens} tokens, {config.dtype}: {verdict} ({worst:.1e}, allowed {allowed:.0e})")
    console.content(
        {
            "tokens": found.tokens,
            "dtype": config.dtype,
            "differences": [row._asdict() for row in found.differences],
            "not_read": found.left_out,
            "allowed": allowed,
            "same": same,
        }
    )
    return 0 if same else 1


COMMAND = Command(
    configs=(ParityConfig,),
    description="Compare a checkpoint as it is read here with what transformers makes of it, layer by layer.",
    examples="""examples:
  pdejax parity path/to/checkpoint
  pdejax parity model.gguf --text "Once upon a time"
  pdejax parity path/to/checkpoint --dtype float32
  pdejax parity path/to/checkpoint --json          the differences as JSON

exit status: 0 the same to rounding, 1 not the same, 2 bad input or no transformers to compare with
""",
    run=_run,
)
