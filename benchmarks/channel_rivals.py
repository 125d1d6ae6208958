"""Which architectures can lose half of their multiply-adds, and how fast are they then? fxprune and Torch-Pruning.

    pip install -e '.[rivals]'
    python benchmarks/channel_rivals.py channel_rivals.jsonl              # goes on where it stopped
    python benchmarks/channel_rivals.py --table channel_rivals.jsonl      # the figures as a table

The list is that of `make compat-sample`: the smallest model of each module of timm and of torchvision. Each side
is a process of its own with a limit of time, weights are random and ranked by magnitude, widths multiples of 8.

Torch-Pruning is used as its README says: `BasePruner` with `GroupMagnitudeImportance(p=2)` over all layers but the
classifier, `round_to=8`; beyond the README, attention modules that name their heads (`num_heads`, `qkv`) are told
so, as its examples for timm do. It takes a ratio of channels and no budget, so that the ratio is searched by
bisection for the share of multiply-adds that fxprune's cut has left, or for a half where that failed.

A side *passes* if the model that is left runs, gives outputs of the same shapes, has a share of the multiply-adds
within 5 points of the one asked for, all counted by torch's FLOP counter, and exports to an ONNX file that ONNX
Runtime runs to what PyTorch gives. fxprune in addition proves its cut, and refuses where it cannot. Where both
pass, both files are timed in turn on one sample, and medians are told.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import record
import torch
from latency import in_turn
from record import Row
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from fxprune.compat.stages import difference
from fxprune.examples import Example, example
from fxprune.zoo import ModelSpec, build

SAMPLE = Path(__file__).parent.parent / "model_zoo/compat/sample.txt"
SIDES = ("fxprune", "torch-pruning")
SHARE, WITHIN = 0.5, 0.05
ROUND_TO = 8
STEPS = 8  # of the bisection: a ratio to 0.4%
SECONDS = 600
RUNS = 15
TOLERANCE = 1e-4


def subject(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A model with random weights and the shape of its samples."""
    torch.manual_seed(0)
    module, shape = build(ModelSpec(name))
    return module.eval(), shape


