"""Losses to score with."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxprune.errors import DataError, ScoreError

Loss = Callable[[Any, Tensor], Tensor]


def classification(temperature: float = 200.0) -> Loss:
    """Cross-entropy of ``logits / temperature``, or the losses that the model itself returns.

    GraSP's official code divides by 200: at initialisation that keeps the softmax near uniform, so that
    no sample dominates. Auxiliary logits of the same shape, which GoogLeNet and distilled transformers
    return while training, count 0.3, as GoogLeNet's authors weigh them.

    A model that returns only scalars by name, as torchvision's detectors do while training, or a scalar
    called ``loss``, as those of transformers do when they are given labels, is taken at its word: the sum
    of these is the loss.

    Raises:
        ScoreError: the temperature is not positive, or the model returns no logits.
        DataError: (when called) a target is no class of the model.
    """
    if not isinstance(temperature, Real) or not temperature > 0:
        raise ScoreError(f"temperature: expected a positive number, got {temperature!r}")

    def loss(output: Any, target: Tensor) -> Tensor:
        own = _own_losses(output)
        if own:
            return torch.stack(own).sum()
        logits, *auxiliary = find_logits(output)
        target = _as_classes(target, logits)
        total = F.cross_entropy(logits / temperature, target)
        for other in auxiliary:
            total = total + 0.3 * F.cross_entropy(other / temperature, target)
        return total

    return loss


def _own_losses(output: Any) -> list[Tensor]:
    """The losses in the output of a model that computes them itself."""
    named = output if isinstance(output, dict) else getattr(output, "__dict__", {})
    if _is_scalar(named.get("loss")):
        return [named["loss"]]
    values = list(output.values()) if isinstance(output, dict) else []
    return values if values and all(_is_scalar(value) for value in values) else []


def _is_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()


def find_logits(output: Any) -> list[Tensor]:
    """The logits in a model's output, and after them those of auxiliary heads.

    The logits are the tensor itself, what the output calls ``logits`` (or ``out``, as torchvision's
    segmentation models do), or else its first floating-point tensor with at least two dimensions.

    Raises:
        ScoreError: there is none.
    """
    named = output if isinstance(output, dict) else getattr(output, "__dict__", {})
    for name in ("logits", "out"):
        if isinstance(named.get(name), Tensor):
            return [named[name]]
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    leaves = [leaf for leaf in leaves if leaf.dim() >= 2 and leaf.is_floating_point()]
    if not leaves:
        raise ScoreError(
            f"expected logits (a tensor [batch, classes, ...]) in the output, got {type(output).__name__}; "
            "give a loss_fn(output, target) of your own"
        )
    if isinstance(output, tuple):
        return [leaf for leaf in leaves if leaf.shape == leaves[0].shape]
    return leaves[:1]


def _as_classes(target: Tensor, logits: Tensor) -> Tensor:
    """Targets as cross-entropy takes them: class indices of dtype int64, or class probabilities."""
    if len(target) != len(logits):
        raise DataError(f"targets: expected one for each of {len(logits)} samples, got {len(target)}")
    wanted = logits.shape if target.is_floating_point() else logits.shape[:1] + logits.shape[2:]
    if target.shape != wanted:
        kind = "class probabilities" if target.is_floating_point() else "class indices"
        raise DataError(f"targets: expected {kind} of shape {tuple(wanted)}, got {tuple(target.shape)}")
    if target.is_floating_point():
        return target
    classes = logits.shape[1]
    valid = ((target >= 0) & (target < classes)) | (target == -100)  # -100: torch's "ignore"
    if not bool(torch.all(valid)):
        bad = target[~valid].flatten()[0].item()
        raise DataError(
            f"targets: expected classes 0 to {classes - 1}, since the model has {classes} outputs, got {bad}; "
            "build the model with num_classes of the data"
        )
    return target.long()
