"""Operators that scoring puts in the place of torch's: equal in value, made to be differentiated twice.

For some of torch's operators the gradient of the gradient does not exist (hard sigmoid), is infinite at zero
(norm), or is put together from a dozen element-wise passes (batch and layer normalisation, GELU) or from a
convolution whose kernel is a whole image (convolutions). Here it is written out, in terms of the
kernels that torch has for the first gradient. ``benchmarks/scoring.py`` shows what that saves.

Notation: `g` is the gradient that a first backward pass gets, `v` what the second one gets for the result of
the first, `ggy` and so on what it returns. Forward derivatives (``jvp``) are made of the same parts, and can be
differentiated in turn.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import Function, forward_ad
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fxprune import operators

aten = torch.ops.aten

Optional = Tensor | None


class _Convolution(Function):
    """Any convolution without a gradient for its bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Optional, settings: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        return _exact_convolution(x, weight, bias, settings)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Optional, ...]:
        x, weight = ctx.saved_tensors
        gx, gw = _ConvolutionBackward.apply(g, x, weight, ctx.settings, ctx.needs_input_grad[:2])
        return gx, gw, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Optional, dw: Optional, *_: Any) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(False):  # the saved tensors carry derivatives of their own
            x, weight = ctx.saved_tensors
            pairs = [(_channels_last(dx), weight)] if dx is not None else []
            pairs += [(x, dw)] if dw is not None else []
            first, *rest = [_Convolution.apply(*pair, None, ctx.settings) for pair in pairs]
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


def _exact_convolution(x: Tensor, weight: Tensor, bias: Optional, settings: tuple[Any, ...]) -> Tensor:
    """``aten.convolution``, without the rounding of long sums.

    The CPU's kernel for channels-last images adds up all products of an output one by one, that for the other
    layout in sums of a few channels: over 128 channels of 3 x 3 its error in float32 is 2.6 times smaller
    (``benchmarks/overlap.py --rounding``). Signs of numbers near zero depend on it, and with them what a ReLU
    passes. The longer the sums, the less do the copies to and fro cost; beside 1 x 1 kernels they would double
    the time.
    """
    if weight[0].numel() < _LONG or weight[0, 0].numel() == 1 or not _is_channels_last(x):
        return aten.convolution(x, weight, bias, *settings)
    return _channels_last(aten.convolution(x.contiguous(), weight, bias, *settings))


def _convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], needs: tuple[bool, bool]
) -> tuple[Optional, Optional]:
    return aten.convolution_backward(g, x, weight, None, *settings, [*needs, False])[:2]


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)


def _channels_last(x: Tensor) -> Tensor:
    """Images with their channels side by side, which the convolutions of a CPU take without copying."""
    if x.dim() == 4 and x.device.type == "cpu":
        return x.contiguous(memory_format=torch.channels_last)
    return x


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
    return _Convolution.apply(
        _channels_last(x), weight, bias, (strides, paddings, dilations, False, [0] * dims, groups)
    )


def _spread(value: Sequence[int] | int, dims: int) -> list[int]:
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes * dims if len(sizes) == 1 else sizes


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
    if not _is_channels_last(x):
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


