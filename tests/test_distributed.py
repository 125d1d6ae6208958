from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import pruned_case
from prune_in_processes import masks
from test_topology import METHODS

SCRIPT = Path(__file__).with_name("prune_in_processes.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, SCRIPT, out], check=True, capture_output=True, env=environment, timeout=600)
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


def test_all_processes_get_the_same_masks_every_time(results: list[dict[str, Any]]) -> None:
    first, second = results
    for name, mask in first["grasp"].items():
        assert all(torch.equal(other[name], mask) for other in (first["again"], second["grasp"], second["again"]))


@pytest.mark.parametrize("criterion", ["grasp", "snip"])
def test_sharing_the_batches_keeps_what_one_process_keeps(criterion: str, results: list[dict[str, Any]]) -> None:
    alone, together = masks(criterion), results[0][criterion]
    kept = sum(int(mask.sum()) for mask in alone.values())
    common = sum(int((alone[name] & mask).sum()) for name, mask in together.items())
    assert common / kept >= 0.9999


def test_processes_with_different_models_are_told(results: list[dict[str, Any]]) -> None:
    assert all("the processes hold different weights" in result["different"] for result in results)


@pytest.mark.parametrize("method", METHODS)
def test_masks_move_alike_in_all_processes(method: str, results: list[dict[str, Any]]) -> None:
    first, second = (result["trained"][method] for result in results)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    start = pruned_case("mlp").masks
    assert any(not torch.equal(first[f"{name}_mask"], mask) for name, mask in start.items())
    assert sum(int(first[f"{name}_mask"].sum()) for name in start) == start.kept
