"""The metrics of a run: a file of lines, a line on the terminal, events for TensorBoard."""

import csv
import io
import math
import os
import pathlib
import sys
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pdejax._arguments import checked
from pdejax.runs._files import write_whole

Row = dict[str, float]


def fetch(pending: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The metrics of several steps from the device, all at once, as plain numbers.

    A vector `name (k,)` becomes `name_0`, ..., `name_{k-1}`. Single precision is rounded to the shortest decimals that
    give it back. Raises `ValueError` for a metric with more axes.
    """
    # All copies begin before the first is waited for; on a CPU, where nothing is copied, that takes longer than the rest.
    found = list(pending) if jax.default_backend() == "cpu" else jax.device_get(list(pending))
    return [_flat(metrics) for metrics in found]


def _flat(metrics: Mapping[str, Any]) -> Row:
    row: Row = {}
    for name, value in metrics.items():
        value = np.asarray(value)
        if value.dtype not in (np.float32, np.float64):
            value = value.astype(np.float32 if value.dtype.itemsize < 4 else np.float64)
        if value.ndim > 1:
            raise ValueError(f"metric {name!r} has shape {value.shape}; metrics are scalars or vectors.")
        if value.ndim:
            row.update({f"{name}_{i}": float(str(part)) for i, part in enumerate(value)})
        else:
            row[name] = float(str(value[()]))
    return row


class Table:
    """Rows of numbers by step, in memory and, with a path, in a CSV file to which they are appended.

    Opened at step `upto`, rows after it, an incomplete last line and what cannot be read are dropped from the file. A disk
    that is full loses nothing: `append` raises `OSError`, and the next call writes what is still missing.
    """

    def __init__(self, path: pathlib.Path | None, upto: int):
        self.path = path
        self.columns: list[str] = []
        self.data: dict[str, array] = {}
        self.length = 0
        self.waiting: list[Row] = []
        if path is not None and path.exists():
            self._continue(path, upto)

    def _continue(self, path: pathlib.Path, upto: int) -> None:
        text = path.read_text(errors="replace")
        lines = text.splitlines(keepends=True)
        kept: list[str] = []
        last = -1
        for line in lines:
            fields = line.rstrip("\r\n").split(",")
            if not line.endswith("\n"):
                break
            if not self.columns:
                if fields[0] != "step" or len(set(fields)) != len(fields):
                    break
                self.columns = fields
                self.data = {name: array("d") for name in fields}
                kept.append(line)
                continue
            row = self._parse(fields)
            if row is None or not last < row["step"] <= upto:
                break
            last = row["step"]
            self._remember(row)
            kept.append(line)
        content = "".join(kept)
        if content != text:
            write_whole(path, content.encode())

    def _parse(self, fields: list[str]) -> Row | None:
        try:
            row = {name: float(field) for name, field in zip(self.columns, fields, strict=True) if field}
        except ValueError:
            return None
        return row if "step" in row else None

    def _remember(self, row: Row) -> None:
        for name in row:
            if name not in self.data:
                self.data[name] = array("d", [math.nan]) * self.length
        for name, values in self.data.items():
            values.append(row.get(name, math.nan))
        self.length += 1

    def append(self, rows: Sequence[Row], *, sync: bool = False) -> None:
        """Add rows, whose first column is `step`; with `sync`, return when the disk has them."""
        for row in rows:
            self._remember(row)
        if self.path is None:
            return
        self.waiting += rows
        if self.waiting:
            new = [name for row in self.waiting for name in row if name not in self.columns]
            if new:
                self._widen(list(dict.fromkeys(new)))
            text = "".join(",".join(_text(row.get(name)) for name in self.columns) + "\n" for row in self.waiting)
            _append(self.path, text.encode())
            self.waiting = []
        if sync and self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def _widen(self, new: list[str]) -> None:
        """Write the file again with more columns, empty in the rows there are."""
        assert self.path is not None
        columns = [*self.columns, *new]
        lines = [",".join(columns) + "\n"]
        if self.columns:
            with open(self.path, newline="") as file:
                lines += [line.rstrip("\r\n") + "," * len(new) + "\n" for line in list(file)[1:]]
        write_whole(self.path, "".join(lines).encode())
        self.columns = columns

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns, NaN where a row has no value."""
        return {name: np.asarray(self.data[name]) for name in self.data}

    def rows(self) -> list[Row]:
        return [
            {name: values[i] for name, values in self.data.items() if not math.isnan(values[i])}
            for i in range(self.length)
        ]


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def _append(path: pathlib.Path, content: bytes) -> None:
    """All of it or, when it fails, nothing."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            done = 0
            while done < len(content):
                done += file.write(content[done:])
        except OSError:
            file.truncate(size)
            raise


@checked
def read_metrics(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the columns of a `metrics.csv` or `evaluations.csv`; NaN where a row has no value.

    An incomplete last line is left out.
    """
    text = pathlib.Path(path).read_text()
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    names = list(rows[0]) if rows else []
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}


