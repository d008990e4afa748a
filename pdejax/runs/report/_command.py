"""The command `report`: its arguments, and the pages it builds."""

import argparse
import dataclasses
import sys

from pdejax.runs._console import Console, add_output_arguments

DESCRIPTION = """One self-contained HTML page, and the same as Markdown, from what `pdejax reproduce` and `pdejax claims`
left in DIR."""
EXAMPLES = """examples:
  pdejax reproduce --preset quick --out out/papers     the studies
  pdejax claims --out out/papers                       the ledger of claims
  pdejax report out/papers                             out/papers/report.html and report.md
  pdejax report out/papers --out page.html             elsewhere; page.md beside it

exit status: 0 built; 1 built, but something in DIR is missing or damaged (the page says what); 2 nothing to build from
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("folder", metavar="DIR", help="folder of results")
    parser.add_argument("--out", metavar="FILE", default=None, help="the HTML page (default DIR/report.html)")
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Build the report; 0, or 1 if something in the folder is missing or damaged."""
    from pdejax.runs.report._build import build_report

    built = build_report(options.folder, options.out)
    for problem in built.problems:
        print(f"pdejax report: {problem}", file=sys.stderr)
    console, size = Console(options), built.html.stat().st_size
    if not options.quiet:
        console.saved(
            [f"{built.html} ({size / 1e6:.1f} MB: {built.studies} studies, {built.claims} claims)", built.markdown]
        )
    console.content(dataclasses.asdict(built) | {"bytes": size})
    return 1 if built.problems else 0
