"""Gradients and exact Hessian-gradient products with respect to a model's prunable operands."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from fxprune import memory
from fxprune.errors import DataError
from fxprune.progress import track
from fxprune.saliency import require_finite
from fxprune.scoring import Scoring, differentiating

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SHARE = 0.6  # of the free memory, for graphs that wait: other processes need some, and so do peaks


@differentiating()
def gradient(scoring: Scoring) -> dict[str, Tensor]:
    """Gradient of the mean loss over all samples, by weight name.

    Raises:
        ScoreError: a gradient is not finite; names the weight.
    """
    return _finite(_gradient(scoring)[0], "gradient")


@differentiating()
def hessian_gradient_product(scoring: Scoring) -> dict[str, Tensor]:
    """H g by weight name, exact: g the gradient of the mean loss, H its Hessian over the weights.

    Double backward: the gradient is differentiated once more, in the direction of itself, batch by batch,
    since H is the sum of the batches' Hessians. The direction is known only after all batches: the
    graph of a batch's gradient waits for it in memory while the budget lasts, and the
    batches after that are computed again.

    Raises:
        DataError: the data of the second pass is not that of the first.
        ScoreError: a result is not finite; names the weight.
    """
    operands = list(scoring.operands.values())
    waiting = _Waiting(scoring)
    direction, samples, marks = _gradient(scoring, waiting)
    vector = list(_finite(direction, "gradient").values())
    kept = len(waiting.gradients)
    logger.info("Hessian-gradient product: the graphs of %d of %d batches were kept", kept, len(marks))
    total = [torch.zeros_like(operand) for operand in operands]
    again = (_grad(loss, operands, create_graph=True) for loss in _repeated(scoring, marks, kept))
    for own in track(chain(_emptied(waiting.gradients), again), "Hessian-gradient product", len(marks)):
        for sum_, part in zip(total, _product(own, vector, operands), strict=True):
            sum_ += part
        del own  # with its graph, before the next batch builds one
    return _finite({n: t / samples for n, t in _name(scoring, total).items()}, "Hessian product")


class _Waiting:
    """Gradients of the first batches, with their graphs, as many as the memory budget allows.

    One more may stay while twice what the largest has taken is left: graphs of equal batches are equal,
    and their second derivatives need room to work.

    Attributes:
        gradients: of the first batches.
        open: whether the next batch may have a graph.
    """

    def __init__(self, scoring: Scoring) -> None:
        self.gradients: list[list[Tensor]] = []
        self._device = next(iter(scoring.operands.values())).device
        self._left = scoring.memory if scoring.memory is not None else memory.free(self._device) * _SHARE
        self._last, self._largest, self.open = memory.used(self._device), 0, self._left > 0

    def offer(self, gradient: list[Tensor]) -> None:
        """Keep a gradient if there is room."""
        now = memory.used(self._device)
        self._largest = max(self._largest, now - self._last)
        self._left -= now - self._last
        self._last = now
        self.open = self._left > 2 * self._largest
        if self.open:
            self.gradients.append(gradient)


def _gradient(scoring: Scoring, waiting: _Waiting | None = None) -> tuple[dict[str, Tensor], int, list[float]]:
    """The mean gradient, the number of samples, and the checksum of each batch.

    Args:
        scoring: the network and its data.
        waiting: is offered the gradient of each batch with its graph, while it is open.
    """
    operands = list(scoring.operands.values())
    total = [torch.zeros_like(operand) for operand in operands]
    samples, marks = 0, []
    for count, loss, mark in track(scoring.passes(), "gradient", scoring.batch_count):
        samples += count
        marks.append(mark)
        with_graph = waiting is not None and waiting.open
        own = _grad(loss, operands, create_graph=with_graph)
        for sum_, part in zip(total, own, strict=True):
            sum_ += part.detach()
        if waiting is not None and with_graph:
            waiting.offer(own)
        del own, loss
    for sum_ in total:
        sum_ /= samples
    return _name(scoring, total), samples, marks


def _repeated(scoring: Scoring, marks: Sequence[float], start: int) -> Iterator[Tensor]:
    """The losses of the batches from `start` on once more; checks that they are the same batches."""
    seen = list(marks[:start])
    if start < len(marks):
        for _, loss, mark in scoring.passes(start):
            seen.append(mark)
            yield loss
    if seen != marks:
        raise DataError(
            f"data: expected the {len(marks)} batches of the first pass again, got others ({len(seen)}); give a "
            "list of batches, or a loader that repeats itself under the same seed"
        )


def _emptied(items: list[T]) -> Iterator[T]:
    """Go through a list and let go of each item."""
    while items:
        yield items.pop(0)


def _grad(value: Tensor, operands: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Gradients, zero for operands that the value does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(operand) for operand in operands]
    return list(torch.autograd.grad(value, operands, create_graph=create_graph, materialize_grads=True))


@differentiating()
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
