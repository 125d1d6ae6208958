from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("prune_in_processes.py")


def run(processes: int, out: Path, criterion: str, seed_by_rank: str = "no") -> list[Any]:
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, str(SCRIPT), str(out), criterion, seed_by_rank],
        check=True,
        capture_output=True,
        env=environment,
        timeout=300,
    )
    return [torch.load(out / f"{rank}.pt") for rank in range(processes)]


@pytest.mark.parametrize("criterion", ["grasp", "snip"])
def test_processes_share_the_batches_and_end_with_the_same_masks(criterion: str, tmp_path: Path) -> None:
    (alone,) = run(1, tmp_path / "alone", criterion)
    first, second = run(2, tmp_path / "together", criterion)
    again, _ = run(2, tmp_path / "again", criterion)
    kept = sum(int(mask.sum()) for mask in alone.values())
    common = sum(int((alone[name] & mask).sum()) for name, mask in first.items())
    assert all(torch.equal(second[name], mask) and torch.equal(again[name], mask) for name, mask in first.items())
    assert common / kept >= 0.9999


def test_processes_with_different_models_are_told(tmp_path: Path) -> None:
    messages = run(2, tmp_path / "out", "grasp", seed_by_rank="yes")
    assert all("the processes hold different weights" in message for message in messages)
