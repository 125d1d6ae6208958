"""Softmax and norms: what is computed of all elements along a dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import once_differentiable

aten = torch.ops.aten

Optional = Tensor | None


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
