"""What the GraSP paper says, and what was measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fxprune.study.tables import Spread, markdown

Numbers = Mapping[str, dict[str, Any]]

EXTREME = 0.98  # from where on the paper speaks of extreme sparsity
MARGIN = 0.01  # of accuracy: what "about as good" means here

Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class Finding:
    """What was measured for a claim, in words, and what that says of it."""

    measured: str
    verdict: Verdict


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper (or of those that it builds on), and what decides over it."""

    text: str
    findings: Callable[[Numbers], Iterator[Finding]]


def claims_page(numbers: Numbers) -> str:
    """A table: claim, what was measured here, holds or not; empty if nothing was measured for any of them.

    A single seed, which has no deviation, tells nothing.
    """
    found = [(claim, finding) for claim in CLAIMS for finding in claim.findings(numbers)]
    marked = {"does not hold": "**does not hold**"}
    lines = [[claim.text, f.measured, marked.get(f.verdict, f.verdict)] for claim, f in found]
    if not lines:
        return ""
    text = (
        "Means over seeds. A network is taken to be better than another if the difference is more than the sum of "
        "the standard deviations, and for about as good if it is worse by at most "
        f"{100 * MARGIN:.0f} point and that sum is at most twice as much; what is neither is undecided."
    )
    table = markdown(["claim", "measured", ""], lines)
    return f"## What the paper says, and what was measured here\n\n{text}\n\n{table}"


def _accuracies(numbers: Numbers) -> Iterator[tuple[str, float, dict[str, Spread]]]:
    """For each network and sparsity, accuracies by method."""
    for network, found in numbers.get("accuracy", {}).get("networks", {}).items():
        by: dict[float, dict[str, Spread]] = {}
        for method, cells in found["methods"].items():
            for sparsity, cell in cells.items():
                by.setdefault(float(sparsity), {})[method] = Spread.from_json(cell)
        for sparsity in sorted(by):
            if sparsity:
                yield network, sparsity, by[sparsity]


def _several(*spreads: Spread) -> bool:
    return all(spread.count > 1 for spread in spreads)


def _above(one: Spread, other: Spread) -> bool:
    return one.mean - other.mean > one.deviation + other.deviation


def _better(one: Spread, other: Spread) -> Verdict:
    return "holds" if _above(one, other) else "does not hold" if _above(other, one) else "undecided"


def _as_good(one: Spread, other: Spread) -> Verdict:
    if one.mean >= other.mean - MARGIN:
        return "holds" if _above(one, other) or one.deviation + other.deviation <= 2 * MARGIN else "undecided"
    return "does not hold" if _above(other, one) else "undecided"


def _against(
    rival: str, verdict: Callable[[Spread, Spread], Verdict], *, extreme: bool | None = None
) -> Callable[[Numbers], Iterator[Finding]]:
    """GraSP's accuracy beside a rival's: at extreme sparsities, at the others, or (None) at all."""

    def findings(numbers: Numbers) -> Iterator[Finding]:
        for network, sparsity, by in _accuracies(numbers):
            if not {"grasp", rival} <= set(by) or extreme not in (None, sparsity >= EXTREME):
                continue
            grasp, other = by["grasp"], by[rival]
            if _several(grasp, other):
                words = f"{network}, {sparsity:.1%}: GraSP {grasp.percent()}, {rival} {other.percent()}"
                yield Finding(words, verdict(grasp, other))

    return findings


def _flow(rival: str) -> Callable[[Numbers], Iterator[Finding]]:
    def findings(numbers: Numbers) -> Iterator[Finding]:
        for network, rows in numbers.get("gradient-flow", {}).get("networks", {}).items():
            by = {(row["method"], row["sparsity"]): Spread.from_json(row["after_pruning"]) for row in rows}
            for (method, sparsity), grasp in by.items():
                if method == "grasp" and (rival, sparsity) in by:
                    other = by[rival, sparsity]
                    if not _several(grasp, other):
                        continue
                    words = f"{network}, {sparsity:.1%}: GraSP {grasp.number()}, {rival} {other.number()}"
                    yield Finding(words, _better(grasp, other))

    return findings


