"""Checkpoints by orbax: written whole or not at all, verified when read, the best and the latest kept."""

import contextlib
import gc
import json
import logging
import os
import pathlib
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pdejax.training._snapshot import FORMAT, Saved, State, digest, rebuild

Mode = Literal["max", "min"]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says which and why."""


class Checkpoints:
    """Checkpoints in `folder`, one folder each, named by its step.

    - `keep`, `mode`: besides the latest, the `keep` best by their value (highest for `"max"`, lowest for `"min"`) are kept;
      with `mode=None` the `keep` latest.
    - `report(text)` is told of checkpoints that cannot be used.

    Only one process may write to a folder at a time; of several training together that is process 0. A checkpoint is
    complete when `save` returns: a process killed then or later loses nothing of it.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep: int = 3,
        mode: Mode | None = None,
        report: Callable[[str], None] = print,
        read_only: bool = False,
    ):
        self.folder, self.keep, self.mode, self.report = folder, keep, mode, report
        with _quiet():
            self.manager = _manager(folder, read_only)
        if not read_only:
            self._clean()
        self.values: dict[int, float | None] = {}
        for step in self.steps():
            try:
                self.values[step] = self._record(step)["info"].get("value")
            except CheckpointError:  # to be told, and set aside, when it is read
                self.values[step] = None

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def save(self, saved: Saved) -> None:
        """Write a checkpoint; `saved.info["value"]`, if there, ranks it. One of the same step is replaced.

        Raises `CheckpointError` where the disk is full or fails; the checkpoints there are stay.
        """
        import orbax.checkpoint as ocp

        record = {
            "format": FORMAT,
            "step": saved.step,
            "keys": saved.keys,
            "info": saved.info,
            "sha256": digest(saved),
        }
        # orbax refuses arrays without elements
        record["empty"] = {n: [list(x.shape), x.dtype.name] for n, x in saved.leaves.items() if not x.size}
        full = {name: leaf for name, leaf in saved.leaves.items() if leaf.size}
        items = ocp.args.Composite(state=ocp.args.StandardSave(full), record=ocp.args.JsonSave(record))
        try:
            with _quiet():
                if saved.step in self.manager.all_steps():
                    self._delete(saved.step)
                self.manager.save(saved.step, args=items, force=True)
        except Exception as error:
            self._clean()
            # orbax wraps the system's errors in its own.
            if isinstance(error, OSError) or "os_error_code" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
                raise CheckpointError(f"cannot save the checkpoint of step {saved.step}: {_reason(error)}") from error
            raise
        self.values[saved.step] = saved.info.get("value")
        for step in set(self.steps()) - self._kept():
            self._delete(step)

    def _kept(self) -> set[int]:
        steps = self.steps()
        if self.mode is None:
            return set(steps[-self.keep :])
        return set(self.best()[: self.keep]) | set(steps[-1:])

    def best(self) -> list[int]:
        """Steps of checkpoints with a value, best first."""
        sign = -1 if self.mode == "min" else 1
        found = [(sign * value, step) for step, value in self.values.items() if value is not None]
        return [step for _, step in sorted(found, reverse=True)]

    def load(self, which: str | int = "latest", *, set_aside: bool = False) -> Saved | None:
        """Read and verify a checkpoint: the latest, the best, or that of a step; `None` if there is none.

        A damaged one is reported and the next latest or best taken; with `set_aside` it is also moved out of the way.
        Raises `CheckpointError` where none can be read, or not that of the step.
        """
        if isinstance(which, int):
            return self._read(which)
        steps = self.best() if which == "best" else self.steps()[::-1]
        damaged: dict[int, str] = {}
        for step in steps:
            try:
                found = self._read(step)
            except CheckpointError as error:
                damaged[step] = str(error)
                continue
            for other, text in damaged.items():
                if set_aside:
                    self._set_aside(other)
                self.report(f"{text}; taking that of step {step}")
            return found
        if damaged:
            raise CheckpointError(f"no checkpoint in {self.folder} can be read: {'; '.join(damaged.values())}.")
        return None

    def _record(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        with self._reading(step):
            record = self.manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
            if record["format"] != FORMAT:
                raise ValueError(f"it has format {record['format']}, this version reads {FORMAT}")
            record["info"].get("value")
        return record

    def _read(self, step: int) -> Saved:
        import orbax.checkpoint as ocp

        record = self._record(step)
        with self._reading(step):
            state = self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
            leaves = {name: np.asarray(leaf) for name, leaf in state.items()}
            leaves |= {n: np.zeros(shape, jnp.dtype(dtype)) for n, (shape, dtype) in record["empty"].items()}
            saved = Saved(record["step"], leaves, record["keys"], record["info"])
            if digest(saved) != record["sha256"] or saved.step != step:
                raise ValueError("its contents do not match its sha256 checksum")
        return saved

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """What goes wrong while reading is a damaged checkpoint, whatever the exception."""
        try:
            with _quiet(), _without_late_errors():
                yield
        except (PermissionError, MemoryError):
            raise
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint of step {step} in {self.folder} is damaged ({_reason(error)})"
            ) from error

    def _delete(self, step: int) -> None:
        """Out of the way by one renaming, then off the disk: a kill between leaves no half checkpoint."""
        self.values.pop(step, None)
        with contextlib.suppress(OSError), _quiet():
            self.manager.delete(step)
        shutil.rmtree(self.folder / "trash", ignore_errors=True)

    def _set_aside(self, step: int) -> None:
        self.values.pop(step, None)
        target = self.folder.parent / "damaged"
        with contextlib.suppress(OSError):
            target.mkdir(exist_ok=True)
            shutil.rmtree(target / str(step), ignore_errors=True)
            os.replace(self.folder / str(step), target / str(step))
        self.manager.reload()

    def _clean(self) -> None:
        """Remove what an interrupted save or deletion has left."""
        for left in (*self.folder.glob("*.orbax-checkpoint-tmp*"), self.folder / "trash"):
            shutil.rmtree(left, ignore_errors=True)

    def close(self) -> None:
        with _quiet():
            self.manager.close()


