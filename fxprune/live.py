"""The live point: parameter values at which a score can see the whole network.

Modern models initialise the end of each residual branch to nothing: a normalisation with scale zero, a
branch scaled by 1e-5 (LayerScale), a zero gain (NF-nets), a projection of zeros. Gradients do not reach
such a branch, so first-order scores are zero all over it and a global ranking empties it: plain GraSP
at 90% empties more than a quarter of the layers of timm's resnet50 (tests/test_architectures.py).
Scoring therefore happens where the branches are open, and only scoring: the pruned model keeps its own
initialisation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxprune import operators
from fxprune.regions import CapturedModel
from fxprune.seeds import stream
from fxprune.weights import Weights

# LayerScale starts between 1e-6 and 1e-1 (CaiT: 0.1 to 1e-6 by depth), open branches at or near 1.
VANISHING = 0.01


@dataclass(frozen=True)
class LiveChange:
    """One tensor that had another value while weights were scored.

    Attributes:
        name: parameter or weight.
        change: what was done, in words.
    """

    name: str
    change: str


def open_branches(scoring: CapturedModel, weights: Weights) -> list[LiveChange]:
    """Set the scale parameters of `scoring` that vanish to one; its other state is shared and untouched.

    A scale is the scale of a normalisation, or a factor of an activation that has at most one dimension
    larger than one. It vanishes when no element reaches `VANISHING` in size.
    """
    prunable = {name for weight in weights for name in weight.parameters}
    changes = []
    for path, region in scoring.regions.items():
        prefix = f"{path}." if path else ""
        parameters = dict(region.named_parameters())
        names = dict.fromkeys(
            str(node.target) for node in operators.scales(region._fxprune["train"].graph) if node.op == "get_attr"
        )
        for name in names:
            value = parameters.get(name)
            if value is None or prefix + name in prunable or sum(size > 1 for size in value.shape) > 1:
                continue
            largest = float(value.abs().max()) if value.numel() else math.inf
            if largest < VANISHING:
                _replace(region, name, torch.ones_like(value))
                changes.append(LiveChange(prefix + name, f"scale of at most {largest:.2g} counted as one"))
    return changes


def revive(operands: Mapping[str, Tensor], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Fresh values for the weights that are all zero: normal, of He et al.'s variance ``2 / fan_in``."""
    generator = stream(seed, "live point")
    for name, value in operands.items():
        if not bool(value.any()):
            deviation = math.sqrt(2 * value.shape[0] / value.numel())
            drawn = torch.randn(value.shape, generator=generator) * deviation
            yield name, drawn.to(value)


def _replace(module: nn.Module, path: str, value: Tensor) -> None:
    """Put a new parameter in the place of one, wherever the module tree holds it."""
    prefix, _, name = path.rpartition(".")
    old = getattr(module.get_submodule(prefix), name)
    new = nn.Parameter(value, requires_grad=False)
    for submodule in module.modules():
        for key, parameter in submodule._parameters.items():
            if parameter is old:
                submodule._parameters[key] = new
