"""GraSP: keep what the gradient flow depends on (Wang, Zhang, Grosse, ICLR 2020)."""

from __future__ import annotations

from torch import Tensor

from fxprune.criteria.registry import register
from fxprune.hessian import hessian_gradient_product
from fxprune.scoring import Scoring


@register("grasp")
def grasp(scoring: Scoring) -> dict[str, Tensor]:
    """θ ⊙ H g.

    Removing a weight perturbs θ by -θ and changes the squared gradient norm by S(-θ) = -θ ⊙ H g, up to
    a factor and to first order (equation 8 of the paper). The paper removes the highest S, which is the
    lowest θ ⊙ H g.
    """
    products = hessian_gradient_product(scoring)
    return {name: operand.detach() * products[name] for name, operand in scoring.operands.items()}
