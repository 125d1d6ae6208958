"""A data set's name -> images that fit the model, and batches of them: to train, to test, to score.

    digits                  scikit-learn's 1797 handwritten digits, 8 x 8, no download
    fashion-mnist           60,000 + 10,000 images, 28 x 28 (Debian: dataset-fashion-mnist)
    cifar10, cifar100       50,000 + 10,000 images, 32 x 32
    imagefolder:PATH        one folder a class, in PATH itself or in its train/ and val/ (or test/)
    tiny-imagenet:PATH      the unpacked tiny-imagenet-200

Every image set takes the channels, height and width of the model's input.
"""

from __future__ import annotations

import difflib
import gzip
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from fxprune.errors import DataError

__all__ = ["ImageData", "check_batch", "load", "loader", "num_classes", "replayable", "score_batches"]

Sample = tuple[Tensor, int]
Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
T = TypeVar("T")

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
RESIZED_LIMIT = 256 * 2**20  # bytes: sets that stay below are resized once, larger ones image by image
LUMA = (0.2989, 0.587, 0.114)  # how torchvision weighs colours when it turns them into grey


@dataclass(frozen=True)
class ImageData:
    """One data set, fitted to one input shape.

    The three sets hold samples `(image, label)`: float32 C x H x W, normalised with the constants published
    for the set, and an int in [0, num_classes). All have `.targets`, a list of the labels.

    Args:
        name: The spec it was loaded from.
        num_classes: How many labels there are.
        train: Training images; photographs are augmented by a shifted crop and a mirror image.
        test: Images to measure on, never part of `train`.
        score: The training images again, as in `test` without augmentation: saliencies should not depend on
            what a crop happened to show.
        class_names: One a label.
    """

    name: str
    num_classes: int
    train: Dataset[Sample]
    test: Dataset[Sample]
    score: Dataset[Sample]
    class_names: tuple[str, ...]


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
        spec: One of the names in the module's docstring.
        input_shape: (C, H, W) of one sample, C being 1 or 3. Images are resized (bilinear, antialiased); grey
            is repeated for three channels, colours become grey for one.
        seed: Draws the images that `limit` keeps. What is held out for testing never depends on it, so
            that no seed tests on images that another one trained on.
        root: Folder of data sets that have no PATH, and the start of relative PATHs. By default the
            environment variable FXPRUNE_DATA, else ~/.cache/fxprune; PATHs then start here.
        limit: At most so many training images, the classes as equal as they allow. The test set stays whole.
        download: Fetch fashion-mnist and CIFAR through torchvision where they are missing.

    Raises:
        DataError: No data set has that name, it is not there or is damaged, or it cannot fit `input_shape`.
    """
    shape = _image_shape(input_shape)
    place = _Place.parse(spec, root, download=download)
    source = place.family.read(place)
    train = source.train if limit is None else source.train.take(_limited(source.train.targets, limit, seed))
    train, test = train.resized(shape[1:]), source.test.resized(shape[1:])
    plain = _view(place.family, shape)
    return ImageData(
        name=spec,
        num_classes=len(source.class_names),
        train=_ImageSet(train, _view(place.family, shape, augment=place.family.augment)),
        test=_ImageSet(test, plain),
        score=_ImageSet(train, plain),
        class_names=source.class_names,
    )


def num_classes(spec: str, root: Path | None = None) -> int:
    """How many classes a data set has, without loading an image: what the model has to be built with.

    Raises:
        DataError: No data set has that name, or its folder is not there.
    """
    place = _Place.parse(spec, root)
    return place.family.count(place)


def score_batches(
    dataset: Dataset[Any],
    *,
    classes: int,
    per_class: int = 10,
    batch_size: int | None = None,
    seed: int = 0,
) -> list[tuple[Tensor, Tensor]]:
    """Draw class-balanced batches to score weights on.

    The images come in rounds, each with one image of every class in random order, so that each batch mixes
    all classes as evenly as its size allows. Only the images drawn are loaded, if the data set (or the one
    below a `Subset`) has `.targets`.

    Args:
        dataset: Samples `(image, label)`, by index.
        classes: Labels are 0 ... classes - 1.
        per_class: Images of each class. 10 is what the paper of GraSP takes for CIFAR.
        batch_size: The most images in one batch; the batches are as equal as possible, since a last one of
            a single image would break batch statistics. None makes one batch.
        seed: Draws the images and their order.

    Returns:
        Pairs of inputs (float, N x C x H x W) and targets (int64, N).

    Raises:
        DataError: A class has fewer than `per_class` images, or a label is not in [0, classes).
    """
    _check_positive(classes=classes, per_class=per_class)
    _check_positive(batch_size=batch_size)
    indices, labels = _draw(dataset, classes, per_class, seed)
    order = _by_rounds(labels)
    inputs = _images(dataset, [indices[p] for p in order], [labels[p] for p in order])
    targets = torch.tensor([labels[p] for p in order])
    count = 1 if batch_size is None else -(-len(order) // batch_size)
    return list(zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True))


def replayable(data: Iterable[T]) -> Iterable[T]:
    """Make batches that can be gone through any number of times, as scoring does.

    Args:
        data: Batches. A list or a `DataLoader` comes back as it is; a generator is kept as a list. A loader
            that shuffles or augments gives other batches on each pass: use `score_batches` to score on.

    Raises:
        DataError: There is no batch, or `data` is one batch and not several.
    """
    if isinstance(data, Tensor | Mapping) or (isinstance(data, tuple | list) and _is_batch(data)):
        raise DataError(
            f"expected an iterable of batches, got one {_described(data)}; put it in a list: [batch]"
        )
    if not isinstance(data, Iterable):
        raise DataError(
            f"expected an iterable of batches (inputs, targets), got {_described(data)}; "
            "give a DataLoader or a list of pairs"
        )
    kept = list(data) if isinstance(data, Iterator) else data
    if _length(kept) == 0:
        raise DataError(
            "expected at least one batch, got none; check that the iterator was not used up before"
        )
    return kept


def check_batch(batch: Any, num_outputs: int | None = None) -> tuple[Inputs, Tensor]:
    """Check that a batch is `(inputs, targets)`, and that its labels fit the model.

    Args:
        batch: Inputs are a tensor, a sequence of tensors (positional arguments of the model) or a dict of
            tensors (keyword arguments); targets are a tensor.
        num_outputs: If given, integer targets must be classes in [0, num_outputs).

    Returns:
        Inputs, a list turned into a tuple, and targets.

    Raises:
        DataError: The batch is anything else.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(f"expected a batch (inputs, targets), got {_described(batch)}; return such pairs")
    inputs, targets = batch
    if not _is_inputs(inputs):
        raise DataError(
            f"expected inputs as a tensor, or a tuple or dict of tensors, got {_described(inputs)}; "
            "convert them in the data set or its collate function"
        )
    if not isinstance(targets, Tensor):
        raise DataError(f"expected targets as a tensor, got {_described(targets)}; convert them")
    if num_outputs is not None:
        _check_labels(targets, num_outputs)
    return tuple(inputs) if isinstance(inputs, list) else inputs, targets


def loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    workers: int = 0,
    drop_last: bool = False,
) -> DataLoader[Any]:
    """A `DataLoader` whose order depends on nothing but the seed and the number of passes made.

    Augmentation draws from torch's global generator when `workers` is 0, and from the seed otherwise.

    Raises:
        DataError: The data set has no samples, or too few for one whole batch under `drop_last`.
    """
    _check_positive(batch_size=batch_size)
    samples = _length(dataset)
    fewest = batch_size if drop_last else 1
    if samples is not None and samples < fewest:
        raise DataError(
            f"expected at least {fewest} samples, got {samples}; give more data or smaller batches"
        )
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        dataset, batch_size, shuffle=shuffle, num_workers=workers, drop_last=drop_last, generator=generator
    )


# --- drawing


def _draw(dataset: Dataset[Any], classes: int, per_class: int, seed: int) -> tuple[list[int], list[int]]:
    """Random indices, `per_class` of every class, and their labels."""
    size = _length(dataset)
    if size is None:
        raise DataError(
            f"expected a data set with a length, got {_described(dataset)}; give one read by index"
        )
    targets = _targets(dataset)
    indices, labels, filled = [], [], Counter[int]()
    for index in _shuffled(size, seed):
        label = targets[index] if targets is not None else _label(_pair(dataset, index)[1], index)
        if not 0 <= label < classes:
            raise DataError(
                f"expected labels from 0 to {classes - 1}, got {label}; correct the number of classes"
            )
        if filled[label] < per_class:
            filled[label] += 1
            indices.append(index)
            labels.append(label)
        if len(indices) == classes * per_class:
            return indices, labels
    raise _dry(filled, classes, per_class)


