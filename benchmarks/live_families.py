"""Which timm families does a score keep alive: plain, at the live point, with a floor, after a warm-up?

    python benchmarks/live_families.py benchmarks/results/live_families.jsonl           # goes on where it stopped
    python benchmarks/live_families.py --table benchmarks/results/live_families.jsonl   # the figures as a table

A family is a module of timm; its smallest model by parameters stands for it. GraSP is scored on a few images,
and its saliencies are cut by the functions that `fxprune.prune` uses. A network is alive when

- no weight is emptied: nothing of it is kept;
- no output is cut off from the input (`fxprune.analysis.connectivity`);
- no weight is silenced: of those that the loss reaches in the dense network, each still has a kept element with
  a gradient. This is the strict one: a floor above 0 leaves no weight empty by construction, but what it keeps
  may hang between dead neurons.

Outputs and gradients are those at the live point, for all alike: what the initialisation closes, training opens.
Each model has a process of its own with a limit on time and memory; one that exceeds it has a row that says so.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import record
import timm
import torch
from record import Row
from timm.models import _registry
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from warm_up import warm_up

from fxprune import capture, criteria, data, find_weights
from fxprune.analysis.connectivity import cut_off
from fxprune.curvature import gradient
from fxprune.errors import FxpruneError
from fxprune.loss import classification
from fxprune.masks import cut
from fxprune.memory import kept_by_the_allocator
from fxprune.pipeline import DEFAULT_FLOOR
from fxprune.regions import CapturedModel
from fxprune.saliency import Saliency
from fxprune.scoring import Scoring, prepare
from fxprune.weights import Weights
from fxprune.zoo import ModelSpec, build

SPARSITIES = (0.9, 0.98)
FLOORS = (0.0, 0.02, 0.05, 0.2)
LARGE = 1_000_000  # prunable weights above which 90% and three floors have to do
SIZES = (128, 112, 160, 192, 224)
CLASSES, IMAGES = 10, 4
SECONDS, BYTES = 900, 12 * 2**30

Say = Callable[[Row], None]


# --- one model


def measure(name: str, say: Say = lambda _: None) -> Row:
    """The row of one model; `say` hears it each time that it has grown."""
    captured, batch = _captured(name)
    weights = find_weights(captured)
    loss_fn = classification()
    scoring = prepare(captured, weights, [batch], loss_fn)
    dense = _silent(scoring)
    row: Row = {
        "size": batch[0].shape[-1],
        "images": len(batch[0]),
        "weights": len(weights),
        "prunable": sum(operand.numel() for operand in scoring.operands.values()),
        "live_changes": len(scoring.changes),
        "silent_dense": len(dense),
        "zero_share": {},
        "cuts": [],
    }
    large = row["prunable"] > LARGE
    sparsities, floors = (SPARSITIES[:1], (0.0, DEFAULT_FLOOR, 0.2)) if large else (SPARSITIES, FLOORS)
    for point, saliency in _scores(captured, weights, batch, scoring):
        row["zero_share"][point] = round(saliency.zero_share, 4)
        for sparsity in sparsities:
            for floor in floors if point == "live" else FLOORS[:1]:
                found = _examine(scoring, saliency, sparsity, floor, dense, batch[0])
                row["cuts"].append({"point": point, "sparsity": sparsity, "floor": floor, **found})
        say(row)
    return row


def _captured(name: str) -> tuple[CapturedModel, tuple[Tensor, Tensor]]:
    """The model at the first size that it takes, and digits of that size, each of another class."""
    for size in dict.fromkeys((*SIZES, timm.get_pretrained_cfg(name).input_size[-1])):
        torch.manual_seed(0)
        try:
            model, shape = build(ModelSpec(f"timm:{name}", (3, size, size), CLASSES))
            digits = data.load("digits", shape, limit=IMAGES).score
            samples = [digits[i] for i in range(IMAGES)]
            images = torch.stack([image for image, _ in samples])
            with torch.no_grad():
                model.eval()(images)
        except (FxpruneError, RuntimeError, AssertionError, ValueError) as error:
            refused = error
            continue
        return capture(model.train(), (images,)), (images, torch.tensor([label for _, label in samples]))
    raise refused


def _scores(
    captured: CapturedModel, weights: Weights, batch: tuple[Tensor, Tensor], live: Scoring
) -> Iterator[tuple[str, Saliency]]:
    """GraSP's saliencies at each point."""
    yield "live", _grasp(live)
    yield "plain", _grasp(prepare(captured, weights, [batch], live.loss_fn, live=False))
    before = {name: tensor.clone() for name, tensor in captured.host.state_dict().items()}
    warm_up(captured.host, [batch])
    warmed = _grasp(prepare(captured, weights, [batch], live.loss_fn, live=False))
    captured.host.load_state_dict(before)  # `live` shares most of the parameters
    yield "warm-up", warmed


def _grasp(scoring: Scoring) -> Saliency:
    with kept_by_the_allocator():
        return criteria.get("grasp").saliency(scoring)


def _examine(
    scoring: Scoring, saliency: Saliency, sparsity: float, floor: float, dense: set[str], images: Tensor
) -> Row:
    masks = cut(saliency, sparsity, floor=floor)
    return {
        "emptied": len(masks.empty),
        "cut_off": len(cut_off(scoring, masks, images)),
        "silenced": len(_silent(replace(scoring, masks=masks)) - dense),
    }


