"""Results on disk: JSON written whole or not at all, parts that an interrupted study resumes from, and the environment."""

import hashlib
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from pdejax.runs import _files
from pdejax.runs._environment import environment as environment
from pdejax.runs._files import plain as plain


class ResultError(RuntimeError):
    """A result file that cannot be read or written; the message says what to do."""


def settings(config: Any) -> dict[str, Any]:
    """A study's configuration as it is saved: all but `out`, for where results lie is no part of what was measured."""
    return {key: value for key, value in plain(config).items() if key != "out"}


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    text = json.dumps(plain(value), indent=1, allow_nan=False) + "\n"
    write_whole(path, text.encode())


def write_whole(path: pathlib.Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _files.write_whole(path, content)
    except OSError as error:
        raise ResultError(
            f"cannot write {path}: {error.strerror}. Choose another --out folder or free the disk."
        ) from error


def check_folder(folder: pathlib.Path, option: str = "--out") -> None:
    """Fail before any work if results could not be written to `folder`."""
    if folder.exists() and not folder.is_dir():
        raise ResultError(f"{option} {folder} is a file; give a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ResultError(f"{option} {folder} is not writable ({error.strerror}); choose another folder.") from error


class Parts:
    """The finished parts of a study, one JSON file each, so that an interrupted study goes on from them.

    Parts belong to a configuration by its hash; without a folder nothing is kept. A part that cannot be read is measured
    again and reported through `notice`.
    """

    def __init__(self, folder: pathlib.Path | None, config: Any, notice: Callable[[str], None] = print):
        self.notice = notice
        self.folder = None
        if folder is not None:
            check_folder(folder)
            key = hashlib.sha256(json.dumps([plain(config), environment()], sort_keys=True).encode()).hexdigest()[:16]
            self.folder = folder / "parts" / key

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The part `name` as plain JSON values: read if it is there, else measured and kept."""
        if self.folder is None:
            return plain(measure())
        path = self.folder / f"{name}.json"
        if path.exists():
            try:
                return json.loads(path.read_text())["value"]
            except (ValueError, KeyError, TypeError, OSError):
                self.notice(f"{path} is damaged and is measured again")
        value = plain(measure())
        write_json(path, {"name": name, "value": value})
        return value
