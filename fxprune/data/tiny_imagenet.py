"""tiny-imagenet-200: class folders to train on, and a list of labels for the images to test on."""

from __future__ import annotations

from pathlib import Path

from fxprune.data.family import Family, Place, Source
from fxprune.data.folders import tree
from fxprune.data.splits import Split
from fxprune.errors import DataError


def _tiny_imagenet(place: Place) -> Source:
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
    test = Split(files, [labels[row[1]] for row in rows])
    return Source(tree(place.path / "train", names), test, names)


def _wnids(place: Place) -> tuple[str, ...]:
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


TINY_IMAGENET = Family(
    read=_tiny_imagenet,
    count=lambda place: len(_wnids(place)),
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
    crop="padded",
    has_path=True,
)
