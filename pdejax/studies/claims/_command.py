"""The command `claims`: its arguments, and a run with its lines."""

import argparse
import json
import sys

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
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, on standard output")
    parser.add_argument("--out", metavar="DIR", default=None, help="folder for results and for finished parts")
    parser.add_argument("--quiet", action="store_true", help="no progress, the final table only")


def run(options: argparse.Namespace) -> int:
    """Run the ledger; 0. Verdicts are results, not failures."""
    from pdejax.studies.claims._ledger import claims
    from pdejax.studies.claims._table import counts, line

    live = sys.stderr.isatty() and not options.quiet

    def clear() -> None:
        if live:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)

    def say(text: str) -> None:
        if live:
            print(f"\r\x1b[2K… {text[:100]}", end="", file=sys.stderr, flush=True)

    def row(finding) -> None:
        clear()
        if not options.quiet:
            print(line(finding), file=sys.stderr if options.json else sys.stdout, flush=True)

    ledger = claims(options.ids or None, seed=options.seed, seeds=options.seeds, report=say, row=row, out=options.out)
    clear()
    if options.json:
        print(json.dumps(ledger.as_json(), indent=1, allow_nan=False))
        return 0
    if options.quiet:
        print(ledger.table())
    else:
        print(f"\n{counts((*ledger.claims, *ledger.equations))}; {ledger.seconds:.0f} s")
    for path in ledger.files:
        print(f"saved {path}")
    return 0
