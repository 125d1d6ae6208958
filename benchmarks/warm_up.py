"""The obvious rival of the live point: train the scales for a few steps, then score.

A few steps of gradient descent open branches that the initialisation closes, since the gradient of a zero
scale is not zero; the other parameters stay as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fxprune.loss import classification

STEPS, RATE, MOMENTUM, CLIP = 10, 0.1, 0.9, 1.0


def warm_up(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], steps: int = STEPS) -> None:
    """Take `steps` steps of SGD in place, on the parameters with at most one dimension larger than one.

    Those are the scales and shifts of normalisations, LayerScale, gains and biases. The batches are gone
    through again and again.
    """
    scales = [p for p in model.parameters() if sum(size > 1 for size in p.shape) <= 1]
    frozen = [p for p in model.parameters() if p.requires_grad]
    loss_fn = classification(temperature=1.0)
    model.train().requires_grad_(False)
    for parameter in scales:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(scales, lr=RATE, momentum=MOMENTUM)
    for images, targets in itertools.islice(itertools.cycle(batches), steps):
        optimizer.zero_grad()
        loss_fn(model(images), targets).backward()
        nn.utils.clip_grad_norm_(scales, CLIP)
        optimizer.step()
    optimizer.zero_grad()
    model.requires_grad_(False)
    for parameter in frozen:
        parameter.requires_grad_(True)
