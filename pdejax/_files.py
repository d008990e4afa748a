"""Files written whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when all is written and on the disk, and only then.

    A reader sees the old file or the new one, never half of it. Raises `OSError`, and leaves nothing behind.
    """
    # Not by tempfile, whose files only their owner may read.
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Replace a file by this content, as `whole_file` does."""
    with whole_file(path) as file:
        file.write(content)
