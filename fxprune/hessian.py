"""Exact products of the Hessian with the gradient, as fast as memory allows.

Two ways lead there. The gradient can be differentiated once more, which takes the graph of its computation:
that graph waits in memory from the first pass on, or is built again. Or the loss's derivative along the
gradient is differentiated (`fxprune.directional`), which computes more and remembers little. In units of a
forward pass of the network: 9 with graphs that waited, 12 with graphs built again, 14 by derivatives along
the gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune import distributed, memory
from fxprune.capture import Region
from fxprune.curvature import by_name, differentiate, first_pass
from fxprune.directional import Directional
from fxprune.errors import DataError
from fxprune.progress import track
from fxprune.saliency import require_finite
from fxprune.scoring import Scoring, differentiating

logger = logging.getLogger(__name__)

T = TypeVar("T")


@differentiating()
def hessian_gradient_product(scoring: Scoring) -> dict[str, Tensor]:
    """H g by weight name, exact: g the gradient of the mean loss, H its Hessian over the weights.

    H is the sum of the batches' Hessians, and the direction is known only after all batches. The graph of a
    batch's gradient waits for it in memory while the budget (`Scoring.memory`) lasts. For the batches after
    that it is built again, if the budget allows for one; else the product is had by derivatives along the
    gradient. Which way was taken is logged.

    Raises:
        DataError: the data of the second pass is not that of the first.
        ScoreError: a result is not finite; names the weight, and the batch where one is to blame.
    """
    waiting = _Waiting(scoring)
    first = first_pass(scoring, waiting.offer if waiting.open else None)
    kept = len(waiting.gradients)
    logger.info("Hessian-gradient product: the graphs of %d of %d batches were kept", kept, len(first.marks))
    if not waiting.fits:
        memory.release()
    direction = list(first.gradient.values())
    total = [torch.zeros_like(part) for part in direction]
    products = chain(
        (_along(own, direction, scoring) for own in _emptied(waiting.gradients)),
        _without_graphs(scoring, direction, first.marks, kept, lean=not waiting.fits),
    )
    for product in track(products, "Hessian-gradient product", len(first.marks)):
        for sum_, part in zip(total, product, strict=True):
            sum_ += part
    distributed.add_up(total, 0)
    result = by_name(scoring, total)
    for name, sum_ in result.items():
        sum_ /= first.samples
        require_finite(name, sum_, "Hessian product")
    return result


class _Waiting:
    """Gradients of the first batches, with their graphs, as many as the memory budget allows.

    One more may stay while twice what the largest has taken is left: graphs of equal batches are equal,
    and their second derivatives need room to work.

    Attributes:
        gradients: of the first batches.
        open: whether the next batch may have a graph.
        fits: whether the graph of one batch is within the budget.
    """

    def __init__(self, scoring: Scoring) -> None:
        self.gradients: list[list[Tensor]] = []
        self._device = next(iter(scoring.operands.values())).device
        budget = memory.free(self._device) * memory.SHARE if scoring.memory is None else scoring.memory
        self._left = budget
        self._last, self._largest = memory.used(self._device), 0
        self.open = self.fits = budget > 0

    def offer(self, gradient: list[Tensor]) -> bool:
        """Keep a gradient if there is room; whether the next one may have a graph as well."""
        now = memory.used(self._device)
        self._largest = max(self._largest, now - self._last)
        self._left -= now - self._last
        self._last = now
        self.open = self._left > 2 * self._largest
        if self.open:
            self.gradients.append(gradient)
        self.fits = self.open or bool(self.gradients)
        return self.open


def _without_graphs(
    scoring: Scoring, direction: Sequence[Tensor], marks: Sequence[float], start: int, *, lean: bool
) -> Iterator[list[Tensor]]:
    """The products of the batches from `start` on, whose graphs did not wait."""
    operands = list(scoring.operands.values())
    if lean and start < len(marks):
        try:
            slope = _slope(scoring, by_name(scoring, direction))
            products = (differentiate(value, operands) for value in _repeated(scoring, marks, start, slope))
            yield next(products)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, DataError) as error:  # what is wrong with the data shows again below
            logger.info("Hessian-gradient product: no derivatives along the gradient, since %s", error)
        else:
            yield from products
            return
    for loss in _repeated(scoring, marks, start):
        yield _along(differentiate(loss, operands, create_graph=True), direction, scoring)


def _along(gradient: list[Tensor], direction: Sequence[Tensor], scoring: Scoring) -> list[Tensor]:
    """Derivative of the inner product of a gradient with a direction."""
    operands = list(scoring.operands.values())
    pairs = [(g, v) for g, v in zip(gradient, direction, strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(operand) for operand in operands]
    outputs, directions = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, operands, directions, materialize_grads=True))


def _slope(scoring: Scoring, direction: Mapping[str, Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A function of a batch: the derivative of its loss along a direction of the weights.

    Forward through the network, backward through the loss, whose operators are not ours.

    Raises:
        NotImplementedError: the network is not one graph, or its graph changes tensors in place.
    """
    region = scoring.model
    if not isinstance(region, Region):
        raise NotImplementedError("the model is captured in several regions")
    program = region._fxprune["train" if region.training else "eval"]
    directional = Directional(program)
    tangents = {scoring.leaves[name]: scoring.masked(name, part) for name, part in direction.items()}

    def slope(inputs: Any, targets: Tensor) -> Tensor:
        duals = directional(region, scoring.state(), tangents, program.leaves(*scoring.arguments(inputs)))
        # aliases: one output may be computed from another, and the loss is to depend on each by itself
        outputs = [v.view_as(v) if isinstance(v, Tensor) else v for v, _ in duals]
        loss = scoring.loss_of(pytree.tree_unflatten(outputs, program.out_spec), targets)
        moving = [(output, d) for output, (_, d) in zip(outputs, duals, strict=True) if d is not None]
        if not (moving and loss.requires_grad):
            return torch.zeros((), device=loss.device)
        read, derivatives = zip(*moving, strict=True)
        slopes = torch.autograd.grad(loss, read, create_graph=True, materialize_grads=True)
        return torch.stack([(s * d).sum() for s, d in zip(slopes, derivatives, strict=True)]).sum()

    return slope


def _repeated(
    scoring: Scoring,
    marks: Sequence[float],
    start: int,
    value: Callable[[Any, Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """A value of the batches from `start` on, their loss by default; checks that they are the same batches."""
    seen = list(marks[:start])
    if start < len(marks):
        for _, computed, mark in scoring.passes(start, value):
            seen.append(mark)
            yield computed
            del computed  # with its graph, before the next batch builds one
    if seen != marks:
        raise DataError(
            f"data: expected the {len(marks)} batches of the first pass again, got others ({len(seen)}); give a "
            "list of batches, or a loader that repeats itself under the same seed"
        )


def _emptied(items: list[T]) -> Iterator[T]:
    """Go through a list and let go of each item."""
    while items:
        yield items.pop(0)
