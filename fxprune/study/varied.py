"""What the studies that vary one thing share: a table and a plot of accuracies by what is varied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fxprune.rows import Row
from fxprune.study.plots import lines
from fxprune.study.setting import Setting
from fxprune.study.tables import Spread, grouped, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = dict[str, Any]


def numbers(of: Callable[[Row, Setting], str]) -> Callable[[Setting, Sequence[Row]], Numbers]:
    """Accuracies by network, method, sparsity and what a row varies."""

    def function(setting: Setting, rows: Sequence[Row]) -> Numbers:
        found = [
            {"network": network, "method": method, "sparsity": sparsity, "varied": varied}
            | {"accuracy": Spread.of(row["accuracy"] for row in some).to_json()}
            | {"emptied": max(row["emptied"] for row in some)}
            for (network, method, sparsity, varied), some in grouped(
                rows, lambda row: (row["network"], row["method"], row["sparsity"], of(row, setting))
            ).items()
        ]
        return {"seeds": len(setting.seeds), "cells": found}

    return function


def page(text: str) -> Callable[[Numbers], str]:
    """A table with a column for each value of what is varied."""

    def function(found: Numbers) -> str:
        cells = found["cells"]
        columns = list(dict.fromkeys(cell["varied"] for cell in cells))
        lines_ = []
        by = grouped(cells, lambda cell: (cell["network"], cell["sparsity"], cell["method"]))
        for (network, sparsity, method), own in by.items():
            values = {cell["varied"]: Spread.from_json(cell["accuracy"]) for cell in own}
            top = max(spread.mean for spread in values.values())
            texts = {name: spread.percent(found["seeds"]) for name, spread in values.items()}
            marked = {name: f"**{t}**" if values[name].mean == top else t for name, t in texts.items()}
            lines_.append([network, f"{sparsity:.1%}", method, *(marked.get(name, "not run") for name in columns)])
        return text + "\n\n" + markdown(["network", "sparsity", "method", *columns], lines_)

    return function


def plot(found: Numbers, label: str) -> Figure:
    """A panel for each network and sparsity, a line for each method over the values in their order."""
    panels: dict[str, Any] = {}
    columns = list(dict.fromkeys(cell["varied"] for cell in found["cells"]))
    for (network, sparsity), own in grouped(found["cells"], lambda c: (c["network"], c["sparsity"])).items():
        series: dict[str, Any] = {}
        for cell in own:
            spread = Spread.from_json(cell["accuracy"])
            point = (100 * spread.mean, 100 * spread.deviation)
            series.setdefault(cell["method"], {})[columns.index(cell["varied"])] = point
        panels[f"{network}, {sparsity:.1%}"] = (series, None)
    figure = lines(panels, label, "test accuracy, percent")
    for axes in figure.axes:
        axes.set_xticks(range(len(columns)), columns)
    return figure
