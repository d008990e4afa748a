"""The command `reproduce`: studies of the papers, one or all."""

import argparse

from pdejax.runs._console import Console, add_output_arguments

DESCRIPTION = (
    "Run the papers' experiments: ours beside their figures and a null model's, with intervals over seeds. The same command "
    "goes on after a stop."
)
EXAMPLES = """examples:
  pdejax reproduce                                    all studies, small enough for two cores
  pdejax reproduce alignment attention --seeds 5      two of them, with five seeds
  pdejax reproduce --preset paper --out out/paper     the papers' sizes (a GPU's work)
  pdejax reproduce --list                             names and questions
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="default: all; see --list")
    parser.add_argument("--preset", choices=("quick", "paper"), default="quick", help="sizes (default quick)")
    parser.add_argument("--seeds", type=int, metavar="K", default=None, help="seeds per study (default: the preset's)")
    parser.add_argument("--out", metavar="DIR", default="out/reproduce", help="folder (default out/reproduce)")
    parser.add_argument("--list", action="store_true", help="list the studies and stop")
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the studies; 0 when all are done."""
    from pdejax.studies.papers import STUDIES, reproduce

    console = Console(options)
    if options.list:
        for study in STUDIES.values():
            console.result(f"{study.name:<20}{study.question} ({study.source})")
        console.content([{"name": s.name, "question": s.question, "source": s.source} for s in STUDIES.values()])
        return 0
    results = reproduce(
        options.studies or None,
        preset=options.preset,
        seeds=options.seeds,
        out=options.out,
        report=console.say,
        done=lambda result: console.result(
            f"{result.table()}\n{'kept' if result.cached else 'saved'} {result.folder}\n"
        ),
    )
    console.content([result.content for result in results])
    if not options.quiet:
        console.result(f"pdejax report {options.out} makes one page of it.")
    return 0
