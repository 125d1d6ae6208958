"""`plan`: which models a run tries, and in which order."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fxprune.compat.child import GIB, STAGES, Stage, Task
from fxprune.compat.results import ROWS, key, latest, versions
from fxprune.errors import CompatError
from fxprune.rows import Row, reading
from fxprune.zoo import LIBRARIES, matches

_MEMORY_SHARE = 0.8  # of what is free; the rest is for the system, and for what grows between two looks


def check_options(*, library: str | None = None, stage: str = STAGES[0], shard: str = "1/1") -> None:
    """Tell mistakes before a file is made and the libraries are asked for their models.

    Raises:
        CompatError: library, stage or shard mean nothing.
    """
    if library is not None and library not in LIBRARIES:
        raise CompatError(f"library: expected one of {', '.join(LIBRARIES)}, got {library!r}")
    if stage not in STAGES:
        raise CompatError(f"stage: expected one of {', '.join(STAGES)}, got {stage!r}")
    _shard(shard)


def select(
    known: Sequence[str], patterns: Sequence[str] = (), library: str | None = None, shard: str = "1/1"
) -> list[str]:
    """The names that match a pattern, in the order of the patterns, each once.

    Args:
        known: all names, each with its library's prefix.
        patterns: globs of names, with or without a library's prefix; none stands for all names.
        library: only names of this library.
        shard: ``"i/n"`` takes every n-th name, from the i-th on: parts are alike, since families are neighbours.

    Raises:
        CompatError: a pattern matches nothing, or library or shard mean nothing.
    """
    check_options(library=library, shard=shard)
    offered = [name for name in known if library in (None, name.partition(":")[0])]
    exact, names = frozenset(offered), dict[str, None]()
    for pattern in patterns or ["*"]:
        found = [pattern] if pattern in exact else [name for name in offered if matches(name, pattern)]
        if not found:
            raise CompatError(f"no model matches {pattern!r}; `fxprune models` lists their names")
        names.update(dict.fromkeys(found))
    index, count = _shard(shard)
    return list(names)[index - 1 :: count]


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch("([0-9]+)/([0-9]+)", text)
    index, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= count:
        raise CompatError(f"shard: expected i/n with i from 1 to n, such as 2/4, got {text!r}")
    return index, count


@reading(ROWS)
def plan(
    names: Iterable[str],
    stage: str,
    rows: Sequence[Row],
    *,
    failed: bool = False,
    older: bool = False,
    memory: int,
    threads: int = 1,
    seed: int = 0,
    image: int | None = None,
) -> list[Task]:
    """The tasks that are left to do, the smallest models first as far as `rows` say how large they are.

    Args:
        names: models.
        stage: the last stage to go through.
        rows: what the results file has. A model with a row of this stage and of the present versions is done.
        failed: the models whose last row of this stage is a failure instead, whatever versions it is of.
        older: rows that another version of fxprune wrote count as well.
        memory: bytes for each.
        threads: of torch, for each.
        seed: of weights and inputs.
        image: largest side of images beyond the stage capture; None for each model's own.

    Raises:
        CompatError: there is no such stage.
    """
    check_options(stage=stage)
    chosen: Stage = stage  # type: ignore[assignment]  # checked
    if failed:
        last = latest(rows)
        names = [n for n in names if not last.get((n, stage), {"ok": True})["ok"]]
    else:
        done = {key(row, own=not older) for row in rows}
        names = [n for n in names if key(_header(n, stage), own=not older) not in done]
    sizes = {row["model"]: row["capture"]["parameters"] for row in rows if "parameters" in row.get("capture", {})}
    ordered = sorted(names, key=lambda name: sizes.get(name, 0))
    return [Task(name, chosen, seed, memory, threads, image) for name in ordered]


def _header(model: str, stage: str) -> dict[str, Any]:
    return {"model": model, "stage": stage, "versions": versions(model, stage)}


def memory_limit(gib: float | None, jobs: int) -> int:
    """Bytes for each of some processes at a time: what was asked for, or its part of what is free."""
    import psutil

    return int(gib * GIB) if gib else int(_MEMORY_SHARE * psutil.virtual_memory().available / jobs)


def threads(jobs: int) -> int:
    """Threads of torch for each of some processes at a time, unless the environment says."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else max(1, len(os.sched_getaffinity(0)) // jobs)
