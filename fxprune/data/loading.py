"""From a spec to images that fit a model."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from fxprune.data.cifar import CIFAR10, CIFAR100
from fxprune.data.digits import DIGITS
from fxprune.data.family import Family, Place
from fxprune.data.fashion_mnist import FASHION_MNIST
from fxprune.data.folders import IMAGE_FOLDER
from fxprune.data.images import ImageData, ImageSet, image_shape, make_view
from fxprune.data.tiny_imagenet import TINY_IMAGENET
from fxprune.errors import DataError
from fxprune.sampling import limited

FAMILIES = {
    "digits": DIGITS,
    "fashion-mnist": FASHION_MNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "imagefolder": IMAGE_FOLDER,
    "tiny-imagenet": TINY_IMAGENET,
}


def load(
    spec: str,
    input_shape: tuple[int, ...],
    *,
    seed: int = 0,
    root: Path | None = None,
    limit: int | None = None,
    download: bool = False,
) -> ImageData:
    """Load a data set and fit it to a model's input.

    Args:
        spec: One of the names in the docstring of `fxprune.data`.
        input_shape: (C, H, W) of one sample, C being 1 or 3. Images are resized (bilinear, antialiased), those of
            folders cropped; grey is repeated for three channels, colours become grey for one.
        seed: Draws the images that `limit` keeps. What is held out for testing never depends on it, so
            that no seed tests on images that another one trained on.
        root: Folder of data sets that have no PATH, and the start of relative PATHs. By default the
            environment variable FXPRUNE_DATA, else ~/.cache/fxprune; PATHs then start here.
        limit: At most so many training images, the classes as equal as they allow. The test set stays whole.
        download: Fetch fashion-mnist and CIFAR through torchvision where they are missing.

    Raises:
        DataError: No data set has that name, it is not there or is damaged, or it cannot fit `input_shape`.
    """
    shape = image_shape(input_shape)
    family, place = _parse(spec, root, download=download)
    source = family.read(place)
    train = source.train if limit is None else source.train.take(limited(source.train.targets, limit, seed))
    train, test = train.resized(shape[1:]), source.test.resized(shape[1:])
    plain = make_view(family, shape)
    return ImageData(
        name=spec,
        num_classes=len(source.class_names),
        train=ImageSet(train, make_view(family, shape, augment=True), together=family.crop is None),
        test=ImageSet(test, plain, together=True),
        score=ImageSet(train, plain, together=True),
        class_names=source.class_names,
    )


def num_classes(spec: str, root: Path | None = None) -> int:
    """How many classes a data set has, without loading an image: what the model has to be built with.

    Raises:
        DataError: No data set has that name, or its folder is not there.
    """
    family, place = _parse(spec, root)
    return family.count(place)


def _parse(spec: str, root: Path | None, *, download: bool = False) -> tuple[Family, Place]:
    name, colon, path = spec.partition(":")
    family = FAMILIES.get(name)
    if family is None or bool(colon and path) != family.has_path:
        raise _unknown_data(spec)
    default = Path(os.environ.get("FXPRUNE_DATA") or "~/.cache/fxprune").expanduser()
    below = Path(root or "").expanduser() / Path(path).expanduser()
    return family, Place(default if root is None else Path(root).expanduser(), below, download)


def _unknown_data(spec: str) -> DataError:
    forms = {name: f"{name}:PATH" if family.has_path else name for name, family in FAMILIES.items()}
    near = difflib.get_close_matches(spec.partition(":")[0].lower(), forms, n=1, cutoff=0.5)
    advice = f"did you mean {forms[near[0]]}?" if near else "use one of these"
    return DataError(f"expected a data set, one of {', '.join(forms.values())}, got {spec!r}; {advice}")
