"""Image files in one folder a class."""

from __future__ import annotations

from pathlib import Path

from fxprune.data.family import Family, Place, Source
from fxprune.data.splits import Split
from fxprune.errors import DataError
from fxprune.sampling import held_out


def _image_folder(place: Place) -> Source:
    train, test = _trees(place.path)
    names = _folders(train)
    whole = tree(train, names)
    if test is None:
        kept, held = held_out(whole.targets, every=10)
        return Source(whole.take(kept), whole.take(held), names)
    unknown = sorted(set(_folders(test)) - set(names))
    if unknown:
        raise DataError(
            f"expected in {test} the classes of {train}, got {unknown[0]!r}, which training lacks; "
            "make the class folders alike"
        )
    return Source(whole, tree(test, names, complete=False), names)


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


def tree(folder: Path, names: tuple[str, ...], *, complete: bool = True) -> Split:
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
    return Split(images, targets)


IMAGE_FOLDER = Family(
    read=_image_folder,
    count=lambda place: len(_folders(_trees(place.path)[0])),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop="resized",
    has_path=True,
)
