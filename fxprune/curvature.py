"""First derivatives of the loss with respect to a model's prunable operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fxprune import distributed
from fxprune.progress import track
from fxprune.saliency import require_finite
from fxprune.scoring import Scoring, differentiating


@differentiating()
def gradient(scoring: Scoring) -> dict[str, Tensor]:
    """Gradient of the mean loss over all samples, by weight name.

    Raises:
        ScoreError: a gradient is not finite; names the weight and the batch.
    """
    return first_pass(scoring).gradient


@dataclass(frozen=True)
class FirstPass:
    """What one pass over the data gives.

    Attributes:
        gradient: of the mean loss, by weight name.
        samples: how many there are.
        marks: a checksum of each batch that this process saw.
    """

    gradient: dict[str, Tensor]
    samples: int
    marks: list[float]


class Keeper(Protocol):
    """Keeps gradients with their graphs."""

    def wants(self, samples: int) -> bool:
        """Whether to build the graph of the gradient of a batch with so many samples."""

    def offer(self, gradient: list[Tensor]) -> None:
        """Take a gradient with its graph, or leave it."""


def first_pass(scoring: Scoring, keeper: Keeper | None = None) -> FirstPass:
    """The gradient of the mean loss, summed up batch by batch.

    Args:
        scoring: the network and its data.
        keeper: is offered the gradients of those batches that it wants.
    """
    operands = list(scoring.operands.values())
    total: list[Tensor] = []
    samples = 0
    marks: list[float] = []
    for count, loss, mark in track(scoring.passes(), "gradient", scoring.batch_count):
        samples += count
        wanted = keeper is not None and keeper.wants(count)
        own = differentiate(loss, operands, create_graph=wanted)
        for name, part in zip(scoring.leaves, own, strict=True):
            require_finite(name, part, f"gradient on batch {len(marks)}")
        total = added(total, [part.detach() for part in own], keep=wanted)
        marks.append(mark)
        if wanted and keeper is not None:
            keeper.offer(own)
        del own, loss
    total = total or [torch.zeros_like(operand) for operand in operands]  # all batches went to others
    samples = distributed.add_up(total, samples)
    for sum_ in total:
        sum_ /= samples
    return FirstPass(by_name(scoring, total), samples, marks)


def added(total: list[Tensor], parts: list[Tensor], *, keep: bool = False) -> list[Tensor]:
    """The sums so far with `parts` added in place; the first parts become the sums, copied to `keep` them."""
    if not total:
        return [part.clone() if keep or 0 in part.stride() else part for part in parts]
    for sum_, part in zip(total, parts, strict=True):
        sum_ += part
    return total


def differentiate(value: Tensor, operands: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Gradients, zero for operands that the value does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(operand) for operand in operands]
    return list(torch.autograd.grad(value, operands, create_graph=create_graph, materialize_grads=True))


@differentiating()
def fisher(scoring: Scoring) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher matrix: the mean over samples of the squared gradient, by weight name.

    Every sample is differentiated on its own, which needs a model without batch statistics: score in
    evaluation mode.
    """
    operands = list(scoring.operands.values())
    total = [torch.zeros_like(operand) for operand in operands]
    samples = 0
    for _, loss, _ in track(scoring.singly().passes(), "Fisher"):
        samples += 1
        for sum_, part in zip(total, differentiate(loss, operands), strict=True):
            sum_ += part.square()
    samples = distributed.add_up(total, samples)
    return {name: sum_ / samples for name, sum_ in by_name(scoring, total).items()}


def by_name(scoring: Scoring, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Tensors in the order of the weights, by the weights' names."""
    return dict(zip(scoring.leaves, tensors, strict=True))


def gradient_norm(scoring: Scoring) -> float:
    """Squared norm of `gradient`: to first order, how fast a step of gradient descent lowers the loss."""
    return sum(float(g.double().square().sum()) for g in gradient(scoring).values())