def flops(module: nn.Module, inputs: Example) -> int:
    """Of one forward pass in evaluation."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(*inputs.args, **inputs.kwargs)
    return int(counter.get_total_flops())


def by_fxprune(name: str, file: Path, _: float) -> Row:
    """Cut, prove, export and verify; the share that is left."""
    from fxprune import capture, export_onnx, prune_channels

    module, shape = subject(name)
    inputs = example(module, shape, batch=2, seed=0)
    captured = capture(module, inputs.args, inputs.kwargs)
    options: dict[str, Any] = {"criterion": "magnitude", "live": False, "round_to": ROUND_TO}
    thin = prune_channels(captured, budget=f"macs={SHARE}", **options).eval()
    share = flops(thin, inputs) / flops(subject(name)[0], inputs)
    export_onnx(thin, file, encoding="dense")
    return {"share": share, "passed": abs(share - SHARE) <= WITHIN}


def by_torch_pruning(name: str, file: Path, share: float) -> Row:
    """Search the ratio of channels, export; the share that is left."""
    module, shape = subject(name)
    inputs = example(module, shape, batch=1, seed=0)
    whole = flops(module, inputs)
    low, high, best = 0.0, 1.0, (float("inf"), module)
    for _ in range(STEPS):
        ratio = (low + high) / 2
        thin = _cut(module, inputs, ratio)
        left = flops(thin, inputs) / whole
        best = min(best, (abs(left - share), thin), key=lambda found: found[0])
        low, high = (ratio, high) if left > share else (low, ratio)
    thin = best[1]
    shapes = [
        [leaf.shape for leaf in pytree.tree_leaves(model(*inputs.args, **inputs.kwargs))]
        for model in (module, thin)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs were of {shapes[0]}, and are of {shapes[1]}")
    torch.onnx.export(thin, inputs.args, file, kwargs=inputs.kwargs, dynamo=True, verbose=False)
    _runs(thin, inputs, file)
    return {"share": flops(thin, inputs) / whole, "passed": best[0] <= WITHIN}


def _cut(module: nn.Module, inputs: Example, ratio: float) -> nn.Module:
    import torch_pruning as tp

    thin = copy.deepcopy(module)
    classifier = thin.get_classifier() if hasattr(thin, "get_classifier") else None
    last = [m for m in thin.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    heads = {
        m.qkv: m.num_heads for m in thin.modules() if isinstance(getattr(m, "num_heads", None), int) and _qkv(m)
    }
    pruner = tp.pruner.BasePruner(
        thin,
        inputs.kwargs or inputs.args,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[*last, *([classifier] if isinstance(classifier, nn.Module) else [])],
        num_heads=heads,
        round_to=ROUND_TO,
    )
    pruner.step()
    return thin.eval()


def _qkv(module: nn.Module) -> bool:
    return isinstance(getattr(module, "qkv", None), (nn.Linear, nn.Conv2d))


def _runs(module: nn.Module, inputs: Example, file: Path) -> None:
    """Raise unless ONNX Runtime gives what the module gives."""
    with torch.no_grad():
        expected = pytree.tree_leaves(module(*inputs.args, **inputs.kwargs))
    found = [torch.from_numpy(output) for output in _session(file).run(None, _feed(file, inputs))]
    off = difference([leaf.contiguous() for leaf in expected], found)
    if off > TOLERANCE:
        raise ValueError(f"ONNX Runtime differs from PyTorch by {off:.1e}")


def _session(file: Path) -> Any:
    from fxprune.onnx.read import open_session

    return open_session(file, threads=1)


def _feed(file: Path, inputs: Example) -> dict[str, Any]:
    leaves = [leaf for leaf in pytree.tree_leaves((inputs.args, inputs.kwargs)) if isinstance(leaf, torch.Tensor)]
    names = [entry.name for entry in _session(file).get_inputs()]
    return {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)}


def guarded(side: str, name: str, file: Path, share: float) -> Row:
    """What a side makes of a model, in a process that may be killed."""
    start = time.monotonic()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(theirs, side, name, file, share))
    child.start()
    theirs.close()
    found: Row = {"passed": False, "reason": "killed"}
    with contextlib.suppress(EOFError):
        found = ours.recv() if ours.poll(SECONDS) else {"passed": False, "reason": f"more than {SECONDS} s"}
    child.kill()
    child.join()
    return found | {"seconds": round(time.monotonic() - start, 1)}


def _child(out: Connection, side: str, name: str, file: Path, share: float) -> None:
    warnings.simplefilter("ignore")
    work: Callable[[str, Path, float], Row] = by_fxprune if side == "fxprune" else by_torch_pruning
    try:
        found = work(name, file, share)
        if not found["passed"]:
            found["reason"] = f"{found['share']:.1%} of the multiply-adds are left"
        out.send(found)
    except Exception as error:  # whatever it is, the row says so
        reason = next((line for line in str(error).splitlines() if line.strip()), "")[:200]
        out.send({"passed": False, "reason": f"{type(error).__name__}: {reason}"})


def measure(name: str) -> Row:
    """The row of one model: what both sides came to, and if both pass what ratio of times."""
    row: Row = {"model": name}
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder) / f"{side}.onnx" for side in SIDES}
        share = SHARE
        for side in SIDES:
            row[side] = guarded(side, name, files[side], share)
            share = row[side].get("share", SHARE)
        if all(row[side]["passed"] for side in SIDES):
            row |= _timed(files, name)
    return row


def _timed(files: dict[str, Path], name: str) -> Row:
    module, shape = subject(name)
    inputs = example(module, shape, batch=1, seed=0)
    calls = []
    for file in files.values():
        session, feed = _session(file), _feed(file, inputs)
        calls.append(lambda session=session, feed=feed: session.run(None, feed))
    ours, theirs = in_turn(calls, RUNS)
    return {"latency": ours / theirs, "latency_ms": [1000 * ours, 1000 * theirs]}


def table(rows: Sequence[Row], count: int) -> str:
    """Markdown: pass rates, times where both pass, and what stopped each side."""
    lines = [f"{len(rows)} of {count} models tried.", "", "| | passed | of |", "|---|---|---|"]
    for side in SIDES:
        passed = sum(row[side]["passed"] for row in rows)
        lines.append(f"| {side} | {passed} ({passed / len(rows):.0%}) | {len(rows)} |")
    times = sorted(row["latency"] for row in rows if "latency" in row)
    if times:
        slower = sum(time_ > 1.05 for time_ in times)
        lines += [
            "",
            f"Both pass {len(times)}. fxprune's time over Torch-Pruning's in ONNX Runtime, at the same share of "
            f"multiply-adds: median {statistics.median(times):.2f}, from {times[0]:.2f} to {times[-1]:.2f}; above "
            f"1.05 in {slower}.",
        ]
    lines += ["", "| model | fxprune | torch-pruning | ratio of times |", "|---|---|---|---|"]
    for row in rows:
        cells = [_cell(row[side]) for side in SIDES]
        lines.append(f"| {row['model']} | {' | '.join(cells)} | {row.get('latency', float('nan')):.2f} |")
    return "\n".join(lines).replace("| nan |", "| |")


def _cell(found: Row) -> str:
    return f"{found['share']:.1%}" if found["passed"] else found["reason"].replace("|", "\\|")


def main() -> None:
    """Parse the command line, measure or print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines: versions, then a row a model")
    parser.add_argument("--table", action="store_true", help="print the table of the file")
    parser.add_argument("--model", nargs="+", help="these models; the sample by default")
    options = parser.parse_args()
    wanted = options.model or [line for line in SAMPLE.read_text().split() if line]
    if not options.table:
        if not options.file.exists():
            record.append_line(
                options.file, record.circumstances("timm", "torchvision", "onnxruntime", "torch_pruning")
            )
        done = {row["model"] for row in record.read_lines(options.file)[1:]}
        for name in wanted:
            if name not in done:
                row = measure(name)
                record.append_line(options.file, row)
                print(row, flush=True)
    print(table(record.read_lines(options.file)[1:], len(wanted)))


if __name__ == "__main__":
    main()
