"""SNIP: keep what the loss depends on (Lee, Ajanthan, Torr, ICLR 2019)."""

from __future__ import annotations

from torch import Tensor

from fxprune.criteria.registry import register
from fxprune.curvature import gradient
from fxprune.scoring import Scoring


@register("snip")
def snip(scoring: Scoring) -> dict[str, Tensor]:
    """|θ ⊙ g|: the first-order change of the loss when a weight is removed, in size."""
    gradients = gradient(scoring)
    return {name: (operand.detach() * gradients[name]).abs() for name, operand in scoring.operands.items()}
