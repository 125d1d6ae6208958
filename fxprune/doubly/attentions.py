"""Scaled dot-product attention: fused kernels have no second derivative."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxprune.doubly.reductions import softmax

aten = torch.ops.aten

Optional = Tensor | None


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
