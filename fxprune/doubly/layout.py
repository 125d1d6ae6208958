"""The layout of images in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether these are images on the CPU with their channels side by side."""
    return x.dim() == 4 and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)


def channels_last(x: Tensor) -> Tensor:
    """Images with their channels side by side, which the convolutions of a CPU take without copying."""
    if x.dim() == 4 and x.device.type == "cpu":
        return x.contiguous(memory_format=torch.channels_last)
    return x
