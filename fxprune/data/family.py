"""What a kind of data set says of itself: how it is read, and what its images are like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fxprune.data.splits import Split

Crop = Literal["padded", "resized"]


@dataclass(frozen=True)
class Source:
    """A data set as read: all its images, before any is fitted to a model."""

    train: Split
    test: Split
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where the files of a data set are.

    `path` is the PATH of the spec, for the families that have one; the others look in `root`.
    """

    root: Path
    path: Path
    download: bool


@dataclass(frozen=True)
class Family:
    """A kind of data set: how to read it, how many classes it has, what its images are like.

    `mean` and `std` are taken over all pixels of the training images: one value a channel of the images as
    read, for values in [0, 1].

    `crop` is how images fill the input of a model. `None`: squeezed into it, and not augmented, since a mirrored
    digit is another sign and a crop cuts off what fills the frame. ``"padded"``, for photographs of one small
    size: squeezed, and trained on shifted by up to four pixels and mirrored (as in the ResNet paper on CIFAR).
    ``"resized"``, for photographs of any size: trained on as mirrored pieces of 8 to 100% of the area, and
    otherwise their middle, 87.5% of the shorter side (usual on ImageNet since Szegedy et al., CVPR 2015).
    """

    read: Callable[[Place], Source]
    count: Callable[[Place], int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: Crop | None = None
    has_path: bool = False
