"""The table of what was thrown at fxprune says what the records say, the bad as well."""

from __future__ import annotations

import json
from pathlib import Path

import robustness


def _record(folder: Path, command: str, *rows: robustness.Row) -> Path:
    file = folder / f"{command.replace(' ', '_')}.json"
    found = {"command": f"python benchmarks/{command}", "versions": {"torch": "2.11.0"}, "rows": rows}
    file.write_text(json.dumps(found))
    return file


def test_the_table(tmp_path: Path) -> None:
    counts = {"passed": 3100, "failed": 1, "skipped": 0, "seconds": 9}
    soaked = tmp_path / "soak.jsonl"
    head = {"command": "python benchmarks/soak.py soak.jsonl", "examples": 10_000}
    rows = [{"seed": 0, "failures": {"a": "b"}}, {"seed": 1}, {"seed": 0}, {"seed": 2, "failures": {"a": "b"}}]
    soaked.write_text("".join(json.dumps(line) + "\n" for line in (head, *rows)))
    hostile = [{"kind": kind, "cases": 10, "refused": 9, "failed": kind == "onnx"} for kind in ("onnx", "json")]
    killed = [{"command": "train", "kills": 20, "torn_files": [], "differences_in_the_end": ["run 1: a"]}]
    slopes = {"rounds": 200, "mib_a_round": 0.011, "files_a_round": 0.0, "threads_a_round": 0.0}
    files = [
        soaked,
        _record(tmp_path, "hostile.py", *hostile, {"failure": {}}),
        _record(tmp_path, "kills.py --kills 20", *killed),
        _record(tmp_path, "long_use.py", slopes, {"round": 1}),
        _record(tmp_path, "robustness.py suite", counts),
        _record(tmp_path, "robustness.py wheel", {"failed": 2, "seconds": 100}),
        _record(tmp_path, "scoring.py"),
    ]
    lines = robustness.table(files).splitlines()[2:]
    figures = [line.split(" | ")[1] for line in lines]
    assert figures == [
        "3 of 10,000 tried, 1 with a property that does not hold",
        "20 tried, 18 refused with a message, 1 ended neither so nor read",
        "20 kills, no torn file, 1 difference from an undisturbed run",
        "growth a round, over the second half: 0.01 MiB, 0 open files, 0 threads",
        "3,100 pass, 1 fails",
        "fails, 100 s",
    ]


def test_every_file_of_tests_exists() -> None:
    assert all((robustness.ROOT / "tests" / name).exists() for name in robustness.TESTS)
