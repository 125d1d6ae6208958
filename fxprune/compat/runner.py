"""`run`: one process a model, held to a time and a memory limit; whatever becomes of it is a row."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import BaseContext, ForkServerProcess
from pathlib import Path
from typing import Any

import psutil

from fxprune.compat.child import GIB, Examine, Task, attend, tell_models
from fxprune.compat.results import versions
from fxprune.errors import CompatError
from fxprune.rows import Row, now

_LOOK = 0.1  # seconds between two looks at the memory of the processes
_LOST = 255  # what multiprocessing gives for an exit code when the server is gone
_FAREWELL = 5.0  # seconds that a process has to end by itself
_LAST_WORDS = 300  # characters of standard error in the row of a process that died


@dataclass(frozen=True)
class Limits:
    """What one model may take.

    Attributes:
        seconds: of wall time.
        memory: bytes of resident memory; what it shares with the other processes counts.
    """

    seconds: float
    memory: int


def server() -> BaseContext:
    """A server that forks processes which have imported torch and the libraries; it starts at its first use."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fxprune.compat.preload"])
    return context


def known_models() -> list[str]:
    """`fxprune.zoo.list_models` in a process of its own: this one stays as small as it is, and quick to end.

    Raises:
        CompatError: the process died; it has said why.
    """
    context = server()
    ours, theirs = context.Pipe()
    process = context.Process(target=tell_models, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    try:
        found: list[str] = ours.recv()
    except EOFError:
        raise CompatError("the models cannot be listed: the process that imports the libraries died") from None
    finally:
        ours.close()
        process.join()
    return found


def run(
    examine: Examine,
    tasks: Sequence[Task],
    limits: Limits,
    *,
    jobs: int = 1,
    context: BaseContext | None = None,
) -> Iterator[Row]:
    """Try each task in a process of its own, and give a row for each in the order in which they end.

    Closing the iterator, or an exception in it, ends the processes.

    Args:
        examine: what each process does; `fxprune.compat.stages.examine`, except in tests.
        tasks: what to try.
        limits: of each process; the one that exceeds them is killed.
        jobs: how many run at a time.
        context: where processes are from; by default `server`.
    """
    context = context or server()
    waiting, running, again = list(tasks)[::-1], list[_Attempt](), set[Task]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_Attempt.start(context, examine, waiting.pop(), limits))
            connection.wait([attempt.messages for attempt in running], timeout=_LOOK)
            for attempt in [attempt for attempt in running if attempt.look()]:
                running.remove(attempt)
                if attempt.lost and attempt.task not in again:
                    again.add(attempt.task)
                    waiting.append(attempt.task)
                else:
                    yield attempt.row()
    finally:
        for attempt in running:
            attempt.kill()


@dataclass
class _Attempt:
    """A process at work on a task, and what it has told so far."""

    task: Task
    limits: Limits
    process: ForkServerProcess
    messages: connection.Connection
    stderr: Path
    started: float = field(default_factory=time.monotonic)
    stage: str | None = None
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    failure: dict[str, Any] | None = None
    peak: int = 0
    over: bool = False

    @classmethod
    def start(cls, context: Any, examine: Examine, task: Task, limits: Limits) -> _Attempt:
        handle, stderr = tempfile.mkstemp(prefix="fxprune-compat-")
        os.close(handle)
        ours, theirs = context.Pipe()
        process = context.Process(target=attend, args=(theirs, examine, task, stderr), daemon=True)
        process.start()  # comes back when the server, with all that it imports, is ready
        theirs.close()
        return cls(task, limits, process, ours, Path(stderr))

    def look(self) -> bool:
        """Take in what came, and enforce the limits; True when the process is done with."""
        self._receive()
        if self.over or self._ended():
            self.kill()
            return True
        with contextlib.suppress(psutil.Error):  # it may end at any moment
            self.peak = max(self.peak, psutil.Process(self.process.pid).memory_info().rss)
        if self.peak > self.limits.memory:
            self._stop("MemoryLimit", f"over the memory limit of {self.limits.memory / GIB:.3g} GiB")
        elif time.monotonic() - self.started > self.limits.seconds:
            self._stop("TimeLimit", f"over the time limit of {self.limits.seconds:g} s")
        return self.over

    def _receive(self) -> None:
        try:
            while not self.over and self.messages.poll():
                kind, *content = self.messages.recv()
                if kind == "begin":
                    self.stage = content[0]
                    self.facts.setdefault(content[0], {})
                elif kind == "note":
                    place, facts = content
                    self.facts.setdefault(place or "", {}).update(facts)
                elif kind == "failed":
                    self.failure = content[0]
                else:  # it is done, and may leave in order
                    self.over = True
                    self.process.join(_FAREWELL)
        except (EOFError, OSError):  # it died, in the middle of a message perhaps
            self._stop("Crash", self._last_words())

    def _ended(self) -> bool:
        """Whether the process is gone without a last message, while something else holds its end of the pipe."""
        if self.process.is_alive() or self.messages.poll():
            return False
        self._stop("Crash", self._last_words())
        return True

    def _last_words(self) -> str:
        self.process.join(1)
        code = self.process.exitcode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"killed by {signal.Signals(-code).name}"
            how += ", as Linux does when memory runs out" if -code == signal.SIGKILL else ""
        lines = self.stderr.read_text(errors="replace").strip().splitlines()
        return f"the process was {how}" + (f"; it said: {lines[-1][:_LAST_WORDS]}" if lines else "")

    def _stop(self, kind: str, reason: str) -> None:
        self.failure = {"kind": kind, "reason": reason, "traceback": []}
        self.kill()
        self.over = True

    def kill(self) -> None:
        """End the process, whatever it is doing, and leave nothing behind."""
        self.process.kill()
        self.process.join(_FAREWELL)
        self.messages.close()
        self.stderr.unlink(missing_ok=True)

    @property
    def lost(self) -> bool:
        """Whether the server died, of which the model knows nothing, so that nobody knows what became of it."""
        return self.failure is not None and self.failure["kind"] == "Crash" and self.process.exitcode == _LOST

    def row(self) -> Row:
        """What became of the task."""
        peaks = [facts.get("peak_gib", 0.0) for facts in self.facts.values()]
        return {
            "model": self.task.model,
            "stage": self.task.stage,
            "ok": self.failure is None,
            "failed": None if self.failure is None else {"stage": self.stage, **self.failure},
            "seconds": round(time.monotonic() - self.started, 2),
            "peak_gib": max([round(self.peak / GIB, 2), *peaks]),
            "seed": self.task.seed,
            "limits": {"seconds": self.limits.seconds, "gib": round(self.limits.memory / GIB, 2)},
            **self.facts,
            "versions": versions(self.task.model, self.task.stage),
            "at": now(),
        }
