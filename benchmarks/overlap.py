"""Do float32 scores keep the weights that float64 scores keep? fxprune's, beside a plain double backward's.

    python benchmarks/overlap.py                            # all networks, a Markdown table
    python benchmarks/overlap.py --case resnet32 --seed 0 1 2 --json overlap.json
    python benchmarks/overlap.py --rounding                 # what the forward pass rounds, by layout of the images

The reference is the algorithm of GraSP's paper on the eager module in float64, with nothing of fxprune in it:
back-propagate, build the graph of the gradient, back-propagate its inner product with itself. The same in float32
is the baseline. Overlap is the share of the weights which the reference keeps that the other keeps too; a global
ranking without a floor, at 80, 90 and 98% sparsity.

Where a network is smooth, 100% is to be had. A ReLU has a kink: of the millions of numbers that pass one, a few
are so near zero that float32 and float64 differ about their signs, and each such flip moves all scores a little.
In small ResNets (eight draws) overlap was 100% where nothing flipped, and 99.5 to 99.96% where one or two
numbers did. Which ones flip is up to the last bits of the forward pass: code that rounds otherwise than the
baseline flips others, and may come out better or worse in a single draw by more than any error of its own. Hence
means over some seeds, and the same networks with GELU, which show the rounding of the scores alone.

Images are of Fashion-MNIST, or scikit-learn's digits where it is absent, class-balanced and in one batch.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import record
import torch
from record import Row
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxprune import capture, criteria, data, doubly, find_weights
from fxprune.batches import score_batches
from fxprune.errors import DataError
from fxprune.loss import classification
from fxprune.masks import cut
from fxprune.memory import kept_by_the_allocator
from fxprune.scoring import prepare
from fxprune.zoo import ModelSpec, build

NETWORKS = Path(__file__).parent.parent / "model_zoo/networks"
SPARSITIES = (0.8, 0.9, 0.98)
CLASSES = 10
TEMPERATURE = 200.0

# model, side of its images, images a class
CASES = {
    "resnet32": (f"{NETWORKS / 'resnet.py'}:resnet32", 32, 10),
    "vgg19": (f"{NETWORKS / 'vgg.py'}:vgg19", 32, 10),
    "resnet32-gelu": (f"{NETWORKS / 'resnet.py'}:resnet32", 32, 10),
    "vgg19-gelu": (f"{NETWORKS / 'vgg.py'}:vgg19", 32, 10),
    "vit_tiny": ("timm:vit_tiny_patch16_224", 224, 2),
    "convnext_atto": ("timm:convnext_atto", 224, 2),
}

Batches = Sequence[tuple[Tensor, Tensor]]
Scores = Mapping[str, Tensor]


def plain_scores(module: nn.Module, batches: Batches, names: Iterable[str]) -> Scores:
    """θ ⊙ Hg by an eager double backward, in whatever precision the module and the images have."""
    module.train()
    parameters = {name: module.get_parameter(name) for name in names}
    weights = list(parameters.values())
    count = sum(len(targets) for _, targets in batches)

    def gradient(images: Tensor, targets: Tensor, *, graph: bool) -> Sequence[Tensor]:
        loss = F.cross_entropy(module(images) / TEMPERATURE, targets, reduction="sum") / count
        return torch.autograd.grad(loss, weights, create_graph=graph)

    with sdpa_kernel(SDPBackend.MATH):
        parts = [gradient(*batch, graph=False) for batch in batches]
        mean = [sum(of_batches) for of_batches in zip(*parts, strict=True)]
        products = [torch.zeros_like(weight) for weight in weights]
        for batch in batches:
            own = gradient(*batch, graph=True)
            inner = sum((g * v).sum() for g, v in zip(own, mean, strict=True))
            for product, part in zip(products, torch.autograd.grad(inner, weights), strict=True):
                product += part
    return {n: w.detach() * p for (n, w), p in zip(parameters.items(), products, strict=True)}


def fxprune_scores(module: nn.Module, batches: Batches) -> Scores:
    """θ ⊙ Hg of fxprune, at the module's own weights."""
    captured = capture(module, (batches[0][0][:2],))
    scoring = prepare(captured, find_weights(captured), batches, classification(TEMPERATURE), live=False)
    with kept_by_the_allocator():
        return criteria.get("grasp").saliency(scoring)


def overlap(one: Scores, reference: Scores, sparsity: float) -> float:
    """Share of what a cut by `reference` keeps that a cut by `one` keeps as well."""
    kept = cut(one, sparsity), cut({name: reference[name] for name in one}, sparsity)
    return sum(int((kept[0][name] & kept[1][name]).sum()) for name in one) / kept[1].kept