def _cells(numbers: Numbers, study: str) -> dict[tuple[str, float], dict[str, Spread]]:
    """GraSP's accuracies by network and sparsity, and then by what a study varies."""
    by: dict[tuple[str, float], dict[str, Spread]] = {}
    for cell in numbers.get(study, {}).get("cells", []):
        if cell["method"] == "grasp":
            spread = Spread.from_json(cell["accuracy"])
            by.setdefault((cell["network"], cell["sparsity"]), {})[cell["varied"]] = spread
    return by


def _varied(study: str) -> Callable[[Numbers], Iterator[Finding]]:
    """GraSP's accuracy does not depend on what a study varies."""

    def findings(numbers: Numbers) -> Iterator[Finding]:
        for (network, sparsity), cells in _cells(numbers, study).items():
            if len(cells) < 2 or not _several(*cells.values()):
                continue
            low, high = (pick(cells, key=lambda name: cells[name].mean) for pick in (min, max))
            words = f"{network}, {sparsity:.1%}: {high} {cells[high].percent()}, {low} {cells[low].percent()}"
            yield Finding(words, _as_good(cells[low], cells[high]))

    return findings


def _shuffled(numbers: Numbers) -> Iterator[Finding]:
    for (network, sparsity), cells in _cells(numbers, "sanity").items():
        if {"as scored", "shuffle"} <= set(cells) and _several(cells["as scored"], cells["shuffle"]):
            scored, shuffled = cells["as scored"], cells["shuffle"]
            words = f"{network}, {sparsity:.1%}: as scored {scored.percent()}, shuffled {shuffled.percent()}"
            yield Finding(words, _as_good(shuffled, scored))


def _predicts(numbers: Numbers) -> Iterator[Finding]:
    cells = numbers.get("ntk", {}).get("cells", [])
    by = {(cell["network"], cell["sparsity"], cell["method"]): cell for cell in cells}
    for (network, sparsity, method), cell in by.items():
        other = by.get((network, sparsity, "snip"))
        if method == "grasp" and other:
            pairs = {
                name: (Spread.from_json(found["predicted_decrease"]), Spread.from_json(found["real_decrease"]))
                for name, found in (("GraSP", cell), ("SNIP", other))
            }
            if not _several(*(real for _, real in pairs.values())):
                continue
            words = "; ".join(
                f"{name} predicted {one.number()}, real {two.number()}" for name, (one, two) in pairs.items()
            )
            (foretold, real), (rivals_foretold, rivals_real) = pairs["GraSP"], pairs["SNIP"]
            verdicts = {_better(foretold, rivals_foretold), _better(real, rivals_real)}
            worst: Verdict = next(v for v in ("does not hold", "undecided", "holds") if v in verdicts)
            yield Finding(f"{network}, {sparsity:.1%}: {words}", worst)


CLAIMS = (
    Claim(
        "At extreme sparsity, GraSP trains to a higher accuracy than SNIP", _against("snip", _better, extreme=True)
    ),
    Claim(
        "At extreme sparsity, GraSP trains to a higher accuracy than random masks",
        _against("random", _better, extreme=True),
    ),
    Claim("At moderate sparsity, GraSP is about as good as SNIP", _against("snip", _as_good, extreme=False)),
    Claim("GraSP is about as good as magnitude pruning after training", _against("magnitude", _as_good)),
    Claim("GraSP is about as good as lottery tickets with late resetting", _against("late-reset", _as_good)),
    Claim("GraSP leaves a larger gradient norm than SNIP", _flow("snip")),
    Claim("GraSP leaves a larger gradient norm than random masks", _flow("random")),
    Claim("Of all initialisations, GraSP's worst is about as good as its best", _varied("initialisation")),
    Claim("Of all numbers of score images, GraSP's worst is about as good as its best", _varied("batch-size")),
    Claim("Masks of the same layer densities train about as well (Frankle et al., 2021)", _shuffled),
    Claim("GraSP's networks learn faster than SNIP's at first, and the tangent kernel foretells it", _predicts),
)
