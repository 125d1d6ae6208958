"""`RowFile`: results in a JSON-lines file that only grows, of runs that may be interrupted at any moment.

A row is written with one call and synced before the next piece of work is begun, so that an interruption
costs at most what was being worked on. A row that was cut off in the middle is dropped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from fxprune import __version__
from fxprune.errors import ResultsError

Row = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What rows hold.

    Attributes:
        name: whose they are, for messages.
        keys: what all of them have, beside the time ``at``, with the types of the values.
    """

    name: str
    keys: Mapping[str, type | tuple[type, ...]]

    def is_row(self, value: object) -> bool:
        """Whether a JSON value is one."""
        keys = {**self.keys, "at": str}
        return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in keys.items())


class RowFile:
    """A results file, open for one run; a second run on the same file is refused.

    Args:
        path: the file. It is made, with its folder, if there is none.
        kind: what its rows hold.
        resume: go on with a file that has rows already.

    Raises:
        ResultsError: another run writes to the file, it cannot be read, or it has rows and `resume` is off.
    """

    def __init__(self, path: Path, kind: Kind, *, resume: bool = False) -> None:
        import fcntl

        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._made = not path.exists()
            self._file: IO[bytes] = path.open("a+b", buffering=0)  # no row is left behind in a buffer
        except OSError as error:
            raise ResultsError(f"cannot write {path}: {error.strerror or error}; choose another file") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ResultsError(
                f"{path}: another run writes to this file; wait for it, or choose another"
            ) from error
        try:
            self.rows = read_rows([path], kind)
            if self.rows and not resume:
                raise ResultsError(f"{path} has {len(self.rows)} rows; --resume goes on with it")
            self._file.truncate(_whole(path.read_bytes()))
        except ResultsError:
            self._file.close()
            raise

    def append(self, row: Row) -> None:
        """Write a row, whole and on the disk before this returns.

        Raises:
            ResultsError: it cannot be written; the rows before it stay.
        """
        line = json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            left = memoryview(line)
            while left:  # a disk that is nearly full takes a part, and says so at the next one
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            raise ResultsError(
                f"cannot write {self.path}: {error.strerror or error}; free some space, and go on where it was"
            ) from error
        self.rows.append(row)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made and not self.path.stat().st_size:
            self.path.unlink()
        self._file.close()


def read_rows(paths: Iterable[Path], kind: Kind) -> list[Row]:
    """All rows of some results files, in the order in which they were written.

    Raises:
        ResultsError: a file cannot be read, or a line before its last is no row.
    """
    rows: list[Row] = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ResultsError(f"cannot read {path}: {error.strerror or error}; check the path") from error
        for number, line in enumerate(content[: _whole(content)].splitlines(), 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ResultsError(f"{path}, line {number}: expected a row in JSON, got {error}") from error
            if not kind.is_row(row):
                raise ResultsError(f"{path}, line {number}: expected a row of {kind.name}, got {line[:80]!r}")
            rows.append(row)
        torn = content[_whole(content) :]
        if not b'{"'.startswith(torn[:2]):  # the only line of something else is not to be dropped
            raise ResultsError(f"{path}: expected rows of {kind.name}, got {torn[:80]!r}; choose another file")
    return sorted(rows, key=lambda row: row["at"])


@contextlib.contextmanager
def reading(kind: Kind) -> Iterator[None]:
    """What goes wrong in the block goes wrong for what rows say beyond their keys, whose types nobody checks.

    Raises:
        ResultsError: something does.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ResultsError(
            f"expected rows as {kind.name} writes them, got some that are damaged or of another version: {error!r}"
        ) from error


def _whole(content: bytes) -> int:
    """The length without a last line that was cut off."""
    return content.rfind(b"\n") + 1


@functools.cache  # of the code that was imported, whatever is committed while it runs
def own_version() -> str:
    """The version of fxprune, with its commit where it runs from a git checkout, as in ``0.1.0+379cc52a1``.

    ``.changed`` at the end says that the package has changes that are in no commit.
    """
    folder = Path(__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:  # not a checkout, or not ours
        return __version__
    commit = _git(folder, "rev-parse", "--short=9", "HEAD")
    changed = ".changed" if _git(folder, "status", "--porcelain", "--", ".") else ""
    return f"{__version__}+{commit}{changed}"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def now() -> str:
    """The time in UTC; rows sort by it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
