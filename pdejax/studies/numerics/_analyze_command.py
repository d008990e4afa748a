"""The command `analyze`: every analysis on a trained model."""

import argparse

from pdejax.runs._console import Console, add_output_arguments

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
        "--noise",
        type=float,
        metavar="S",
        default=0.7,
        help="σ of the information estimates, of a layer's spread (default 0.7)",
    )
    parser.add_argument("--seed", type=int, metavar="S", default=0, help="of shuffles, draws and intervals (default 0)")
    parser.add_argument("--out", metavar="DIR", default=None, help="folder for results and plots")
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the analyses; 0 when done."""
    from pdejax.studies.numerics._analyze import analyze

    console = Console(options)
    result = analyze(
        options.folder,
        against=options.against,
        examples=options.examples,
        noise=options.noise,
        seed=options.seed,
        out=options.out,
        report=console.say,
    )
    console.result(result.table())
    console.saved(result.files)
    console.content(result.content)
    return 0
