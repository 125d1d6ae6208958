"""What hangs on the training loop: `Callback`, and the `Run` that it sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.data import ImageData
from fxprune.training.config import Epoch, TrainConfig


@dataclass
class Run:
    """A training run as callbacks see it.

    Attributes:
        model: what is trained, not wrapped in anything.
        config: settings.
        data: what it is trained on.
        optimizer: of the parameters of `model`.
        steps: how many steps the run has in all.
        steps_per_epoch: how many of them make an epoch.
        step: how many steps were begun before the present one.
        history: the epochs that are over.
    """

    model: nn.Module
    config: TrainConfig
    data: ImageData
    optimizer: torch.optim.Optimizer
    steps: int
    steps_per_epoch: int
    step: int = 0
    history: list[Epoch] = field(default_factory=list)


class Callback:
    """Does nothing at each point of the loop; override what is needed.

    A run that was interrupted goes on from its last whole epoch. What a callback needs for that, beside the
    model, the optimiser and `Run`, it gives as `state` and gets back by `restore`.
    """

    name = "callback"  # under which its state is saved

    def begin(self, run: Run) -> None:
        """Before the first step, or the first after an interruption, then before `restore`."""

    def before_step(self, run: Run) -> None:
        """Before the forward pass."""

    def after_backward(self, run: Run) -> bool:  # noqa: ARG002  for those that override it
        """When all parameters have their gradients; True leaves the optimiser's step out."""
        return False

    def after_step(self, run: Run) -> None:
        """After the optimiser's step, or in its place."""

    def after_epoch(self, run: Run) -> None:
        """After an epoch was tested and added to the history."""

    def settings(self) -> Mapping[str, Any]:
        """What a run that goes on must have in common with the one that was interrupted, as JSON values."""
        return {}

    def state(self) -> Mapping[str, Tensor]:
        """Tensors to resume from."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""


class EachEpoch(Callback):
    """Calls a function with the result of each epoch."""

    name = "each epoch"

    def __init__(self, function: Callable[[Epoch], None]) -> None:
        self._function = function

    def after_epoch(self, run: Run) -> None:
        """Call it."""
        self._function(run.history[-1])
