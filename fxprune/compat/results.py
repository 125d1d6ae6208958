"""`Results`: rows of the compatibility matrix in a JSON-lines file that only grows.

A row is written with one call and synced before the next model is begun, so that an interruption costs
at most the models that were being tried. A row that was cut off in the middle is dropped.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from fxprune import __version__
from fxprune.errors import CompatError

Row = dict[str, Any]

# What decides over the result of a stage, beside fxprune and the library that the model is from.
_DISTRIBUTIONS = {
    "capture": ("torch",),
    "prune": ("torch",),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
}


class Results:
    """A results file, open for one run; a second run on the same file is refused.

    Args:
        path: the file. It is made, with its folder, if there is none.
        resume: go on with a file that has rows already.

    Raises:
        CompatError: another run writes to the file, it cannot be read, or it has rows and `resume` is off.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        import fcntl

        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise CompatError(f"cannot write {path}: {error.strerror or error}; choose another file") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise CompatError(
                f"{path}: another run writes to this file; wait for it, or choose another"
            ) from error
        try:
            self.rows = read_rows([path])
            if self.rows and not resume:
                raise CompatError(f"{path} has {len(self.rows)} rows; --resume goes on with it")
        except CompatError:
            self._file.close()
            raise
        self._file.truncate(_whole(path.read_bytes()))

    def append(self, row: Row) -> None:
        """Write a row, whole and on the disk before this returns."""
        self._file.write(json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(row)

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """All rows of some results files, in the order in which they were written.

    Raises:
        CompatError: a file cannot be read, or a line before its last is no row.
    """
    rows: list[Row] = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CompatError(f"cannot read {path}: {error.strerror or error}; check the path") from error
        for number, line in enumerate(content[: _whole(content)].splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CompatError(f"{path}, line {number}: expected a row in JSON, got {error}") from error
            if not isinstance(row, dict) or not {"model", "stage", "ok", "versions", "at"} <= set(row):
                raise CompatError(f"{path}, line {number}: expected a row of `fxprune compat`, got {line[:80]!r}")
            rows.append(row)
    return sorted(rows, key=lambda row: row["at"])


def _whole(content: bytes) -> int:
    """The length without a last line that was cut off."""
    return content.rfind(b"\n") + 1


def key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a row is the result of: model, stage and versions."""
    return row["model"], row["stage"], json.dumps(row["versions"], sort_keys=True)


def latest(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """The last row of each model and stage."""
    return {(row["model"], row["stage"]): row for row in rows}


def versions(model: str, stage: str) -> dict[str, str]:
    """The versions that a row of this model and stage depends on, by distribution."""
    library = model.partition(":")[0]
    found = {name: metadata.version(name) for name in (*_DISTRIBUTIONS[stage], library)}
    return {"fxprune": own_version(), **found}


@functools.cache  # of the code that was imported, whatever is committed while it runs
def own_version() -> str:
    """The version of fxprune, with its commit where it runs from a git checkout, as in ``0.1.0+379cc52a1``.

    ``.changed`` at the end says that the package has changes that are in no commit.
    """
    folder = Path(__file__).parent.parent
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


@dataclass
class Tally:
    """How many of the models tried so far got through a stage; as a string, the line of a progress bar."""

    stage: str
    passed: int = 0
    count: int = 0

    def add(self, row: Row) -> None:
        """Count a row."""
        self.passed += row["ok"]
        self.count += 1

    @property
    def all_passed(self) -> bool:
        """Whether no model failed."""
        return self.passed == self.count

    def __str__(self) -> str:
        rate = f" ({self.passed / self.count:.1%})" if self.count else ""
        return f"{self.stage}: {self.passed} of {self.count} passed{rate}"


def now() -> str:
    """The time in UTC; rows sort by it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
