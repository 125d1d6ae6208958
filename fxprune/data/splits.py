"""Images as they were found, before a view fits them to the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

RESIZED_LIMIT = 256 * 2**20  # bytes: sets that stay below are resized once, larger ones image by image


@dataclass(frozen=True)
class Split:
    """Images as they were found, N x C x H x W (uint8, or float in [0, 1]) or files, and their labels."""

    images: Tensor | list[Path]
    targets: list[int]

    def take(self, indices: list[int]) -> Split:
        """The samples at these positions."""
        images = self.images
        taken = images[indices] if isinstance(images, Tensor) else [images[i] for i in indices]
        return Split(taken, [self.targets[i] for i in indices])

    def resized(self, size: tuple[int, int]) -> Split:
        """All images resized, if they are in memory and stay small; else the view does it one by one."""
        from torchvision.transforms.v2.functional import resize

        images = self.images
        if not isinstance(images, Tensor) or images.shape[-2:] == size:
            return self
        if images[:1, :, :1, :1].nbytes * len(images) * size[0] * size[1] > RESIZED_LIMIT:
            return self
        parts = torch.tensor_split(images, -(-len(images) // 4096))  # all at once would take floats for all
        return replace(self, images=torch.cat([resize(part, list(size), antialias=True) for part in parts]))
