"""Final accuracy against sparsity, for every method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fxprune.rows import Row
from fxprune.study.experiment import Experiment, experiments
from fxprune.study.methods import METHODS
from fxprune.study.plots import lines
from fxprune.study.setting import Setting
from fxprune.study.study import Study
from fxprune.study.tables import Spread, grouped, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _experiments(setting: Setting, networks: Sequence[str]) -> list[Experiment]:
    return experiments(networks, setting.methods or list(METHODS), setting.sparsities, setting.seeds)


def _numbers(setting: Setting, rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": len(setting.seeds), "networks": {}}
    for network, own in grouped(rows, lambda row: row["network"]).items():
        methods: dict[str, Any] = {}
        for name, theirs in sorted(grouped(own, lambda row: row["method"]).items(), key=_order):
            methods[name] = {
                f"{sparsity:g}": Spread.of(row["accuracy"] for row in some).to_json()
                | {"emptied": max(row["emptied"] for row in some)}
                for sparsity, some in sorted(grouped(theirs, lambda row: row["sparsity"]).items())
            }
        found["networks"][network] = {"prunable": own[0]["prunable"], "methods": methods}
    return found


def _order(item: tuple[str, Any]) -> int:
    return list(METHODS).index(item[0])


def _page(numbers: dict[str, Any]) -> str:
    parts = [
        "Test accuracy in percent after training, mean ± standard deviation over seeds; the best of each column "
        "in bold, and in brackets how many weights a method emptied at most. Every sparse network goes through "
        "the same schedule; those of magnitude and OBD start it from the trained dense weights (learning rate "
        "rewinding), and RigL spends the steps at which masks move on that alone."
    ]
    for network, found in numbers["networks"].items():
        methods = found["methods"]
        sparsities = sorted({s for by in methods.values() for s in by if float(s)}, key=float)
        spreads = {(m, s): Spread.from_json(c) for m, by in methods.items() for s, c in by.items()}
        tops = {s: max((v.mean for (m, t), v in spreads.items() if t == s), default=0.0) for s in sparsities}
        dense = spreads.get(("dense", "0"))
        title = f"**{network}**, {found['prunable']:,} prunable weights"
        title += f"; dense: {dense.percent(numbers['seeds'])}" if dense else ""
        table = []
        for name, by in methods.items():
            if name == "dense":
                continue
            cells = [_cell(by.get(s), tops[s], numbers["seeds"]) for s in sparsities]
            table.append([name, *cells, METHODS[name].paper, METHODS[name].more])
        header = ["method", *(f"{float(s):.1%}" for s in sparsities), "from", "trains as well"]
        parts += [title, markdown(header, table)]
    return "\n\n".join(parts)


def _cell(cell: dict[str, Any] | None, top: float, seeds: int) -> str:
    if cell is None:
        return "not run"
    text = Spread.from_json(cell).among(top, seeds)
    return f"{text} [{cell['emptied']} emptied]" if cell["emptied"] else text


def _plot(numbers: dict[str, Any]) -> Figure:
    panels = {}
    for network, found in numbers["networks"].items():
        series = {}
        for name, by in found["methods"].items():
            if name != "dense":
                points = {100 * (1 - float(s)): (100 * c["mean"], 100 * c["std"]) for s, c in by.items()}
                series[name] = points
        dense = found["methods"].get("dense", {}).get("0")
        panels[network] = (series, 100 * dense["mean"] if dense else None)
    return lines(panels, "weights kept, percent", "test accuracy, percent", log_x=True, falling=True)


ACCURACY = Study(
    "accuracy",
    "What does each method reach at which sparsity?",
    _experiments,
    _numbers,
    _page,
    _plot,
)
