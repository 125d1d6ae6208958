"""Does every output of a masked model still depend on its input?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.scoring import Scoring

# Outputs of different samples that differ by less, relative to the largest output, are rounding noise.
_NOISE = 1e-6


def output_dependence(scoring: Scoring, masks: Mapping[str, Tensor], inputs: Any) -> list[float]:
    """For each floating-point output, the share of its elements that differ between the samples.

    Zero means that the masks cut this output off: it is the same whatever the input. Measured, at the
    point where the weights were scored, on `inputs`, a batch of at least two different samples; it
    therefore holds for any architecture, and may miss a path that these samples do not use.
    """
    with torch.no_grad():
        output = scoring.forward(inputs, masks)
    shares = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0 and len(leaf) > 1:
            spread = leaf.amax(0) - leaf.amin(0)
            shares.append(float((spread > _NOISE * leaf.abs().max()).double().mean()))
    return shares
