"""Batch normalisation, its statistics exact in either layout, and its second derivative in few passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import once_differentiable

from fxprune.doubly.layout import is_channels_last

aten = torch.ops.aten

Optional = Tensor | None


class _BatchNorm(Function):
    """Batch normalisation with the statistics of the batch, without gradients for scale and shift."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Optional, shift: Optional, eps: float) -> Tensor:
        y, mean, invstd = _standardised(x, scale, shift, eps)
        ctx.save_for_backward(x, scale, mean, invstd)
        ctx.save_for_forward(x, scale, mean, invstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Optional, ...]:
        x, scale, mean, invstd = ctx.saved_tensors
        return _BatchNormBackward.apply(g, x, scale, mean, invstd, ctx.eps), None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(False):  # the saved tensors carry derivatives of their own
            x, scale, mean, invstd = ctx.saved_tensors
            return _BatchNormBackward.apply(dx, x, scale, mean, invstd, ctx.eps)


def _standardised(x: Tensor, scale: Optional, shift: Optional, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``aten.native_batch_norm`` in training: result, mean and reciprocal deviation for each channel.

    The CPU's kernel for channels-last images adds up a channel's elements one by one, so that in float32 its
    statistics are off by 1e-5 where 1e-7 can be had. Scores feel that: behind the layer, numbers near zero get the
    other sign, and a ReLU then passes what it should stop.
    """
    if not is_channels_last(x):
        return aten.native_batch_norm(x, scale, shift, None, None, True, 0.0, eps)
    exact = _mean(x)
    mean = exact.to(x.dtype)
    y = x - mean.view(1, -1, 1, 1)
    variance = _mean(y.square()) - (exact - mean).square()
    invstd = (variance + eps).rsqrt().to(x.dtype)
    factor = invstd if scale is None else invstd * scale
    offset = -mean * factor if shift is None else torch.addcmul(shift, mean, factor, value=-1)
    torch.addcmul(offset.view(1, -1, 1, 1), x, factor.view(1, -1, 1, 1), out=y)
    return y, mean, invstd


def _mean(x: Tensor) -> Tensor:
    """The mean of each channel in float64, of float32 sums over single images, whose roundings level out."""
    return x.sum((2, 3)).double().sum(0) / (x.numel() / x.shape[1])


class _BatchNormBackward(Function):
    """The gradient of the input, ``scale invstd P(g)``, as a function of `g` and the input.

    ``P(a) = a - mean(a) - x̂ mean(a x̂)`` for each channel, x̂ being the input standardised; means are over all
    but the channels. P is symmetric, so that the derivative by `g` of ``sum(v scale invstd P(g))`` is
    ``scale invstd P(v)``; that by the input is, with ``a1 = mean(a x̂)``,

        -scale invstd² (g1 P(v) + v1 P(g) + x̂ (mean(P(g) P(v)) + eps invstd² g1 v1)).

    But for the mean g1, `g` occurs in it as ``P(g)`` alone. What waits for the second pass is therefore not `g`
    but the result, which the convolution before the layer keeps in any case.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, scale: Optional, mean: Tensor, invstd: Tensor, eps: float
    ) -> Tensor:
        gx, g_xhat = _batch_norm_backward(g, x, scale, mean, invstd, eps)
        ctx.save_for_backward(gx, x, scale, mean, invstd, g_xhat)
        ctx.eps = eps
        return gx

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Optional, ...]:
        gx, x, scale, mean, invstd, g_xhat = ctx.saved_tensors
        ggy, v_xhat = _batch_norm_backward(v, x, scale, mean, invstd, ctx.eps)
        by_x = None
        if ctx.needs_input_grad[1]:
            by_x = _batch_norm_bilinear(gx, ggy, x, scale, mean, invstd, ctx.eps, g_xhat, v_xhat)
        return ggy, by_x, None, None, None, None


def _batch_norm_backward(
    g: Tensor, x: Tensor, scale: Optional, mean: Tensor, invstd: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The input's gradient, and for each channel the sum of ``g x̂``."""
    ones = torch.ones_like(mean) if scale is None else scale
    mask = [True, True, True]
    return aten.native_batch_norm_backward(g, x, ones, None, None, mean, invstd, True, eps, mask)[:2]


def _batch_norm_bilinear(
    gx: Tensor,
    vx: Tensor,
    x: Tensor,
    scale: Optional,
    mean: Tensor,
    invstd: Tensor,
    eps: float,
    g_xhat: Tensor,
    v_xhat: Tensor,
) -> Tensor:
    """The derivative by the input, see `_BatchNormBackward`; `gx` and `vx` are ``scale invstd P`` of `g` and `v`.

    Where the scale is zero, so are these and the derivative.
    """
    n = x.numel() / x.shape[1]
    g1, v1, inner = g_xhat / n, v_xhat / n, _dot(gx, vx, mean) / n
    if scale is not None:
        inner = torch.where(scale == 0, 0.0, inner / scale)
    inner = inner + (1 if scale is None else scale) * eps * invstd**4 * g1 * v1
    v_part, g_part, x_part = (-invstd * part for part in (g1, v1, inner))
    shape = [1, -1] + [1] * (x.dim() - 2)
    by_channel = (v_part, g_part, x_part, -x_part * mean)
    v_part, g_part, x_part, rest = (c.to(x.dtype).view(shape) for c in by_channel)
    return torch.addcmul(rest, vx, v_part).addcmul_(gx, g_part).addcmul_(x, x_part)


def _dot(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Sum of ``a b`` for each channel, in one pass: what the gradient of a scale is."""
    zero, one = torch.zeros_like(like), torch.ones_like(like)
    mask = [False, True, False]
    return aten.native_batch_norm_backward(a, b, one, None, None, zero, one, True, 0.0, mask)[1]


def batch_norm(
    x: Tensor,
    scale: Optional,
    shift: Optional,
    running_mean: Optional,
    running_var: Optional,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """``aten.batch_norm``, but for the running statistics, which are not updated in training mode."""
    trained = any(t is not None and t.requires_grad for t in (scale, shift))
    if training and not trained:
        return _BatchNorm.apply(x, scale, shift, eps)
    return aten.batch_norm(x, scale, shift, running_mean, running_var, training, momentum, eps, cudnn_enabled)