class Guard:
    """Runs what writes files; a disk that is full or broken is reported once until it works again, and training goes on."""

    def __init__(self, report: Callable[[str], None]):
        self.report = report
        self.failing: set[str] = set()
        self.problems: list[str] = []

    def __call__(self, what: str, write: Callable[[], Any]) -> bool:
        try:
            write()
        except OSError as error:
            if what not in self.failing:
                self.failing.add(what)
                self.problems.append(f"cannot write {what}: {error.strerror or error}")
                self.report(f"{self.problems[-1]}. Training goes on; free the disk.")
            return False
        self.failing.discard(what)
        return True


LINE_EVERY = 10.0


class Progress:
    """Steps done of all, loss, accuracy, examples per second and time left, on standard error.

    `tqdm`'s bar on a terminal; elsewhere one line every ten seconds. With `enabled=False` only `write` shows anything.
    """

    def __init__(self, steps: int, start: int, enabled: bool, *, stream: Any = None, every: float = LINE_EVERY):
        self.steps, self.every = steps, every
        self.stream = sys.stderr if stream is None else stream
        self.shown = enabled
        self.last = time.monotonic()
        self.first: tuple[int, float] | None = None  # the first step compiles, and says nothing of those that follow
        self.bar = None
        if enabled and self.stream.isatty():
            try:
                from tqdm import tqdm
            except ImportError:  # lines will do
                return
            self.bar = tqdm(total=steps, initial=start, file=self.stream, unit="step", dynamic_ncols=True, leave=True)

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show `values` (of loss, accuracy, examples_per_second those that are there) after `step` steps."""
        if not self.shown:
            return
        if self.bar is not None:
            self.bar.set_postfix_str(describe(values), refresh=False)
            self.bar.update(step - self.bar.n)
            return
        now = time.monotonic()
        if self.first is None:
            self.first = (step, now)
        if now - self.last >= self.every or step == self.steps:
            self.last = now
            text = f"step {step}/{self.steps}  {describe(values)}"
            if step > self.first[0]:
                left = (now - self.first[1]) / (step - self.first[0]) * (self.steps - step)
                text += f"  {clock(left)} left"
            print(text, file=self.stream, flush=True)

    def write(self, text: str) -> None:
        """A message on a line of its own."""
        if self.bar is not None:
            self.bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def describe(values: dict[str, float]) -> str:
    parts = []
    if "loss" in values:
        parts.append(f"loss {values['loss']:.4g}")
    if "accuracy" in values:
        parts.append(f"accuracy {values['accuracy']:.4f}")
    if "examples_per_second" in values:
        parts.append(f"{values['examples_per_second']:.4g} examples/s")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03`."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


FLUSH_EVERY = 5.0


class EventWriter:
    """Scalars in a TensorBoard event file in `folder`; a run that resumes hides the points it repeats.

    Written by tensorboardX's file writer at once and not by its thread, in which a full disk would end in silence.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        folder.mkdir(parents=True, exist_ok=True)
        # The reader takes files by name, which begins with the second.
        self.file = EventsWriter(str(folder / "events"), f".{step:09d}.{os.getpid()}")
        start = SessionLog(status=SessionLog.START)
        self.write(Event(step=step + 1, session_log=start))
        self.flush()

    def write(self, event: Any) -> None:
        event.wall_time = time.time()
        self.file.write_event(event)

    def add(self, group: str, step: int, values: dict[str, float]) -> None:
        """Each value under `group/name`."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        found = [Summary.Value(tag=f"{group}/{k}", simple_value=v) for k, v in values.items() if k != "step"]
        self.write(Event(step=step, summary=Summary(value=found)))
        if time.monotonic() - self.flushed > FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        self.file.flush()  # and waits for the disk
        self.flushed = time.monotonic()

    def close(self) -> None:
        self.file.close()


def event_writer(folder: pathlib.Path, step: int) -> EventWriter | None:
    """A writer, or `None` where tensorboardX is not installed."""
    try:
        return EventWriter(folder, step)
    except ImportError:
        return None
