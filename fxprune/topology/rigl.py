"""RigL: the rigged lottery."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.masks import largest
from fxprune.topology.movement import Movement
from fxprune.topology.settings import check_integer, check_share
from fxprune.training.callbacks import Run


@dataclass(eq=False)
class RigL(Movement):
    """Every so many steps, the smallest weights of each layer give way to those of the largest gradient.

    Evci et al., Rigging the lottery: making all tickets winners, ICML 2020. In step t, from the first one on, each
    layer drops the share ``share / 2 (1 + cos(π t / T))`` of its weights, T being ``until`` of all steps, and
    grows as many where the gradient of the loss with respect to the *dense* weight is largest. As in the authors'
    code the optimiser's step is left out then, and a weight that was just dropped may be grown again, in which
    case it has not moved: it keeps its value.

    For that one step all masks are ones, over weights with zeros where the masks were: the network computes the
    same, and the gradients of removed weights appear. Should that step raise, the masks are left like that: train
    on from the last state.

    Attributes:
        seed: nothing is drawn; it is there because all methods have one.
        share: of the weights of a layer, dropped in the first update; α = 0.3 in the paper.
        every: steps from one update to the next; ΔT = 100 in the paper.
        until: share of the training after which the masks rest; 0.75 in the paper.

    Raises:
        TopologyError: a setting is out of range.
    """

    seed: int = 0
    share: float = 0.3
    every: int = 100
    until: float = 0.75
    name = "rigl"

    def __post_init__(self) -> None:
        check_integer("seed", self.seed)
        check_share("share", self.share)
        check_integer("every", self.every, 1)
        check_share("until", self.until)

    def begin(self, run: Run) -> None:
        """No update is under way."""
        super().begin(run)
        self._kept: Mapping[str, Tensor] = {}  # the masks while they are open

    @torch.no_grad()
    def before_step(self, run: Run) -> None:
        """Open the masks where they are to move in this step."""
        if run.step % self.every or run.step >= self.until * run.steps:
            return
        self._kept = {name: mask.clone() for name, mask in self._model.masks.items()}
        for name, mask in self._kept.items():
            self._parameters[name].masked_fill_(~mask, 0)
        self._model.set_masks({name: torch.ones_like(mask) for name, mask in self._kept.items()})

    def after_backward(self, run: Run) -> bool:
        """Close the masks and move them; leaves the optimiser's step out."""
        if not self._kept:
            return False
        kept, self._kept = self._kept, {}
        self._model.set_masks(kept)
        share = self.share / 2 * (1 + math.cos(math.pi * run.step / (self.until * run.steps)))
        dropped, grown = {}, {}
        for name, mask in kept.items():
            parameter, before = self._parameters[name].detach(), int(mask.sum())
            count = int(share * before)
            stay = largest(parameter.abs(), before - count, mask)
            come = largest(self._gradient(name).abs(), count, ~stay)
            dropped[name], grown[name] = mask & ~stay & ~come, come & ~mask
        self._move(run, dropped, grown)
        return True

    def _gradient(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
