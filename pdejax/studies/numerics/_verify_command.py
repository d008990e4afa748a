"""The command `verify`: the closed-form cases, integrated and compared."""

import argparse
import pathlib

from pdejax.runs._console import Console

DESCRIPTION = "Integrate cases whose solutions are known in closed form with every solver, and compare."
EXAMPLES = """examples:
  pdejax verify
  pdejax verify --json                    the table as JSON
  pdejax verify --json out/verify.json    in a file, beside the text

exit status: 0 all passed, 1 a case failed, 2 bad input
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "--json",
        nargs="?",
        const=True,
        type=pathlib.Path,
        metavar="FILE",
        help="print JSON, and nothing else, on standard output; with FILE save it there",
    )
    parser.add_argument("--quiet", action="store_true", help="the failed cases and the sum only")


def run(options: argparse.Namespace) -> int:
    """Run the cases; 0 if all passed."""
    from pdejax.runs._parts import check_folder, write_json
    from pdejax.studies import verify

    file = options.json if isinstance(options.json, pathlib.Path) else None
    if file is not None:
        check_folder(file.absolute().parent, "--json: the folder")  # before minutes of work, not after
    console = Console(argparse.Namespace(quiet=options.quiet, json=options.json is True))
    table = verify(report=console.row)
    passed = table["passed"] == table["cases"]
    if options.quiet:
        for case in table["results"]:
            if not case["passed"]:
                console.result(f"FAILED {case['case']}")
        console.result(f"{table['passed']} of {table['cases']} cases passed")
    console.content(table)
    if file is not None:
        write_json(file, table)
        console.saved([file])
    return 0 if passed else 1
