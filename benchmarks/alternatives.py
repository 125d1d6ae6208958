"""Ways to a GraSP score that fxprune does not take, each measured against the one that it takes.

    python benchmarks/alternatives.py                                  # all, on the small cases of scoring.py
    python benchmarks/alternatives.py --case resnet32 --json alternatives.json

- `compiled`: forward pass, gradient and product in one graph (make_fx), compiled by inductor. The time of the
  first call, most of it compilation, is listed apart.
- `packed`: saved-tensor hooks keep what the backward passes wait for in bfloat16, half of its size.
- `bf16`: weights, activations and gradients in bfloat16.

Each runs in a fresh process, in turn with fxprune's own way, on the images of `scoring.py`. Overlap is the share
of what fxprune keeps at 90% that the alternative keeps as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import record
import torch
from scoring import CASES, captured, memory_peak, reset_peak
from torch import Tensor
from torch.nn import functional as F

from fxprune import Masks, cut
from fxprune.curvature import differentiate
from fxprune.loss import classification
from fxprune.memory import kept_by_the_allocator
from fxprune.saliency import Saliency
from fxprune.scoring import Scoring, differentiating, prepare
from fxprune.zoo import ModelSpec, build

BASELINE = "fxprune"
SIDES = (BASELINE, "compiled", "packed", "bf16")
SMALL = ("resnet32", "vit_small")
TEMPERATURE = 200.0


@differentiating()
def product(scoring: Scoring, operands: list[Tensor], images: Tensor, targets: Tensor) -> list[Tensor]:
    """The Hessian of a batch's loss times its gradient, by differentiating twice."""
    state = dict(zip(scoring.leaves.values(), operands, strict=True))
    logits = torch.func.functional_call(scoring.model, state, (images,))
    loss = F.cross_entropy(logits / TEMPERATURE, targets)  # ours looks at the targets, which no trace can
    gradient = differentiate(loss, operands, create_graph=True)
    return list(torch.autograd.grad(gradient, operands, [g.detach() for g in gradient]))


def compiled(scoring: Scoring, images: Tensor, targets: Tensor) -> Any:
    """`product` as one compiled function of the batch."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def joint(operands: list[Tensor], images: Tensor, targets: Tensor) -> list[Tensor]:
        return product(scoring, operands, images, targets)

    plain = [operand.detach() for operand in scoring.operands.values()]  # all derivatives are in the graph
    function = torch.compile(make_fx(joint)(list(scoring.operands.values()), images, targets))
    return torch.no_grad()(lambda images, targets: function(plain, images, targets))


@contextmanager
def packed() -> Iterator[None]:
    """Keep saved tensors in bfloat16, parameters excepted: these are kept anyway."""

    def pack(tensor: Tensor) -> Tensor:
        large = (
            tensor.dtype is torch.float32 and tensor.numel() > 4096 and not isinstance(tensor, torch.nn.Parameter)
        )
        return tensor.to(torch.bfloat16) if large else tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype is torch.bfloat16 else tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def measure(name: str, side: str, masks_file: Path) -> dict[str, float]:
    """One measurement, in this process; the masks at 90% go to a file."""
    case = CASES[name]
    torch.manual_seed(0)
    shape = (3, case["size"], case["size"])
    model, _ = build(ModelSpec(case["model"], shape, case["classes"]))
    images = torch.randn(case["images"], *shape)
    targets = torch.arange(case["images"]) % case["classes"]
    if side == "bf16":
        model, images = model.bfloat16(), images.bfloat16()
    scoring = prepare(*captured(model, tuple(images.shape[1:]), images.dtype), None, classification(), live=False)
    operands = list(scoring.operands.values())
    result: dict[str, float] = {}
    before = reset_peak()
    with kept_by_the_allocator():
        run = lambda: product(scoring, operands, images, targets)  # noqa: E731
        if side == "compiled":
            start = time.perf_counter()
            function = compiled(scoring, images, targets)
            function(images, targets)
            result["first_seconds"] = time.perf_counter() - start
            run = lambda: function(images, targets)  # noqa: E731
        start = time.perf_counter()
        if side == "packed":
            with packed():
                products = run()
        else:
            products = run()
        result["seconds"] = time.perf_counter() - start
        result["peak_mb"] = (memory_peak() - before) / 2**20
    saliency = Saliency(
        {n: (w.detach() * h).float() for (n, w), h in zip(scoring.operands.items(), products, strict=True)}
    )
    torch.save(dict(cut(saliency, 0.9)), masks_file)
    return result


def compare(name: str, repeats: int, sides: tuple[str, ...]) -> dict[str, Any]:
    """Medians of each side over fresh processes that take turns, and the overlap of its masks."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder) / f"{side}.pt" for side in sides}
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}  # what was compiled before does not count
        for _ in range(repeats):
            for side in sides:
                command = [sys.executable, __file__, "--one", name, side, str(files[side])]
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                if done.returncode:
                    reason = (done.stderr.strip() or "killed").splitlines()[-1]
                    runs[side].append({"failed": f"{done.returncode}: {reason[:200]}"})  # type: ignore[dict-item]
                else:
                    runs[side].append(json.loads(done.stdout.splitlines()[-1]))
        masks = {side: Masks(torch.load(file)) for side, file in files.items() if file.exists()}
    medians: dict[str, dict[str, Any]] = {}
    for side, found in runs.items():
        if "failed" in found[0]:
            medians[side] = dict(found[0])
            continue
        medians[side] = {key: statistics.median(run[key] for run in found) for key in found[0]}
        both = sum(int((masks[side][n] & masks[BASELINE][n]).sum()) for n in masks[BASELINE])
        medians[side]["overlap"] = both / masks[BASELINE].kept
    return {"case": name, "repeats": repeats, "medians": medians}


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="default: the small ones")
    parser.add_argument("--side", choices=SIDES[1:], action="append", help="default: all")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "SIDE", "MASKS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, side, file = options.one
        print(json.dumps(measure(name, side, Path(file))))
        return
    sides = (BASELINE, *(options.side or SIDES[1:]))
    rows = [compare(name, options.repeats, sides) for name in options.case or SMALL]
    print("| case | way | time | memory | first call | overlap at 90% |\n|---|---|---|---|---|---|")
    for row in rows:
        base = row["medians"][BASELINE]
        for side, found in row["medians"].items():
            if "failed" in found:
                print(f"| {row['case']} | {side} | failed: {found['failed']} | | | |")
                continue
            time_, memory = (f"{found[key] / base[key]:.2f}" for key in ("seconds", "peak_mb"))
            first = f"{found['first_seconds'] / base['seconds']:.0f}" if "first_seconds" in found else ""
            print(f"| {row['case']} | {side} | {time_} | {memory} | {first} | {found['overlap']:.2%} |")
    record.write(options.json, rows, "timm")


if __name__ == "__main__":
    main()
