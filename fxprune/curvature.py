"""Gradients and exact Hessian-gradient products with respect to a model's prunable operands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.errors import DataError
from fxprune.progress import track
from fxprune.saliency import require_finite
from fxprune.scoring import Scoring


def gradient(scoring: Scoring) -> dict[str, Tensor]:
    """Gradient of the mean loss over all samples, by weight name.

    Raises:
        ScoreError: a gradient is not finite; names the weight.
    """
    return _finite(_gradient(scoring)[0], "gradient")


def hessian_gradient_product(scoring: Scoring) -> dict[str, Tensor]:
    """H g by weight name, exact: g the gradient of the mean loss, H its Hessian over the weights.

    Double backward: the gradient is differentiated once more, in the direction of itself. With a single
    batch one forward pass serves both; with several, a first pass over the data gives g and a second
    sums the products of the batches, since H is the sum of theirs.

    Raises:
        DataError: the data of the second pass is not that of the first.
        ScoreError: a result is not finite; names the weight.
    """
    operands = list(scoring.operands.values())
    if scoring.batch_count == 1:
        ((samples, loss, _),) = scoring.passes()
        own = _grad(loss / samples, operands, create_graph=True)
        return _finite(_name(scoring, _product(own, [g.detach() for g in own], operands)), "Hessian product")
    direction, samples, marks = _gradient(scoring)
    vector = list(_finite(direction, "gradient").values())
    total = [torch.zeros_like(operand) for operand in operands]
    seen: list[float] = []
    for _, loss, mark in track(scoring.passes(), "Hessian-gradient product", len(marks)):
        seen.append(mark)
        own = _grad(loss / samples, operands, create_graph=True)
        for sum_, part in zip(total, _product(own, vector, operands), strict=True):
            sum_ += part
    if seen != marks:
        raise DataError(
            f"data: expected the {len(marks)} batches of the first pass again, got others ({len(seen)}); give a "
            "list of batches, or a loader that repeats itself under the same seed"
        )
    return _finite(_name(scoring, total), "Hessian product")


def _gradient(scoring: Scoring) -> tuple[dict[str, Tensor], int, list[float]]:
    """The mean gradient, the number of samples, and the checksum of each batch."""
    operands = list(scoring.operands.values())
    total = [torch.zeros_like(operand) for operand in operands]
    samples, marks = 0, []
    for count, loss, mark in track(scoring.passes(), "gradient", scoring.batch_count):
        samples += count
        marks.append(mark)
        for sum_, part in zip(total, _grad(loss, operands), strict=True):
            sum_ += part.detach()
    for sum_ in total:
        sum_ /= samples
    return _name(scoring, total), samples, marks


def _grad(value: Tensor, operands: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Gradients, zero for operands that the value does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(operand) for operand in operands]
    return list(torch.autograd.grad(value, operands, create_graph=create_graph, materialize_grads=True))


def fisher(scoring: Scoring) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher matrix: the mean over samples of the squared gradient, by weight name.

    Every sample is differentiated on its own, which needs a model without batch statistics: score in
    evaluation mode.

    Raises:
        ScoreError: a result is not finite; names the weight.
    """
    operands = list(scoring.operands.values())
    total = [torch.zeros_like(operand) for operand in operands]
    samples = 0
    for _, loss, _ in track(scoring.singly().passes(), "Fisher"):
        samples += 1
        for sum_, part in zip(total, _grad(loss, operands), strict=True):
            sum_ += part.square()
    return _finite({n: t / samples for n, t in _name(scoring, total).items()}, "Fisher diagonal")


def _product(gradient: list[Tensor], vector: list[Tensor], operands: list[Tensor]) -> list[Tensor]:
    pairs = [(g, v) for g, v in zip(gradient, vector, strict=True) if g.requires_grad]
    inner = sum(((g * v).sum() for g, v in pairs), start=torch.zeros(()))
    return _grad(inner, operands)


def _name(scoring: Scoring, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(scoring.leaves, tensors, strict=True))


def _finite(tensors: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        require_finite(name, tensor, what)
    return tensors


def gradient_norm(scoring: Scoring) -> float:
    """Squared norm of `gradient`: to first order, how fast a step of gradient descent lowers the loss."""
    return sum(float(g.double().square().sum()) for g in gradient(scoring).values())