def compare(module: nn.Module, batches: Batches) -> list[Row]:
    """The overlap of both float32 scores with the float64 ones, a row for each sparsity."""
    start = time.perf_counter()
    ours = fxprune_scores(module, batches)
    plain = plain_scores(copy.deepcopy(module), batches, ours)
    double = [(images.double(), targets) for images, targets in batches]
    reference = plain_scores(copy.deepcopy(module).double(), double, ours)
    rows = [
        {"sparsity": s, "fxprune": overlap(ours, reference, s), "plain": overlap(plain, reference, s)}
        for s in SPARSITIES
    ]
    return [{**row, "seconds": round(time.perf_counter() - start, 1)} for row in rows]


def drawn(model: str, side: int, per_class: int, seed: int, **kwargs: Any) -> tuple[nn.Module, Batches, str]:
    """A network at its initialisation, images for it, and the name of the data set."""
    shape = (3, side, side)
    torch.manual_seed(seed)
    module, _ = build(ModelSpec(model, shape, CLASSES, kwargs))
    # the images of the smallest size, and enlarged here: the whole set at 224 x 224 would not fit
    small = (3, min(side, 32), min(side, 32))
    try:
        images = data.load("fashion-mnist", small)
    except DataError:
        images = data.load("digits", small)
    batches = score_batches(images.score, classes=CLASSES, per_class=per_class, seed=seed)
    sized = [(F.interpolate(x, shape[1:], mode="bilinear", antialias=True), y) for x, y in batches]
    return module, sized, images.name


def measure(name: str, seed: int) -> list[Row]:
    """The rows of one network."""
    module, batches, images = drawn(*CASES[name], seed)
    case = {"case": name, "seed": seed, "data": images, "images": sum(len(targets) for _, targets in batches)}
    with _smooth() if name.endswith("-gelu") else contextlib.nullcontext():
        return [{**case, **row} for row in compare(module, batches)]


def _smooth() -> AbstractContextManager[object]:
    """While it lasts, what calls for a ReLU gets a GELU."""
    return mock.patch.object(F, "relu", lambda x, **_: F.gelu(x))


def rounding() -> str:
    """Markdown: root mean square errors in float32 of convolutions and batch norms, by layout, against float64.

    Of torch's convolution in either layout, and of fxprune's for channels-last images. Sizes are those of
    ResNet-32 and of the last layers of VGG-19. Inputs are rectified normal numbers; outputs
    have a variance of about one half.
    """
    heads = ("channels", "side", "NCHW", "channels last", "ratio", "fxprune's", "batch norm, NCHW", "fxprune's")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    torch.manual_seed(0)
    for channels, side in ((32, 32), (64, 16), (128, 8), (256, 8), (512, 4)):
        x = torch.randn(100, channels, side, side).relu()
        weight = torch.randn(channels, channels, 3, 3) / math.sqrt(9 * channels)
        last = x.contiguous(memory_format=torch.channels_last)
        exact = F.conv2d(x.double(), weight.double(), padding=1)
        first, other = (_error(F.conv2d(images, weight, padding=1), exact) for images in (x, last))
        ours = _error(doubly.convolution(last, weight, padding=(1,)), exact)
        exact = F.batch_norm(x.double(), None, None, training=True)
        norms = (doubly.batch_norm(images, None, None, None, None, True, 0.1, 1e-5) for images in (x, last))
        cells = f"{first:.1e} | {other:.1e} | {other / first:.1f} | {ours:.1e} | "
        cells += " | ".join(f"{_error(found, exact):.1e}" for found in norms)
        lines.append(f"| {channels} | {side} | {cells} |")
    return "\n".join(lines)


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).square().mean().sqrt())


def table(rows: Sequence[Row]) -> str:
    """Markdown, of means over seeds; of the difference also the standard deviation over them, and the worst."""
    lines = [
        "| network | sparsity | fxprune | plain float32 | difference, points | worst | seeds |",
        "|---" * 7 + "|",
    ]
    for case, sparsity in dict.fromkeys((row["case"], row["sparsity"]) for row in rows):
        own = [row for row in rows if (row["case"], row["sparsity"]) == (case, sparsity)]
        ours, plain = (statistics.fmean(row[side] for row in own) for side in ("fxprune", "plain"))
        differences = [100 * (row["fxprune"] - row["plain"]) for row in own]
        spread = f" ± {statistics.stdev(differences):.3f}" if len(own) > 1 else ""
        cells = f"{100 * ours:.3f}% | {100 * plain:.3f}% | {100 * (ours - plain):+.3f}{spread}"
        lines.append(f"| {case} | {100 * sparsity:g}% | {cells} | {min(differences):+.3f} | {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--rounding", action="store_true", help="the errors of single operators instead")
    options = parser.parse_args()
    if options.rounding:
        print(rounding())
        return
    rows: list[Row] = []
    for name, seed in itertools.product(options.case, options.seed):
        rows += measure(name, seed)
        print(f"{name}, seed {seed}: {rows[-1]['seconds']:g} s", flush=True)
        record.write(options.json, rows, "timm")  # after each, since some take minutes
    print(table(rows))


if __name__ == "__main__":
    main()
