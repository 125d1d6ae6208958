"""Fashion-MNIST, from Debian's package or a download."""

from __future__ import annotations

from pathlib import Path

from fxprune.data.family import Family, Place, Source
from fxprune.data.fetch import fetch
from fxprune.data.idx import holds_idx, idx_split
from fxprune.errors import DataError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it


def _fashion(place: Place) -> Source:
    from torchvision.datasets import FashionMNIST

    raw = place.root / FashionMNIST.__name__ / "raw"
    folder = next((f for f in (raw, place.root, DEBIAN_FOLDER) if holds_idx(f)), None)
    if folder is None and not place.download:
        raise DataError(
            f"expected the four files of Fashion-MNIST in {raw}, got none; on Debian, apt install "
            "dataset-fashion-mnist, or put the files (.gz or not) of "
            f"https://github.com/zalandoresearch/fashion-mnist there, or load(..., download=True)"
        )
    if folder is None:
        fetch(FashionMNIST, place, train=True)
    names = tuple(FashionMNIST.classes)
    return Source(idx_split(folder or raw, "train"), idx_split(folder or raw, "t10k"), names)


FASHION_MNIST = Family(read=_fashion, count=lambda _: 10, mean=(0.2860,), std=(0.3530,))
