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
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune import distributed, memory, operators
from fxprune.curvature import added, by_name, differentiate, first_pass
from fxprune.directional import Directional
from fxprune.errors import DataError
from fxprune.progress import track
from fxprune.regions import Region
from fxprune.saliency import require_finite
from fxprune.scoring import Scoring, differentiating

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ACTIVATIONS = 1.5  # the graph of a gradient holds most values of the forward pass, and of the backward pass


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
    first = first_pass(scoring, waiting)
    kept = len(waiting.gradients)
    logger.info("Hessian-gradient product: the graphs of %d of %d batches were kept", kept, len(first.marks))
    if not waiting.fits:
        memory.release()
    direction = list(first.gradient.values())
    total: list[Tensor] = []
    products = chain(
        (_along(own, direction, scoring) for own in _emptied(waiting.gradients)),
        _without_graphs(scoring, direction, first.marks, kept, None if waiting.fits else waiting.used),
    )
    for product in track(products, "Hessian-gradient product", len(first.marks)):
        total = added(total, product)
        del product
    total = total or [torch.zeros_like(part) for part in direction]
    distributed.add_up(total, 0)
    result = by_name(scoring, total)
    for name, sum_ in result.items():
        sum_ /= first.samples
        require_finite(name, sum_, "Hessian product")
    return result


class _Waiting:
    """Gradients of the first batches, with their graphs, as many as the memory budget allows.

    One more is taken while twice what it needs is left: second derivatives need room to work. What it
    needs is at first estimated, then what the largest before it has taken: graphs of equal batches are equal.

    Attributes:
        gradients: of the first batches.
        fits: whether the graph of one batch is within the budget.
        used: the most memory that the process held after a forward pass.
    """

    def __init__(self, scoring: Scoring) -> None:
        self.gradients: list[list[Tensor]] = []
        self.fits, self._open, self.used = False, True, 0
        operands = list(scoring.operands.values())
        self._device = operands[0].device
        self._left = memory.free(self._device) * memory.SHARE if scoring.memory is None else scoring.memory
        self._before, self._largest = memory.used(self._device), 0
        self._gradient = sum(operand.nbytes for operand in operands)
        self._sample = _ACTIVATIONS * _bytes_per_sample(scoring.model)

    def wants(self, samples: int) -> bool:
        """Whether a graph fits; after one that did not, none does: those that wait are of the first batches."""
        if self._open:
            memory.release()  # what is freed between tensors that wait: seldom does anything else fit there
        self.used = max(self.used, memory.used(self._device))
        needed = max(self._largest, self._gradient + samples * self._sample)
        self._open = self._open and self._left > 2 * needed
        self.fits = self.fits or self._open
        return self._open

    def offer(self, gradient: list[Tensor]) -> None:
        """Keep a gradient."""
        memory.release()
        now = memory.used(self._device)
        self._largest = max(self._largest, now - self._before)
        self._left -= now - self._before
        self._before = now
        self.gradients.append(gradient)


def _bytes_per_sample(model: nn.Module) -> float:
    """What the values of a graph take, for each sample; 0 for what is not one graph."""
    if not isinstance(model, Region):
        return 0
    program = model._fxprune["train" if model.training else "eval"]
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    size = sum(operators.allocated(call) * call.meta.get("dtype", torch.float32).itemsize for call in calls)
    return size / max(1, program.batch)


def _without_graphs(
    scoring: Scoring, direction: Sequence[Tensor], marks: Sequence[float], start: int, ceiling: int | None
) -> Iterator[list[Tensor]]:
    """The products of the batches from `start` on, whose graphs did not wait.

    A `ceiling`, the memory that the process should hold at most, asks for derivatives along the gradient; None
    says that the graph of a gradient may be built again.
    """
    operands = list(scoring.operands.values())
    if ceiling is not None and start < len(marks):
        try:
            slope = _slope(scoring, by_name(scoring, direction), ceiling)
            products = _gradients(_repeated(scoring, marks, start, slope), operands)
            yield next(products)
        except (RuntimeError, DataError) as error:  # what is wrong with the data shows again below
            if memory.exhausted(error):
                raise
            logger.info("Hessian-gradient product: no derivatives along the gradient, since %s", error)
        else:
            yield from products
            return
    for gradient in _gradients(_repeated(scoring, marks, start), operands, create_graph=True):
        yield _along(gradient, direction, scoring)
        del gradient


def _gradients(
    values: Iterator[Tensor], operands: list[Tensor], *, create_graph: bool = False
) -> Iterator[list[Tensor]]:
    """Gradients of one value after the other; of their graphs nothing is left when the next is computed."""
    for value in values:
        gradient = [differentiate(value, operands, create_graph=create_graph)]
        del value
        yield gradient.pop()


def _along(gradient: list[Tensor], direction: Sequence[Tensor], scoring: Scoring) -> list[Tensor]:
    """Derivative of the inner product of a gradient with a direction."""
    operands = list(scoring.operands.values())
    pairs = [(g, v) for g, v in zip(gradient, direction, strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(operand) for operand in operands]
    outputs, directions = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, operands, directions, materialize_grads=True))


def _slope(
    scoring: Scoring, direction: Mapping[str, Tensor], ceiling: int | None = None
) -> Callable[[Any, Tensor], Tensor]:
    """A function of a batch: the derivative of its loss along a direction of the weights.

    Forward through the network, backward through the loss, whose operators are not ours.

    Raises:
        NotImplementedError: the network is not one graph, or its graph changes tensors in place.
    """
    region = scoring.model
    if not isinstance(region, Region):
        raise NotImplementedError("the model is captured in several regions")
    program = region._fxprune["train" if region.training else "eval"]
    directional = Directional(program, ceiling)
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
