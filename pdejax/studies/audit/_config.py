"""The command `audit` and its configuration. Imports no JAX, so that help comes at once."""

import dataclasses
import importlib
from typing import Any, Literal

from pdejax import _check as check
from pdejax._arguments import names_checked
from pdejax.runs._command import Command, Console, setting

_OWNER = "audit"


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Configure the audit of a network.

    - `network`: a folder that `pdejax train` left, a file of `pdejax.save_model` (`.npz`), or a checkpoint that
      `pdejax.load_pretrained` reads.
    - `text`: a file whose text is read in by the network's tokenizer, a sequence per paragraph, or of `length` tokens each for a
      network that predicts the next token. `images`: a folder of PNG or JPEG files for a network of images, resized and
      normalized as its `preprocessor_config.json` says. `dataset`: a data set of `pdejax.data`, default that of the training run.
    - `sequences`, at least 4, of at most `length` tokens: by default 64 of a text, all of a data set. One whose classes are of
      whole sequences is not cut. `halvings`: how often the step is halved; `window`: layers refined together.
    - `draws`: untrained networks that half the step is compared with, by default 20, fewer for a large network. With fewer than
      19 no difference can be found at 5 %.
    - `derivatives`: sequences whose Jacobians are looked at, cut to `tokens` tokens; `exponents`: Lyapunov exponents.
    - `precision` of states. `seed`: of nulls, draws and intervals. `out`: folder for results, parts and plots, or None.

    Raises `ValueError`/`TypeError` for numbers out of range, and for more than one of text, images and data set.
    """

    network: str = setting(
        help="a training folder, a saved model's file, or a checkpoint", metavar="NETWORK", positional=True
    )
    text: str | None = setting(None, "text for a network with a tokenizer", metavar="FILE")
    images: str | None = setting(None, "PNG or JPEG files for a network of images", metavar="DIR")
    dataset: str | None = setting(None, "a data set of pdejax.data, default that of the run", metavar="NAME")
    sequences: int = setting(16, "sequences", metavar="N")
    length: int | None = setting(
        None, "tokens of a sequence at most, default 64 of a text, all of a data set", metavar="N"
    )
    halvings: int = setting(4, "how often the step is halved", metavar="N")
    window: int = setting(4, "layers refined together", metavar="N")
    draws: int | None = setting(None, "untrained networks to compare with, default 20, fewer if large", metavar="K")
    derivatives: int = setting(2, "sequences whose Jacobians are taken", metavar="N")
    tokens: int = setting(16, "tokens of these sequences", metavar="N")
    exponents: int = setting(8, "Lyapunov exponents", metavar="N")
    precision: Literal["float32", "float64"] = setting("float32", "of states")
    seed: int = setting(0, "of nulls, draws and intervals", metavar="S")
    out: str | None = setting(None, "folder for results, parts and plots", metavar="DIR")

    def __post_init__(self):
        for name, least in (
            *(("sequences", 4), ("length", 2), ("halvings", 2), ("window", 1), ("draws", 1)),
            *(("derivatives", 1), ("tokens", 2), ("exponents", 1), ("seed", 0)),
        ):
            if getattr(self, name) is not None:
                check.integer(_OWNER, name, getattr(self, name), least)
        check.choice(_OWNER, "precision", self.precision, ("float32", "float64"))
        check_one_input(_OWNER, self)


def check_one_input(owner: str, config: Any) -> None:
    """Raise `ValueError`, naming `owner`, where more than one of `text`, `images` and `dataset` is given."""
    given = [f"{x}={getattr(config, x)!r}" for x in ("text", "images", "dataset") if getattr(config, x) is not None]
    if len(given) > 1:
        raise ValueError(f"{owner}: {' and '.join(given)} were given; give one of them.")


def _run(given: dict[str, Any], console: Console) -> int:
    config = AuditConfig(**given)
    # By its address: the study imports this file.
    result = importlib.import_module("pdejax.studies.audit._audit").audit(config, report=console.say)
    return console.conclude(result.text(), result)


COMMAND = Command(
    configs=(AuditConfig,),
    description="What is the depth of this network? Its layers as steps of a solver: how far a smaller step moves states and\n"
    "loss, whether weights are a function of depth, what becomes of it without a layer, its Jacobians and exponents, its\n"
    "tokens, and which operators its layers are: each figure with an interval over sequences and beside null models.",
    examples="""examples:
  pdejax train digits --out out/digits
  pdejax audit out/digits --out out/audit/digits
  pdejax audit CHECKPOINT --text FILE --out out/audit/name
  pdejax audit CHECKPOINT --images DIR --out out/audit/vit
  pdejax report out/audit                            one page of all audits in the folder

Finished parts are kept in --out: after Ctrl-C or a crash the same command goes on.
""",
    run=_run,
)
