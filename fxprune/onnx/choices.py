"""Checks of files whose outputs are chosen from many candidates: the detections of a model captured in parts.

Rounding decides between candidates that are as good as equal, and one decision makes room for another, so that
the outputs of two right programs differ in some rows, and in their order. A row counts as found if the other
output has one that is equal within the tolerance. What may be missing is what the model itself loses when its
inputs change in their last digits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.model import PrunedModel
from fxprune.onnx.checks import Check
from fxprune.onnx.outputs import Arrays, Difference, Figures
from fxprune.onnx.parts import eager, tensors
from fxprune.onnx.read import open_session

_LAST_DIGITS = 1e-6
_SLACK = 0.05  # what rounding costs is a matter of chance: share of the rows that may be missing beyond it


@dataclass(frozen=True)
class Found:
    """How two outputs agree.

    Attributes:
        rows: how many the one has.
        found: how many of them the other has as well.
        difference: the largest difference of rows that were found.
    """

    rows: int
    found: int
    difference: Difference

    @property
    def share(self) -> float:
        """Share of the rows that were found."""
        return self.found / self.rows if self.rows else 1.0


def check_choices(
    path: Path,
    pruned: PrunedModel,
    *,
    rounded: Mapping[str, NDArray[Any]] | None,
    tolerance: float,
    seed: int,
) -> tuple[list[Check], Figures]:
    """Compare the outputs of a model captured in parts, on its example inputs and on noise of their shapes.

    The arguments are those of `fxprune.onnx.outputs.check_outputs`.
    """
    source = eager(pruned)
    module = source.module if rounded is None else _with_weights(source.module, rounded)
    inputs = [source.args, _noise(source.args, seed)]
    expected = [_run(module, args) for args in inputs]
    disturbed = [_run(module, _moved(args, seed)) for args in inputs]
    own = _compare(expected, disturbed, tolerance)
    checks, figures = [], Figures()
    for optimised in (True, False):
        name = "outputs" if optimised else "outputs unoptimised"
        try:
            session = open_session(path, optimised=optimised)
            got = [
                session.run(None, dict(zip(source.names, _numpy(tensors(args)), strict=True))) for args in inputs
            ]
        except Exception as error:  # ONNX Runtime's errors share no class
            reason = str(error).strip().partition("\n")[0]
            checks.append(Check(name, False, f"ONNX Runtime cannot run the file: {reason}"))
            continue
        seen = _compare(expected, got, tolerance)
        detail = (
            f"{seen.found} of {seen.rows} rows found, largest relative difference {seen.difference.relative:.1e}; "
            f"after a change of {_LAST_DIGITS:.0e} in its inputs the model itself finds {own.found}"
            if own.rows or seen.rows
            else "the model chooses nothing on these inputs, nor does the file: outputs show little"
        )
        checks.append(Check(name, seen.share >= own.share - _SLACK, detail))
        figures = (
            replace(figures, default=seen.difference, agreement=seen.share)
            if optimised
            else replace(figures, unoptimised=seen.difference)
        )
    if rounded is not None:
        exact = _compare([_run(source.module, args) for args in inputs], expected, max(tolerance, 1e-2))
        figures = replace(figures, rounding=exact.difference)
    return checks, figures


def _compare(want: Sequence[Arrays], got: Sequence[Arrays], tolerance: float) -> Found:
    found = [
        rows_found(w, g, tolerance) for ws, gs in zip(want, got, strict=True) for w, g in zip(ws, gs, strict=True)
    ]
    worst = [each.difference for each in found]
    return Found(
        sum(each.rows for each in found),
        sum(each.found for each in found),
        Difference(max(d.relative for d in worst), max(d.absolute for d in worst)),
    )


def rows_found(want: NDArray[Any], got: NDArray[Any], tolerance: float) -> Found:
    """How many rows of an output another has as well, wherever they are.

    Args:
        want: the rows, along the first dimension.
        got: the others; of any number, but of the same size and kind.
        tolerance: largest difference of a number, relative to the largest in `want`; integers must be equal.
    """
    none = Difference(0.0, 0.0)
    if want.shape[1:] != got.shape[1:] or want.dtype != got.dtype:
        return Found(max(len(want), 1), 0, none)
    a, b = (each.reshape(len(each), math.prod(each.shape[1:])).astype(np.float64) for each in (want, got))
    scale = float(np.abs(a).max(initial=0.0)) or 1.0
    limit = tolerance * scale if np.issubdtype(want.dtype, np.floating) else 0.0
    nearest = [float(np.abs(b - row).max(1).min()) if len(b) and b.shape[1] else np.inf for row in a]
    close = [distance for distance in nearest if distance <= limit]
    largest = max(close, default=0.0)
    return Found(max(len(a), len(b)), len(close), Difference(largest / scale, largest))


def _run(module: nn.Module, args: tuple[Any, ...]) -> Arrays:
    with torch.no_grad():
        return _numpy(tensors(module(*copy.deepcopy(args))))


def _numpy(values: Sequence[Tensor]) -> Arrays:
    return [value.detach().numpy() for value in values]


def _with_weights(module: nn.Module, weights: Mapping[str, NDArray[Any]]) -> nn.Module:
    module = copy.deepcopy(module)
    state = module.state_dict()
    for name, value in weights.items():
        state[name].copy_(torch.from_numpy(value).view(state[name].shape))
    return module


def _noise(args: tuple[Any, ...], seed: int) -> tuple[Any, ...]:
    """Uniform numbers between the least and the largest of each floating-point tensor."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or not leaf.numel():
            return leaf
        low, high = leaf.aminmax()
        return low + (high - low) * torch.rand(leaf.shape, generator=generator).to(leaf)

    result: tuple[Any, ...] = pytree.tree_map(drawn, args)
    return result


def _moved(args: tuple[Any, ...], seed: int) -> tuple[Any, ...]:
    """The same but for the last digits."""
    generator = torch.Generator().manual_seed(seed)

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return leaf * (1 + _LAST_DIGITS * torch.randn(leaf.shape, generator=generator).to(leaf))

    result: tuple[Any, ...] = pytree.tree_map(moved, args)
    return result
