"""Layer normalisation, its second derivative in few passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import once_differentiable

aten = torch.ops.aten

Optional = Tensor | None


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
