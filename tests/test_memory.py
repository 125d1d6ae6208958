"""What there is of memory, by whoever limits it, and scoring where there is little."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fxprune import memory

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")

SCORE = """
import resource, torch, fxprune
from fxprune import memory
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
convs = [layer for _ in range(3) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
net = nn.Sequential(nn.Conv2d(3, 32, 1), *convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
data = [(torch.randn(20, 3, 48, 48), torch.arange(20) % 10) for _ in range(4)]
captured = fxprune.capture(net, (data[0][0],))
roomy = fxprune.prune(captured, data=data, sparsity=0.9)

def limited(mebibytes, data):
    memory.release()
    resource.setrlimit(resource.RLIMIT_AS, (memory._pages(0) + mebibytes * 2**20, resource.RLIM_INFINITY))
    return fxprune.prune(captured, data=data, sparsity=0.9)

tight = limited(250, data)
assert all(torch.equal(tight.masks[name], mask) for name, mask in roomy.masks.items())
try:
    limited(20, [(torch.randn(400, 3, 48, 48), torch.arange(400) % 10)])
except fxprune.FxpruneError as error:
    print(type(error).__name__, error)
"""


@LINUX
def test_a_limit_on_addresses_is_a_limit_on_what_is_free() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    unlimited = memory.free(CPU)
    resource.setrlimit(resource.RLIMIT_AS, (memory._pages(0) + 2**28, before[1]))
    try:
        assert 0 < memory.free(CPU) <= 2**28 < unlimited
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


GROUPS = {
    "version 2": ("0::/a/b", "a/memory.max", "a/memory.current", "a/memory.stat", "inactive_file"),
    "version 1": (
        "5:devices:/\n4:cpu,memory:/a/b",
        *(f"memory/a/memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat")),
        "total_inactive_file",
    ),
    "seen from a container": ("0::/host/path", "memory.max", "memory.current", "memory.stat", "inactive_file"),
}


@pytest.mark.parametrize("case", GROUPS)
def test_a_control_group_is_a_limit(tmp_path: Path, case: str) -> None:
    memberships, limit, usage, stat, cached = GROUPS[case]
    for name, text in ((limit, "1000\n"), (usage, "700\n"), (stat, f"anon 600\n{cached} 50\n")):
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    own = tmp_path / "cgroup"
    own.write_text(memberships + "\n")
    assert list(memory._left_in_groups(tmp_path / "groups", own)) == [350]
    (tmp_path / "groups" / limit).write_text("max\n")
    assert list(memory._left_in_groups(tmp_path / "groups", own)) == []


@LINUX
def test_scoring_fits_into_the_memory_that_there_is_or_says_that_it_does_not() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCORE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ScoreError scoring: memory ran out")
    assert "--memory 0" in done.stdout


def test_other_errors_are_none_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory.scoring_within():
        raise RuntimeError("shapes do not fit")
