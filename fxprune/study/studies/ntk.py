"""The tangent kernel before and after pruning: what it keeps, and what it foretells."""

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

_COLUMNS = ("trace", "largest", "alignment", "predicted_decrease", "real_decrease")
_ZERO = 1e-9  # of the largest: what is less is rounding, and not drawn
METHODS = ("dense", "random", "snip", "grasp")


def _experiments(setting: Setting, networks: Sequence[str]) -> list[Experiment]:
    return experiments(networks, METHODS, setting.few_sparsities, setting.seeds, kind="kernel")


def _numbers(setting: Setting, rows: Sequence[Row]) -> dict[str, Any]:
    found = []
    for (network, sparsity, method), some in sorted(
        grouped(rows, lambda row: (row["network"], row["sparsity"], row["method"])).items(),
        key=lambda item: (item[0][0], item[0][1], METHODS.index(item[0][2])),
    ):
        found.append(
            {
                "network": network,
                "sparsity": sparsity,
                "method": method,
                "trace": Spread.of(row["trace"] for row in some).to_json(),
                "largest": Spread.of(row["eigenvalues"][0] for row in some).to_json(),
                "alignment": Spread.of(row["alignment"] for row in some).to_json(),
                "predicted_decrease": Spread.of(_decrease(row["predicted"]) for row in some).to_json(),
                "real_decrease": Spread.of(_decrease(row["real"]) for row in some).to_json(),
                "eigenvalues": [
                    float(f"{statistics.fmean(values):.4g}")
                    for values in zip(*(row["eigenvalues"] for row in some), strict=True)
                ],
            }
        )
    return {"seeds": len(setting.seeds), "kernel": dict(setting.kernel), "cells": found}


def _decrease(losses: Sequence[float]) -> float:
    return losses[0] - losses[-1]


def _page(numbers: dict[str, Any]) -> str:
    wanted = numbers["kernel"]
    text = (
        "The empirical kernel over all parameters at the initialisation, on "
        f"{wanted['per_class']} training images of "
        "each class in one batch with batch statistics. *Alignment* is the share of the labels that lies along "
        "the ten leading eigenvectors. *Predicted* is by how much the loss falls in "
        f"{wanted['steps']} steps of gradient descent at rate {wanted['lr']:g} if the network were linear in its "
        "parameters; *real*, by how much it falls. (Beyond the rate of 2 samples over the largest eigenvalue the "
        "linear model itself oscillates, and foretells little.) Means ± standard deviations over seeds."
    )
    lines_ = [
        [
            cell["network"],
            f"{cell['sparsity']:.1%}",
            cell["method"],
            *(_number(cell[name]) for name in _COLUMNS),
        ]
        for cell in numbers["cells"]
    ]
    header = ["network", "sparsity", "method", "trace", "largest eigenvalue", "alignment", "predicted", "real"]
    return text + "\n\n" + markdown(header, lines_)


def _number(found: dict[str, Any]) -> str:
    return Spread.from_json(found).number()


def _plot(numbers: dict[str, Any]) -> Figure:
    panels: dict[str, Any] = {}
    dense = {cell["network"]: cell for cell in numbers["cells"] if cell["method"] == "dense"}
    pruned = [cell for cell in numbers["cells"] if cell["method"] != "dense"]
    for (network, sparsity), own in grouped(pruned, lambda c: (c["network"], c["sparsity"])).items():
        shown = [*([dense[network]] if network in dense else []), *own]
        spectra = {cell["method"]: _spectrum(cell["eigenvalues"]) for cell in shown}
        panels[f"{network}, {sparsity:.1%}"] = (spectra, None)
    return lines(panels, "place of the eigenvalue", "eigenvalue", log_y=True, markers=False)


def _spectrum(values: Sequence[float]) -> dict[float, tuple[float, float]]:
    return {float(place): (value, 0.0) for place, value in enumerate(values, 1) if value > _ZERO * values[0]}


NTK = Study(
    "ntk",
    "What is left of the neural tangent kernel, and does it foretell training?",
    _experiments,
    _numbers,
    _page,
    _plot,
)
