"""The gradient norm after pruning and during training, and the training loss."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fxprune.rows import Row
from fxprune.study.experiment import Experiment, experiments
from fxprune.study.plots import lines
from fxprune.study.setting import Setting
from fxprune.study.study import Study
from fxprune.study.tables import Spread, grouped, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("dense", "random", "magnitude-init", "snip", "synflow", "grasp")


def _experiments(setting: Setting, networks: Sequence[str]) -> list[Experiment]:
    return experiments(networks, METHODS, setting.sparsities, setting.seeds)  # a part of those of `accuracy`


def _numbers(setting: Setting, rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": len(setting.seeds), "networks": {}}
    for network, own in grouped(rows, lambda row: row["network"]).items():
        by = grouped(own, lambda row: (row["method"], row["sparsity"]))
        found["networks"][network] = [
            {
                "method": method,
                "sparsity": sparsity,
                "after_pruning": Spread.of(row["gradients"][0] for row in some).to_json(),
                "gradients": _means(row["gradients"] for row in some),
                "losses": _means(row["losses"] for row in some),
            }
            for (method, sparsity), some in sorted(by.items(), key=_order)
        ]
    return found


def _order(item: tuple[tuple[str, float], Any]) -> tuple[float, int]:
    (method, sparsity), _ = item
    return sparsity, METHODS.index(method)


def _means(curves: Any) -> list[float]:
    return [float(f"{statistics.fmean(values):.4g}") for values in zip(*curves, strict=True)]


def _page(numbers: dict[str, Any]) -> str:
    parts = [
        "Squared norm of the loss's gradient over the kept weights, before training, on test images in one "
        "batch with batch statistics (mean ± standard deviation over seeds; the largest of each column in "
        "bold), and the mean training loss of the first and of the last epoch. The plot shows the norm during "
        "training."
    ]
    for network, found in numbers["networks"].items():
        sparsities = sorted({row["sparsity"] for row in found if row["sparsity"]})
        dense = next((row for row in found if row["method"] == "dense"), None)
        rows = {(row["method"], row["sparsity"]): row for row in found}
        tops = {s: max(row["after_pruning"]["mean"] for row in found if row["sparsity"] == s) for s in sparsities}
        lines_ = []
        for method in METHODS[1:]:
            own = [rows.get((method, sparsity)) for sparsity in sparsities]
            lines_.append([method, "squared norm", *(_norm(row, tops) for row in own)])
            lines_.append([method, "loss", *(_loss(row) for row in own)])
        title = f"**{network}**"
        if dense:
            norm = dense["after_pruning"]
            title += f"; dense: {Spread(norm['mean'], norm['std'], norm['seeds']).number()}, loss {_loss(dense)}"
        parts += [title, markdown(["method", "", *(f"{s:.1%}" for s in sparsities)], lines_)]
    return "\n\n".join(parts)


def _norm(row: dict[str, Any] | None, tops: dict[float, float]) -> str:
    if row is None:
        return "not run"
    found = row["after_pruning"]
    text = Spread.from_json(found).number()
    return f"**{text}**" if found["mean"] == tops[row["sparsity"]] else text


def _loss(row: dict[str, Any] | None) -> str:
    return "not run" if row is None else f"{row['losses'][0]:.3g} → {row['losses'][-1]:.2g}"


def _plot(numbers: dict[str, Any]) -> Figure:
    panels: dict[str, Any] = {}
    for network, found in numbers["networks"].items():
        sparsities = sorted({row["sparsity"] for row in found if row["sparsity"]})
        for sparsity in sparsities[:: max(1, len(sparsities) - 1)]:  # the lowest and the highest
            panels[f"{network}, {sparsity:.1%}"] = (
                {
                    row["method"]: {float(epoch): (norm, 0.0) for epoch, norm in enumerate(row["gradients"])}
                    for row in found
                    if row["sparsity"] == sparsity
                },
                None,
            )
    return lines(panels, "epochs", "squared gradient norm", log_y=True)


GRADIENT_FLOW = Study(
    "gradient-flow",
    "How much gradient is left after pruning, and while training goes on?",
    _experiments,
    _numbers,
    _page,
    _plot,
)
