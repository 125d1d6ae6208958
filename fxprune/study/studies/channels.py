"""What do networks reach that lose whole channels, beside thinner ones?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fxprune.rows import Row
from fxprune.study.experiment import Experiment, experiments
from fxprune.study.methods import CHANNELS
from fxprune.study.plots import lines
from fxprune.study.setting import Setting
from fxprune.study.study import Study
from fxprune.study.tables import Spread, grouped, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _experiments(setting: Setting, networks: Sequence[str]) -> list[Experiment]:
    sparsities = [1 - share for share in setting.shares]
    return experiments(networks, list(CHANNELS), sparsities, setting.seeds, kind="channels")


def _numbers(setting: Setting, rows: Sequence[Row]) -> dict[str, Any]:
    cells = []
    whole = {row["network"]: row["macs"] for row in rows if row["method"] == "dense"}
    for (network, sparsity, method), some in sorted(
        grouped(rows, lambda row: (row["network"], row["sparsity"], row["method"])).items(),
        key=lambda item: (item[0][0], item[0][1], list(CHANNELS).index(item[0][2])),
    ):
        cells.append(
            {
                "network": network,
                "share": round(1 - sparsity, 4),
                "method": method,
                "accuracy": Spread.of(row["accuracy"] for row in some).to_json(),
                "weights": Spread.of(row["prunable"] for row in some).to_json(),
                "macs": Spread.of(row["macs"] / whole.get(network, 1) for row in some).to_json(),
            }
        )
    return {"seeds": len(setting.seeds), "cells": cells}


def _page(numbers: dict[str, Any]) -> str:
    parts = [
        "Test accuracy in percent after training, mean ± standard deviation over seeds, at a share of the dense "
        "network's multiply-adds; the best of each column in bold, and in brackets the weights that are left. "
        "*thinner* is the honest rival: every width smaller by the same share, with weights of the same "
        "initialisation. All go through the same schedule, that of *magnitude* starting from the trained dense "
        "weights. No saliency was taken at the live point."
    ]
    for network, cells in grouped(numbers["cells"], lambda cell: cell["network"]).items():
        shares = sorted({cell["share"] for cell in cells if cell["method"] != "dense"}, reverse=True)
        by = {(cell["method"], cell["share"]): cell for cell in cells}
        tops = {share: max(c["accuracy"]["mean"] for (m, s), c in by.items() if s == share) for share in shares}
        dense = by.get(("dense", 1.0))
        title = f"**{network}**"
        if dense:
            accuracy = Spread.from_json(dense["accuracy"]).percent(numbers["seeds"])
            title += f", {dense['weights']['mean']:,.0f} weights; dense: {accuracy}"
        table = [
            [name, *(_cell(by.get((name, share)), tops[share], numbers["seeds"]) for share in shares), how.paper]
            for name, how in CHANNELS.items()
            if name != "dense"
        ]
        parts += [
            title,
            markdown(["method", *(f"{share:.0%} of the MACs" for share in shares), "ranked by"], table),
        ]
    return "\n\n".join(parts)


def _cell(cell: dict[str, Any] | None, top: float, seeds: int) -> str:
    if cell is None:
        return "not run"
    text = Spread.from_json(cell["accuracy"]).among(top, seeds)
    return f"{text} [{cell['weights']['mean']:,.0f}]"


def _plot(numbers: dict[str, Any]) -> Figure:
    panels: dict[str, Any] = {}
    for network, cells in grouped(numbers["cells"], lambda cell: cell["network"]).items():
        series: dict[str, Any] = {}
        level = None
        for cell in cells:
            accuracy = Spread.from_json(cell["accuracy"])
            if cell["method"] == "dense":
                level = 100 * accuracy.mean
            else:
                point = (100 * accuracy.mean, 100 * accuracy.deviation)
                series.setdefault(cell["method"], {})[100 * cell["share"]] = point
        panels[network] = (series, level)
    return lines(panels, "MACs left, percent", "test accuracy, percent", log_x=True, falling=True)


CHANNELS_STUDY = Study(
    "channels",
    "What do networks reach that lose whole channels?",
    _experiments,
    _numbers,
    _page,
    _plot,
)
