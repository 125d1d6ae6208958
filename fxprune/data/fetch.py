"""Data sets that torchvision reads, and downloads on request."""

from __future__ import annotations

from typing import Any

from fxprune.data.family import Place
from fxprune.errors import DataError


def fetch(kind: Any, place: Place, *, train: bool) -> Any:
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
