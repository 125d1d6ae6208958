"""Which outputs of a masked model no longer depend on its input?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.scoring import Scoring

# Outputs of different samples that differ by less, relative to the largest output, are rounding noise.
_NOISE = 1e-6


def cut_off(scoring: Scoring, masks: Mapping[str, Tensor], inputs: Any) -> tuple[int, ...]:
    """Places, in flat order, of the outputs that the masks make independent of the input.

    Measured at the point where the weights were scored: an output is cut off when it is the same for all
    samples of `inputs`, and was not without masks. It therefore holds for any architecture; a path that
    none of these samples uses is not seen.

    Args:
        scoring: the model.
        masks: a mask by weight name.
        inputs: a batch of at least two different samples.
    """
    return tuple(
        place
        for place, (dense, masked) in enumerate(
            zip(_varies(scoring, inputs), _varies(replace(scoring, masks=masks), inputs), strict=True)
        )
        if dense and not masked
    )


def _varies(scoring: Scoring, inputs: Any) -> list[bool]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(scoring.forward(inputs))
    return [isinstance(leaf, Tensor) and _differs_between_samples(leaf) for leaf in leaves]


def _differs_between_samples(output: Tensor) -> bool:
    if not output.is_floating_point() or output.dim() == 0 or len(output) < 2:
        return False
    spread = output.amax(0) - output.amin(0)
    return bool(spread.max() > _NOISE * output.abs().max())
