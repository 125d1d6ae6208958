"""DSR: dynamic sparse reparameterisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.errors import TopologyError
from fxprune.masks import apportion, largest
from fxprune.topology.movement import Movement, regrown
from fxprune.topology.settings import check_integer, check_number, check_share
from fxprune.training.callbacks import Run

# Shares of the training after which the interval doubles: in the authors' code, for a WRN-28-2 on CIFAR-10, masks
# move every 100 steps, from epoch 25 of 200 on every 200, from 80 on every 400 and from 140 on every 800.
DOUBLINGS = (0.125, 0.4, 0.7)


@dataclass(eq=False)
class DSR(Movement):
    """Weights below one threshold for all layers give way to random ones, where many weights survive.

    Mostafa and Wang, Parameter efficient training of deep convolutional neural networks by dynamic sparse
    reparameterization, ICML 2019. Weights smaller than H go, in all layers; as many come, shared among the layers
    in proportion to how many survive in each, at random places. H doubles when fewer than ``1 - tolerance`` of a
    target number went, and halves when more than ``1 + tolerance`` of it did. So only the total is constant.

    The largest weight of a layer stays even if it is below H: a layer without a survivor would get nothing, for
    good.

    Attributes:
        seed: of what is drawn.
        share: target number, as a share of the kept weights. The authors' code takes 1% of all weights, of which
            it keeps a tenth: that is 10% of the kept ones, and means something at other sparsities, too.
        threshold: H to begin with; 1e-3 in the authors' code.
        tolerance: how far from the target H is left alone, as a share of it; 0.1 in the authors' code.
        every: steps from one update to the next, at first; doubles at `DOUBLINGS` of the training.

    Raises:
        TopologyError: a setting is out of range.
    """

    seed: int = 0
    share: float = 0.1
    threshold: float = 1e-3
    tolerance: float = 0.1
    every: int = 100
    name = "dsr"

    def __post_init__(self) -> None:
        check_integer("seed", self.seed)
        check_share("share", self.share)
        check_number("threshold", self.threshold)
        check_share("tolerance", self.tolerance)
        check_integer("every", self.every, 1)

    def begin(self, run: Run) -> None:
        """Start with the initial threshold."""
        super().begin(run)
        self._now = self.threshold
        self._target = self.share * self._model.masks.kept

    def before_step(self, run: Run) -> None:
        """Move the masks where it is time."""
        doublings = sum(run.step >= share * run.steps for share in DOUBLINGS)
        if not run.step or run.step % (self.every * 2**doublings):
            return
        masks = self._model.masks
        dropped = {name: self._below(name, mask) for name, mask in masks.items()}
        gone = sum(int(mask.sum()) for mask in dropped.values())
        left = {name: int(mask.sum()) - int(dropped[name].sum()) for name, mask in masks.items()}
        counts = _shared(left, {name: mask.numel() for name, mask in masks.items()}, gone)
        self._adapt(gone)
        grown = {
            name: regrown(mask, dropped[name], counts[name], self._stream(run, name))
            for name, mask in masks.items()
        }
        self._move(run, dropped, grown)

    def _below(self, name: str, mask: Tensor) -> Tensor:
        """What is below the threshold, but for the largest weight."""
        size = self._parameters[name].detach().abs()
        return mask & (size < self._now) & ~largest(size, min(1, int(mask.sum())), mask)

    def _adapt(self, gone: int) -> None:
        if gone < (1 - self.tolerance) * self._target:
            self._now *= 2
        elif gone > (1 + self.tolerance) * self._target:
            self._now /= 2

    def state(self) -> Mapping[str, Tensor]:
        """The threshold, float64, without dimensions."""
        return {"threshold": torch.tensor(self._now, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the threshold.

        Raises:
            TopologyError: the state has none.
        """
        if "threshold" not in state:
            raise TopologyError(
                "dsr: the state is of a run without it: expected the same callbacks, or to train afresh"
            )
        self._now = float(state["threshold"])


def _shared(left: Mapping[str, int], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """How many of `total` weights each layer gets: in proportion to `left`, and no more than it has room for."""
    shares = {name: float(count) for name, count in left.items() if count}
    counts = dict.fromkeys(left, 0)
    if shares:
        room = {name: sizes[name] - left[name] for name in shares}
        counts |= apportion(shares, room, dict.fromkeys(shares, 0), total)
    return counts
