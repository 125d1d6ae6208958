"""Which samples to take, chosen by their labels alone: shuffled by a seed, with the classes kept equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from fxprune.errors import DataError


def shuffled(size: int, seed: int) -> list[int]:
    """0 ... size - 1 in random order. Torch's global generator is left alone."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()


def by_rounds(labels: Sequence[int]) -> list[int]:
    """Positions in an order in which every class comes once before any comes again."""
    seen, rounds = Counter[int](), []
    for label in labels:
        rounds.append(seen[label])
        seen[label] += 1
    return sorted(range(len(labels)), key=rounds.__getitem__)


def limited(targets: list[int], limit: int, seed: int) -> list[int]:
    """Indices of at most `limit` samples, the classes as equal as they allow."""
    check_positive(limit=limit)
    order = shuffled(len(targets), seed)
    return [order[p] for p in by_rounds([targets[i] for i in order])[:limit]]


def held_out(targets: Sequence[int], every: int) -> tuple[list[int], list[int]]:
    """Indices to train and to test on: of each class the second image and every `every`th after it.

    The second, so that a class of two images is in both.
    """
    seen, train, test = Counter[int](), list[int](), list[int]()
    for index, label in enumerate(targets):
        (test if seen[label] % every == 1 else train).append(index)
        seen[label] += 1
    return train, test


def check_positive(**values: int | None) -> None:
    """Refuse numbers of samples below 1; None passes, for "not given"."""
    for name, value in values.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise DataError(f"expected a positive {name}, got {value!r}; use 1 or more")
