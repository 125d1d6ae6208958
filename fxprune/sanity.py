"""Sanity checks of a mask: what is left of its merit when its choice, or its weights, are scrambled?

Su et al. (NeurIPS 2020) and Frankle et al. (Pruning Neural Networks at Initialization: Why Are We Missing
the Mark?, ICLR 2021) find that masks made at initialisation often train as well after their elements are
shuffled within each layer, and after the weights are drawn anew: what counts is how many weights each layer
keeps. A criterion that means what it says is hurt by its reversal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from fxprune.errors import MaskError
from fxprune.masks import Masks
from fxprune.model import PrunedModel
from fxprune.saliency import Saliency
from fxprune.seeds import stream

Sanity = Literal["invert", "shuffle", "reinitialise"]


def check_sanity(name: str | None) -> None:
    """Raise `MaskError` unless `name` is None or the name of a check."""
    if name is not None and name not in get_args(Sanity):
        raise MaskError(f"sanity: expected one of {', '.join(get_args(Sanity))}, got {name!r}")


def invert(saliency: Saliency) -> Saliency:
    """The reversed order: keep what the criterion would remove first."""
    return Saliency({name: -values for name, values in saliency.items()})


def shuffle(masks: Mapping[str, Tensor], seed: int = 0) -> Masks:
    """Each mask with its elements in random order; every weight keeps as many as before."""
    generator = stream(seed, "shuffled masks")
    return Masks({name: _permuted(mask, generator) for name, mask in masks.items()})


def reinitialise(pruned: PrunedModel, seed: int = 0) -> None:
    """Put the elements of each prunable weight's parameters in random order, in place.

    That draws weights anew from the very distribution they had, whatever the model's initialisation is.
    """
    generator = stream(seed, "shuffled weights")
    parameters = dict(pruned.named_parameters(remove_duplicate=False))
    names = dict.fromkeys(weight.parameters[0] for weight in pruned.weights)
    with torch.no_grad():
        for name in names:
            parameters[name].copy_(_permuted(parameters[name], generator))


def _permuted(tensor: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.detach().flatten()[order].view(tensor.shape)