class _Relu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.relu(x)
        ctx.save_for_backward(y)
        ctx.save_for_forward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _ReluBackward.apply(g, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(False):  # the saved tensors carry derivatives of their own
            return _ReluBackward.apply(dx, *ctx.saved_tensors)


class _ReluBackward(Function):
    """Linear in `g`: torch's own also adds zeros to the gradient of `y`."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return aten.threshold_backward(g, y, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return aten.threshold_backward(v, y, 0), None


def relu(x: Tensor) -> Tensor:
    """``aten.relu``."""
    return _Relu.apply(x)


class _Gelu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return aten.gelu(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _GeluBackward.apply(g, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(False):  # the saved tensors carry derivatives of their own
            return _GeluBackward.apply(dx, *ctx.saved_tensors)


class _GeluBackward(Function):
    """``g gelu'(x)``; with φ the normal density, ``gelu''(x) = φ(x) (2 - x²)``."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return aten.gelu_backward(g, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        g, x = ctx.saved_tensors
        square = x.square()
        second = torch.mul(square, -0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
        second.mul_(square.neg_().add_(2)).mul_(g).mul_(v)
        return aten.gelu_backward(v, x), second


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """``aten.gelu``."""
    return _Gelu.apply(x) if approximate == "none" else aten.gelu(x, approximate=approximate)


class _Softmax(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        y = torch.softmax(x, dim)
        ctx.save_for_backward(y)
        ctx.save_for_forward(y)
        ctx.dim = dim
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Optional, ...]:
        return _SoftmaxBackward.apply(g, *ctx.saved_tensors, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(False):  # the saved tensors carry derivatives of their own
            return _SoftmaxBackward.apply(dx, *ctx.saved_tensors, ctx.dim)


class _SoftmaxBackward(Function):
    """``y (g - sum(g y))``, as a function of `g` and of the softmax `y`; linear and symmetric in `g`."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(g, y)
        ctx.dim = dim
        return aten._softmax_backward_data(g, y, dim, y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Optional, ...]:
        g, y = ctx.saved_tensors
        ggy = aten._softmax_backward_data(v, y, ctx.dim, y.dtype)
        vy = v * y
        gy = (v * g).sub_(v * (g * y).sum(ctx.dim, keepdim=True)).sub_(g * vy.sum(ctx.dim, keepdim=True))
        return ggy, gy, None


def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """``aten.softmax``, whose forward derivative cannot be differentiated."""
    return _Softmax.apply(x if dtype is None else x.to(dtype), dim)


def log_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """``aten.log_softmax``, whose forward derivative cannot be differentiated."""
    x = x if dtype is None else x.to(dtype)
    shifted = x - x.detach().amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


class _LayerNorm(Function):
    """Layer normalisation without gradients for scale and shift."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: list[int], scale: Optional, shift: Optional, eps: float) -> Tensor:
        y, mean, invstd = aten.native_layer_norm(x, shape, scale, shift, eps)
        ctx.save_for_backward(x, scale, mean, invstd)
        ctx.save_for_forward(x, scale, mean, invstd)
        ctx.shape = shape
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Optional, ...]:
        x, scale, mean, invstd = ctx.saved_tensors
        return _LayerNormBackward.apply(g, x, ctx.shape, scale, mean, invstd), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(False):  # the saved tensors carry derivatives of their own
            x, scale, mean, invstd = ctx.saved_tensors
            standardised = _LayerNormBackward.apply(dx, x, ctx.shape, None, mean, invstd)
            return standardised if scale is None else standardised * scale


class _LayerNormBackward(Function):
    """The gradient of the input, ``invstd P(scale g)``, P as in `_BatchNormBackward` with means over a row."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, shape: list[int], scale: Optional, mean: Tensor, invstd: Tensor
    ) -> Tensor:
        ctx.save_for_backward(g, x, scale, mean, invstd)
        ctx.shape = shape
        return _layer_norm_backward(g, x, shape, scale, mean, invstd)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Optional, ...]:
        g, x, scale, mean, invstd = ctx.saved_tensors
        ggy = _layer_norm_backward(v, x, ctx.shape, None, mean, invstd)
        if scale is not None:
            ggy.mul_(scale)
            g = g * scale
        gx = _layer_norm_bilinear(g, v, x, mean, invstd, len(ctx.shape)) if ctx.needs_input_grad[1] else None
        return ggy, gx, None, None, None, None


def _layer_norm_backward(
    g: Tensor, x: Tensor, shape: list[int], scale: Optional, mean: Tensor, invstd: Tensor
) -> Tensor:
    mask = [True, False, False]
    return aten.native_layer_norm_backward(g, x, shape, mean, invstd, scale, None, mask)[0]


def _layer_norm_bilinear(g: Tensor, v: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, dims: int) -> Tensor:
    """Derivative by x of ``sum(v invstd P(g))``, by rows.

    With ``a0 = mean(a)`` and ``a1 = mean(a x̂)`` it is
    ``-invstd² (g1 v + v1 g + x̂ (mean(g v) - g0 v0 - 3 g1 v1) - g1 v0 - g0 v1)``.
    """
    row = list(range(-dims, 0))
    xhat = (x - mean).mul_(invstd)
    g0, v0 = g.mean(row, keepdim=True), v.mean(row, keepdim=True)
    g1, v1, gv = ((a * b).mean(row, keepdim=True) for a, b in ((g, xhat), (v, xhat), (g, v)))
    factor = -invstd * invstd
    result = xhat.mul_(factor * (gv - g0 * v0 - 3 * g1 * v1))
    return result.addcmul_(v, factor * g1).addcmul_(g, factor * v1).sub_(factor * (g1 * v0 + g0 * v1))


def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    scale: Optional = None,
    shift: Optional = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """``aten.layer_norm``."""
    if any(t is not None and t.requires_grad for t in (scale, shift)):
        return aten.layer_norm(x, shape, scale, shift, eps, cudnn_enabled)
    return _LayerNorm.apply(x, list(shape), scale, shift, eps)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Optional = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``aten.scaled_dot_product_attention`` as plain operators: fused kernels have no second derivative."""
    if dropout:
        with sdpa_kernel(SDPBackend.MATH):
            return aten.scaled_dot_product_attention(
                query, key, value, mask, dropout, is_causal, scale=scale, enable_gqa=enable_gqa
            )
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return (softmax(scores, -1) if mask is None else _masked_softmax(scores, mask)) @ value


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over what a mask allows, flags or numbers to add; zero in a row that it closes altogether."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -math.inf)
    closed = (mask == -math.inf).all(-1, keepdim=True)
    return softmax(scores + mask.masked_fill(closed, 0.0), -1).masked_fill(closed, 0.0)


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


def hardsigmoid(x: Tensor) -> Tensor:
    """``aten.hardsigmoid``, whose own backward pass has no derivative."""
    return (x + 3).clamp(0, 6) / 6


def hardswish(x: Tensor) -> Tensor:
    """``aten.hardswish``, whose own backward pass has no derivative."""
    return x * hardsigmoid(x)


def vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: list[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``aten.linalg_vector_norm``; the Euclidean norm of zero has the derivatives zero, not infinity."""
    if ord != 2 or dtype is not None:
        return aten.linalg_vector_norm(x, ord, dim, keepdim, dtype=dtype)
    total = (x * x).sum(dim, keepdim)
    positive = total > 0
    root = torch.where(positive, total, 1.0).sqrt()
    return torch.where(positive, root, 0.0)


REPLACEMENTS: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "relu": relu,
    "gelu": gelu,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "scaled_dot_product_attention": attention,
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "linalg_vector_norm": vector_norm,
    "roi_align": roi_align,
}


def make_doubly_differentiable(graph: fx.Graph) -> None:
    """Let a graph call the operators of this module."""
    for node in list(graph.nodes):
        replacement = REPLACEMENTS.get(operators.name_of(node))
        if replacement is not None and not operators.changed(node):
            node.target = replacement


class _Replacing(TorchFunctionMode):
    """Replaces what Python code calls, where that has no second derivative."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.torchvision.roi_align:
            function = roi_align
        elif function in (F.hardsigmoid, F.hardswish):
            function, args, kwargs = REPLACEMENTS[function.__name__], args[:1], None
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def twice_differentiable_calls() -> Iterator[None]:
    """For the Python code between the regions of a host: its calls have a second derivative inside the block."""
    with sdpa_kernel(SDPBackend.MATH), _Replacing():
        yield
