"""What whole channels bring: time in ONNX Runtime and of a training step, at half of the multiply-adds.

    python benchmarks/latency.py                                        # four networks, a Markdown table
    python benchmarks/latency.py --case resnet50 --round-to 1 --json latency.json

Channels are ranked by the magnitude of their weights at the initialisation, which needs no images: what is timed
is what sizes do. Both files are ordinary dense ones, run in turn in one process on one image; a training step is
the forward pass, the backward pass and one of SGD with momentum, of the captured graphs before and after, in turn.
Medians are told.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import torch
from torch import nn
from training import step

from fxprune import PrunedModel, capture, export_onnx, prune_channels
from fxprune.onnx.outputs import named_inputs
from fxprune.onnx.read import open_session
from fxprune.zoo import ModelSpec, build

# model, bound on the latency, images a training step and the bound on its time
CASES: dict[str, tuple[str, float, int, float]] = {
    "resnet50": ("timm:resnet50", 0.60, 16, 0.65),
    "vit_small": ("timm:vit_small_patch16_224", 0.60, 0, 0.0),
    "convnext_atto": ("timm:convnext_atto", 0.70, 0, 0.0),
    "mobilenetv2_100": ("timm:mobilenetv2_100", 0.75, 0, 0.0),
}
BUDGET = 0.5
WARM_UP = 3


def measure(name: str, runs: int, round_to: int, threads: int) -> dict[str, Any]:
    """Shares that are left and ratios of times."""
    spec, bound, images, step_bound = CASES[name]
    torch.manual_seed(0)
    module, shape = build(ModelSpec(spec, None, 1000))
    captured = capture(module, torch.randn(2, *shape))
    options: dict[str, Any] = {"criterion": "magnitude", "live": False, "round_to": round_to}
    thin = prune_channels(captured, budget=f"macs={BUDGET}", **options)
    whole = PrunedModel.dense(captured)
    row = {
        "case": name,
        "macs": _macs(thin) / _macs(whole),
        "parameters": _count(thin) / _count(whole),
        "bound": bound,
        "runs": runs,
        **_latency(whole, thin, runs, threads),
    }
    if images:
        batch = torch.randn(images, *shape), torch.randint(1000, (images,))
        before, after = in_turn([_training(model, batch) for model in (whole, thin)], runs)
        row |= {"step": after / before, "step_bound": step_bound, "step_ms": [1000 * before, 1000 * after]}
    return row


def _latency(whole: PrunedModel, thin: PrunedModel, runs: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        calls = []
        for number, model in enumerate((whole, thin)):
            path = Path(folder) / f"{number}.onnx"
            export_onnx(model.eval(), path, encoding="dense")
            calls.append(_session(path, model, threads))
        before, after = in_turn(calls, runs)
    return {"latency": after / before, "latency_ms": [1000 * before, 1000 * after], "threads": threads}


def _session(path: Path, model: PrunedModel, threads: int) -> Callable[[], object]:
    session, inputs = open_session(path, threads=threads), named_inputs(model)
    return lambda: session.run(None, inputs)


def _training(model: PrunedModel, batch: tuple[torch.Tensor, torch.Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3, momentum=0.9)
    return lambda: step(model, optimizer, *batch)


def in_turn(calls: list[Callable[[], object]], runs: int) -> list[float]:
    """Medians of seconds; the order changes from round to round."""
    seconds: list[list[float]] = [[] for _ in calls]
    for round_ in range(WARM_UP + runs):
        places = range(len(calls))
        for place in places if round_ % 2 else reversed(places):
            start = time.perf_counter()
            calls[place]()
            seconds[place].append(time.perf_counter() - start)
    return [statistics.median(found[WARM_UP:]) for found in seconds]


def _macs(model: PrunedModel) -> int:
    return sum(weight.macs for weight in model.weights)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows = []
    print(
        "| case | MACs left | parameters left | latency (bound) | training step (bound) |\n|---|---|---|---|---|"
    )
    for name in options.case or CASES:
        row = measure(name, options.runs, options.round_to, options.threads)
        rows.append(row)
        training = f"{row['step']:.2f} ({row['step_bound']:.2f})" if "step" in row else ""
        print(
            f"| {name} | {row['macs']:.1%} | {row['parameters']:.1%} | {row['latency']:.2f} ({row['bound']:.2f}) "
            f"| {training} |",
            flush=True,
        )
    record.write(options.json, rows, "timm")


if __name__ == "__main__":
    main()
