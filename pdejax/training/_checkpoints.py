"""A state as NumPy arrays with names: what a checkpoint holds, and the way back."""

import contextlib
import gc
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from pdejax._arguments import checked
from pdejax.runs._files import write_json
from pdejax.training._distributed import place

FORMAT = 1
Leaves = dict[str, np.ndarray]
State = TypeVar("State")


class Saved(NamedTuple):
    """The leaves of a state by name, and what was saved beside them."""

    step: int
    leaves: Leaves
    keys: dict[str, str]
    info: dict[str, Any]


def snapshot(step: int, state: PyTree, info: dict[str, Any], *, copy: bool = False) -> Saved:
    """The state on the host. Keys of `jax.random` are kept as numbers, with the name of their generator.

    Raises `TypeError` where `info` is not JSON and `ValueError` for a state split over processes.
    """
    leaves: Leaves = {}
    keys: dict[str, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            if not leaf.is_fully_replicated:
                raise ValueError(
                    f"{name} is split over processes; checkpoints hold states that every process has whole."
                )
            leaf = leaf.addressable_data(0)
        if _is_key(leaf):
            keys[name] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        leaves[name] = np.array(leaf) if copy else np.asarray(leaf)
    try:
        info = json.loads(json.dumps(info, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"what is saved beside the state must be JSON: {error}.") from error
    return Saved(step, leaves, keys, info)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def not_finite(saved: Saved) -> list[str]:
    """Names of the float parameters that hold NaN or infinity."""
    return [
        name
        for name, leaf in saved.leaves.items()
        if name.startswith("params/") and jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.all(np.isfinite(leaf))
    ]


def rebuild(saved: Saved, like: State) -> State:
    """The state, with the structure and on the devices of `like`.

    Raises `ValueError` naming what differs where names, shapes, types or random generators do not agree.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    wrong = [f"{name} is not in the checkpoint" for name in names if name not in saved.leaves]
    wrong += [f"{name} is only in the checkpoint" for name in saved.leaves if name not in set(names)]
    leaves = []
    for name, (_, template) in zip(names, flat, strict=True):
        if name not in saved.leaves:
            continue
        value, key = saved.leaves[name], _is_key(template)
        model = jax.eval_shape(jax.random.key_data, template) if key else template
        wanted = (np.shape(model), jnp.result_type(model), str(jax.random.key_impl(template)) if key else None)
        found = (value.shape, value.dtype, saved.keys.get(name))
        if wanted != found:
            wrong.append(f"{name} is {_words(*found)} in the checkpoint and {_words(*wanted)} here")
        elif not wrong:
            leaves.append(_put(value, template))
    if wrong:
        wrong.sort(key=lambda text: not text.startswith("params/"))
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"the checkpoint of step {saved.step} is of another model or optimizer: {'; '.join(wrong[:5])}{more}."
        )
    return jax.tree_util.tree_unflatten(structure, leaves)


def _words(shape, dtype, key) -> str:
    return f"{jnp.dtype(dtype).name}{list(shape)}" + (f" (key {key})" if key else "")


def _put(value: np.ndarray, template: Any) -> Any:
    if not isinstance(template, jax.Array):
        return jnp.asarray(value.copy())
    if _is_key(template):
        data = _put(value, jax.random.key_data(template))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(template))
    # An array bound to no device stays so, or it could not be mixed with others that are.
    return place(value, template.sharding) if getattr(template, "committed", True) else jnp.asarray(value.copy())


def digest(saved: Saved) -> str:
    """sha256 of everything saved."""
    head = json.dumps([FORMAT, saved.step, saved.keys, saved.info], sort_keys=True)
    total = hashlib.sha256(head.encode())
    for name, leaf in sorted(saved.leaves.items()):
        total.update(f"\n{name} {leaf.dtype.name} {leaf.shape} ".encode())
        total.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


class Memory:
    """The latest state on the host, where no folder is given."""

    def __init__(self) -> None:
        self.saved: Saved | None = None

    def save(self, saved: Saved) -> None:
        self.saved = saved

    def load(self) -> Saved | None:
        return self.saved

    def close(self) -> None:
        pass


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

        record = {"format": FORMAT, "step": saved.step, "keys": saved.keys, "info": saved.info, "sha256": digest(saved)}
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
        self._clean()  # a refused save may have gone on writing after it was cleaned up

    def _kept(self) -> set[int]:
        steps = self.steps()
        if self.mode is None:
            return set(steps[-self.keep :])
        return set(self.best()[: self.keep]) | set(steps[-1:])

    def best(self) -> list[int]:
        """Steps of checkpoints with a value, best first; of equal ones the earliest, as `FitResult.best_step` has it."""
        sign = 1 if self.mode == "min" else -1
        found = [(sign * value, step) for step, value in self.values.items() if value is not None]
        return [step for _, step in sorted(found)]

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
        # "... to file 11: File too large [tensorstore_spec='…'] [os_error_code='27'] ...", in any order: the system's words
        return re.split(r" \[\w+=", text, maxsplit=1)[0].rsplit(": ", 1)[-1]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return first if len(first) <= 200 else first[:197] + "..."


@checked
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
