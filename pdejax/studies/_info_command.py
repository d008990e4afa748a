"""The command `info`: versions, devices, precision and caches. Imports no JAX, so that help comes at once."""

import pathlib
from typing import Any

from pdejax.runs._command import Command, Console


def _run(given: dict[str, Any], console: Console) -> int:
    """Print them; 0."""
    from pdejax import studies
    from pdejax.data._prepare import data_folder
    from pdejax.runs._parts import cache_folder

    del given
    found: dict[str, Any] = studies.environment()
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
    run=_run,
)


def _size(folder: pathlib.Path) -> dict[str, Any]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {"path": str(folder), "files": len(files), "MB": round(sum(file.stat().st_size for file in files) / 1e6, 1)}


def _described(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not kept; set JAX_COMPILATION_CACHE_DIR (reproduce keeps its own in --out)"
    held = f"{found['files']} files, {found['MB']} MB" if "files" in found else ", ".join(found["sets"]) or "none"
    return f"{found['path']} ({held})"
