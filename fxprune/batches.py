"""Batches of any data set: drawn to score weights on, loaded in an order that a seed fixes, and checked.

A batch is a pair `(inputs, targets)`; whatever can be iterated over and gives such pairs will do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from fxprune import distributed
from fxprune.errors import DataError
from fxprune.sampling import by_rounds, check_positive, shuffled

__all__ = ["check_batch", "loader", "replayable", "score_batches"]

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
Targets = Tensor | list[Any]
T = TypeVar("T")


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
    check_positive(classes=classes, per_class=per_class)
    check_positive(batch_size=batch_size)
    indices, labels = _draw(dataset, classes, per_class, seed)
    order = by_rounds(labels)
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
        raise DataError(f"expected an iterable of batches, got one {_described(data)}; put it in a list: [batch]")
    if not isinstance(data, Iterable):
        raise DataError(
            f"expected an iterable of batches (inputs, targets), got {_described(data)}; "
            "give a DataLoader or a list of pairs"
        )
    # a DataLoader makes an iterator a pass, and draws from its generator for each: it is not asked
    once = isinstance(data, Iterator) or (not isinstance(data, DataLoader) and iter(data) is iter(data))
    kept = list(data) if once else data
    if _length(kept) == 0:
        raise DataError("expected at least one batch, got none; check that the iterator was not used up before")
    return kept


def check_batch(batch: Any) -> tuple[Inputs, Targets]:
    """Check that a batch is `(inputs, targets)`.

    Args:
        batch: Inputs are a tensor, a sequence (positional arguments of the model) or a dict (keyword
            arguments); an argument is a tensor or holds some, as the list of images of a detector does.
            Targets are a tensor, or a list with an entry for each sample that holds tensors.

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
            f"expected inputs as a tensor, or a tuple or dict of what holds tensors, got {_described(inputs)}; "
            "convert them in the data set or its collate function"
        )
    listed = isinstance(targets, list) and all(map(_holds_tensor, targets))
    if not (isinstance(targets, Tensor) or listed):
        raise DataError(
            "expected targets as a tensor, or as a list of what holds the tensors of each sample, got "
            f"{_described(targets)}; convert them"
        )
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

    Augmentation draws from torch's global generator when `workers` is 0, and from the seed otherwise. Where
    `torch.distributed` is initialised and the order is shuffled, each process gets its share of the samples.

    Raises:
        DataError: The data set has no samples, or too few for one whole batch under `drop_last`.
    """
    check_positive(batch_size=batch_size)
    samples = _length(dataset)
    fewest = batch_size if drop_last else 1
    if samples is not None and samples < fewest:
        raise DataError(f"expected at least {fewest} samples, got {samples}; give more data or smaller batches")
    generator = torch.Generator().manual_seed(seed)
    if shuffle and distributed.active():
        sampler: DistributedSampler[Any] = DistributedSampler(dataset, seed=seed % 2**32, drop_last=drop_last)
        return DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, drop_last=drop_last)
    return DataLoader(
        dataset, batch_size, shuffle=shuffle, num_workers=workers, drop_last=drop_last, generator=generator
    )


# --- drawing


def _draw(dataset: Dataset[Any], classes: int, per_class: int, seed: int) -> tuple[list[int], list[int]]:
    """Random indices, `per_class` of every class, and their labels."""
    size = _length(dataset)
    if size is None:
        raise DataError(f"expected a data set with a length, got {_described(dataset)}; give one read by index")
    targets = _targets(dataset)
    indices, labels, filled = [], [], Counter[int]()
    for index in shuffled(size, seed):
        label = targets[index] if targets is not None else _label(_pair(dataset, index)[1], index)
        if not 0 <= label < classes:
            raise DataError(f"expected labels from 0 to {classes - 1}, got {label}; correct the number of classes")
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


def _dry(filled: Counter[int], classes: int, per_class: int) -> DataError:
    lacking = [(label, filled[label]) for label in range(classes) if filled[label] < per_class]
    named = ", ".join(f"{count} of class {label}" for label, count in lacking[:10])
    more = f" and too few of {len(lacking) - 10} more" if len(lacking) > 10 else ""
    return DataError(
        f"expected {per_class} images of each of {classes} classes, got {named}{more}; "
        "lower per_class, give more data, or correct the number of classes"
    )


# --- checks and messages


def _is_inputs(inputs: object) -> bool:
    parts = (
        inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple | list) else [inputs]
    )
    return bool(parts) and all(map(_holds_tensor, parts))


def _holds_tensor(value: object) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _is_batch(data: Sequence[Any]) -> bool:
    """Whether this is `(inputs, targets)` itself. A list of two batches holds pairs, not tensors."""
    return len(data) == 2 and isinstance(data[1], Tensor)


def _length(data: object) -> int | None:
    try:
        return len(data)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # a DataLoader over a stream has __len__, and it raises
        return None


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list | dict):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
