"""`Pattern`: N of every M consecutive elements are kept, the zeros that hardware with sparse products can use.

Groups of M lie along the dimension that a weight's products sum over, which is where NVIDIA's sparse tensor
cores want 2:4 (Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021). Within a group the saliencies
decide, and no group is compared with another: all weights get the same density.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from fxprune.errors import MaskError, WeightError
from fxprune.masks import Masks
from fxprune.saliency import Saliency
from fxprune.weights import PrunableWeight, Weights


@dataclass(frozen=True)
class Pattern:
    """Keep `kept` of every `of` elements.

    Attributes:
        kept: at least 1, and fewer than `of`.
        of: size of a group.

    Raises:
        MaskError: these are no such numbers.
    """

    kept: int
    of: int

    def __post_init__(self) -> None:
        if not 0 < self.kept < self.of:
            raise MaskError(
                f"pattern: expected N:M that keeps some of M elements and not all, such as 2:4, got {self}"
            )

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``2:4``."""
        if not re.fullmatch(r"\d{1,9}:\d{1,9}", text):
            raise MaskError(f"pattern: expected N:M, such as 2:4, got {text!r}")
        kept, of = text.split(":")
        return cls(int(kept), int(of))

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"

    def takers(self, weights: Weights, include: str | Sequence[str] = ()) -> Weights:
        """The weights that can take the pattern; the others stay dense, for a reason.

        Args:
            weights: all that were selected.
            include: globs of weights that were asked for by name.

        Raises:
            WeightError: a weight that was asked for cannot take the pattern, or none can.
        """
        refused = {weight.name: reason for weight in weights if (reason := self._refusal(weight))}
        globs = (include,) if isinstance(include, str) else include
        wanted = [name for name in refused if any(fnmatchcase(name, glob) for glob in globs)]
        if wanted or len(refused) == len(weights):
            name = (wanted or list(refused))[0]
            raise WeightError(
                f"{len(wanted or refused)} of {len(weights)} weights {refused[name]}, such as {name}; exclude "
                "them, or choose another pattern"
            )
        return weights.leaving(refused)

    def _refusal(self, weight: PrunableWeight) -> str | None:
        if weight.input_dim is None:
            return f"cannot take {self}: its products do not sum over a dimension of it, or over several"
        size = weight.shape[weight.input_dim]
        return f"cannot take {self}: {size} inputs are no multiple of {self.of}" if size % self.of else None

    def cut(self, saliency: Saliency, weights: Weights) -> Masks:
        """Keep those of highest saliency in each group; of equal ones the first.

        Args:
            saliency: of each weight.
            weights: the same, all of which take the pattern.
        """
        masks = {}
        for weight in weights:
            groups = self._groups(weight, saliency[weight.name])
            best = groups.argsort(dim=-1, descending=True, stable=True)[..., : self.kept]
            kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, value=True)
            assert weight.input_dim is not None
            masks[weight.name] = kept.flatten(-2).movedim(-1, weight.input_dim).contiguous()
        return Masks(masks)

    def holds(self, weight: PrunableWeight, values: Tensor) -> bool:
        """Whether no group of `values`, of the weight's shape, has more non-zeros than are to be kept."""
        return bool(((self._groups(weight, values) != 0).sum(-1) <= self.kept).all())

    def _groups(self, weight: PrunableWeight, values: Tensor) -> Tensor:
        assert weight.input_dim is not None
        along = values.movedim(weight.input_dim, -1)
        return along.reshape(*along.shape[:-1], -1, self.of)


def check_pattern(
    pattern: str | Pattern | None, sparsity: float | None, rounds: int, sanity: str | None
) -> Pattern | None:
    """The pattern that was asked for, or None where a sparsity was.

    Raises:
        MaskError: both were, or neither, or the pattern is none, or goes with what cannot keep it.
    """
    if (pattern is None) == (sparsity is None):
        raise MaskError(
            "expected a sparsity, such as 0.9, or a pattern, such as 2:4, got "
            f"sparsity {sparsity} and pattern {pattern}"
        )
    if pattern is None:
        return None
    found = pattern if isinstance(pattern, Pattern) else Pattern.parse(str(pattern))
    if rounds != 1:
        raise MaskError(f"pattern {found}: expected one round, got {rounds}; a pattern has no way there")
    if sanity == "shuffle":
        raise MaskError(f"pattern {found}: shuffled masks do not keep it; expected another sanity check")
    return found