def _silent(scoring: Scoring) -> set[str]:
    """Weights of which no element has a gradient."""
    return {name for name, values in gradient(scoring).items() if not bool(values.any())}


# --- all models, each in a process of its own


def smallest() -> list[Row]:
    """The smallest model of each family, smallest first, counted without making a weight."""
    least: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        family = _registry._model_to_module[name]
        size = _size(name, least.get(family, (math.inf, ""))[0])
        if size is not None:
            least[family] = min((size, name), least.get(family, (size, name)))
    return [
        {"family": family, "model": name, "parameters": size}
        for family, (size, name) in sorted(least.items(), key=lambda item: item[1])
    ]


def _size(name: str, bound: float) -> int | None:
    """How many parameters a model has; None as soon as it is seen to have far more than `bound`."""
    seen = 0

    def count(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        nonlocal seen
        seen += 0 if parameter is None else parameter.numel()
        if seen > 2 * bound:  # some layers are replaced before the model is whole
            raise _TooLargeError

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=CLASSES)
    except _TooLargeError:
        return None
    finally:
        hook.remove()
    return sum(parameter.numel() for parameter in model.parameters())


class _TooLargeError(Exception):
    """Ends the construction of a model."""


def guarded(name: str) -> Row:
    """`measure` in a child process that may be killed; says what became of it."""
    start = time.monotonic()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(name, theirs))
    child.start()
    theirs.close()
    row: Row = {"status": "killed"}
    try:
        while ours.poll(max(0.0, start + SECONDS - time.monotonic())):
            row |= ours.recv()
        row["status"] = "time limit"
    except EOFError:
        pass
    child.kill()
    child.join()
    return row | {"seconds": round(time.monotonic() - start, 1)}


def _child(name: str, out: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    try:
        measure(name, out.send)
        out.send({"status": "measured"})
    except Exception as error:  # whatever it is, the row says so
        reason = str(error).partition("\n")[0][:200]
        out.send({"status": f"{type(error).__name__}: {reason}"})


def run(file: Path) -> None:
    """Add the rows that the file lacks. Its first line holds versions, machine and the list of models."""
    if not file.exists():
        record.append_line(file, {**record.circumstances("timm"), "models": smallest()})
    data.load("digits", (3, 8, 8))  # what children need is imported once
    capture(nn.Conv2d(3, 3, 3), (torch.zeros(2, 3, 8, 8),))
    head, *rows = record.read_lines(file)
    done = {row["model"] for row in rows}
    for model in head["models"]:
        if model["model"] not in done:
            record.append_line(file, model | guarded(model["model"]))
            print(json.dumps(record.read_lines(file)[-1])[:300], flush=True)


# --- the table


def table(rows: list[Row], families: int) -> str:
    """Markdown: of all families, how many each way keeps alive, and what the others lose."""
    measured = [row for row in rows if row["status"] == "measured"]
    closed = sum(row["live_changes"] > 0 for row in measured)
    lines = [
        f"{len(measured)} of {families} families measured, {len(rows) - len(measured)} over the limits, "
        f"{families - len(rows)} not tried yet; {closed} have something for the live point to open.",
        "",
        "| sparsity | scored | floor | families | no weight emptied | no output cut off | no weight silenced "
        "| all three | weights emptied | weights silenced |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = [("plain", 0.0), ("warm-up", 0.0), *(("live", floor) for floor in FLOORS)]
    for sparsity in SPARSITIES:
        for point, floor in keys:
            cuts = [found for row in measured for found in row["cuts"] if _key(found) == (sparsity, point, floor)]
            lines += [_line(cuts, sparsity, point, floor)] if cuts else []
    for row in rows:
        if row["status"] != "measured":
            lines += ["", f"Not measured: {row['model']} ({row['parameters'] / 1e6:.1f} M): {row['status']}."]
    return "\n".join(lines)


def _key(found: Row) -> tuple[float, str, float]:
    return found["sparsity"], found["point"], found["floor"]


def _line(cuts: list[Row], sparsity: float, point: str, floor: float) -> str:
    lost = ("emptied", "cut_off", "silenced")
    shares = [_share(sum(not found[loss] for found in cuts), len(cuts)) for loss in lost]
    shares.append(_share(sum(not any(found[loss] for loss in lost) for found in cuts), len(cuts)))
    totals = [sum(found[loss] for found in cuts) for loss in ("emptied", "silenced")]
    return (
        f"| {sparsity:.0%} | {point} | {floor:g} | {len(cuts)} | " + " | ".join(map(str, shares + totals)) + " |"
    )


def _share(count: int, of: int) -> str:
    return f"{count} ({count / of:.0%})"


def main() -> None:
    """Parse the command line; measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines: versions and models, then a row a model")
    parser.add_argument("--table", action="store_true", help="print the table of what the file holds")
    parser.add_argument("--one", metavar="MODEL", help="print the row of this timm model, and write nothing")
    options = parser.parse_args()
    if options.table:
        head, *rows = record.read_lines(options.file)
        print(table(rows, len(head["models"])))
    elif options.one:
        print(json.dumps(guarded(options.one)))
    else:
        run(options.file)


if __name__ == "__main__":
    main()
