"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block succeeds.

    Whatever stood at `path` stays as it was until then, and for good if the block raises. What a process that
    was killed left of it goes when the next one begins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    _try_lock(handle)  # for as long as this process lives
    temporary = Path(name)
    try:
        yield temporary
        synced(temporary)
        readable(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove temporary files of `path` whose writers are no more: nobody holds their locks."""
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}{re.escape(path.suffix)}")  # mkstemp's names
    for file in path.parent.iterdir():
        if leftover.fullmatch(file.name):
            with contextlib.suppress(OSError), file.open("rb") as stream:
                if _try_lock(stream.fileno()):
                    file.unlink()


def _try_lock(handle: int) -> bool:
    """Take a file's lock; False where another process has it, or the file system has none."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def require_place(path: Path) -> None:
    """Find out whether a file can be written, before the work whose result it is to hold; makes its folder.

    Raises:
        OSError: it cannot.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def synced(path: Path) -> None:
    """Wait until a file is on the disk, so that what names it next does not outlive it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def readable(path: Path) -> None:
    """Give a file the permissions of an ordinary new one; temporary files start without any for others."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
