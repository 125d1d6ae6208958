"""What GraSP claims: the squared gradient norm of the pruned network, on images other than the score images.

    python benchmarks/gradient_flow.py --out flow.jsonl          # all; an interrupted run goes on where it was
    python benchmarks/gradient_flow.py --out flow.jsonl --network resnet32 --sparsity 0.98
    python benchmarks/gradient_flow.py --table flow.jsonl        # Markdown; --into FILE puts it between two marks

For each seed a network is drawn and scored with every criterion on 100 training images, ten a class; the weights
are cut by one global ranking, without a floor and without the live point (these networks have no closed
branches), so that the criteria are as their papers have them. Then the gradient of the masked network is taken on
200 test images, twenty a class, in one batch with batch statistics: with respect to the kept weights, since that
of a removed one is zero. Scores are of the default loss, whose logits are divided by 200, as in GraSP's code; the
norm is that of the loss which networks train with, at temperature 1, unless `--temperature` says otherwise.

The images are those of Fashion-MNIST, and scikit-learn's digits where it is absent; every row says which.
`reversed` is GraSP with its sign turned, `|grasp|` its absolute value. SynFlow's 100 rounds go to the highest
sparsity and stop at each of the others on their way. Scores are kept in `--scores` between runs (1.5 GB).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import record
import torch
from record import Row
from safetensors.torch import load_file, save_file
from torch import Tensor

from fxprune import CapturedModel, Masks, Weights, capture, criteria, data, find_weights
from fxprune.batches import score_batches
from fxprune.curvature import gradient_norm
from fxprune.errors import DataError
from fxprune.loss import classification
from fxprune.masks import cut, kept_count, schedule
from fxprune.memory import kept_by_the_allocator
from fxprune.scoring import Batch, Scoring, prepare
from fxprune.zoo import ModelSpec, build

NETWORKS = Path(__file__).parent.parent / "model_zoo/networks"
MODELS = {"resnet32": f"{NETWORKS / 'resnet.py'}:resnet32", "vgg19": f"{NETWORKS / 'vgg.py'}:vgg19"}
SHAPE = (3, 32, 32)
SPARSITIES = (0.8, 0.9, 0.95, 0.98, 0.995)
SEEDS = range(5)
SYNFLOW_ROUNDS = 100

# name in the table -> the criterion, and what becomes of its saliency
METHODS = {
    "grasp": ("grasp", lambda saliency: saliency),
    "|grasp|": ("grasp", torch.abs),
    "reversed": ("grasp", torch.neg),
    "snip": ("snip", lambda saliency: saliency),
    "synflow": ("synflow", lambda saliency: saliency),
    "magnitude": ("magnitude", lambda saliency: saliency),
    "random": ("random", lambda saliency: saliency),
}
DENSE = "dense"


@dataclass
class Drawn:
    """A network of one seed, its images, and its saliencies as far as they were asked for.

    Attributes:
        network: a name in `MODELS`.
        seed: of the initial weights, of the images, and of the random masks.
        images: a data set that fits it.
        folder: where saliencies are kept.
    """

    network: str
    seed: int
    images: data.ImageData
    folder: Path

    @cached_property
    def captured(self) -> tuple[CapturedModel, Weights]:
        """At the initialisation of its seed."""
        torch.manual_seed(self.seed)
        module, _ = build(ModelSpec(MODELS[self.network], SHAPE, self.images.num_classes))
        captured = capture(module, (torch.zeros(2, *SHAPE),))
        return captured, find_weights(captured)

    @cached_property
    def scoring(self) -> Scoring:
        """With the score images and batch statistics."""
        return self._prepared(self._batches(self.images.score, 10))

    @cached_property
    def fresh(self) -> Scoring:
        """With the images to measure on."""
        return replace(self.scoring, batches=self._batches(self.images.test, 20))

    def _batches(self, images: data.ImageSet, per_class: int) -> list[Batch]:
        drawn = score_batches(images, classes=self.images.num_classes, per_class=per_class, seed=self.seed)
        # the same numbers in an order that makes the narrow layers of ResNet twice as fast on a CPU
        return [(x.contiguous(memory_format=torch.channels_last), y) for x, y in drawn]

    def _prepared(self, batches: list[Batch] | None, mode: str = "train") -> Scoring:
        # the masks of `random` are not to be drawn from the numbers that the weights were drawn from
        return prepare(
            *self.captured,
            batches,
            classification(),
            live=False,
            mode=mode,  # type: ignore[arg-type]
            seed=self.seed + 1000,
        )

    def saliency(self, criterion: str) -> Mapping[str, Tensor]:
        """Computed once for all sparsities."""
        file = self.folder / f"{self.images.name}_{self.network}_{self.seed}_{criterion}.safetensors"
        if not file.exists():
            if criterion == "synflow":
                found = synflow(self._prepared(None, criteria.get("synflow").mode))
            else:
                found = criteria.get(criterion).saliency(self.scoring)
            partial = file.with_suffix(".partial")
            save_file({name: values.detach().contiguous() for name, values in found.items()}, partial)
            partial.rename(file)
        return load_file(file)

    def masks(self, method: str, sparsity: float) -> Masks:
        """By one global ranking."""
        criterion, changed = METHODS[method]
        return cut({name: changed(values) for name, values in self.saliency(criterion).items()}, sparsity)

    def measured(self, method: str, sparsity: float, temperature: float) -> Row:
        """The squared gradient norm of one pruned network."""
        masks = None if method == DENSE else self.masks(method, sparsity)
        scoring = replace(self.fresh, masks=masks, loss_fn=classification(temperature))
        return {
            "network": self.network,
            "seed": self.seed,
            "sparsity": sparsity,
            "method": method,
            "temperature": temperature,
            "norm": gradient_norm(scoring),
            "empty": 0 if masks is None else len(masks.empty),
            "data": self.images.name,
        }


def synflow(scoring: Scoring) -> dict[str, Tensor]:
    """How many of SynFlow's rounds each weight outlasted: a cut at any of the sparsities keeps what they kept."""
    size = sum(operand.numel() for operand in scoring.operands.values())
    alive, lasted = torch.arange(size), torch.zeros(size)
    for sparsity in sorted({*schedule(max(SPARSITIES), SYNFLOW_ROUNDS), *SPARSITIES}):
        masks = {name: count >= lasted.max() for name, count in _split(lasted, scoring).items()}
        found = criteria.get("synflow").score(replace(scoring, masks=masks))
        values = torch.cat([values.flatten() for values in found.values()])[alive]
        alive = alive[values.topk(kept_count(size, sparsity), sorted=False).indices]
        lasted[alive] += 1
    return _split(lasted, scoring)


