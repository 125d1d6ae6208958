"""What the GraSP paper says, and what was measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fxprune.study.tables import Spread, markdown

Numbers = Mapping[str, dict[str, Any]]

EXTREME = 0.98  # from where on the paper speaks of extreme sparsity


@dataclass(frozen=True)
class Finding:
    """What was measured for a claim, in words, and whether it holds."""

    measured: str
    holds: bool


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper (or of those that it builds on), and what decides over it."""

    text: str
    findings: Callable[[Numbers], Iterator[Finding]]


def claims_page(numbers: Numbers) -> str:
    """A table: claim, what was measured here, holds or not; empty if nothing was measured for any of them.

    Means over seeds are compared; a difference that is smaller than the sum of the two standard deviations is
    told as none, and a single seed, which has no deviation, tells nothing.
    """
    lines = [
        [claim.text, finding.measured, "holds" if finding.holds else "**does not hold**"]
        for claim in CLAIMS
        for finding in claim.findings(numbers)
    ]
    if not lines:
        return ""
    return "## What the paper says, and what was measured here\n\n" + markdown(["claim", "measured", ""], lines)


def _accuracies(numbers: Numbers) -> Iterator[tuple[str, float, dict[str, Spread]]]:
    """For each network and sparsity, accuracies by method."""
    for network, found in numbers.get("accuracy", {}).get("networks", {}).items():
        by: dict[float, dict[str, Spread]] = {}
        for method, cells in found["methods"].items():
            for sparsity, cell in cells.items():
                by.setdefault(float(sparsity), {})[method] = _spread(cell)
        for sparsity in sorted(by):
            if sparsity:
                yield network, sparsity, by[sparsity]


def _spread(cell: Mapping[str, Any]) -> Spread:
    return Spread(cell["mean"], cell["std"], cell["seeds"])


def _several(*spreads: Spread) -> bool:
    return all(spread.count > 1 for spread in spreads)


def _above(one: Spread, other: Spread) -> bool:
    return one.mean - other.mean > one.deviation + other.deviation


def _against(rival: str, *, extreme: bool) -> Callable[[Numbers], Iterator[Finding]]:
    """GraSP above a rival at all extreme sparsities, or at none of the others by more than the spread below."""

    def findings(numbers: Numbers) -> Iterator[Finding]:
        for network, sparsity, by in _accuracies(numbers):
            if not {"grasp", rival} <= set(by) or (sparsity >= EXTREME) != extreme:
                continue
            grasp, other = by["grasp"], by[rival]
            if _several(grasp, other):
                words = f"{network}, {sparsity:.1%}: GraSP {grasp.percent()}, {rival} {other.percent()}"
                yield Finding(words, _above(grasp, other) if extreme else not _above(other, grasp))

    return findings


def _flow(rival: str) -> Callable[[Numbers], Iterator[Finding]]:
    def findings(numbers: Numbers) -> Iterator[Finding]:
        for network, rows in numbers.get("gradient-flow", {}).get("networks", {}).items():
            by = {(row["method"], row["sparsity"]): _spread(row["after_pruning"]) for row in rows}
            for (method, sparsity), grasp in by.items():
                if method == "grasp" and (rival, sparsity) in by:
                    other = by[rival, sparsity]
                    if not _several(grasp, other):
                        continue
                    words = f"{network}, {sparsity:.1%}: GraSP {grasp.number()}, {rival} {other.number()}"
                    yield Finding(words, _above(grasp, other))

    return findings


def _varied(study: str) -> Callable[[Numbers], Iterator[Finding]]:
    """GraSP's accuracy does not depend on what a study varies."""

    def findings(numbers: Numbers) -> Iterator[Finding]:
        by: dict[tuple[str, float], dict[str, Spread]] = {}
        for cell in numbers.get(study, {}).get("cells", []):
            if cell["method"] == "grasp":
                by.setdefault((cell["network"], cell["sparsity"]), {})[cell["varied"]] = _spread(cell["accuracy"])
        for (network, sparsity), cells in by.items():
            if len(cells) < 2 or not _several(*cells.values()):
                continue
            low, high = (pick(cells, key=lambda name: cells[name].mean) for pick in (min, max))
            words = f"{network}, {sparsity:.1%}: {high} {cells[high].percent()}, {low} {cells[low].percent()}"
            yield Finding(words, not _above(cells[high], cells[low]))

    return findings


def _shuffled(numbers: Numbers) -> Iterator[Finding]:
    by: dict[tuple[str, float], dict[str, Spread]] = {}
    for cell in numbers.get("sanity", {}).get("cells", []):
        if cell["method"] == "grasp":
            by.setdefault((cell["network"], cell["sparsity"]), {})[cell["varied"]] = _spread(cell["accuracy"])
    for (network, sparsity), cells in by.items():
        if {"as scored", "shuffle"} <= set(cells) and _several(cells["as scored"], cells["shuffle"]):
            scored, shuffled = cells["as scored"], cells["shuffle"]
            words = f"{network}, {sparsity:.1%}: as scored {scored.percent()}, shuffled {shuffled.percent()}"
            yield Finding(words, not _above(scored, shuffled))


def _predicts(numbers: Numbers) -> Iterator[Finding]:
    cells = numbers.get("ntk", {}).get("cells", [])
    by = {(cell["network"], cell["sparsity"], cell["method"]): cell for cell in cells}
    for (network, sparsity, method), cell in by.items():
        other = by.get((network, sparsity, "snip"))
        if method == "grasp" and other:
            pairs = {
                name: (_spread(found["predicted_decrease"]), _spread(found["real_decrease"]))
                for name, found in (("GraSP", cell), ("SNIP", other))
            }
            if not _several(*(real for _, real in pairs.values())):
                continue
            words = "; ".join(
                f"{name} predicted {one.number()}, real {two.number()}" for name, (one, two) in pairs.items()
            )
            yield Finding(f"{network}, {sparsity:.1%}: {words}", _above(pairs["GraSP"][1], pairs["SNIP"][1]))


CLAIMS = (
    Claim("At extreme sparsity, GraSP trains to a higher accuracy than SNIP", _against("snip", extreme=True)),
    Claim(
        "At extreme sparsity, GraSP trains to a higher accuracy than random masks",
        _against("random", extreme=True),
    ),
    Claim("At moderate sparsity, GraSP is about as good as SNIP", _against("snip", extreme=False)),
    Claim("GraSP comes close to magnitude pruning after training", _against("magnitude", extreme=False)),
    Claim("GraSP comes close to lottery tickets with late resetting", _against("late-reset", extreme=False)),
    Claim("GraSP leaves a larger gradient norm than SNIP", _flow("snip")),
    Claim("GraSP leaves a larger gradient norm than random masks", _flow("random")),
    Claim("GraSP does not depend much on the initialisation", _varied("initialisation")),
    Claim("GraSP does not depend much on the number of score images", _varied("batch-size")),
    Claim("Masks of the same layer densities train as well (Frankle et al., 2021)", _shuffled),
    Claim("GraSP's networks start to learn faster than SNIP's, as the tangent kernel foretells", _predicts),
)
