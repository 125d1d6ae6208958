"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block succeeds.

    Whatever stood at `path` stays as it was until then, and for good if the block raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        synced(temporary)
        readable(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def synced(path: Path) -> None:
    """Wait until a file is on the disk, so that what names it next does not outlive it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def readable(path: Path) -> None:
    """Give a file the permissions of an ordinary new one; temporary files start without any for others."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
