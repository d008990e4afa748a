"""The command `reproduce`: studies of the papers, one or all."""

import argparse
import json
import sys

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
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON, and nothing else on standard output"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Run the studies; 0 when all are done."""
    from pdejax.studies.reproduce import STUDIES, reproduce

    if options.list:
        for study in STUDIES.values():
            print(f"{study.name:<20}{study.question} ({study.source})")
        return 0
    live = sys.stderr.isatty()

    def say(text: str) -> None:
        if not options.quiet:
            print(f"\r\x1b[2K… {text}" if live else f"… {text}", end="" if live else "\n", file=sys.stderr, flush=True)

    def done(result) -> None:
        if live and not options.quiet:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
        if not options.json:
            print(f"{result.table()}\n{'kept' if result.cached else 'saved'} {result.folder}\n", flush=True)

    results = reproduce(
        options.studies or None,
        preset=options.preset,
        seeds=options.seeds,
        out=options.out,
        report=say,
        done=done,
    )
    if options.json:
        print(json.dumps([result.content for result in results], indent=1))
    elif not options.quiet:
        print(f"pdejax report {options.out} makes one page of it.", file=sys.stderr)
    return 0
