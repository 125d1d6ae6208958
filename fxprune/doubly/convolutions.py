"""Convolutions; torch puts the second derivative together from one whose kernel is a whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import once_differentiable

from fxprune.doubly.layout import channels_last, is_channels_last

aten = torch.ops.aten

Optional = Tensor | None


class _Convolution(Function):
    """Any convolution without a gradient for its bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Optional, settings: tuple[Any, ...], exact: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        return (_exact_convolution if exact else aten.convolution)(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Optional, ...]:
        x, weight = ctx.saved_tensors
        gx, gw = _ConvolutionBackward.apply(g, x, weight, ctx.settings, ctx.needs_input_grad[:2])
        return gx, gw, None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Optional, dw: Optional, *_: Any) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(False):  # the saved tensors carry derivatives of their own
            x, weight = ctx.saved_tensors
            pairs = [(channels_last(dx), weight)] if dx is not None else []
            pairs += [(x, dw)] if dw is not None else []
            first, *rest = [_Convolution.apply(*pair, None, ctx.settings, False) for pair in pairs]
            return first + rest[0] if rest else first


class _ConvolutionBackward(Function):
    """The gradients of input and weight, as functions of the output's gradient, the input and the weight."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], needs: tuple[bool, bool]
    ) -> tuple[Optional, ...]:
        ctx.save_for_backward(g, x, weight)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return _convolution_backward(g, x, weight, settings, needs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vx: Optional, vw: Optional) -> tuple[Optional, ...]:
        g, x, weight = ctx.saved_tensors
        needs_g, needs_x, needs_w, *_ = ctx.needs_input_grad
        ggy = gx = gw = None
        if needs_g and vx is not None:
            ggy = aten.convolution(vx, weight, None, *ctx.settings)
        if needs_g and vw is not None:
            part = aten.convolution(x, vw, None, *ctx.settings)
            ggy = part if ggy is None else ggy.add_(part)
        if needs_x and vw is not None:
            gx, _ = _convolution_backward(g, x, vw, ctx.settings, (True, False))
        if needs_w and vx is not None:
            _, gw = _convolution_backward(g, vx, weight, ctx.settings, (False, True))
        return ggy, gx, gw, None, None


_LONG = 512  # products in a sum: 57 channels of 3 x 3


def _exact_convolution(x: Tensor, weight: Tensor, bias: Optional, *settings: Any) -> Tensor:
    """``aten.convolution``, without the rounding of long sums.

    The CPU's kernel for channels-last images adds up all products of an output one by one, that for the other
    layout in sums of a few channels: over 128 channels of 3 x 3 its error in float32 is 2.6 times smaller
    (``benchmarks/overlap.py --rounding``). Signs of numbers near zero depend on it, and with them what a ReLU
    passes. The longer the sums, the less do the copies to and fro cost; beside 1 x 1 kernels they are
    too dear.
    """
    if weight[0].numel() < _LONG or weight[0, 0].numel() == 1 or not is_channels_last(x):
        return aten.convolution(x, weight, bias, *settings)
    return channels_last(aten.convolution(x.contiguous(), weight, bias, *settings))


def _convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], needs: tuple[bool, bool]
) -> tuple[Optional, Optional]:
    return aten.convolution_backward(g, x, weight, None, *settings, [*needs, False])[:2]


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Optional = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """``conv1d``, ``conv2d`` and ``conv3d``, arguments as there."""
    dims = weight.dim() - 2
    if isinstance(padding, str) or x.dim() != weight.dim() or (bias is not None and bias.requires_grad):
        native = (aten.conv1d, aten.conv2d, aten.conv3d)[dims - 1]
        return native(x, weight, bias, stride, padding, dilation, groups)
    strides, paddings, dilations = (_spread(value, dims) for value in (stride, padding, dilation))
    settings = (strides, paddings, dilations, False, [0] * dims, groups)
    return _Convolution.apply(channels_last(x), weight, bias, settings, True)


def _spread(value: Sequence[int] | int, dims: int) -> list[int]:
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes * dims if len(sizes) == 1 else sizes
