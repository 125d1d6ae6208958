"""First derivatives of the loss with respect to a model's prunable operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def first_pass(scoring: Scoring, offer: Callable[[list[Tensor]], bool] | None = None) -> FirstPass:
    """The gradient of the mean loss, summed up batch by batch.

    Args:
        scoring: the network and its data.
        offer: is given the gradient of each batch with its graph, and says whether it wants that of the next.
    """
    operands = list(scoring.operands.values())
    total = [torch.zeros_like(operand) for operand in operands]
    samples, wanted = 0, offer is not None
    marks: list[float] = []
    for count, loss, mark in track(scoring.passes(), "gradient", scoring.batch_count):
        samples += count
        own = differentiate(loss, operands, create_graph=wanted)
        for name, sum_, part in zip(scoring.leaves, total, own, strict=True):
            require_finite(name, part, f"gradient on batch {len(marks)}")
            sum_ += part.detach()
        marks.append(mark)
        if wanted and offer is not None:
            wanted = offer(own)
        del own, loss
    samples = distributed.add_up(total, samples)
    for sum_ in total:
        sum_ /= samples
    return FirstPass(by_name(scoring, total), samples, marks)


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
