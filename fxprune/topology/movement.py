"""`Movement`: what all methods that move masks while a model trains have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import TopologyError
from fxprune.model import PrunedModel
from fxprune.seeds import stream
from fxprune.training.callbacks import Callback, Run


class Movement(Callback):
    """Drops weights and grows as many others.

    A grown weight starts at zero, without momentum: the network computes the same before and after. A dropped
    weight is set to zero, which its mask made it anyway.

    What is random is drawn from the seed, the number of the step and the name of the weight: a run that is
    resumed draws what it would have drawn, and so do all processes of one that is distributed.

    Masks move before or after a step and never after an epoch: the state of an epoch is then the same wherever in
    the list of callbacks it is saved.

    Attributes:
        seed: of what is drawn.
    """

    seed: int
    _model: PrunedModel
    _parameters: Mapping[str, nn.Parameter]

    def begin(self, run: Run) -> None:
        """Find the parameter of each weight.

        Raises:
            TopologyError: the model has no masks, or has weights that cannot be moved.
        """
        if not isinstance(run.model, PrunedModel):
            raise TopologyError(
                f"{self.name}: expected a model with masks to move, got {type(run.model).__name__}; "
                "make one with fxprune.prune"
            )
        if run.model.record is not None and run.model.record.pattern is not None:
            raise TopologyError(
                f"{self.name}: expected masks that may move freely, got a pattern of {run.model.record.pattern}, "
                "which would be lost; train without a topology, or prune to a sparsity"
            )
        self._model = run.model
        self._parameters = _movable(run.model)

    def settings(self) -> Mapping[str, Any]:
        """Those of the method."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def _stream(self, run: Run, weight: str) -> torch.Generator:
        """The random numbers of one weight in one step."""
        return stream(self.seed, f"{self.name}, {weight}, step {run.step}")

    @torch.no_grad()
    def _move(self, run: Run, dropped: Mapping[str, Tensor], grown: Mapping[str, Tensor]) -> None:
        """Change the masks; what goes or comes is set to zero, in the weights and in the optimiser's state.

        Args:
            run: whose model and optimiser to change.
            dropped: bool masks by weight of what goes.
            grown: of what comes; what is in both comes back at zero.
        """
        moved = {}
        for name, mask in self._model.masks.items():
            fresh = dropped[name] | grown[name]
            for tensor in _tensors(run.optimizer, self._parameters[name]):
                tensor.masked_fill_(fresh, 0)
            moved[name] = (mask & ~dropped[name]) | grown[name]
        self._model.set_masks(moved)


def _movable(model: PrunedModel) -> dict[str, nn.Parameter]:
    """The parameter of each weight.

    Raises:
        TopologyError: a weight is not one parameter that trains and that no other weight has.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    uses = Counter(name for weight in model.weights for name in weight.parameters)
    found, others = {}, []
    for weight in model.weights:
        name = weight.parameters[0]
        if weight.derived or uses[name] > 1 or not own[name].requires_grad:
            others.append(weight.name)
        found[weight.name] = own[name]
    if others:
        raise TopologyError(
            f"{len(others)} of {len(model.weights)} weights cannot be moved: {', '.join(others[:8])}; a weight "
            "that is grown has to start at zero, which one cannot that is computed from parameters, shared with "
            "another weight or frozen: exclude these when pruning"
        )
    return found


def _tensors(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Iterator[Tensor]:
    """A parameter and what the optimiser keeps for each of its elements, such as momentum."""
    yield parameter
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            yield value


def regrown(mask: Tensor, dropped: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Mask of `count` random elements outside of `mask`.

    What was just dropped comes back only where too little else is left: a weight that is dropped and drawn at
    once would explore nothing.

    Args:
        mask: what was kept before anything was dropped.
        dropped: what is dropped now.
        count: how many; at most as many as are left out or dropped.
        generator: of the random numbers, on the CPU.
    """
    free = ~mask
    missing = count - int(free.sum())
    if missing > 0:
        return free | _drawn(dropped, missing, generator)
    return _drawn(free, count, generator)


def _drawn(among: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Mask of `count` random elements of a mask."""
    result = torch.zeros_like(among).flatten()
    if count:
        places = among.flatten().nonzero()[:, 0]
        order = torch.randperm(len(places), generator=generator)[:count]
        result[places[order.to(places.device)]] = True
    return result.view(among.shape)
