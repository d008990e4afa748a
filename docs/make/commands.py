"""A page for every command, from its parser: what it does, an example, every option with its default, exit statuses."""

import argparse
import html
import re

FOLDER = "commands"


def pages() -> dict[str, str]:
    """Pages of the site: address -> Markdown, with commands/index.md as the list of them."""
    from pdejax.cli import COMMANDS, parser

    made = parser()
    commands = _commands(made)
    found = {f"{FOLDER}/{name}.md": _page(name, commands[name]) for name, *_ in COMMANDS}
    rows = "\n".join(f"| [`pdejax {name}`]({name}.md) | {_cell(text)} |" for name, _, text in COMMANDS)
    found[f"{FOLDER}/index.md"] = INDEX.format(rows=rows, status=_status(made.epilog or ""))
    return found


INDEX = """# Commands

`pdejax COMMAND` and `python -m pdejax COMMAND` are the same. `pdejax COMMAND --help` prints what these pages show.

| command | what it does |
|---|---|
{rows}

Every command takes `--json` (results as JSON on standard output, nothing else there) and `--quiet` (no progress). Progress goes
to standard error. A command with `--out DIR` keeps its finished parts: after Ctrl-C or a crash, the same command goes on.

{status}

## Shell completion

`pdejax --print-completion SHELL` prints a script that completes commands, options, choices and paths.

=== "bash"

    ```sh
    pdejax --print-completion bash > ~/.local/share/bash-completion/completions/pdejax
    ```

=== "zsh"

    ```sh
    mkdir -p ~/.zfunc
    pdejax --print-completion zsh > ~/.zfunc/_pdejax
    # in ~/.zshrc, before compinit: fpath+=~/.zfunc
    ```

Open a new shell, type `pdejax tr` and press Tab.
"""


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    [action] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return action.choices


def _page(name: str, parser: argparse.ArgumentParser) -> str:
    lines = [f"# pdejax {name}", _cell(parser.description or ""), f"```sh\n{_examples(parser.epilog or '')}\n```"]
    positional = [action for action in parser._actions if not action.option_strings]
    optional = [action for action in parser._actions if action.option_strings and action.dest != "help"]
    if positional:
        lines += ["## Arguments", _table(positional)]
    lines += ["## Options", _table(optional), _status(parser.epilog or "")]
    return "\n\n".join(line for line in lines if line) + "\n"


def _examples(epilog: str) -> str:
    """The examples of a help text, what each does as a comment above it."""
    lines: list[str] = []
    for line in epilog.partition("exit status")[0].splitlines()[1:]:
        command, _, words = line.strip().partition("   ")
        if words:
            lines.append(f"# {words.strip()}")
        if command:
            lines.append(command)
    return "\n".join(lines)


def _status(epilog: str) -> str:
    _, found, rest = epilog.partition("exit status")
    words = " ".join(rest.strip(": \n").split())
    return f"**Exit status.** {_cell(words)}" if found else ""


def _table(actions: list[argparse.Action]) -> str:
    rows = ["| option | value | meaning |", "|---|---|---|"]
    for action in actions:
        names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
        rows.append(f"| {names} | {_value(action)} | {_cell(_help(action))} |")
    return "\n".join(rows)


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices:
        shown = ", ".join(f"`{choice}`" for choice in action.choices)
    else:
        shown = f"`{action.metavar or action.dest.upper()}`"
    return shown + (" …" if action.nargs in ("*", "+") else "")


def _help(action: argparse.Action) -> str:
    text = " ".join((action.help or "").split())
    return text % {"default": action.default, "prog": "pdejax"} if "%(" in text else text.replace("%%", "%")


def _cell(value: str) -> str:
    text = " ".join(html.escape(value, quote=False).split())
    # Names of things in the library read as code; the rest is plain.
    text = re.sub(r"(?<![`\w])(pdejax(?:\.\w+)+|--[\w-]+)", r"`\1`", text)
    return text.replace("|", "\\|")
