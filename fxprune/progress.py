"""Progress bars that the command line turns on and the library leaves off."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

_console: ContextVar[Console | None] = ContextVar("fxprune_progress", default=None)
_PATIENCE = 2.0  # seconds without a bar: what ends sooner needs none


@contextlib.contextmanager
def shown_on(console: Console) -> Iterator[None]:
    """Show bars on `console` inside the block."""
    token = _console.set(console)
    try:
        yield
    finally:
        _console.reset(token)


@contextlib.contextmanager
def working(phase: str) -> Iterator[None]:
    """Say what is going on while the block, whose length nobody knows, goes on."""
    console = _console.get()
    if console is None or not console.is_terminal:
        yield
        return
    with console.status(phase):
        yield


def track(items: Iterable[T], phase: str | Callable[[], str], total: int | None = None) -> Iterator[T]:
    """Pass `items` through, with a bar and the time left once that takes longer than two seconds.

    Args:
        items: what to go through.
        phase: what is going on, in a word or two, or a function that says so after each item.
        total: number of items; taken from `items` where it has a length.
    """
    console = _console.get()
    if console is None or not console.is_terminal:
        yield from items
        return
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    say = phase if callable(phase) else lambda: phase
    task, start = bar.add_task(say(), total=total), time.monotonic()
    try:
        for item in items:
            yield item
            del item  # it may hold a graph, which must be gone before the next one is built
            bar.update(task, advance=1, description=say())
            if not bar.live.is_started and time.monotonic() - start > _PATIENCE:
                bar.start()
    finally:
        bar.stop()
