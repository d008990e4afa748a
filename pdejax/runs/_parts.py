"""The finished parts of a run, kept so that an interrupted one goes on from them."""

import io
import json
import pathlib
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pdejax.runs._environment import environment
from pdejax.runs._files import ResultError, check_folder, digest, plain, write_json, write_whole
from pdejax.runs._programs import forget_programs

_SECONDS = "seconds of measurement"


class Parts:
    """Keep the finished parts of a run, a file each, and say what is being done.

    Parts belong to an identity (settings, versions and device, by their hash) and lie in `folder/parts/<hash>`; without a
    folder nothing is kept. A part that cannot be read is measured again and reported through `say`.

    - `folder`: where this run's files go, or None; `shared`: the folder that runs beside it share (trained models).
    - `say(text)` tells what is being done, `row(record)` hands over each line of the run's table as soon as it is there.
    - `key`: the hash. `kept_seconds`: what the parts that were read had taken when they were measured.

    Raises `ResultError` for a folder that cannot be written.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        identity: Any,
        say: Callable[[str], None] = print,
        row: Callable[[Any], None] | None = None,
        shared: pathlib.Path | None = None,
    ):
        self.say = say
        self.row: Callable[[Any], None] = row if row is not None else lambda record: None
        self.folder, self.shared = folder, folder if shared is None else shared
        self.key = digest([identity, environment()])
        self.kept_seconds = 0.0
        if folder is not None:
            check_folder(folder)

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return the part `name` as plain JSON values: read if it is there, else measured and kept."""

        def read(path: pathlib.Path) -> tuple[Any, float]:
            saved = json.loads(path.read_text())
            return saved["value"], float(saved.get("seconds", 0.0))

        def write(path: pathlib.Path, value: Any, seconds: float) -> None:
            write_json(path, {"name": name, "value": value, "seconds": seconds})

        return self._kept(f"{name}.json", lambda: plain(measure()), read, write)

    def arrays(self, name: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Return the part `name` as arrays of numbers by name, as `get` does; `ResultError` for others."""

        def made() -> dict[str, np.ndarray]:
            found: dict[str, np.ndarray] = {key: np.asarray(value) for key, value in measure().items()}
            wrong = [key for key, value in found.items() if value.dtype == object]
            if wrong:
                raise ResultError(f"{name}: {wrong} are not arrays of numbers")
            return found

        def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], float]:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as saved:
                found = {key: saved[key] for key in saved.files}
            return found, float(found.pop(_SECONDS))

        def write(path: pathlib.Path, value: dict[str, np.ndarray], seconds: float) -> None:
            buffer = io.BytesIO()
            kept: dict[str, Any] = {**value, _SECONDS: np.asarray(seconds)}
            np.savez_compressed(buffer, **kept)
            write_whole(path, buffer.getvalue())

        return self._kept(f"{name}.npz", made, read, write)

    def _kept(self, file: str, measure: Callable[[], Any], read: Callable, write: Callable) -> Any:
        path = None if self.folder is None else self.folder / "parts" / self.key / file
        if path is not None and path.exists():
            try:
                value, seconds = read(path)
                self.kept_seconds += seconds
                return value
            except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
                self.say(f"{path} is damaged ({type(error).__name__}) and is measured again")
        started = time.perf_counter()
        value = measure()
        seconds = time.perf_counter() - started
        forget_programs()
        if path is not None:
            write(path, value, seconds)
        return value
