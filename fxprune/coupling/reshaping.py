"""Which dimensions a reshape takes apart and puts together, and where labels are afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def stretches(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The shortest runs of dimensions of two shapes that hold the same elements, from the left.

    >>> list(stretches((2, 12, 5), (2, 3, 4, 5)))
    [(range(0, 1), range(0, 1)), (range(1, 2), range(1, 3)), (range(2, 3), range(3, 4))]
    """
    i = j = 0
    while i < len(old) or j < len(new):
        start = (i, j)
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        yield range(start[0], i), range(start[1], j)


def spread(labels: NDArray[np.int64], place: int, shape: Sequence[int]) -> NDArray[np.int64]:
    """The labels of each element of a tensor of which one dimension has labels."""
    sizes = [1] * len(shape)
    sizes[place] = shape[place]
    return np.broadcast_to(labels.reshape(sizes), shape)


def along(elements: NDArray[np.int64], place: int) -> NDArray[np.int64]:
    """The elements with one dimension first and all others in one."""
    return np.moveaxis(elements, place, 0).reshape(elements.shape[place], -1)


def distinct(elements: NDArray[np.int64], place: int) -> int:
    """How many atoms would be left if all elements at one index of a dimension were one.

    An upper bound: the number of indices, as several of them may have an atom in common.
    """
    rows = along(elements, place)
    return len(np.unique(rows[:, 0])) if (rows == rows[:, :1]).all() else rows.shape[0]