def _split(flat: Tensor, scoring: Scoring) -> dict[str, Tensor]:
    operands = scoring.operands
    pieces = flat.split([operand.numel() for operand in operands.values()])
    return {name: piece.view(operands[name].shape) for name, piece in zip(operands, pieces, strict=True)}


def load_images() -> data.ImageData:
    """Fashion-MNIST, or digits where it is absent."""
    try:
        return data.load("fashion-mnist", SHAPE)
    except DataError as error:
        print(f"digits instead of Fashion-MNIST: {error}", file=sys.stderr)
        return data.load("digits", SHAPE)


# --- running


def read_rows(file: Path) -> list[Row]:
    """The measurements of a file; a last line that an interrupt cut short is left out."""
    rows = record.read_lines(file) if file.exists() else []
    return [row for row in rows if "norm" in row]


def key(row: Row) -> tuple[Any, ...]:
    """What tells measurements apart."""
    return tuple(row[name] for name in ("network", "seed", "sparsity", "method", "temperature"))


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """The measurements that are asked for and are not yet in the file."""
    done = {key(row) for row in read_rows(options.out)}
    images = load_images()
    options.scores.mkdir(parents=True, exist_ok=True)
    for network in options.network:
        for seed in options.seed:
            drawn = Drawn(network, seed, images, options.scores)
            wanted = [(DENSE, 0.0), *((m, s) for s in options.sparsity for m in options.method)]
            for method, sparsity in wanted:
                if (network, seed, sparsity, method, options.temperature) not in done:
                    yield drawn.measured(method, sparsity, options.temperature)


