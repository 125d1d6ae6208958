"""`Saliency`: how much each prunable element is worth keeping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.errors import ScoreError


@dataclass(frozen=True)
class Saliency(Mapping[str, Tensor]):
    """Saliency by weight name, in the shape of the weight; higher is kept, whatever the criterion.

    Raises:
        ScoreError: a value is not finite; the message names the weight.
    """

    values_by_name: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if not self.values_by_name:
            raise ScoreError("no saliency at all: expected one tensor a prunable weight")
        for name, values in self.values_by_name.items():
            require_finite(name, values, "saliency")

    def __getitem__(self, name: str) -> Tensor:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    @property
    def zero_share(self) -> float:
        """Share of the elements whose saliency is exactly zero: about these the criterion is blind."""
        zeros = sum(int((values == 0).sum()) for values in self.values())
        return zeros / sum(values.numel() for values in self.values())


def require_finite(name: str, values: Tensor, what: str) -> None:
    """Raise `ScoreError` naming the weight when a value is NaN or infinite."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad = values.numel() - int(finite.sum())
        raise ScoreError(
            f"{what} of {name!r}: expected finite numbers, got {bad} of {values.numel()} that are not; "
            "look for NaN in the inputs and the parameters, or score in float32"
        )
