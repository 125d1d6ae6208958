"""`sole_writer`: one process at a time writes to a folder."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fxprune import distributed
from fxprune.errors import CheckpointError

_held: Counter[Path] = Counter()  # by this process


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder for this process inside the block; what cannot be written to is told now, not after hours.

    The kernel keeps the lock (`flock`, on the folder itself): it needs no file, and goes with the process however
    that ends. Blocks of one process may lie within each other. Of several processes that share their work
    (`fxprune.distributed`) the first one holds it. A file system without locks is taken as it is.

    Args:
        folder: made if it is missing, and removed again if it is empty in the end.

    Raises:
        CheckpointError: another process holds the folder, or nothing can be written there.
    """
    place = folder.absolute()
    if distributed.rank() > 0 or _held[place]:
        yield
        return
    try:
        made = _make(folder)
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from error
    try:
        with _lock(folder):
            _held[place] += 1
            try:
                yield
            finally:
                _held[place] -= 1
    finally:
        with contextlib.suppress(OSError):  # the first that holds something ends it
            for each in made:
                each.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make a folder with those that it lies in; those that were made, from the inside out."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder or nothing, got a file; choose another output")
    folder.mkdir(parents=True, exist_ok=True)
    return made


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    import fcntl

    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(folder, "it is read-only")
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise CheckpointError(
            f"{folder}: another process writes to this folder; wait for it, or choose another output"
        ) from error
    except OSError:  # not every network file system has locks
        pass
    try:
        yield
    finally:
        os.close(handle)


def _unwritable(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"cannot write {folder}: {reason}; choose another output")
