"""The command `reproduce`: studies of the papers, one or all."""

import dataclasses
from typing import Any, Literal

from pdejax._arguments import names_checked
from pdejax.runs._command import Command, Console, setting


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Configure the command `reproduce`: which studies, in which sizes, with how many seeds, and where results go."""

    studies: tuple[str, ...] = setting((), "default: all; see --list", metavar="STUDY", positional=True)
    preset: Literal["quick", "standard", "paper"] = setting("quick", "sizes")
    seeds: int | None = setting(None, "seeds per study (default: the preset's)", metavar="K")
    out: str = setting("out/reproduce", "folder", metavar="DIR")
    list: bool = setting(False, "list the studies and stop")


def _run(given: dict[str, Any], console: Console) -> int:
    """Run the studies; 0 when all are done, 1 where one is not as it should be."""
    from pdejax.studies.papers import STUDIES, reproduce

    config = ReproduceConfig(**given)
    if config.list:
        for study in STUDIES.values():
            console.result(f"{study.name:<20}{study.question} ({study.source})")
        console.content([{"name": s.name, "question": s.question, "source": s.source} for s in STUDIES.values()])
        return 0
    results = reproduce(
        config.studies or None,
        preset=config.preset,
        seeds=config.seeds,
        out=config.out,
        report=console.say,
        done=lambda result: console.result(f"{result.text()}\nsaved {config.out}/{result.study}\n"),
    )
    console.content([result.to_json() for result in results])
    if not console.quiet:
        console.result(f"pdejax report {config.out} makes one page of it.")
    return 0 if all(result.passed for result in results) else 1


COMMAND = Command(
    configs=(ReproduceConfig,),
    description="Run the papers' experiments: ours beside their figures and a null model's, with intervals over seeds. The same\n"
    "command goes on after a stop.",
    examples="""examples:
  pdejax reproduce                                    all studies, small enough for two cores
  pdejax reproduce alignment attention --seeds 5      two of them, with five seeds
  pdejax reproduce --preset standard                  with five seeds, hours on two cores
  pdejax reproduce --preset paper --out out/paper     the papers' sizes (a GPU's work)
  pdejax reproduce --list                             names and questions

exit status: 0 done, 1 nothing could be concluded or a bound of ours is VIOLATED, 2 bad input
""",
    run=_run,
)
