"""`example`: what a model is called with, by the kind of model that it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Example:
    """The arguments of one call, and targets to score on.

    Attributes:
        args: by position.
        kwargs: by keyword.
        targets: int64, one for each sample, all different.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    targets: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @property
    def inputs(self) -> Any:
        """The arguments as a batch of `fxprune.prune` holds them."""
        return dict(self.kwargs) if self.kwargs and not self.args else self.args

    @property
    def shapes(self) -> list[str]:
        """The shapes of all tensors, as ``2x3x224x224``."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return ["x".join(map(str, leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor)]


def example(name: str, shape: tuple[int, ...], *, batch: int = 2, seed: int = 0, device: str = "cpu") -> Example:
    """Inputs for a model of `fxprune.zoo`: normal numbers, drawn from a seed.

    Args:
        name: the model's name.
        shape: one sample, as `fxprune.zoo.build` gives it.
        batch: number of samples.
        seed: other seeds give other inputs.
        device: ``"meta"`` for inputs without values.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(batch, *shape, generator=generator, device="cpu")
    return Example((drawn.to(device),), targets=torch.arange(batch))
