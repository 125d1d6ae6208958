"""Residual networks for small images, ResNet-20 to ResNet-110 (He et al., CVPR 2016, section 4.2).

Three stages of widths `width`, 2 and 4 times that; 16 in the original paper, 32 in the code of GraSP.
Shortcuts are 1x1 convolutions where the shape changes. Weights start as He et al. draw them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation, around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """`depth` layers, ``6 n + 2``."""

    def __init__(self, depth: int, width: int = 16, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth: expected 6 n + 2, such as 20 or 32, got {depth}")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks, inputs = [], width
        for stage, outputs in enumerate((width, 2 * width, 4 * width)):
            for i in range((depth - 2) // 6):
                blocks.append(Block(inputs, outputs, stride=2 if stage and not i else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def resnet20(num_classes: int = 10, width: int = 16, in_channels: int = 3) -> ResNet:
    """0.27 million parameters at width 16."""
    return ResNet(20, width, num_classes, in_channels)


def resnet32(num_classes: int = 10, width: int = 32, in_channels: int = 3) -> ResNet:
    """1.9 million parameters at width 32, as in the code of GraSP."""
    return ResNet(32, width, num_classes, in_channels)
