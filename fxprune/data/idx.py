"""The IDX format, in which MNIST and its successors are distributed; packed with gzip or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fxprune.data.splits import Split
from fxprune.errors import DataError


def holds_idx(folder: Path) -> bool:
    """Whether a folder has all four files of such a data set."""
    stems = (f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    return all(_idx_path(folder, stem).is_file() for stem in stems)


def idx_split(folder: Path, part: str) -> Split:
    """Images and labels of one part, `train` or `t10k`."""
    images = _read_idx(_idx_path(folder, f"{part}-images-idx3-ubyte"))
    labels = _read_idx(_idx_path(folder, f"{part}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(
            f"expected as many labels as images in {folder}, got shapes {tuple(labels.shape)} "
            f"and {tuple(images.shape)}; get the files again"
        )
    return Split(images.unsqueeze(1), labels.tolist())


def _idx_path(folder: Path, stem: str) -> Path:
    """`stem`, or `stem.gz` where only that is there."""
    plain = folder / stem
    return plain if plain.is_file() else folder / f"{stem}.gz"


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
        raise DataError(f"expected bytes in the IDX format in {path}, got {error}; get the file again") from error
