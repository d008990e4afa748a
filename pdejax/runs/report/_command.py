"""The command `report`. Imports no JAX, so that help comes at once."""

import dataclasses
import sys
from typing import Any

from pdejax.runs._command import Command, Console, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pages:
    """From where to where."""

    folder: str = setting(help="folder of results", metavar="DIR", positional=True)
    out: str | None = setting(None, "the HTML page (default DIR/report.html)", metavar="FILE")


def _run(given: dict[str, Any], console: Console) -> int:
    """Build the report; 0, or 1 if something in the folder is missing or damaged."""
    from pdejax.runs.report._build import build_report

    pages = _Pages(**given)
    built = build_report(pages.folder, pages.out)
    for problem in built.problems:
        print(f"pdejax report: {problem}", file=sys.stderr)
    for file in () if console.quiet else built.left_out:
        print(f"pdejax report: {file} is left out, for it says of no study that it is its result", file=sys.stderr)
    size = built.html.stat().st_size
    if not console.quiet:
        console.saved(
            [f"{built.html} ({size / 1e6:.1f} MB: {built.studies} studies, {built.claims} claims)", built.markdown]
        )
    console.content(dataclasses.asdict(built) | {"bytes": size})
    return 1 if built.problems else 0


COMMAND = Command(
    configs=(_Pages,),
    description="""One self-contained HTML page, and the same as Markdown, of all results in DIR and in the folders below it:
whatever `pdejax` commands were given DIR, or a folder below it, as --out.""",
    examples="""examples:
  pdejax reproduce --preset quick --out out/papers     the studies
  pdejax claims --out out/papers                       the ledger of claims
  pdejax report out/papers                             out/papers/report.html and report.md
  pdejax report out/papers --out page.html             elsewhere; page.md beside it
  pdejax convergence --out out/study                   any other study or training, too
  pdejax report out/study

exit status: 0 built; 1 built, but something in DIR is missing or damaged (the page says what); 2 nothing to build from
""",
    run=_run,
)
