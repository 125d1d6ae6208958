"""Many rounds in one process: do memory and open files level off?

    python benchmarks/long_use.py                       # 200 rounds
    python benchmarks/long_use.py --rounds 20

A round is what somebody does in a notebook all day: prune a small convolutional network with GraSP, train a step,
save, load, export, verify, report. What the process holds after each round is measured once Python's garbage is
collected and the C library has given back what it keeps for later; what counts is the slope of a line through the
second half.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record
import torch
from torch import nn

import fxprune
from fxprune import memory


def network() -> nn.Module:
    """A few layers of each kind."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(72, 10)),
    )


def one_round(folder: Path, seed: int) -> None:
    """Prune, train, save, load, export, verify, report."""
    torch.manual_seed(seed)
    images, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    pruned = fxprune.prune(network(), data=[(images, labels)], sparsity=0.8, seed=seed)
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    nn.functional.cross_entropy(pruned(images), labels).backward()
    optimizer.step()
    fxprune.save(pruned, folder / "net")
    again = fxprune.load(folder / "net", network(), (images,))
    fxprune.export_onnx(again, folder / "net.onnx")
    fxprune.report(again, folder / "net.onnx").to_json()


def held() -> dict[str, float]:
    """What this process holds now."""
    gc.collect()
    memory.release()
    return {
        "mib": memory.used(torch.device("cpu")) / 2**20,
        "files": len([*Path("/proc/self/fd").iterdir()]),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }


def slope(values: Sequence[float]) -> float:
    """Of a line through them, a round."""
    return statistics.linear_regression(range(len(values)), values).slope


def measure(rounds: int) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Figures of so many rounds: what the process held after some, slopes over the second half."""
    start, after = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(rounds):
            one_round(Path(folder), seed)
            after.append(held())
    second = after[rounds // 2 :]
    figures = {f"{name}_a_round": round(slope([each[name] for each in second]), 4) for name in after[0]}
    return {"rounds": rounds, "seconds": round(time.monotonic() - start, 1), **figures}, after


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    figures, after = measure(options.rounds)
    for place in sorted({0, 1, *range(9, options.rounds, max(1, options.rounds // 20)), options.rounds - 1}):
        print(f"round {place + 1:4}: " + ", ".join(f"{value:,.1f} {name}" for name, value in after[place].items()))
    print(json.dumps(figures, indent=1))
    rows = [{"round": place + 1, **{k: round(v, 1) for k, v in each.items()}} for place, each in enumerate(after)]
    record.write(options.json, [figures, *rows[:: max(1, options.rounds // 20)]], "onnx", "onnxruntime")


if __name__ == "__main__":
    main()
