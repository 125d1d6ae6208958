"""A part of `benchmarks/hostile.py`, and that it sees what it looks for."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import hostile
import pytest
from hostile_damage import DAMAGES
from hostile_files import Target

from fxprune.errors import CheckpointError

FIRST, COUNT = 1_000_000, 200  # other cases than those of the record


def test_damaged_and_forged_files_are_refused() -> None:
    found = [*hostile.attempts(FIRST, COUNT, list(hostile.KINDS))]
    assert [case for case in found if case["outcome"] == "failed"] == []
    assert [case["case"] for case in found] == [*range(FIRST, FIRST + COUNT)]
    rows = {row["kind"]: row for row in hostile.summary(found)}
    assert set(rows) == set(hostile.KINDS)
    assert all(row["refused"] >= row["cases"] // 4 for row in rows.values()), rows


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = tmp_path_factory.mktemp("hostile") / "inside"
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        return Target(folder)
    finally:
        os.chdir(before)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (CheckpointError("expected a checkpoint, got none"), "refused"),
        (CheckpointError(""), "failed"),  # without a message
        (ValueError("expected a checkpoint, got none"), "failed"),
        (MemoryError(), "failed"),
        (None, "accepted"),
    ],
)
def test_what_counts_as_refused(target: Target, error: Exception | None, outcome: str) -> None:
    choose, _ = target.readers["manifest"]

    def read(path: Path) -> None:
        if error is not None:
            raise error

    target.readers["manifest"] = (choose, read)
    assert target.try_case(1, ["manifest"])["outcome"] == outcome
    assert all(path.read_bytes() == content for path, content in target.whole.items())  # for the next case


def test_code_that_runs_is_seen(target: Target) -> None:
    choose, _ = target.readers["recipe"]
    target.readers["recipe"] = (choose, lambda _: exec((target.folder / "evil.py").read_text()))
    found = target.try_case(1, ["recipe"])
    assert (found["outcome"], found["said"]) == ("failed", "the canary's code ran")
    assert not (target.folder / "ran").exists()


def test_what_lies_beside_the_folder_is_watched(tmp_path: Path) -> None:
    looked: list[str] = []
    hook = hostile._watch(tmp_path, looked)
    hook("open", (str(tmp_path / "inside" / "file"), "r", 0))
    hook("open", ("/usr/lib/file", "r", 0))
    assert looked == []
    hook("open", (str(tmp_path / "inside" / ".." / "secret.bin"), "r", 0))
    hook("subprocess.Popen", ("sh", [], None, None))
    assert looked == [str(tmp_path / "secret.bin"), "subprocess.Popen sh"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os; print('{\"begin\": 3}', flush=True); os.abort()", "the process died: SIGABRT"),
        ("print('{\"begin\": 3}'); raise SystemExit(9)", "the process died: 9"),
        ("print('{\"begin\": 3}')", "the process died: 0"),  # in the middle of a case
        ("import time; print('{\"begin\": 3}', flush=True); time.sleep(60)", "more than 1 seconds"),
    ],
)
def test_a_process_that_dies_or_hangs_is_seen(monkeypatch: pytest.MonkeyPatch, code: str, says: str) -> None:
    monkeypatch.setattr(hostile, "SECONDS", 1)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert [*hostile._lines(process)] == [{"begin": 3}, {"failed": says}]


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_damage_does_damage(target: Target, kind: str) -> None:
    """Nearly always; the same number does the same."""
    choose, _ = target.readers[kind]
    path = choose(random.Random(0))
    for name, damage in DAMAGES[kind].items():
        made = [damage(random.Random(number), target.whole[path]) for number in range(8)]
        assert made == [damage(random.Random(number), target.whole[path]) for number in range(8)]
        assert sum(content != target.whole[path] for content in made) >= 4, name
