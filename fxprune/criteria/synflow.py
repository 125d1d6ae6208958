"""SynFlow: keep the paths from input to output, without data (Tanaka et al., NeurIPS 2020)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fxprune.criteria.registry import register
from fxprune.errors import ScoreError
from fxprune.regions import CapturedModel, Region
from fxprune.scoring import Scoring, differentiating, on_device


@register("synflow", mode="eval", needs_data=False)
@differentiating()
def synflow(scoring: Scoring) -> dict[str, Tensor]:
    """θ ⊙ ∂R/∂θ, with R the sum of the outputs of the network of absolute values for an input of ones.

    Of a model captured in parts, every region is such a network: what lies between them is no sum over paths.
    Meant for many rounds (its paper: 100, exponential): one round empties layers. Computed in float64,
    since the products over paths of a deep network leave the range of float32.
    """
    model = copy.deepcopy(scoring.model).double()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.abs_()
    leaves = {name: model.get_parameter(path) for name, path in scoring.leaves.items()}
    state = Scoring(model, scoring.leaves, None, scoring.loss_fn, masks=scoring.masks).state()
    outputs = []
    for path, region in CapturedModel(model).regions.items():
        prefix = f"{path}." if path else ""
        own = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        args, kwargs = on_device(_ones(region), next(model.parameters()).device)
        outputs += pytree.tree_leaves(functional_call(region, own, args, kwargs))
    total = sum(leaf.sum() for leaf in outputs if isinstance(leaf, Tensor) and leaf.is_floating_point())
    if not isinstance(total, Tensor) or not total.requires_grad:
        raise ScoreError("synflow: expected an output that depends on the weights, got none")
    gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return {name: leaf.detach() * g for (name, leaf), g in zip(leaves.items(), gradients, strict=True)}


def _ones(region: Region) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One sample of ones; indices and flags are those of the captured example."""
    program = region._fxprune["eval"]
    leaves = [
        torch.ones_like(leaf, dtype=torch.float64)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
        else leaf
        for leaf in program.sample_inputs(1)
    ]
    args, kwargs = pytree.tree_unflatten(leaves, program.in_spec)
    return args, kwargs
