"""Random: the baseline that a criterion has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.criteria.registry import register
from fxprune.scoring import Scoring
from fxprune.seeds import stream


@register("random", live=False, needs_data=False)
def random(scoring: Scoring) -> dict[str, Tensor]:
    """Uniform numbers in [0, 1), the same for the same seed on every device."""
    generator = stream(scoring.seed, "random masks")
    return {
        name: torch.rand(operand.shape, generator=generator).to(operand.device)
        for name, operand in scoring.operands.items()
    }
