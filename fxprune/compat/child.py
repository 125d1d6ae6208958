"""The process that one model is tried in, seen from inside.

Processes are forked from a server that has imported torch and the libraries once, so that a model costs
its own work only. What a process finds out it sends as it goes: what it had found before a crash is not lost.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from fxprune.zoo import list_models

Stage = Literal["capture", "prune", "onnx", "shrink"]
STAGES: tuple[Stage, ...] = ("capture", "prune", "onnx", "shrink")
# what is gone through to get to a stage
PATHS: dict[Stage, tuple[Stage, ...]] = {
    "capture": ("capture",),
    "prune": ("capture", "prune"),
    "onnx": ("capture", "prune", "onnx"),
    "shrink": ("capture", "shrink"),
}
GIB = 2**30

_FRAMES = 4  # of the traceback in a row, those in torch left out but for the last
_REASON = 400  # characters


@dataclass(frozen=True)
class Task:
    """One model to try.

    Attributes:
        model: its name, see `fxprune.zoo`.
        stage: the last stage to go through, see `PATHS`.
        seed: of its weights, its inputs, and whatever is drawn.
        memory: bytes that the process may hold.
        threads: of torch.
        image: largest side of images beyond the stage capture; None for the model's own.
    """

    model: str
    stage: Stage
    seed: int = 0
    memory: int = 16 * GIB
    threads: int = 1
    image: int | None = None


class Journal:
    """What a process tells the one that started it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._place: str | None = None

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Facts noted in the block belong to the stage; it is measured."""
        self._place, start, cpu = name, time.monotonic(), time.process_time()
        self._connection.send(("begin", name))
        try:
            yield
        finally:
            self.note(
                seconds=round(time.monotonic() - start, 2),
                cpu_seconds=round(time.process_time() - cpu, 2),
                peak_gib=round(peak() / GIB, 2),
            )
            self._place = None

    def note(self, **facts: Any) -> None:
        """Add facts, JSON values, to the stage's; outside of any stage, to the row's."""
        self._connection.send(("note", self._place, facts))

    def fail(self, error: BaseException) -> None:
        """Say why it went no further."""
        self._connection.send(("failed", described(error)))

    def end(self) -> None:
        """Say that nothing more will come."""
        self._connection.send(("end",))


Examine = Callable[[Task, Journal], None]


def attend(connection: Connection, examine: Examine, task: Task, stderr: str) -> None:
    """Try one model: the body of a process.

    Args:
        connection: what is found out goes there.
        examine: does the work.
        task: is given to it.
        stderr: file for what the process prints, C++'s last words included.
    """
    _follow(connection)
    sink = os.open(stderr, os.O_WRONLY | os.O_APPEND)
    os.dup2(sink, sys.stdout.fileno() if _has_descriptor(sys.stdout) else 1)
    os.dup2(sink, 2)
    journal = Journal(connection)
    try:
        examine(task, journal)
    except BaseException as error:  # SystemExit of a library included
        journal.fail(error)
    journal.end()


def tell_models(connection: Connection) -> None:
    """Send the names of all models: the body of a process, so that its parent need not import the libraries."""
    _follow(connection)
    connection.send(list_models())


def _follow(connection: Connection) -> None:
    """End with the parent, be it killed, and not before: Ctrl-C is for the parent to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()


def _has_descriptor(stream: Any) -> bool:
    try:
        return stream.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False


def _end_with_parent(connection: Connection) -> None:
    """Nothing is ever sent this way: what can be read is the end of a parent that was killed."""
    try:
        connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def peak() -> int:
    """The most bytes that this process held at a time."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def described(error: BaseException) -> dict[str, Any]:
    """An error as JSON: its class, a line that a person can act on, and where it came from."""
    reason = " ".join(str(error).split()) or "no message"
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    frames = traceback.extract_tb(root.__traceback__)
    own = [frame for frame in frames[:-1] if not _short(frame.filename).startswith("torch/")]
    where = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in own[-_FRAMES:] + frames[-1:]]
    return {"kind": type(error).__name__, "reason": _cut(reason), "traceback": where}


def _cut(reason: str) -> str:
    return reason if len(reason) <= _REASON else reason[: _REASON - 1] + "…"


def _short(filename: str) -> str:
    """A path without what lies before its package: rows are published, and say nothing of the machine."""
    parts = Path(filename).parts
    starts = [i + 1 for i, part in enumerate(parts) if part in ("site-packages", "dist-packages")]
    starts += [i for i, part in enumerate(parts) if part == "fxprune"]
    return "/".join(parts[max(starts, default=-2) :])
