"""Image sets as a model sees them: sized, augmented, normalised, with the channels of its input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fxprune.data.family import Family
from fxprune.data.splits import Split
from fxprune.errors import DataError

Sample = tuple[Tensor, int]

_LARGEST = 2**31  # numbers in an image; a model of larger ones is a mistake
_MIDDLE = 0.875  # 224 of 256 pixels
LUMA = (0.2989, 0.587, 0.114)  # how torchvision weighs colours when it turns them into grey


@dataclass(frozen=True)
class ImageData:
    """One data set, fitted to one input shape.

    The three sets hold samples `(image, label)`: float32 C x H x W, normalised with the constants published
    for the set, and an int in [0, num_classes). All have `.targets`, a list of the labels.

    Args:
        name: The spec it was loaded from.
        num_classes: How many labels there are.
        train: Training images; photographs are cropped at random and mirrored (`fxprune.data.family.Family`).
        test: Images to measure on, never part of `train`.
        score: The training images again, as in `test` without augmentation: saliencies should not depend on
            what a crop happened to show.
        class_names: One a label.
    """

    name: str
    num_classes: int
    train: ImageSet
    test: ImageSet
    score: ImageSet
    class_names: tuple[str, ...]


class ImageSet(Dataset[Sample]):
    """Images seen through a transform: samples (float32 C x H x W, int), and all labels in `targets`.

    Args:
        split: images and labels.
        view: the transform.
        together: whether `view` does to several images what it does to each, as one that draws does not; a
            `DataLoader` then gets those of a batch at once.
    """

    def __init__(self, split: Split, view: Callable[[Tensor], Tensor], *, together: bool = False) -> None:
        self.images, self.targets, self.view, self._together = split.images, split.targets, view, together

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        return self.view(image if isinstance(image, Tensor) else _photo(image)), self.targets[index]

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """Several samples, as `DataLoader` asks for them."""
        if not self._together or not isinstance(self.images, Tensor):
            return [self[index] for index in indices]
        return list(zip(self.view(self.images[indices]), (self.targets[i] for i in indices), strict=True))


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of a model's input as (C, H, W), if it is one that images can have."""
    joined = "x".join(map(str, shape))
    if len(shape) != 3 or any(size < 1 for size in shape):
        raise DataError(f"expected an input of CxHxW, which image data needs, got {joined}; use e.g. 3x32x32")
    if math.prod(shape) > _LARGEST:
        raise DataError(f"expected an input that images can be resized to, got {joined}; use e.g. 3x32x32")
    if shape[0] not in (1, 3):
        raise DataError(
            f"expected 1 or 3 channels, which images have, got {shape[0]} in {joined}; change the model"
        )
    return shape[0], shape[1], shape[2]


def make_view(family: Family, shape: tuple[int, int, int], *, augment: bool = False) -> Callable[[Tensor], Tensor]:
    """What every image goes through: size, augmentation, channels, float, normalisation."""
    from torchvision.transforms import v2

    channels, size = shape[0], shape[1:]
    mean, std = _as_channels(family.mean, channels), _as_channels(family.std, channels)
    steps: list[Callable[[Tensor], Tensor]]
    if family.crop == "resized":
        whole = math.ceil(max(size) / _MIDDLE)
        steps = [v2.RandomResizedCrop(size)] if augment else [v2.Resize(whole), v2.CenterCrop(size)]
    else:
        steps = [v2.Resize(size)]  # nothing, where it was done
        steps += [v2.RandomCrop(size, padding=4)] if augment and family.crop else []
    if augment and family.crop:
        steps += [v2.RandomHorizontalFlip()]
    if channels != len(family.mean):
        steps += [v2.Grayscale(channels)]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose(steps)


def _as_channels(constants: tuple[float, ...], channels: int) -> list[float]:
    """Constants for another number of channels. Close for the deviation of grey: colours vary together."""
    if len(constants) == channels:
        return list(constants)
    if len(constants) == 1:
        return list(constants) * channels
    return [sum(weight * value for weight, value in zip(LUMA, constants, strict=True))]


def _photo(path: Path) -> Tensor:
    """An image file as uint8, 3 x H x W."""
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        with Image.open(path) as image:
            return pil_to_tensor(image.convert("RGB"))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and its own, by file format
        raise DataError(f"expected an image in {path}, got {error}; replace or remove the file") from error
