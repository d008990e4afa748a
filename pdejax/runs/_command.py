"""Commands from dataclasses: every field of a configuration is an argument; and what they print. Imports no JAX."""

import argparse
import ast
import dataclasses
import inspect
import json
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    def conclude(self, text: str, result: Any) -> int:
        """The end of a study: its text, its files, or its JSON; the exit status, 1 where something is not as it should be."""
        self.result(f"\n{text}")
        self.saved(result.files)
        self.content(result.to_json())
        return 0 if result.passed else 1


def setting(
    default: Any = dataclasses.MISSING, help: str = "", *, metavar: str | None = None, positional: bool = False
) -> Any:
    """Return a dataclass field that knows how it reads as an argument of a command.

    - `help`: what it is; the default is added. `metavar`: its name in the usage, such as `"N"`.
    - `positional`: given by place, not as `--name`.
    """
    metadata = {"help": help, "metavar": metavar, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `pdejax`: its arguments are the fields of `configs`, dataclasses.

    - `description` and `examples` are shown by `--help`.
    - `run(given, console)` does the work and returns the exit status; `given` holds the fields that were named, by name.
    """

    configs: tuple[type, ...]
    description: str
    examples: str
    run: Callable[[dict[str, Any], Console], int]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add an argument per field, then `--json` and `--quiet`."""
        for config in self.configs:
            add_arguments(parser, config)
        add_output_arguments(parser)

    def folder(self, options: argparse.Namespace) -> str | None:
        """Return the folder that finished parts are kept in, or None."""
        defaults = [
            field.default for config in self.configs for field in dataclasses.fields(config) if field.name == "out"
        ]
        given = getattr(options, "out", next(iter(defaults), None))
        return None if given is None else str(given)

    def __call__(self, options: argparse.Namespace) -> int:
        """Run with what the command line says."""
        given: dict[str, Any] = {}
        for config in self.configs:
            given |= given_fields(options, config)
        return self.run(given, Console(options))


def add_arguments(parser: argparse.ArgumentParser, config: type) -> None:
    """Add an argument per field of the dataclass `config`: `--name VALUE`, its type and choices from the annotation.

    A `bool` is a switch, `--name` or, where the default is True, `--no-name`; a tuple takes any number of values; a mapping
    takes `NAME=VALUE` pairs; a `Literal` gives the choices. Help is that of `setting`.
    """
    hints = inspect.get_annotations(config, eval_str=True)
    for field in dataclasses.fields(config):
        hint, about = hints[field.name], field.metadata
        text = about.get("help", "")
        options = _reading(hint)
        if options["kind"] is bool:
            _add_switch(parser, field, text)
            continue
        keywords: dict[str, Any] = {"type": options["kind"], "choices": options["choices"]}
        if keywords["choices"] is None:
            keywords["metavar"] = about.get("metavar") or options["metavar"]
            if keywords["metavar"] in ("DIR", "FILE", "PATH") and options["kind"] is str:
                keywords["type"] = _path
        if options["many"]:
            keywords["nargs"] = "*"
        if about.get("positional"):
            required = field.default is dataclasses.MISSING and not options["many"]
            keywords |= {} if required or options["many"] else {"nargs": "?"}
            keywords["metavar"] = about.get("metavar") or field.name.upper()
            parser.add_argument(field.name, help=_with_default(text, field), default=argparse.SUPPRESS, **keywords)
        else:
            keywords |= {"dest": field.name, "default": argparse.SUPPRESS, "help": _with_default(text, field)}
            parser.add_argument(f"--{field.name.replace('_', '-')}", **keywords)


def given_fields(options: argparse.Namespace, config: type) -> dict[str, Any]:
    """Return the fields of `config` that the command line names, by name: lists as tuples, pairs as a dictionary.

    Raises `ValueError` for a pair without `=`.
    """
    hints = inspect.get_annotations(config, eval_str=True)
    found = {}
    for field in dataclasses.fields(config):
        if not hasattr(options, field.name):
            continue
        value = getattr(options, field.name)
        if _reading(hints[field.name])["pairs"]:
            value = dict(_pair(field.name, text) for text in value)
        elif isinstance(value, list):
            # A positional list that is left out is its default.
            if field.metadata.get("positional") and not value:
                continue
            value = tuple(value)
        found[field.name] = value
    return found


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty (an unset variable of the shell?)")
    return text


def _add_switch(parser: argparse.ArgumentParser, field: dataclasses.Field, text: str) -> None:
    name = field.name.replace("_", "-")
    action = "store_false" if field.default is True else "store_true"
    flag = f"--no-{name}" if field.default is True else f"--{name}"
    parser.add_argument(flag, dest=field.name, action=action, default=argparse.SUPPRESS, help=text.replace("%", "%%"))


def _reading(hint: Any) -> dict[str, Any]:
    """How text becomes a value of this type: `kind` of one value, `choices`, whether `many` or `pairs`, a `metavar`."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _reading(next(part for part in inside if part is not type(None)))
    if origin is typing.Literal:
        return {"kind": type(inside[0]), "choices": inside, "many": False, "pairs": False, "metavar": None}
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _reading(inside[0]) | {"many": True}
    if hint in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return {"kind": str, "choices": None, "many": True, "pairs": True, "metavar": "NAME=VALUE"}
    kind = hint if hint in (bool, int, float, str, pathlib.Path) else str
    metavar = {int: "N", float: "X", pathlib.Path: "PATH"}.get(kind, "TEXT")
    return {"kind": kind, "choices": None, "many": False, "pairs": False, "metavar": metavar}


def _with_default(text: str, field: dataclasses.Field) -> str:
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default not in (dataclasses.MISSING, None, (), "", {}):
        shown = " ".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
        text = f"{text} (default {shown})".strip()
    return text.replace("%", "%%")  # which argparse reads as a sign of its own


def _pair(field: str, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--{field} {text!r} must be NAME=VALUE.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