def _images(dataset: Dataset[Any], indices: list[int], labels: list[int]) -> Tensor:
    """The inputs of some samples, in one tensor, after a look at whether `.targets` told the truth."""
    images = []
    for index, label in zip(indices, labels, strict=True):
        image, target = _pair(dataset, index)
        if not isinstance(image, Tensor):
            raise DataError(
                f"expected images as tensors, got {_described(image)}; add a transform to the data set"
            )
        if _label(target, index) != label:
            raise DataError(
                f"expected sample {index} to have label {label}, as in .targets, got {target}; "
                "give a data set whose .targets are what its samples return"
            )
        images.append(image)
    if len({image.shape for image in images}) > 1:
        shapes = sorted({tuple(image.shape) for image in images})
        raise DataError(f"expected images of one shape, got {shapes[0]} and {shapes[-1]}; resize them alike")
    return torch.stack(images)


def _by_rounds(labels: Sequence[int]) -> list[int]:
    """Positions in an order in which every class comes once before any comes again."""
    seen, rounds = Counter[int](), []
    for label in labels:
        rounds.append(seen[label])
        seen[label] += 1
    return sorted(range(len(labels)), key=rounds.__getitem__)


def _limited(targets: list[int], limit: int, seed: int) -> list[int]:
    _check_positive(limit=limit)
    shuffled = _shuffled(len(targets), seed)
    return [shuffled[p] for p in _by_rounds([targets[i] for i in shuffled])[:limit]]


def _held_out(targets: Sequence[int], every: int) -> tuple[list[int], list[int]]:
    """Indices to train and to test on: of each class the second image and every `every`th after it.

    The second, so that a class of two images is in both.
    """
    seen, train, test = Counter[int](), list[int](), list[int]()
    for index, label in enumerate(targets):
        (test if seen[label] % every == 1 else train).append(index)
        seen[label] += 1
    return train, test


def _shuffled(size: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()


def _targets(dataset: Dataset[Any]) -> list[int] | None:
    """All labels without loading a sample; None if the data set does not tell."""
    if isinstance(dataset, Subset):
        below = _targets(dataset.dataset)
        return None if below is None else [below[index] for index in dataset.indices]
    try:
        targets = torch.as_tensor(getattr(dataset, "targets", None))
    except (TypeError, ValueError, RuntimeError):  # no such attribute, or boxes, or strings
        return None
    fits = targets.shape == (_length(dataset),) and not targets.is_floating_point()
    return targets.tolist() if fits else None


def _pair(dataset: Dataset[Any], index: int) -> tuple[Any, Any]:
    sample = dataset[index]
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise DataError(f"expected samples (image, label), got {_described(sample)}; return such pairs")
    return sample[0], sample[1]


def _label(target: Any, index: int) -> int:
    try:
        if int(target) == target:
            return int(target)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise DataError(f"expected a class number as the label of sample {index}, got {target!r}; return an int")


def _length(data: object) -> int | None:
    try:
        return len(data)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # a DataLoader over a stream has __len__, and it raises
        return None


# --- checks and messages


def _is_inputs(inputs: object) -> bool:
    parts = (
        inputs.values()
        if isinstance(inputs, dict)
        else inputs
        if isinstance(inputs, tuple | list)
        else [inputs]
    )
    return bool(parts) and all(isinstance(part, Tensor) for part in parts)


def _is_batch(data: Sequence[Any]) -> bool:
    """Whether this is `(inputs, targets)` itself. A list of two batches holds pairs, not tensors."""
    return len(data) == 2 and isinstance(data[1], Tensor)


def _check_labels(targets: Tensor, num_outputs: int) -> None:
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        return
    wrong = targets[(targets < 0) | (targets >= num_outputs)]
    if wrong.numel():
        raise DataError(
            f"expected labels from 0 to {num_outputs - 1}, since the model has {num_outputs} outputs, "
            f"got {int(wrong[0])}; build the model with as many classes as the data has"
        )


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise DataError(f"expected a positive {name}, got {value!r}; use 1 or more")


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    joined = "x".join(map(str, shape))
    if len(shape) != 3 or any(size < 1 for size in shape):
        raise DataError(f"expected an input of CxHxW, which image data needs, got {joined}; use e.g. 3x32x32")
    if shape[0] not in (1, 3):
        raise DataError(
            f"expected 1 or 3 channels, which images have, got {shape[0]} in {joined}; change the model"
        )
    return shape[0], shape[1], shape[2]


def _dry(filled: Counter[int], classes: int, per_class: int) -> DataError:
    lacking = [(label, filled[label]) for label in range(classes) if filled[label] < per_class]
    named = ", ".join(f"{count} of class {label}" for label, count in lacking[:10])
    more = f" and too few of {len(lacking) - 10} more" if len(lacking) > 10 else ""
    return DataError(
        f"expected {per_class} images of each of {classes} classes, got {named}{more}; "
        "lower per_class, give more data, or correct the number of classes"
    )


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list | dict):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


