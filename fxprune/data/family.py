"""What a kind of data set says of itself: how it is read, and what its images are like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fxprune.data.splits import Split


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
    read, for values in [0, 1]. `augment` is for photographs. Digits and clothes do without: a mirrored digit
    is another sign, and a crop cuts off what fills the frame.
    """

    read: Callable[[Place], Source]
    count: Callable[[Place], int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool = False
    has_path: bool = False