def _manager(folder: pathlib.Path, read_only: bool):
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        enable_async_checkpointing=False,  # or a kill could lose more than the steps since the last save
        todelete_subdir=None if read_only else "trash",
        read_only=read_only,
        create=not read_only,
    )
    if jax.process_count() > 1:  # this process alone, without waiting for others
        here = jax.process_index()
        options.multiprocessing_options = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"pdejax{here}"
        )
        options.create = False
        folder.mkdir(parents=True, exist_ok=True)
    return ocp.CheckpointManager(folder.absolute(), options=options)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """orbax logs through absl and asyncio, also what is raised and handled here."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _without_late_errors() -> Iterator[None]:
    """Keep off the terminal what arrives after orbax, at the first leaf that cannot be read, has closed its event loop."""
    shown = sys.unraisablehook

    def show(what: Any) -> None:
        if not (isinstance(what.exc_value, RuntimeError) and "Event loop is closed" in str(what.exc_value)):
            shown(what)

    sys.unraisablehook = show
    try:
        yield
    except Exception as error:
        time.sleep(0.1)  # the other leaves come in
        reason: BaseException | None = error
        while reason is not None:  # what still waits for them goes now, and not later, with the frames of the traceback
            traceback.clear_frames(reason.__traceback__)
            reason = reason.__context__
        gc.collect()
        raise
    finally:
        sys.unraisablehook = shown


def _reason(error: Exception) -> str:
    text = str(error)
    if "os_error_code" in text:
        # "... to file 11: File too large [os_error_code='27'] ...": the system's words
        return text.split(" [os_error_code")[0].rsplit(": ", 1)[-1]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return first if len(first) <= 200 else first[:197] + "..."


def restore(folder: str | os.PathLike[str], like: State, which: str | int = "latest") -> State:
    """Return the state saved by `fit(..., folder=folder)`, with the structure and on the devices of `like`.

    - `like`: a state of the same model and optimizer, as it is before training.
    - `which`: `"latest"`, `"best"` by the metric `fit` was given, or a step.

    Its checksum is verified. Raises `ValueError` for a folder without checkpoints, an unknown `which`, and a state of
    another model, `CheckpointError` for damaged checkpoints; for `"latest"` and `"best"` the next is tried first, with a
    warning.
    """
    return rebuild(read_checkpoint(folder, which), like)


def read_checkpoint(folder: str | os.PathLike[str], which: str | int = "latest") -> Saved:
    """What `restore` puts into a state, by name. Raises as it does."""
    import warnings

    folder = pathlib.Path(folder)
    if isinstance(which, bool) or not (which in ("latest", "best") or isinstance(which, int)):
        raise ValueError(f"which={which!r} must be 'latest', 'best' or a step.")
    if not (folder / "checkpoints").is_dir():
        raise ValueError(f"folder={str(folder)!r} has no checkpoints; give the folder that training wrote to.")
    mode = _mode(folder) if which == "best" else None

    def warn(text: str) -> None:
        warnings.warn(text, stacklevel=4)

    checkpoints = Checkpoints(folder / "checkpoints", mode=mode, report=warn, read_only=True)
    try:
        steps = checkpoints.steps()
        if isinstance(which, int) and which not in steps:
            raise ValueError(f"which={which}: there is no such step in {folder}; there are {steps}.")
        saved = checkpoints.load(which)
    finally:
        checkpoints.close()
    if saved is None:
        hint = " with a value: evaluate while training, or choose 'latest'" if which == "best" and steps else ""
        raise ValueError(f"folder={str(folder)!r} has no checkpoints{hint}.")
    return saved


def _mode(folder: pathlib.Path) -> Mode | None:
    try:
        best = json.loads((folder / "run.json").read_text())["best"]
    except (OSError, ValueError, KeyError):
        best = None
    return None if best is None else best[1]
