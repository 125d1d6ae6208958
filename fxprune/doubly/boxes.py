"""What torchvision's detectors cut out of feature maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Optional = Tensor | None


class _RoiAlign(Function):
    """A linear function of the features; the boxes are constants, as torchvision has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, boxes: Tensor, settings: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(boxes)
        ctx.settings, ctx.shape = settings, x.shape
        aligned: Tensor = torch.ops.torchvision.roi_align(x, boxes, *settings)
        return aligned

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Optional, ...]:
        return _RoiAlignBackward.apply(g, *ctx.saved_tensors, ctx.settings, ctx.shape), None, None


class _RoiAlignBackward(Function):
    """The transpose of `_RoiAlign`."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, boxes: Tensor, settings: tuple[Any, ...], shape: torch.Size) -> Tensor:
        ctx.save_for_backward(boxes)
        ctx.settings = settings
        scale, height, width, ratio, aligned = settings
        gx: Tensor = torch.ops.torchvision._roi_align_backward(
            g, boxes, scale, height, width, *shape, ratio, aligned
        )
        return gx

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Optional, ...]:
        return _RoiAlign.apply(v, *ctx.saved_tensors, ctx.settings), None, None, None


def roi_align(
    x: Tensor, boxes: Tensor, scale: float, height: int, width: int, ratio: int = -1, aligned: bool = False
) -> Tensor:
    """``torchvision.roi_align``, whose own backward pass has no derivative."""
    return _RoiAlign.apply(x, boxes.detach(), (scale, height, width, ratio, aligned))