def table(rows: Sequence[Row], temperature: float) -> Iterator[str]:
    """Markdown: for each network its norms, mean and range over seeds, and where GraSP is not the largest."""
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network and row["temperature"] == temperature]
        norms: dict[tuple[float, str], dict[int, float]] = {}
        for row in own:
            norms.setdefault((row["sparsity"], row["method"]), {})[row["seed"]] = row["norm"]
        dense = norms.pop((0.0, DENSE), {})
        yield f"**{network}**, {', '.join(sorted({row['data'] for row in own}))}; dense: {_cell(dense)}\n"
        yield f"| sparsity | {' | '.join(map(_escaped, METHODS))} |"
        yield "|---" * (len(METHODS) + 1) + "|"
        sparsities = sorted({sparsity for sparsity, _ in norms})
        for sparsity in sparsities:
            found = {method: norms.get((sparsity, method), {}) for method in METHODS}
            best = max(found, key=lambda method: _mean(found[method]))
            cells = [f"**{_cell(found[m])}**" if m == best else _cell(found[m]) for m in METHODS]
            yield f"| {100 * sparsity:g}% | {' | '.join(cells)} |"
        yield ""
        for sparsity in sparsities:
            yield _verdict(sparsity, {method: norms.get((sparsity, method), {}) for method in METHODS})
        yield ""


MARKS = ("<!-- made by gradient_flow.py: begin -->\n", "<!-- end -->\n")


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the marks of a page."""
    before, mark, rest = page.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (mark and end):
        raise SystemExit(f"{page}: expected the lines {MARKS[0].strip()!r} and {MARKS[1].strip()!r}")
    page.write_text(f"{before}{mark}\n{text}\n{end}{after}")


def _mean(by_seed: Mapping[int, float]) -> float:
    return statistics.fmean(by_seed.values()) if by_seed else -1.0


def _cell(by_seed: Mapping[int, float]) -> str:
    if not by_seed:
        return ""
    count = "" if len(by_seed) == len(SEEDS) else f", {len(by_seed)} of {len(SEEDS)} seeds"
    return f"{_short(_mean(by_seed))} ({_short(min(by_seed.values()))} to {_short(max(by_seed.values()))}{count})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 99 else f"{value:.2g}"


def _escaped(method: str) -> str:
    return method.replace("|", r"\|")


def _verdict(sparsity: float, found: Mapping[str, Mapping[int, float]]) -> str:
    """Which methods have a larger mean than GraSP, and in how many seeds GraSP has the larger norm."""
    grasp = found["grasp"]
    larger = [method for method in found if _mean(found[method]) > _mean(grasp)]
    smaller = [method for method in found if found[method] and 0 <= _mean(found[method]) < _mean(grasp)]

    def named(methods: Sequence[str]) -> str:
        counts = {m: [grasp[seed] > found[m][seed] for seed in grasp if seed in found[m]] for m in methods}
        return ", ".join(f"{_escaped(m)} ({sum(won)} of {len(won)})" for m, won in counts.items()) or "none"

    best = "GraSP is the largest" if not larger else f"GraSP is **not** the largest: below {named(larger)}"
    return f"- {100 * sparsity:g}%: {best}; above {named(smaller)}."


def main() -> None:
    """Parse the command line, and measure or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="measure, and append a line of JSON for each figure")
    parser.add_argument("--table", type=Path, help="print the figures of such a file")
    parser.add_argument("--into", type=Path, help="page of Markdown that takes the table")
    parser.add_argument("--network", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sparsity", nargs="+", type=float, choices=SPARSITIES, default=list(SPARSITIES))
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--temperature", type=float, default=1.0, help="of the loss whose gradient is measured")
    parser.add_argument("--scores", type=Path, default=Path("out/gradient_flow"), help="folder for saliencies")
    options = parser.parse_args()
    if options.table:
        text = "\n".join(table(read_rows(options.table), options.temperature))
        print(text)
        if options.into:
            put_into(options.into, text)
    if not options.out:
        return
    record.append_line(options.out, record.circumstances())
    with kept_by_the_allocator():
        for row in measure(options):
            record.append_line(options.out, row)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
