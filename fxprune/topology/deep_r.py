"""Deep-R: deep rewiring."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.errors import TopologyError
from fxprune.seeds import stream
from fxprune.topology.movement import Movement, regrown
from fxprune.topology.settings import check_integer, check_number
from fxprune.training.callbacks import Run


@dataclass(eq=False)
class DeepR(Movement):
    """Each connection has a sign for good; one whose weight passes zero goes, and a random one comes.

    Bellec et al., Deep rewiring: training very sparse deep networks, ICLR 2018 (DEEP R, with as many connections
    in each layer at any time). A connection k has the weight ``s_k θ_k``, of a constant sign s_k. After each step
    of the optimiser, active connections take ``θ ← θ - η α + sqrt(2 η T) ν``, with the learning rate η and ν
    normal. Those with θ < 0 become dormant, and as many dormant ones of the same layer are drawn, at zero.

    Signs are those of the initial weights, and drawn where a weight is dormant. As a layer that is nearly dense
    has too few dormant connections, those that just went may come back.

    Attributes:
        seed: of what is drawn.
        l1: α; 1e-5 in the authors' code for MNIST.
        temperature: T; by default ``η α² / 2``, which gives the noise the deviation ``η α``, as in the authors'
            code (``gdnoise`` equal to ``l1``).

    Raises:
        TopologyError: a setting is out of range.
    """

    seed: int = 0
    l1: float = 1e-5
    temperature: float | None = None
    name = "deep-r"

    def __post_init__(self) -> None:
        check_integer("seed", self.seed)
        check_number("l1", self.l1, zero=True)
        if self.temperature is not None:
            check_number("temperature", self.temperature, zero=True)

    def begin(self, run: Run) -> None:
        """Give each connection its sign."""
        super().begin(run)
        self._signs: Mapping[str, Tensor] = {
            name: self._sign(name, mask) for name, mask in self._model.masks.items()
        }

    def _sign(self, name: str, mask: Tensor) -> Tensor:
        """int8, 1 or -1: of the weight, or drawn where there is none."""
        random = torch.randint(2, mask.shape, generator=stream(self.seed, f"{self.name}, signs of {name}"))
        own = self._parameters[name].detach().sign() * mask
        return torch.where(own == 0, (2 * random - 1).to(own), own).to(torch.int8)

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """Shrink, shake and rewire."""
        rate = float(run.optimizer.param_groups[0]["lr"])
        shrinkage = rate * self.l1
        deviation = shrinkage if self.temperature is None else math.sqrt(2 * rate * self.temperature)
        dropped, grown = {}, {}
        for name, mask in self._model.masks.items():
            generator = self._stream(run, name)
            parameter, sign = self._parameters[name], self._signs[name]
            active = parameter[mask]
            noise = torch.randn(active.shape, generator=generator).to(active)
            parameter[mask] = active + deviation * noise - shrinkage * sign[mask]
            dropped[name] = mask & (parameter * sign < 0)
            grown[name] = regrown(mask, dropped[name], int(dropped[name].sum()), generator)
        self._move(run, dropped, grown)

    def state(self) -> Mapping[str, Tensor]:
        """The signs, int8: no weight that is now zero tells its own."""
        return self._signs

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the signs.

        Raises:
            TopologyError: they do not fit the weights.
        """
        wanted = {name: sign.shape for name, sign in self._signs.items()}
        if {name: sign.shape for name, sign in state.items()} != wanted:
            raise TopologyError(
                "deep-r: the state is of a run without it, or of another model: expected the same callbacks, or "
                "to train afresh"
            )
        self._signs = state
