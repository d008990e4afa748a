"""The command `loops` and its configuration. Imports no JAX, so that help comes at once."""

import dataclasses
import importlib
from typing import Any

from pdejax import _check as check
from pdejax._arguments import names_checked
from pdejax.runs._command import Command, Console, setting
from pdejax.studies.audit._config import check_one_input

_OWNER = "loops"


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopsConfig:
    """Configure the study of a network as a loop.

    - `network`: a folder that `pdejax train` left, a file of `pdejax.save_model` (`.npz`), or a checkpoint that
      `pdejax.load_pretrained` reads, such as Ouro's or ALBERT's. Its loop is that of `pdejax.analysis.loops.loop_of`: of a
      network that has none, all its layers as if they were repeated.
    - `text`, `images`, `dataset`, `length`: as in the audit. `sequences`: inputs, at least 4.
    - `loops`: passes that are followed, at least 32. `trained`: passes to count from, default the network's own.
    - `periods`: longest cycle looked for; `exponents`, `eigenvalues`: how many of them; `draws`: random vectors of cheap
      estimates.
    - `derivatives`: inputs whose sub-layers and cheap estimates are measured. `horizon`: further passes over which a change
      of the answer is foreseen.
    - `error`: relative error for which exits are compared; `share`: of inputs that must keep it, and their answers.
    - `seed`: of random vectors. `out`: folder for results, parts and plots, or None. States are in float64.

    Raises `ValueError`/`TypeError` for numbers out of range, and for more than one of text, images and data set.
    """

    network: str = setting(
        help="a training folder, a saved model's file, or a checkpoint", metavar="NETWORK", positional=True
    )
    text: str | None = setting(None, "text for a network with a tokenizer", metavar="FILE")
    images: str | None = setting(None, "PNG or JPEG files for a network of images", metavar="DIR")
    dataset: str | None = setting(None, "a data set of pdejax.data, default that of the run", metavar="NAME")
    sequences: int = setting(32, "inputs", metavar="N")
    length: int | None = setting(None, "tokens of an input at most", metavar="N")
    loops: int = setting(256, "passes that are followed", metavar="N")
    trained: int | None = setting(None, "passes to count from, default the network's own", metavar="N")
    periods: int = setting(8, "longest cycle looked for", metavar="P")
    exponents: int = setting(4, "Lyapunov exponents", metavar="N")
    eigenvalues: int = setting(6, "dominant eigenvalues", metavar="N")
    derivatives: int = setting(8, "inputs whose sub-layers and cheap estimates are measured", metavar="N")
    draws: int = setting(16, "random vectors of a cheap estimate", metavar="K")
    horizon: int = setting(64, "further passes over which a change is foreseen", metavar="N")
    error: float = setting(0.01, "relative error for which exits are compared", metavar="X")
    share: float = setting(0.95, "of inputs that must keep it, and their answers", metavar="X")
    seed: int = setting(0, "of random vectors", metavar="S")
    out: str | None = setting(None, "folder for results, parts and plots", metavar="DIR")

    def __post_init__(self):
        for name, least in (
            *(("sequences", 4), ("length", 2), ("loops", 32), ("trained", 1), ("periods", 1), ("exponents", 1)),
            *(("eigenvalues", 1), ("derivatives", 1), ("draws", 2), ("horizon", 1), ("seed", 0)),
        ):
            if getattr(self, name) is not None:
                check.integer(_OWNER, name, getattr(self, name), least)
        object.__setattr__(self, "error", check.number(_OWNER, "error", self.error, above=0, below=1))
        object.__setattr__(self, "share", check.number(_OWNER, "share", self.share, above=0, below=1))
        if self.periods > self.loops // 4:
            raise ValueError(
                f"{_OWNER}: periods={self.periods} must be at most a quarter of loops={self.loops}; follow more passes."
            )
        check_one_input(_OWNER, self)


def _run(given: dict[str, Any], console: Console) -> int:
    config = LoopsConfig(**given)
    # By its address: the study imports this file.
    result = importlib.import_module("pdejax.studies.loops._loops").loops(config, report=console.say)
    return console.conclude(result.text(), result)


COMMAND = Command(
    configs=(LoopsConfig,),
    description="What does this network do if its layers are gone through again and again? Of every input: a fixed point, a\n"
    "cycle, a drift, marginal, expanding or a blow-up, with certified residuals; the eigenvalues and Lyapunov exponents; which\n"
    "sub-layer contracts; what each criterion for leaving the loop costs; how far beyond training the answers stay, foreseen\n"
    "and measured; and how wrong the cheap estimates of the spectral radius are.",
    examples="""examples:
  pdejax train listops --layers 1 --options loops=6 --out out/looped
  pdejax loops out/looped --out out/loops/looped
  pdejax loops CHECKPOINT --text FILE --out out/loops/name
  pdejax loops CHECKPOINT --text FILE --sequences 8 --loops 64 --derivatives 2
  pdejax report out/loops                            one page of all loops in the folder

Finished parts are kept in --out: after Ctrl-C or a crash the same command goes on.
""",
    run=_run,
)
