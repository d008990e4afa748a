"""A study as a command. Imports no JAX, so that help comes at once."""

import importlib
from typing import Any

from pdejax.runs._command import Command, Console


def study_command(address: str, config: type, *, description: str, examples: str) -> Command:
    """Return the command that runs the study at `address` (`"module:NAME"`) with the fields of `config`.

    It prints the table that grows while the study is measured, then the rest; exit status 0, or 1 if not all is as it should
    be.
    """

    def run(given: dict[str, Any], console: Console) -> int:
        settings = config(**given)
        module, _, name = address.partition(":")
        study = getattr(importlib.import_module(module), name)
        return run_study(study, settings, console)

    return Command(configs=(config,), description=description, examples=examples, run=run)


def run_study(study: Any, config: Any, console: Console) -> int:
    """Run a study and print it; the exit status."""
    from pdejax.studies.study import run

    started = False

    def row(record: Any) -> None:
        nonlocal started
        if not started:
            console.row(study.table.head())
        started = True
        console.row(study.line(record))

    result = run(study, config, out=config.out, report=console.say, row=row if study.columns else None)
    # The table that grew has been printed; with --quiet it comes now.
    shown = result.tables[1:] if started and not console.quiet else result.tables
    for table in shown:
        console.result(f"\n{table.text()}")
    console.result(f"\n{result.summary()}")
    console.saved(result.files)
    console.content(result.to_json())
    return 0 if result.passed else 1
