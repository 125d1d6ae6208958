"""What was thrown at fxprune and what came of it, as one table: of the records, and of tests that count.

    python benchmarks/robustness.py tests --json benchmarks/results/tests.json      # runs those tests
    python benchmarks/robustness.py suite --json benchmarks/results/suite.json      # runs all tests
    python benchmarks/robustness.py wheel --json benchmarks/results/wheel.json      # make wheel-check
    python benchmarks/robustness.py table benchmarks/results/* --readme README.md   # the table, from records

`suite` is for environments of another kind, such as that of `make test-oldest`; the record has their versions.
Records of `soak.py`, `hostile.py`, `kills.py` and `long_use.py` are told by their command. Where several are of
one kind, the last one given counts, shards of the soak excepted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import record
from record import Row

ROOT = Path(__file__).parent.parent
MARKS = ("<!-- made by robustness.py: begin -->\n", "<!-- made by robustness.py: end -->\n")
PACKAGES = "torchvision timm networkx numpy onnx onnxscript onnx_ir onnxruntime safetensors".split()

# what a file of tests shows
TESTS = {
    "test_random_networks.py": "random networks with a fixed seed, eight properties of each",
    "test_bad_use.py": "wrong calls of the command line and of Python",
    "test_places.py": "full disks, read-only folders, odd names, two writers at one folder",
    "test_kills.py": "`kill -9`, Ctrl-C and what is left",
    "test_memory.py": "limits on memory: scoring fits, or says that it does not",
    "test_wheel.py": "the wheel: contents, metadata, licence, types",
    "test_public.py": "the list of what is public",
}


# --- running tests


def run(*arguments: str) -> Row:
    """What pytest counts."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", *arguments, f"--junitxml={report}"]
        start = time.monotonic()
        subprocess.run(command, cwd=ROOT, check=False)
        (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    seconds = round(time.monotonic() - start)
    return {"passed": passed, "failed": failed, "skipped": counts["skipped"], "seconds": seconds}


# --- the table: a line of each record, (what, figure, command)

Line = tuple[str, str, str]


def _of_tests(found: Row) -> list[Line]:
    return [(TESTS[row["file"]], _counted(row), f"python -m pytest tests/{row['file']}") for row in found["rows"]]


def _of_suite(found: Row) -> list[Line]:
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    return [(f"all tests with the oldest versions: {versions}", _counted(found["rows"][0]), "make test-oldest")]


def _of_wheel(found: Row) -> list[Line]:
    row = found["rows"][0]
    what = "the wheel built in isolation, its metadata checked, installed alone, the demo recipe run from it"
    return [(what, f"{'fails' if row['failed'] else 'passes'}, {row['seconds']} s", "make wheel-check")]


def _counted(row: Row) -> str:
    skipped = f", {row['skipped']} skipped" if row["skipped"] else ""
    return f"{row['passed']:,} pass, {row['failed'] or 'none'} fail{'s' if row['failed'] < 2 else ''}{skipped}"


def _of_soak(heads: list[Row], rows: list[Row]) -> list[Line]:
    last = {row["seed"]: row for row in rows}
    failing = sum("failures" in row for row in last.values())
    asked = heads[0]["examples"]
    figure = f"{len(last):,} of {asked:,} tried, {failing or 'none'} with a property that does not hold"
    return [("random networks, eight properties of each", figure, "python benchmarks/soak.py FILE")]


def _of_hostile(found: Row) -> list[Line]:
    kinds = [row for row in found["rows"] if "kind" in row]
    cases, refused, failed = (sum(row[name] for row in kinds) for name in ("cases", "refused", "failed"))
    figure = f"{cases:,} tried, {refused:,} refused with a message, {failed or 'none'} ended neither so nor read"
    return [("damaged and forged files", figure, found["command"])]


def _of_kills(found: Row) -> list[Line]:
    rows = found["rows"]
    kills, torn = sum(row["kills"] for row in rows), sum(len(row["torn_files"]) for row in rows)
    other = sum(len(row["differences_in_the_end"]) for row in rows)
    names = ", ".join(row["command"] for row in rows)
    figure = f"{kills} kills, {torn or 'no'} torn file, {other or 'no'} difference from an undisturbed run"
    return [(f"`kill -9` at random moments of {names}", figure, found["command"])]


def _of_long_use(found: Row) -> list[Line]:
    row = found["rows"][0]
    figure = (
        f"{row['mib_a_round']:.2f} MiB, {row['files_a_round']:g} open files, {row['threads_a_round']:g} threads"
    )
    what = f"{row['rounds']} rounds of prune, train, save, load, export, report in one process"
    return [(what, f"growth a round, over the second half: {figure}", found["command"])]


OF: dict[str, Callable[[Row], list[Line]]] = {
    "hostile.py": _of_hostile,
    "kills.py": _of_kills,
    "long_use.py": _of_long_use,
    "robustness.py tests": _of_tests,
    "robustness.py suite": _of_suite,
    "robustness.py wheel": _of_wheel,
}


def table(files: Sequence[Path]) -> str:
    """Markdown: a line of each record that is known."""
    by_kind: dict[str, list[Line]] = {}
    shards: list[list[Row]] = []
    for file in files:
        if file.suffix == ".jsonl":  # of these only the soak is of interest
            head, *rows = record.read_lines(file)
            if "soak.py" in head.get("command", ""):
                shards.append([head, *rows])
            continue
        found: dict[str, Any] = json.loads(file.read_text())
        kind = next((kind for kind in OF if kind in found.get("command", "")), None)
        if kind:
            by_kind[kind] = OF[kind](found)
    if shards:
        by_kind["soak.py"] = _of_soak([rows[0] for rows in shards], [row for rows in shards for row in rows[1:]])
    lines = [line for kind in ("soak.py", *OF) for line in by_kind.get(kind, [])]
    return "\n".join(
        ["| what | figure | again with |", "|---|---|---|"] + [f"| {a} | {b} | `{c}` |" for a, b, c in lines]
    )


def main() -> None:
    """Parse the command line; run tests, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("tests", "suite", "wheel"):
        commands.add_parser(name).add_argument("--json", type=Path, help="write the figures here")
    of_table = commands.add_parser("table")
    of_table.add_argument("records", type=Path, nargs="+")
    of_table.add_argument("--readme", type=Path, help="put it between the marks of this file")
    options = parser.parse_args()
    if options.what == "table":
        _show(table(options.records), options.readme)
        return
    if options.what == "tests":
        rows = [{"file": name, **run(f"tests/{name}")} for name in TESTS]
    elif options.what == "suite":
        rows = [run("-n", "2")]
    else:
        start = time.monotonic()
        code = subprocess.run(["make", "wheel-check"], cwd=ROOT, check=False).returncode
        rows = [{"failed": code, "seconds": round(time.monotonic() - start)}]
    record.write(options.json, rows, *PACKAGES)
    sys.exit(any(row["failed"] for row in rows))


def _show(text: str, readme: Path | None) -> None:
    print(text)
    if readme:
        before, _, rest = readme.read_text(encoding="utf-8").partition(MARKS[0])
        readme.write_text(
            before + MARKS[0] + text + "\n" + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8"
        )


if __name__ == "__main__":
    main()
