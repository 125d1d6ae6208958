"""VGG-11, 16 and 19 for small images, with batch normalisation; GraSP's experiments on CIFAR take the last.

Configurations A, D and E of Simonyan and Zisserman (ICLR 2015), whose three large linear layers give way to one,
as is usual for images of 32 x 32. Four max-poolings halve the sides; the fifth pooling is an average over what
they leave (2 x 2). Weights start as He et al. draw them, as in `resnet.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Channels and number of the convolutions of each stage; a pooling ends every stage.
STAGES_11 = ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2))
STAGES_16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
STAGES_19 = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


class Vgg(nn.Module):
    """Stages of 3x3 convolutions with batch normalisation, and one linear layer."""

    def __init__(
        self, stages: tuple[tuple[int, int], ...], num_classes: int = 10, in_channels: int = 3, scale: float = 1.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for stage, (channels, convolutions) in enumerate(stages):
            outputs = max(1, round(scale * channels))
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
                layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))


def vgg11(num_classes: int = 10, in_channels: int = 3, scale: float = 1.0) -> Vgg:
    """9 million parameters; `scale` multiplies the number of channels."""
    return Vgg(STAGES_11, num_classes, in_channels, scale)


def vgg16(num_classes: int = 10, in_channels: int = 3, scale: float = 1.0) -> Vgg:
    """15 million parameters; `scale` multiplies the number of channels."""
    return Vgg(STAGES_16, num_classes, in_channels, scale)


def vgg19(num_classes: int = 10, in_channels: int = 3, scale: float = 1.0) -> Vgg:
    """20 million parameters; `scale` multiplies the number of channels."""
    return Vgg(STAGES_19, num_classes, in_channels, scale)
