"""Curves for TensorBoard."""

import os
import pathlib
import time
from typing import Any

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
