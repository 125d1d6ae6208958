"""Names of devices, as options and recipes have them."""

from __future__ import annotations

import os

import torch

from fxprune import distributed
from fxprune.errors import RecipeError


def find_device(name: str) -> torch.device:
    """The device of a name; of several processes on CUDA devices, each gets its own.

    Raises:
        RecipeError: the name means nothing, or there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.active():
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"device: expected cpu, cuda, cuda:N or auto, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"device: expected cpu, cuda, cuda:N or auto, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device: cuda was asked for, and torch sees no CUDA device here; use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"device: expected cuda:0 to cuda:{torch.cuda.device_count() - 1}, got {name!r}")
    if device.type == "cuda" and distributed.active():
        torch.cuda.set_device(device)  # what nccl communicates from
    return device
