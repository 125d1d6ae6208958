"""What a record of a benchmark holds beside its rows: the command that makes it again, versions and machine."""

from __future__ import annotations

import importlib
import json
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def circumstances(*packages: str) -> Row:
    """The command, the machine, and versions of Python, torch and `packages`."""
    import torch  # here, since some scripts measure what a process holds

    script = Path(sys.argv[0]).name
    return {
        "command": shlex.join(["python", f"benchmarks/{script}", *_without_paths(sys.argv[1:])]),
        "versions": {"python": platform.python_version(), **dict(_versions("torch", *packages))},
        "machine": {"processor": _processor(), "threads": torch.get_num_threads()},
    }


def write(file: Path | None, rows: Sequence[Row], *packages: str) -> None:
    """A whole record as one JSON object, if a file is given."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**circumstances(*packages), "rows": rows}, indent=1) + "\n")


def read_lines(file: Path) -> list[Row]:
    """The objects of a file with one on each line; a line that an interrupted run tore is left out."""
    found = []
    for line in file.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def append_line(file: Path, row: Row) -> None:
    """One more object, behind whole lines."""
    torn = file.exists() and file.stat().st_size and not file.read_bytes().endswith(b"\n")
    with file.open("a") as stream:
        stream.write("\n" * bool(torn) + json.dumps(row) + "\n")


def _without_paths(arguments: Sequence[str]) -> Iterator[str]:
    """Where the record itself went is of no interest."""
    skip = False
    for argument in arguments:
        if not skip and argument != "--json":
            yield Path(argument).name if Path(argument).suffix == ".jsonl" else argument
        skip = argument == "--json"


def _versions(*packages: str) -> Iterator[tuple[str, str]]:
    for package in packages:
        yield package, str(importlib.import_module(package).__version__)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
