"""Time and memory of GraSP's score, as ratios to a plain implementation of the paper's algorithm.

    python benchmarks/scoring.py                     # all cases; each side in fresh processes, in turn
    python benchmarks/scoring.py --case resnet32 --repeats 3 --json results.json

The baseline is what research code does: one pass over the chunks sums the gradient with
`torch.autograd.grad`, a second one builds the graph of each chunk's gradient and back-propagates its inner
product with the sum; eager model, default allocator. Both sides see the same images, chunks, initialisation
and number of threads. Memory is the peak of the resident set above its size once model and images are there
(for fxprune: once the model is captured, which is done once for each model and is listed apart).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import record

ROOT = Path(__file__).parent.parent

CASES: dict[str, dict[str, Any]] = {
    "resnet50": {"model": "timm:resnet50", "size": 224, "images": 40, "chunk": 20, "classes": 100},
    "resnet32": {
        "model": str(ROOT / "model_zoo/networks/resnet.py:resnet32"),
        "size": 32,
        "images": 100,
        "chunk": 100,
        "classes": 10,
    },
    "vit_small": {"model": "timm:vit_small_patch16_224", "size": 224, "images": 16, "chunk": 16, "classes": 10},
}
SIDES = ("plain", "fast", "lean")


def measure(case: dict[str, Any], side: str) -> dict[str, float]:
    """One measurement, in this process."""
    import torch

    from fxprune.zoo import ModelSpec, build

    torch.manual_seed(0)
    shape = (3, case["size"], case["size"])
    model, _ = build(ModelSpec(case["model"], shape, case["classes"]))
    images = torch.randn(case["images"], *shape)
    targets = torch.arange(case["images"]) % case["classes"]
    batches = list(zip(images.split(case["chunk"]), targets.split(case["chunk"]), strict=True))
    result: dict[str, float] = {}
    start = time.perf_counter()
    prepared = None if side == "plain" else captured(model, shape)
    result["capture_s"] = time.perf_counter() - start
    before = reset_peak()
    start = time.perf_counter()
    scores = _plain(model, batches) if side == "plain" else _fxprune(prepared, batches, lean=side == "lean")
    result["seconds"] = time.perf_counter() - start
    result["peak_mb"] = (memory_peak() - before) / 2**20
    result["checksum"] = float(sum(score.double().abs().sum() for score in scores.values()))
    return result


def _plain(model: Any, batches: list[Any]) -> dict[str, Any]:
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model.train()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    weights = [layer.weight for layer in layers.values()]
    with sdpa_kernel(SDPBackend.MATH):
        total = None
        for images, targets in batches:
            gradient = torch.autograd.grad(F.cross_entropy(model(images) / 200, targets), weights)
            total = gradient if total is None else [a + b for a, b in zip(total, gradient, strict=True)]
        for images, targets in batches:
            loss = F.cross_entropy(model(images) / 200, targets)
            gradient = torch.autograd.grad(loss, weights, create_graph=True)
            sum((a * b).sum() for a, b in zip(gradient, total, strict=True)).backward()
    return {name: -layer.weight.data * layer.weight.grad for name, layer in layers.items()}


def captured(model: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """The captured model and its weights."""
    import torch

    from fxprune import capture, find_weights

    found = capture(model, (torch.zeros(2, *shape, dtype=dtype),))
    return found, find_weights(found)


def _fxprune(prepared: Any, batches: list[Any], *, lean: bool) -> Any:
    from dataclasses import replace

    from fxprune import criteria
    from fxprune.loss import classification
    from fxprune.memory import kept_by_the_allocator
    from fxprune.scoring import prepare

    # the same values as the baseline's: the live point would change them
    scoring = prepare(*prepared, batches, classification(), live=False)
    if lean:
        scoring = replace(scoring, memory=0)
    with kept_by_the_allocator():
        return criteria.get("grasp").score(scoring)


def reset_peak() -> int:
    """Forget the peak of the resident set; returns its present size."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def memory_peak() -> int:
    """The peak of the resident set, in bytes."""
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def compare(name: str, repeats: int) -> dict[str, Any]:
    """Medians of each side over fresh processes that take turns, and ratios to the plain side."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            command = [sys.executable, __file__, "--one", name, side]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[side].append(json.loads(printed.splitlines()[-1]))
    medians = {
        side: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for side, found in runs.items()
    }
    row: dict[str, Any] = {"case": name, "repeats": repeats, "medians": medians}
    for side in ("fast", "lean"):
        for key in ("seconds", "peak_mb"):
            row[f"{side}_{key}_ratio"] = medians[side][key] / medians["plain"][key]
    return row


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, side = options.one
        print(json.dumps(measure(CASES[name], side)))
        return
    rows = [compare(name, options.repeats) for name in options.case or CASES]
    print("| case | fast: time | fast: memory | lean: time | lean: memory | plain |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        plain = row["medians"]["plain"]
        ratios = [row[f"{s}_{k}_ratio"] for s in ("fast", "lean") for k in ("seconds", "peak_mb")]
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {row['case']} | {cells} | {plain['seconds']:.1f} s, {plain['peak_mb']:.0f} MB |")
    record.write(options.json, rows, "timm")


if __name__ == "__main__":
    main()