# --- images, and how they are fitted to the model


@dataclass(frozen=True)
class _Split:
    """Images as they were found, N x C x H x W (uint8, or float in [0, 1]) or files, and their labels."""

    images: Tensor | list[Path]
    targets: list[int]

    def take(self, indices: list[int]) -> _Split:
        images = self.images
        taken = images[indices] if isinstance(images, Tensor) else [images[i] for i in indices]
        return _Split(taken, [self.targets[i] for i in indices])

    def resized(self, size: tuple[int, int]) -> _Split:
        """All images resized, if they are in memory and stay small; else the view does it one by one."""
        from torchvision.transforms.v2.functional import resize

        images = self.images
        if not isinstance(images, Tensor) or images.shape[-2:] == size:
            return self
        if images[:1, :, :1, :1].nbytes * len(images) * size[0] * size[1] > RESIZED_LIMIT:
            return self
        parts = torch.tensor_split(images, -(-len(images) // 4096))  # all at once would take floats for all
        return replace(self, images=torch.cat([resize(part, list(size), antialias=True) for part in parts]))


class _ImageSet(Dataset[Sample]):
    """A split seen through a transform."""

    def __init__(self, split: _Split, view: Callable[[Tensor], Tensor]) -> None:
        self.images, self.targets, self.view = split.images, split.targets, view

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        return self.view(image if isinstance(image, Tensor) else _photo(image)), self.targets[index]


def _photo(path: Path) -> Tensor:
    """An image file as uint8, 3 x H x W."""
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        with Image.open(path) as image:
            return pil_to_tensor(image.convert("RGB"))  # type: ignore[no-any-return]
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and its own, by file format
        raise DataError(f"expected an image in {path}, got {error}; replace or remove the file") from error


def _view(
    family: _Family, shape: tuple[int, int, int], *, augment: bool = False
) -> Callable[[Tensor], Tensor]:
    """What every image goes through: size, augmentation, channels, float, normalisation."""
    from torchvision.transforms import v2

    channels, size = shape[0], shape[1:]
    mean, std = _as_channels(family.mean, channels), _as_channels(family.std, channels)
    steps: list[Callable[[Tensor], Tensor]] = [v2.Resize(size, antialias=True)]  # nothing, where it was done
    if augment:
        steps += [v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()]
    if channels != len(family.mean):
        steps += [v2.Grayscale(channels)]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose(steps)  # type: ignore[no-any-return]


def _as_channels(constants: tuple[float, ...], channels: int) -> list[float]:
    """Constants for another number of channels. Close for the deviation of grey: colours vary together."""
    if len(constants) == channels:
        return list(constants)
    if len(constants) == 1:
        return list(constants) * channels
    return [sum(weight * value for weight, value in zip(LUMA, constants, strict=True))]


# --- the data sets


@dataclass(frozen=True)
class _Source:
    train: _Split
    test: _Split
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class _Family:
    """A kind of data set: how to read it, how many classes it has, what its images are like.

    `mean` and `std` have one value a channel of the images as read, and refer to values in [0, 1].
    """

    read: Callable[[_Place], _Source]
    count: Callable[[_Place], int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool = False
    has_path: bool = False


@dataclass(frozen=True)
class _Place:
    """A parsed spec: which family, and where its files are."""

    family: _Family
    root: Path
    path: Path
    download: bool

    @staticmethod
    def parse(spec: str, root: Path | None, *, download: bool = False) -> _Place:
        name, colon, path = spec.partition(":")
        family = FAMILIES.get(name)
        if family is None or bool(colon and path) != family.has_path:
            raise _unknown_data(spec)
        default = Path(os.environ.get("FXPRUNE_DATA") or "~/.cache/fxprune").expanduser()
        below = Path(root or "").expanduser() / Path(path).expanduser()
        return _Place(family, default if root is None else Path(root).expanduser(), below, download)


def _unknown_data(spec: str) -> DataError:
    forms = {name: f"{name}:PATH" if family.has_path else name for name, family in FAMILIES.items()}
    near = difflib.get_close_matches(spec.partition(":")[0].lower(), forms, n=1, cutoff=0.5)
    advice = f"did you mean {forms[near[0]]}?" if near else "use one of these"
    return DataError(f"expected a data set, one of {', '.join(forms.values())}, got {spec!r}; {advice}")


def _digits(_: _Place) -> _Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)  # 17 levels of grey
    whole = _Split(images, bunch.target.tolist())
    train, test = _held_out(whole.targets, every=5)
    return _Source(whole.take(train), whole.take(test), tuple("0123456789"))


def _fashion(place: _Place) -> _Source:
    from torchvision.datasets import FashionMNIST

    raw = place.root / FashionMNIST.__name__ / "raw"
    folder = next((f for f in (raw, place.root, DEBIAN_FASHION) if _holds_idx(f)), None)
    if folder is None and not place.download:
        raise DataError(
            f"expected the four files of Fashion-MNIST in {raw}, got none; on Debian, apt install "
            "dataset-fashion-mnist, or put the files (.gz or not) of "
            f"https://github.com/zalandoresearch/fashion-mnist there, or load(..., download=True)"
        )
    if folder is None:
        _fetch(FashionMNIST, place, train=True)
    names = tuple(FashionMNIST.classes)
    return _Source(_idx_split(folder or raw, "train"), _idx_split(folder or raw, "t10k"), names)


def _cifar(place: _Place, name: str) -> _Source:
    from torchvision import datasets

    kind = getattr(datasets, name)
    splits = [_fetch(kind, place, train=train) for train in (True, False)]
    train, test = (_Split(torch.from_numpy(s.data).permute(0, 3, 1, 2), list(s.targets)) for s in splits)
    return _Source(train, test, tuple(splits[0].classes))


def _fetch(kind: Any, place: _Place, *, train: bool) -> Any:
    """A torchvision data set from `place.root`, downloaded first if the caller said so."""
    try:
        return kind(place.root, train=train, download=place.download)
    except (RuntimeError, OSError) as error:
        where = place.root / getattr(kind, "base_folder", f"{kind.__name__}/raw")
        got = str(error) if place.download else "no complete copy there"
        raise DataError(
            f"expected {kind.__name__} in {where}, got {got}; download {getattr(kind, 'url', kind.__name__)} "
            f"and unpack it into {place.root}, or load(..., download=True) to have torchvision fetch it"
        ) from error


def _image_folder(place: _Place) -> _Source:
    train, test = _trees(place.path)
    names = _folders(train)
    whole = _tree(train, names)
    if test is None:
        kept, held = _held_out(whole.targets, every=10)
        return _Source(whole.take(kept), whole.take(held), names)
    unknown = sorted(set(_folders(test)) - set(names))
    if unknown:
        raise DataError(
            f"expected in {test} the classes of {train}, got {unknown[0]!r}, which training lacks; "
            "make the class folders alike"
        )
    return _Source(whole, _tree(test, names, complete=False), names)


def _trees(path: Path) -> tuple[Path, Path | None]:
    """The class trees to train and to test on; None for the second where there is none.

    PATH holds train/, or is itself a class tree. `train` may also be the name of a class: it is a tree only
    if it holds folders.
    """
    if not _folders(path):
        got = "none" if path.is_dir() else "no such folder"
        raise DataError(
            f"expected class folders, or train/ and val/, in {path}, got {got}; "
            "make one folder a class: PATH/cat/1.jpg"
        )
    if _folders(path / "train"):
        return path / "train", next((t for t in (path / "val", path / "test") if _folders(t)), None)
    siblings = [path.resolve().parent / name for name in ("val", "test")]
    same = (t for t in siblings if t != path.resolve() and _folders(t) == _folders(path))
    return path, next(same, None)


def _folders(path: Path) -> tuple[str, ...]:
    if not path.is_dir():
        return ()
    return tuple(sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _tree(folder: Path, names: tuple[str, ...], *, complete: bool = True) -> _Split:
    """The image files below each class folder. `complete` asks for at least one of every class."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    classes = {name: label for label, name in enumerate(names)}
    found = make_dataset(str(folder), classes, extensions=IMG_EXTENSIONS, allow_empty=True)
    images, targets = [Path(path) for path, _ in found], [label for _, label in found]
    missing = sorted(set(range(len(names))) - set(targets))
    if not found or (complete and missing):
        raise DataError(
            f"expected images in {folder / names[missing[0]]}, got none ({len(missing)} of {len(names)} "
            f"classes have none); image files end in {', '.join(IMG_EXTENSIONS)}"
        )
    return _Split(images, targets)


def _tiny_imagenet(place: _Place) -> _Source:
    names = _wnids(place)
    labels = {name: label for label, name in enumerate(names)}
    listing = place.path / "val" / "val_annotations.txt"
    rows = [line.split("\t") for line in _lines(listing)]
    wrong = next((row for row in rows if len(row) < 2 or row[1] not in labels), None)
    if wrong:
        raise DataError(
            f"expected lines of file, tab, class of wnids.txt in {listing}, got {wrong}; unpack it again"
        )
    files = [place.path / "val" / "images" / row[0] for row in rows]
    test = _Split(files, [labels[row[1]] for row in rows])
    return _Source(_tree(place.path / "train", names), test, names)


def _wnids(place: _Place) -> tuple[str, ...]:
    """The classes, sorted: the order that torchvision's `ImageFolder` gives the training folders."""
    return tuple(sorted(_lines(place.path / "wnids.txt")))


def _lines(path: Path) -> list[str]:
    """The lines of a text file that hold anything."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"expected a text file {path}, got {error}; give the folder of tiny-imagenet-200 as unpacked, "
            "with train/, val/ and wnids.txt, or use imagefolder:PATH for one folder a class"
        ) from error
    if not lines:
        raise DataError(f"expected a line for each class or image in {path}, got none; unpack the data again")
    return lines


def _idx_path(folder: Path, stem: str) -> Path:
    """`stem`, or `stem.gz` where only that is there."""
    plain = folder / stem
    return plain if plain.is_file() else folder / f"{stem}.gz"


def _holds_idx(folder: Path) -> bool:
    stems = (f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    return all(_idx_path(folder, stem).is_file() for stem in stems)


def _idx_split(folder: Path, part: str) -> _Split:
    images = _read_idx(_idx_path(folder, f"{part}-images-idx3-ubyte"))
    labels = _read_idx(_idx_path(folder, f"{part}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(
            f"expected as many labels as images in {folder}, got shapes {tuple(labels.shape)} "
            f"and {tuple(images.shape)}; get the files again"
        )
    return _Split(images.unsqueeze(1), labels.tolist())


def _read_idx(path: Path) -> Tensor:
    """A file in the IDX format, uint8: two zero bytes, type 8, rank, big-endian sizes, values.

    torchvision's reader takes only unpacked files, and Debian installs packed ones.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if content[:3] != b"\0\0\x08":
            raise ValueError(f"a file that begins with {content[:3]!r}")
        start = 4 + 4 * content[3]
        sizes = np.frombuffer(content[4:start], ">u4").tolist()
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(sizes).copy())
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DataError(
            f"expected bytes in the IDX format in {path}, got {error}; get the file again"
        ) from error


# Mean and deviation over all pixels of the training images. Digits and clothes are not augmented: a mirrored
# digit is another sign, and a crop cuts off what fills the frame.
FAMILIES = {
    "digits": _Family(_digits, lambda _: 10, (0.3053,), (0.3760,)),
    "fashion-mnist": _Family(_fashion, lambda _: 10, (0.2860,), (0.3530,)),
    "cifar10": _Family(
        lambda place: _cifar(place, "CIFAR10"),
        lambda _: 10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        augment=True,
    ),
    "cifar100": _Family(
        lambda place: _cifar(place, "CIFAR100"),
        lambda _: 100,
        (0.5071, 0.4866, 0.4409),
        (0.2673, 0.2564, 0.2762),
        augment=True,
    ),
    "imagefolder": _Family(
        _image_folder,
        lambda place: len(_folders(_trees(place.path)[0])),
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        augment=True,
        has_path=True,
    ),
    "tiny-imagenet": _Family(
        _tiny_imagenet,
        lambda place: len(_wnids(place)),
        (0.4802, 0.4481, 0.3975),
        (0.2770, 0.2691, 0.2821),
        augment=True,
        has_path=True,
    ),
}
