"""What masks cost while training: the time of a step, as a ratio to the same network without them.

    python benchmarks/training.py                                  # ResNet-20 and ResNet-50
    python benchmarks/training.py --case resnet20 --json training.json

A step is the forward pass, the backward pass and one of SGD with momentum, at 90% sparsity. Three networks with
the same weights take turns, step by step, on the same images: the eager module as its author wrote it, the
captured graphs with masks, and the captured graphs without. The median of each is told.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import record
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import capture, prune
from fxprune.zoo import ModelSpec, build

NETWORKS = Path(__file__).parent.parent / "model_zoo/networks"
# model, shape of an image, images a step, classes
CASES: dict[str, tuple[str, tuple[int, int, int], int, int]] = {
    "resnet20": (f"{NETWORKS / 'resnet.py'}:resnet20", (3, 32, 32), 128, 10),
    "resnet50": ("timm:resnet50", (3, 224, 224), 16, 1000),
}
WARM_UP = 3


def measure(name: str, steps: int) -> dict[str, float]:
    """Medians of the seconds of a step."""
    spec, shape, batch, classes = CASES[name]
    sample = (torch.zeros(2, *shape),)

    def network() -> nn.Module:
        torch.manual_seed(0)
        return build(ModelSpec(spec, shape, classes))[0]

    networks: dict[str, nn.Module] = {
        "eager": network(),
        "captured": capture(network(), sample).host,
        "masked": prune(network(), sample, sparsity=0.9, criterion="random"),
    }
    images, labels = torch.randn(batch, *shape), torch.randint(classes, (batch,))
    optimizers = {
        side: torch.optim.SGD(network.train().parameters(), lr=1e-3, momentum=0.9)
        for side, network in networks.items()
    }
    seconds: dict[str, list[float]] = {side: [] for side in networks}
    for _ in range(WARM_UP + steps):
        for side, network in networks.items():
            start = time.perf_counter()
            step(network, optimizers[side], images, labels)
            seconds[side].append(time.perf_counter() - start)
    return {side: statistics.median(found[WARM_UP:]) for side, found in seconds.items()}


def step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """One step of training."""
    optimizer.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| case | masked | captured, no masks | eager |\n|---|---|---|---|")
    for name in options.case or CASES:
        found = measure(name, options.steps)
        ratios = {side: found[side] / found["eager"] for side in ("masked", "captured")}
        rows.append({"case": name, "steps": options.steps, "seconds": found, "ratios": ratios})
        print(f"| {name} | {ratios['masked']:.3f} | {ratios['captured']:.3f} | {found['eager'] * 1000:.0f} ms |")
    record.write(options.json, rows, "timm")


if __name__ == "__main__":
    main()
