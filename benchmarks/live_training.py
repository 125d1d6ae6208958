"""Does a network train better when its masks were scored at the live point?

    python benchmarks/live_training.py benchmarks/results/live_training.jsonl            # goes on where it stopped
    python benchmarks/live_training.py --table benchmarks/results/live_training.jsonl    # mean and deviation

Every method prunes the same initialisation to the same number of weights, and all train alike on a part of
Fashion-MNIST: the epochs are few, so this compares methods and says nothing of what a network can reach. Each
captures once and cuts by the stages that `fxprune.prune` composes. Masks that equal another method's, as they do
where the live point finds nothing to open or the floor nothing to lift, are not trained twice.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import record
import torch
from record import Row
from torch import Tensor
from torch.utils.data import Subset, TensorDataset
from warm_up import warm_up

from fxprune import capture, criteria, data, find_weights, score_batches
from fxprune.analysis.connectivity import cut_off
from fxprune.data import ImageData
from fxprune.loss import classification
from fxprune.masks import Masks, cut_alive
from fxprune.memory import kept_by_the_allocator
from fxprune.model import PrunedModel
from fxprune.pipeline import DEFAULT_FLOOR
from fxprune.regions import CapturedModel
from fxprune.sanity import shuffle
from fxprune.scoring import prepare
from fxprune.training import TrainConfig, evaluate, fit
from fxprune.weights import Weights
from fxprune.zoo import ModelSpec, build

SHAPE, CLASSES, PER_CLASS = (1, 32, 32), 10, 10
TEST = 2000
BATCH = 32  # small, so that there are enough steps for the running statistics to forget where they started
SEEDS = (0, 1, 2)
SPARSITIES = (0.95, 0.98)

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """A network and how it trains: learning rate, training images and passes over them."""

    model: ModelSpec
    rate: float
    images: int
    epochs: int


@dataclass(frozen=True)
class Method:
    """How masks are made. `warm` trains the scales for a few steps before scoring, and only for it."""

    criterion: str
    live: bool = True
    floor: float = DEFAULT_FLOOR
    warm: bool = False
    shuffled: bool = False


_VIT = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
CASES = {
    "regnety_002": Case(ModelSpec("timm:regnety_002", SHAPE, CLASSES), 0.05, 3072, 1),
    "vit": Case(ModelSpec("timm:vit_tiny_patch16_224", SHAPE, CLASSES, _VIT), 0.05, 3072, 1),
    "resnet18": Case(ModelSpec("timm:resnet18", SHAPE, CLASSES), 0.05, 3072, 1),
}
METHODS: dict[str, Method | None] = {
    "dense": None,
    "plain GraSP": Method("grasp", live=False, floor=0),
    "live GraSP": Method("grasp"),
    "live GraSP, shuffled in each layer": Method("grasp", shuffled=True),
    "random": Method("random"),
    "warm-up GraSP": Method("grasp", live=False, floor=0, warm=True),
    "live SNIP": Method("snip"),
    "magnitude": Method("magnitude"),
    "live GraSP, floor 0": Method("grasp", floor=0),
    "live GraSP, floor 0.2": Method("grasp", floor=0.2),
}


# --- masks


def masks_of(
    captured: CapturedModel, weights: Weights, batches: Batches, method: Method, sparsity: float, seed: int
) -> Masks:
    """What `fxprune.prune` would keep of a model that is captured already."""
    loss_fn, chosen = classification(), criteria.get(method.criterion)
    start = _copied(captured)
    if method.warm:
        warm_up(captured.host, batches)
    live = method.live and chosen.live
    scoring = prepare(captured, weights, batches, loss_fn, live=live, mode=chosen.mode, seed=seed)
    with kept_by_the_allocator():
        saliency = chosen.saliency(scoring)
    captured.host.load_state_dict(start)
    reached = prepare(captured, weights, None, loss_fn, seed=seed)
    found = cut_alive(
        saliency, sparsity, lambda masks: not cut_off(reached, masks, batches[0][0]), floor=method.floor
    )
    return shuffle(found.masks, seed) if method.shuffled else found.masks


def _copied(captured: CapturedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in captured.host.state_dict().items()}


def _all(weights: Weights) -> Masks:
    return Masks({weight.name: torch.ones(weight.shape, dtype=torch.bool) for weight in weights})


def _digest(masks: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for mask in masks.values():
        found.update(mask.numpy().tobytes())
    return found.hexdigest()[:16]


# --- runs


def images(case: Case) -> ImageData:
    """Fashion-MNIST, small, and resized once and for all."""
    found = data.load("fashion-mnist", SHAPE, limit=case.images)
    test = Subset(found.test, range(TEST))  # the order of the test set is random
    return replace(found, train=_tensors(found.train), test=_tensors(test))


def _tensors(samples: Any) -> TensorDataset:
    pairs = [samples[i] for i in range(len(samples))]
    return TensorDataset(torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs]))


def run(file: Path, names: list[str], sparsities: list[float]) -> None:
    """Add the rows that the file lacks, seed by seed, so that a part of them compares methods as well."""
    if not file.exists():
        record.append_line(file, {**record.circumstances("timm")})
    prepared = {name: _prepared(CASES[name]) for name in names}
    for sparsity, seed, name, method in itertools.product(sparsities, SEEDS, names, METHODS):
        if (name, sparsity, seed, method) not in {_key(row) for row in record.read_lines(file)[1:]}:
            captured, found = prepared[name]
            torch.manual_seed(seed)
            captured.host.load_state_dict(build(CASES[name].model)[0].state_dict())
            record.append_line(file, _row(file, captured, found, name, method, sparsity, seed))
            print(json.dumps(record.read_lines(file)[-1]), flush=True)


def _prepared(case: Case) -> tuple[CapturedModel, ImageData]:
    return capture(build(case.model)[0], (torch.zeros(4, *SHAPE),)), images(case)


def _row(
    file: Path, captured: CapturedModel, found: ImageData, name: str, method: str, sparsity: float, seed: int
) -> Row:
    start = time.monotonic()
    weights, how = find_weights(captured), METHODS[method]
    batches = score_batches(found.score, classes=CLASSES, per_class=PER_CLASS, seed=seed)
    masks = _all(weights) if how is None else masks_of(captured, weights, batches, how, sparsity, seed)
    row: Row = {"case": name, "sparsity": sparsity, "seed": seed, "method": method, "masks": _digest(masks)}
    row |= {"kept": masks.kept, "weights": len(masks), "emptied": len(masks.empty)}
    same = (name, seed, row["masks"])
    twins = [r for r in record.read_lines(file)[1:] if (r["case"], r["seed"], r["masks"]) == same]
    if twins:
        trained = {"accuracy": twins[0]["accuracy"], "loss": twins[0]["loss"], "same_as": twins[0]["method"]}
    else:
        trained = _train(captured, weights, masks, found, CASES[name], seed)
    return row | trained | {"seconds": round(time.monotonic() - start, 1)}


def _train(
    captured: CapturedModel, weights: Weights, masks: Masks, found: ImageData, case: Case, seed: int
) -> Row:
    """Train a masked network, and leave `captured`, whose memory it shares, as it was."""
    start = _copied(captured)
    model = PrunedModel(captured, weights, masks)
    config = TrainConfig(epochs=case.epochs, lr=case.rate, batch_size=BATCH, seed=seed)
    brief = replace(found, test=Subset(found.test, range(BATCH)))  # it is tested after the last epoch only
    history = fit(model, brief, config)
    row = {"accuracy": round(evaluate(model, found), 4), "loss": round(history[-1].loss, 4)}
    captured.host.load_state_dict(start)
    return row


def _key(row: Row) -> tuple[str, float, int, str]:
    return row["case"], row["sparsity"], row["seed"], row["method"]


# --- the table


def table(rows: list[Row]) -> str:
    """Markdown: test accuracy in percent, mean ± standard deviation over seeds, a column a case and sparsity."""
    columns = list(dict.fromkeys((row["case"], row["sparsity"]) for row in rows))
    lines = ["| method | " + " | ".join(f"{case}, {sparsity:.0%}" for case, sparsity in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for method in METHODS:
        cells = [_cell([row for row in rows if _column(row) == (method, *column)]) for column in columns]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _column(row: Row) -> tuple[str, str, float]:
    return row["method"], row["case"], row["sparsity"]


def _cell(rows: list[Row]) -> str:
    """Mean ± deviation, how many seeds if not all, and how many weights were emptied in the mean."""
    if not rows:
        return ""
    accuracies = [100 * row["accuracy"] for row in rows]
    deviation = f" ± {statistics.stdev(accuracies):.1f}" if len(rows) > 1 else ""
    seeds = "" if len(rows) == len(SEEDS) else f", {len(rows)} of {len(SEEDS)} seeds"
    emptied = statistics.mean(row["emptied"] for row in rows)
    lost = f" ({emptied:.2g} of {rows[0]['weights']} emptied)" if emptied else ""
    return f"{statistics.mean(accuracies):.1f}{deviation}{seeds}{lost}"


def main() -> None:
    """Parse the command line; train, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines: versions, then a row a trained network")
    parser.add_argument("--table", action="store_true", help="print the table of what the file holds")
    parser.add_argument("--case", choices=CASES, action="append", help="all by default")
    parser.add_argument("--sparsity", type=float, action="append", help="all by default")
    options = parser.parse_args()
    if options.table:
        print(table(record.read_lines(options.file)[1:]))
    else:
        run(options.file, options.case or list(CASES), options.sparsity or list(SPARSITIES))


if __name__ == "__main__":
    main()
