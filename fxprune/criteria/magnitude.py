"""Magnitude: keep the largest weights (Han et al., NeurIPS 2015); meant for trained networks."""

from __future__ import annotations

from torch import Tensor

from fxprune.criteria.registry import register
from fxprune.scoring import Scoring


@register("magnitude", live=False, needs_data=False)
def magnitude(scoring: Scoring) -> dict[str, Tensor]:
    """|θ|."""
    return {name: operand.detach().abs() for name, operand in scoring.operands.items()}
