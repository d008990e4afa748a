"""What a training folder says of itself: `run.json`, which run it is, and `summary.json`, how it went."""

import json
import pathlib
from typing import Any

from pdejax.runs._files import write_json


def check_run(folder: pathlib.Path, config: Any, best: tuple[str, str] | None) -> None:
    """Write down what the folder is for, or compare with what is written there.

    Raises `ValueError` naming the fields that differ, `TypeError` for a configuration that is not JSON.
    """
    try:
        here = json.loads(json.dumps({"config": config, "best": best}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"config must be JSON-able: {error}.") from error
    path = folder / "run.json"
    if not path.exists():
        if (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir()):
            raise ValueError(f"folder={str(folder)!r} has checkpoints but no run.json; choose another folder.")
        write_json(path, here)
        return
    try:
        there = json.loads(path.read_text())
        old, new = _fields(there["config"], "config"), _fields(here["config"], "config")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); choose another folder.") from error
    if there.get("best") != here["best"]:
        old["best"], new["best"] = there.get("best"), here["best"]
    missing = "(none)"
    wrong = [
        f"{name} is {old.get(name, missing)!r} there and {new.get(name, missing)!r} here"
        for name in sorted({*old, *new})
        if old.get(name, missing) != new.get(name, missing)
    ]
    if wrong:
        raise ValueError(
            f"folder={str(folder)!r} holds another run: {'; '.join(wrong)}. Choose another folder, or the same configuration."
        )


def _fields(value: Any, name: str) -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    if isinstance(value, dict) and value:
        return {k: v for key, part in value.items() for k, v in _fields(part, f"{name}.{key}").items()}
    return {name: value}
