"""The command `analyze`: every analysis on a trained model."""

import argparse
import json
import sys

DESCRIPTION = (
    "Correlations, attention, spectra, information, statistics, clusters, gradients and perturbations of a model that "
    "`pdejax train` left in a folder, layer by layer, each beside a null model; with --against, of two runs together."
)
EXAMPLES = """examples:
  pdejax train digits --out out/digits
  pdejax analyze out/digits --out out/digits-analysis
  pdejax analyze out/student --against out/teacher
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("folder", metavar="DIR", help="folder of a training run")
    parser.add_argument("--against", metavar="DIR", default=None, help="another run on the same data")
    parser.add_argument("--examples", type=int, metavar="N", default=64, help="held-out sequences (default 64)")
    parser.add_argument(
        "--noise", type=float, metavar="S", default=1.0, help="σ of the information estimates (default 1)"
    )
    parser.add_argument("--seed", type=int, metavar="S", default=0, help="of shuffles, draws and intervals (default 0)")
    parser.add_argument("--out", metavar="DIR", default=None, help="folder for results and plots")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Run the analyses; 0 when done."""
    from pdejax.studies._analyze import analyze
    from pdejax.studies._records import plain

    live = sys.stderr.isatty()

    def say(text: str) -> None:
        if not options.quiet:
            print(f"\r\x1b[2K… {text}" if live else f"… {text}", end="" if live else "\n", file=sys.stderr, flush=True)

    result = analyze(
        options.folder,
        against=options.against,
        examples=options.examples,
        noise=options.noise,
        seed=options.seed,
        out=options.out,
        report=say,
    )
    if live and not options.quiet:
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(plain(result.content), indent=1))
        return 0
    print(result.table())
    for path in result.files:
        print(f"saved {path}")
    return 0
