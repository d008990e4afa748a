"""What a command prints: progress on standard error, results on standard output, as text or as one JSON."""

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

from pdejax.runs._files import plain

_CLEAR = "\r\x1b[2K"


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--quiet`, the same in every command."""
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress, the final results only")


class Console:
    """What a command prints, by its `--quiet` and `--json`."""

    def __init__(self, options: argparse.Namespace):
        self.quiet: bool = options.quiet
        self.json: bool = bool(options.json)
        self.live = sys.stderr.isatty() and not self.quiet

    def say(self, text: str) -> None:
        """What is being done now: on a terminal one line that is overwritten, else a line each."""
        if self.live:
            print(f"{_CLEAR}… {text[:100]}", end="", file=sys.stderr, flush=True)
        elif not self.quiet:
            print(f"… {text}", file=sys.stderr, flush=True)

    def row(self, text: str) -> None:
        """A line of a table as soon as it is measured: not with `--quiet`, and on standard error beside JSON."""
        self.clear()
        if not self.quiet:
            print(text, file=sys.stderr if self.json else sys.stdout, flush=True)

    def clear(self) -> None:
        """Take the progress off the terminal."""
        if self.live:
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    def result(self, text: str) -> None:
        """Final results as text; nothing where JSON is asked for."""
        self.clear()
        if not self.json:
            print(text, flush=True)

    def saved(self, files: Iterable[Any]) -> None:
        """Where the files are."""
        for path in files:
            self.result(f"saved {path}")

    def content(self, content: Any) -> None:
        """Final results as JSON, where it is asked for. What is not finite is null."""
        self.clear()
        if self.json:
            print(json.dumps(plain(content), indent=1, allow_nan=False), flush=True)
