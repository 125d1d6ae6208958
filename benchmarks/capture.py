"""What capture costs: both modes of a model, over two bare calls of `torch.export.export`.

    python benchmarks/capture.py                                  # six networks, a Markdown table
    python benchmarks/capture.py --model timm:resnet50 --json capture.json

Both sides get the same module with random weights, two samples, and a batch size that may change; both run in turn
in one process, each on a copy of its own, and medians are told. The baseline keeps what it exports: nothing is
rewritten, no state is shared between the modes, nothing is checked. Garbage is collected before each measurement.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import record
import torch
from record import Row
from torch import Tensor, nn

from fxprune import capture
from fxprune.zoo import ModelSpec, build

MODELS = (
    "timm:resnet50",
    "timm:vit_small_patch16_224",
    "timm:convnext_atto",
    "timm:mobilenetv2_100",
    "timm:swin_tiny_patch4_window7_224",
    "torchvision:densenet121",
)
BOUND = 1.5


def measure(name: str, repeats: int) -> Row:
    """Medians of seconds of both sides, and their ratio."""
    torch.manual_seed(0)
    module, shape = build(ModelSpec(name))
    images = torch.randn(2, *shape)
    sides: dict[str, Callable[[nn.Module, Tensor], object]] = {"capture": _captured, "bare": _bare}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for round_ in range(repeats + 1):  # the first imports and compiles what both need
        for side in sides if round_ % 2 else reversed(sides):
            own = copy.deepcopy(module)
            gc.collect()
            start = time.perf_counter()
            sides[side](own, images)
            seconds[side].append(time.perf_counter() - start)
    medians = {side: statistics.median(found[1:]) for side, found in seconds.items()}
    return {"model": name, "repeats": repeats, "seconds": medians, "ratio": medians["capture"] / medians["bare"]}


def _captured(module: nn.Module, images: Tensor) -> object:
    return capture(module, images)


def _bare(module: nn.Module, images: Tensor) -> object:
    batch = torch.export.Dim("batch", min=1)
    return [
        torch.export.export(module.train(mode), (images,), dynamic_shapes=({0: batch},)) for mode in (True, False)
    ]


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    print("| model | capture of both modes | ratio to two bare exports |\n|---|---|---|")
    for name in options.model:
        rows.append(measure(name, options.repeats))
        row = rows[-1]
        print(f"| {name} | {row['seconds']['capture']:.1f} s | {row['ratio']:.2f} ({BOUND}) |", flush=True)
    record.write(options.json, rows, "timm", "torchvision")


if __name__ == "__main__":
    main()
