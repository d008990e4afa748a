"""The command `claims`: its arguments, and a run with its lines."""

import argparse

from pdejax.runs._console import Console, add_output_arguments

DESCRIPTION = (
    "Every claim C1-C17 of the papers and every numbered equation, with a verdict recomputed from evidence, intervals over "
    "seeds, and the smallest counterexample as arrays."
)
EXAMPLES = """examples:
  pdejax claims                          all of them, about three minutes on two cores
  pdejax claims C4 C5 "v2 (15)"          some
  pdejax claims --out out                keep claims.json, claims.md, counterexamples/*.npz; goes on after a stop
  pdejax claims --json > claims.json     JSON only
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "ids", nargs="*", metavar="ID", help='claims (C1 ... C17) and equations ("v1 (21)"); default all'
    )
    parser.add_argument("--seed", type=int, metavar="S", default=0, help="of everything drawn (default 0)")
    parser.add_argument(
        "--seeds", type=int, metavar="K", default=5, help="repetitions that intervals are over (default 5)"
    )
    parser.add_argument("--out", metavar="DIR", default=None, help="folder for results and for finished parts")
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the ledger; 0. Verdicts are results, not failures."""
    from pdejax.studies.claims._ledger import claims
    from pdejax.studies.claims._table import counts, line

    console = Console(options)

    def say(text: str) -> None:
        if console.live:  # elsewhere the lines themselves are the progress
            console.say(text)

    ledger = claims(
        options.ids or None,
        seed=options.seed,
        seeds=options.seeds,
        report=say,
        row=lambda finding: console.row(line(finding)),
        out=options.out,
    )
    if options.quiet:
        console.result(ledger.table())
    else:
        console.result(f"\n{counts((*ledger.claims, *ledger.equations))}; {ledger.seconds:.0f} s")
    console.saved(ledger.files)
    console.content(ledger.to_json())
    return 0
