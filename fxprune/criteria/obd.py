"""Optimal brain damage: keep what the loss of a trained network curves around (LeCun et al., NeurIPS 1989)."""

from __future__ import annotations

from torch import Tensor

from fxprune.criteria.registry import register
from fxprune.curvature import fisher
from fxprune.scoring import Scoring


@register("obd", live=False, mode="eval")
def obd(scoring: Scoring) -> dict[str, Tensor]:
    """θ² F / 2, with the diagonal F of the empirical Fisher matrix in place of the Hessian's.

    Meant for trained networks, where the gradient vanishes and the Fisher matrix approximates the Hessian.
    """
    diagonal = fisher(scoring)
    return {name: operand.detach().square() * diagonal[name] / 2 for name, operand in scoring.operands.items()}
