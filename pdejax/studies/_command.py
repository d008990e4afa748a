"""A study as a command, and the command `info`. Imports no JAX, so that help comes at once."""

import importlib
import pathlib
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
    return console.conclude(result.summary(), result)


def _info(given: dict[str, Any], console: Console) -> int:
    """Print them; 0."""
    from pdejax.data._prepare import data_folder
    from pdejax.runs._parts import cache_folder, environment

    del given
    found: dict[str, Any] = environment()
    programs, sets = cache_folder(), data_folder(None)
    found["caches"] = {
        "compiled programs": programs and _size(pathlib.Path(programs)),
        "data sets": {"path": str(sets), "sets": sorted(path.name for path in sets.glob("*") if path.is_dir())},
    }
    console.content(found)
    for key, value in found.items():
        if isinstance(value, dict):
            console.result(key)
            for name, item in value.items():
                console.result(f"  {name:<20}{_described(item) if key == 'caches' else item}")
        else:
            console.result(f"{key:<22}{value}")
    return 0


COMMAND = Command(
    configs=(),
    description="Print versions, devices, precision, and where compiled programs and data sets are kept.",
    examples="""examples:
  pdejax info
  pdejax info --json
""",
    run=_info,
)


def _size(folder: pathlib.Path) -> dict[str, Any]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {"path": str(folder), "files": len(files), "MB": round(sum(file.stat().st_size for file in files) / 1e6, 1)}


def _described(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not kept; set JAX_COMPILATION_CACHE_DIR (reproduce keeps its own in --out)"
    held = f"{found['files']} files, {found['MB']} MB" if "files" in found else ", ".join(found["sets"]) or "none"
    return f"{found['path']} ({held})"
