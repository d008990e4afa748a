"""The command `info`: versions, devices, precision and caches."""

import argparse
import json
import pathlib
from typing import Any

DESCRIPTION = "Versions, devices, precision, and where compiled programs and data sets are kept."
EXAMPLES = """examples:
  pdejax info
  pdejax info --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="as without it: there is no progress")


def run(options: argparse.Namespace) -> int:
    """Print them; 0."""
    from pdejax import studies
    from pdejax.data._options import data_folder
    from pdejax.runs._programs import cache_folder

    found: dict[str, Any] = studies.environment()
    programs, sets = cache_folder(), data_folder(None)
    found["caches"] = {
        "compiled programs": programs and _size(pathlib.Path(programs)),
        "data sets": {"path": str(sets), "sets": sorted(path.name for path in sets.glob("*") if path.is_dir())},
    }
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for key, value in found.items():
        if isinstance(value, dict):
            print(key)
            for name, item in value.items():
                shown = _described(item) if key == "caches" else item
                print(f"  {name:<20}{shown}")
        else:
            print(f"{key:<22}{value}")
    return 0


def _size(folder: pathlib.Path) -> dict[str, Any]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {"path": str(folder), "files": len(files), "MB": round(sum(file.stat().st_size for file in files) / 1e6, 1)}


def _described(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not kept; set JAX_COMPILATION_CACHE_DIR (reproduce keeps its own in --out)"
    held = f"{found['files']} files, {found['MB']} MB" if "files" in found else ", ".join(found["sets"]) or "none"
    return f"{found['path']} ({held})"
