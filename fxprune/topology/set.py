"""SET: sparse evolutionary training."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.masks import largest
from fxprune.topology.movement import Movement, regrown
from fxprune.topology.settings import check_integer, check_share
from fxprune.training.callbacks import Run


@dataclass(eq=False)
class SET(Movement):
    """After each epoch but the last, the smallest weights of each layer give way to random ones.

    Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science, Nature Communications 9:2383, 2018. The paper takes the same share of the positive and of the
    negative weights; here it is a share of the smallest magnitudes, as in Evci et al.'s comparison (ICML 2020).

    Attributes:
        seed: of what is drawn.
        share: of the weights of a layer that are dropped each time, rounded down; ζ = 0.3 in the paper and in its
            authors' code.

    Raises:
        TopologyError: a setting is out of range.
    """

    seed: int = 0
    share: float = 0.3
    name = "set"

    def __post_init__(self) -> None:
        check_integer("seed", self.seed)
        check_share("share", self.share)

    def before_step(self, run: Run) -> None:
        """Move the masks before the first step of an epoch."""
        if not run.step or run.step % run.steps_per_epoch:
            return
        dropped, grown = {}, {}
        for name, mask in self._model.masks.items():
            kept = int(mask.sum())
            count = int(self.share * kept)
            dropped[name] = mask & ~largest(self._parameters[name].detach().abs(), kept - count, mask)
            grown[name] = regrown(mask, dropped[name], count, self._stream(run, name))
        self._move(run, dropped, grown)
