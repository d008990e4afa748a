"""Long runs: parts and compiled programs that are kept for a run to go on from, and what it was measured with."""

import contextlib
import ctypes
import gc
import hashlib
import io
import json
import os
import pathlib
import platform
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from pdejax._arguments import checked
from pdejax.runs._code import library_digest
from pdejax.runs._files import ABOUT, ResultError, check_folder, digest, plain, write_json, write_whole

PACKAGES = (
    *("pdejax", "jax", "jaxlib", "diffrax", "equinox", "flax", "optax"),
    *("orbax-checkpoint", "numpy", "scipy"),
)


@checked
def environment() -> dict[str, Any]:
    """Return versions, device and precision, to be kept with every result."""
    import jax  # here, so that reading results does not load it

    device = jax.devices()[0]
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device.device_kind,
        "backend": device.platform,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
        "x64": bool(jax.config.read("jax_enable_x64")),
        "versions": versions,
    }


_MAPS = pathlib.Path("/proc/self/maps")
_CPUINFO = pathlib.Path("/proc/cpuinfo")
_LEAST_SECONDS = 0.1


def forget_programs(most: int = 30_000) -> bool:
    """Drop compiled programs where the process holds more than `most` memory maps; whether it did.

    Each program of XLA's takes several memory maps, of which Linux allows a process 65,530 by default (`vm.max_map_count`);
    beyond them the process dies without a message. Programs that are needed again are compiled again.
    """
    if not _MAPS.exists() or _MAPS.read_bytes().count(b"\n") <= most:
        return False
    jax.clear_caches()
    gc.collect()
    return True


def release_memory(programs: bool = False) -> None:
    """Give back to the system what arrays that are gone have held, where the C library can (glibc); compiled `programs`, too,
    if asked."""
    if programs:
        jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def cache_folder() -> str | None:
    """Where JAX keeps compiled programs, if it does."""
    name = "jax_compilation_cache_dir"  # a setting that type checkers do not know
    return getattr(jax.config, name)


@contextlib.contextmanager
def kept_programs(folder: pathlib.Path) -> Iterator[None]:
    """Programs that took more than a tenth of a second to compile are kept in `folder` and read from there, within this context.

    A second seed compiles nothing that the first did, nor does a run that goes on. Processors with other instructions get
    folders of their own. Where the caller has a compilation cache (`jax_compilation_cache_dir`), that one serves.
    """
    if cache_folder() is not None:
        yield
        return
    changes = {
        "jax_compilation_cache_dir": str(folder / _processor()),
        "jax_persistent_cache_min_compile_time_secs": _LEAST_SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    try:
        for name, value in changes.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # else a process that has compiled already goes on without
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _processor() -> str:
    """A digest of what the processor can do: a program of another may hold instructions that this one has not."""
    try:
        lines = _CPUINFO.read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = ""
    return hashlib.sha256(flags.encode()).hexdigest()[:8]


_SECONDS = "seconds of measurement"
_LIBRARY = "library that measured"
NOT_RECORDED = "not recorded"


class Parts:
    """Keep the finished parts of a run, a file each, and say what is being done.

    Parts belong to an identity (settings, versions and device, by their hash) and lie in `folder/parts/<hash>`; without a
    folder nothing is kept. A part that cannot be read is measured again and reported through `say`.

    - `folder`: where this run's files go, or None; `shared`: the folder that runs beside it share (trained models).
    - `command`: what to give `pdejax` to go on with it, kept beside the parts for who finds them without a result.
    - `say(text)` tells what is being done, `row(record)` hands over each line of the run's table as soon as it is there.
    - `key`: the hash. `kept_seconds`: what the parts that were read had taken when they were measured. `libraries`: digests of
      the library that measured them all, "not recorded" among them where a part does not say.

    Raises `ResultError` for a folder that cannot be written.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        identity: Any,
        say: Callable[[str], None] = print,
        row: Callable[[Any], None] | None = None,
        shared: pathlib.Path | None = None,
        command: str = "",
    ):
        self.say, self.command = say, command
        self.row: Callable[[Any], None] = row if row is not None else lambda record: None
        self.folder, self.shared = folder, folder if shared is None else shared
        self.key = digest([identity, environment()])
        self.kept_seconds = 0.0
        self.libraries: set[str] = set()
        if folder is not None:
            check_folder(folder)

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return the part `name` as plain JSON values: read if it is there, else measured and kept."""

        def read(path: pathlib.Path) -> tuple[Any, float, str]:
            saved = json.loads(path.read_text())
            return saved["value"], float(saved.get("seconds", 0.0)), str(saved.get("library", NOT_RECORDED))

        def write(path: pathlib.Path, value: Any, seconds: float) -> None:
            write_json(path, {"name": name, "value": value, "seconds": seconds, "library": library_digest()})

        return self._kept(f"{name}.json", lambda: plain(measure()), read, write)

    def arrays(self, name: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Return the part `name` as arrays of numbers by name, as `get` does; `ResultError` for others."""

        def made() -> dict[str, np.ndarray]:
            found: dict[str, np.ndarray] = {key: np.asarray(value) for key, value in measure().items()}
            wrong = [key for key, value in found.items() if value.dtype == object]
            if wrong:
                raise ResultError(f"{name}: {wrong} are not arrays of numbers")
            return found

        def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], float, str]:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as saved:
                found = {key: saved[key] for key in saved.files}
            library = str(found.pop(_LIBRARY, NOT_RECORDED))
            return found, float(found.pop(_SECONDS)), library

        def write(path: pathlib.Path, value: dict[str, np.ndarray], seconds: float) -> None:
            buffer = io.BytesIO()
            kept: dict[str, Any] = {**value, _SECONDS: np.asarray(seconds), _LIBRARY: np.asarray(library_digest())}
            np.savez_compressed(buffer, **kept)
            write_whole(path, buffer.getvalue())

        return self._kept(f"{name}.npz", made, read, write)

    def _kept(self, file: str, measure: Callable[[], Any], read: Callable, write: Callable) -> Any:
        path = None if self.folder is None else self.folder / "parts" / self.key / file
        if path is not None and path.exists():
            try:
                value, seconds, library = read(path)
                self.kept_seconds += seconds
                self.libraries.add(library)
                return value
            except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
                self.say(f"{path} is damaged ({type(error).__name__}) and is measured again")
        started = time.perf_counter()
        value = measure()
        seconds = time.perf_counter() - started
        self.libraries.add(library_digest())
        forget_programs()
        if path is not None:
            if self.command and not path.with_name(ABOUT).exists():
                write_json(path.with_name(ABOUT), {"command": self.command})
            write(path, value, seconds)
        return value
