"""Activations, by element."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


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


def hardsigmoid(x: Tensor) -> Tensor:
    """``aten.hardsigmoid``, whose own backward pass has no derivative."""
    return (x + 3).clamp(0, 6) / 6


def hardswish(x: Tensor) -> Tensor:
    """``aten.hardswish``, whose own backward pass has no derivative."""
    return x * hardsigmoid(x)
