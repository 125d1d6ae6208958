"""A part of `benchmarks/kills.py`, that it sees what it looks for, and how Ctrl-C is answered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import kills
import psutil
import pytest
import torch
from safetensors.torch import save_file
from test_cli import NET

from fxprune.checkpoint import read_manifest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_kills_leave_whole_files_and_the_same_end(tmp_path: Path) -> None:
    record = tmp_path / "kills.json"
    command = [sys.executable, ROOT / "benchmarks" / "kills.py", "--kills", "3", "--json", record]
    for name in ("train", "export"):
        command += ["--command", name]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(record.read_text())["rows"]
    assert [(row["command"], row["kills"]) for row in rows] == [("train", 3), ("export", 3)]
    for row in rows:
        assert row["torn_files"] == []
        assert row["differences_in_the_end"] == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as commands leave them."""
    place = tmp_path / "place"
    (place / "out").mkdir(parents=True)
    save_file({"x": torch.zeros(3)}, tmp_path / "tensors")
    digest = kills.hashlib.sha256((tmp_path / "tensors").read_bytes()).hexdigest()
    (place / "out" / f"weights-{digest[:12]}.safetensors").write_bytes((tmp_path / "tensors").read_bytes())
    (place / "out" / "rows.jsonl").write_text('{"a": 1, "at": "now"}\n{"a": 2, "at": "then"}\n')
    (place / "out" / "results.json").write_text('{"accuracy": 0.5, "seconds": 3.0}')
    (place / "log.csv").write_text("a,b,c,d,e\n1,2,3,4,5\n")
    (place / "page.md").write_text("# Title\n")
    return place


def test_whole_files_are_whole(folder: Path) -> None:
    (folder / ".page.md.abcdefgh.md").write_text("half of it, under no final name")
    assert [*kills.broken(folder)] == []


@pytest.mark.parametrize("name", ["rows.jsonl", "results.json", "log.csv", "page.md", "weights*"])
def test_a_torn_file_is_seen(folder: Path, name: str) -> None:
    (file,) = folder.rglob(name)
    file.write_bytes(file.read_bytes()[:-3])
    assert [found.partition(":")[0] for found in kills.broken(folder)] == [str(file.relative_to(folder))]


def test_another_end_is_seen(folder: Path, tmp_path: Path) -> None:
    whole = kills.shutil.copytree(folder, tmp_path / "whole")
    (folder / "out" / "rows.jsonl").write_text(
        '{"a": 2, "at": "today"}\n{"a": 1, "at": "once"}\n'
    )  # made in turns
    (folder / "out" / "results.json").write_text('{"accuracy": 0.5, "seconds": 4.0}')
    (folder / "log.csv").write_text("a,b,c,d,e\n1,2,3,4,6\n")
    assert [*kills.differences(whole, folder)] == []
    (folder / "out" / "rows.jsonl").write_text('{"a": 2, "at": "today"}\n')
    (folder / "out" / "results.json").write_text('{"accuracy": 0.6, "seconds": 3.0}')
    (folder / "page.md").unlink()
    (folder / ".page.md.abcdefgh.md").touch()  # leftovers have to be gone in the end
    assert [*kills.differences(whole, folder)] == [
        ".page.md.abcdefgh.md is only here",
        "page.md is only there",
        "out/results.json is another",
        """out/rows.jsonl is another: 1 rows, wanted 2; [], wanted ['{"a": 1}']""",
    ]


# --- Ctrl-C


def interrupted(command: Sequence[str | Path], ready: Path, place: Path) -> tuple[int, str, float]:
    """Interrupt a command when a file is there: its exit code, its last line, the seconds that it took to end."""
    command = [sys.executable, "-m", "fxprune", *command]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=place) as process:
        deadline = time.monotonic() + 120
        while not ready.exists() or not ready.stat().st_size:
            assert process.poll() is None, "it was over before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
        seconds = time.monotonic() - start
        assert process.stderr is not None
        return code, process.stderr.read().splitlines()[-1], seconds


CASES = {
    "train": (
        ["train", "out", "--model", "net.py:make_net", "--epochs", "1000", "--log", "log.csv"],
        "log.csv",
        "the same command goes on after the last whole epoch",
    ),
    "compat": (
        ["compat", "timm:test_*", "-o", "rows.jsonl"],
        "rows.jsonl",
        "the same command with --resume goes on where it was",
    ),
}


def test_a_process_whose_parent_was_interrupted_before_it_had_orders_says_nothing() -> None:
    code = (
        "import fxprune.compat.preload, sys; sys.excepthook(EOFError, EOFError('end'), None); raise ValueError(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "ValueError: 1" in done.stderr
    assert "EOFError" not in done.stderr


def test_nothing_of_compat_survives_its_parent(tmp_path: Path) -> None:
    """Killed while its server imports the libraries; that then forks the process which was asked for."""
    command = [sys.executable, "-m", "fxprune", "compat", "timm:test_*", "-o", str(tmp_path / "rows.jsonl")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    family: list[psutil.Process] = []
    while len(family) < 2:  # multiprocessing's tracker of resources, and the server
        assert process.poll() is None
        family = psutil.Process(process.pid).children()
        time.sleep(0.02)
    time.sleep(0.5)  # until it has asked
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(family, timeout=60)
    for each in left:
        each.kill()
    assert not left


@pytest.mark.parametrize("command", CASES)
def test_ctrl_c_ends_within_two_seconds_and_says_how_to_go_on(tmp_path: Path, command: str) -> None:
    from test_bad_use import example, prune

    import fxprune

    line, ready, says = CASES[command]
    (tmp_path / "net.py").write_text(NET)
    spec = fxprune.ModelSpec("net.py:make_net", (1, 8, 8))
    notes = {"data": "digits", "training": []}
    fxprune.save(prune(example()), tmp_path / "out", model=spec, input_shape=(1, 8, 8), notes=notes)
    took = []
    for _ in range(3):  # another process may be in the way once
        code, last, seconds = interrupted(line, tmp_path / ready, tmp_path)
        assert code == 130
        assert command == "compat" or read_manifest(tmp_path / "out").notes["training"]  # an epoch at least
        assert last == f"interrupted; what was saved before is whole; {says}"
        took.append(seconds)
        if seconds < 2:
            return
        (tmp_path / ready).unlink()
    pytest.fail(f"it took {took} s to end")
