"""Non-zero values and the steps from each to the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fxprune.onnx.encodings.weight import SCATTER, Encoded, SparseWeight, decoded, tensor


def _steps(weight: SparseWeight) -> NDArray[np.int64]:
    """From each non-zero to the next; the first is the place of the first."""
    return np.diff(weight.positions, prepend=0)


class Gaps:
    """A step of one or two bytes for each non-zero; a running sum of the steps gives the places.

    A step that is too long is gone in several, with a value of zero stored at each stop. One byte is the
    smallest from about 93% to 99.3% sparsity, two bytes beyond.
    """

    name = "gaps"
    function = f"""
    Gaps <shape, to> (values, steps) => (weight) {{
        along = Constant <value_int = 0> ()
        counted = Cast <to = 6> (steps)
        place = CumSum (counted, along)
        {SCATTER}
    }}
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.most = int(np.iinfo(self.dtype).max)

    def payload(self, weight: SparseWeight) -> int | None:
        """A value and a step for each non-zero and each stop."""
        if not weight.decodable:
            return None
        stops = int(self._stops(_steps(weight)).sum())
        return (weight.values.size + stops) * (weight.values.dtype.itemsize + self.dtype.itemsize)

    def encode(self, weight: SparseWeight) -> Encoded:
        """A call of the decoder."""
        weight = weight.at_least_one()
        steps = _steps(weight)
        stops = self._stops(steps)
        ends = np.arange(steps.size) + np.cumsum(stops)
        stored = np.full(steps.size + int(stops.sum()), self.most, self.dtype)
        stored[ends] = steps - stops * self.most
        values = np.zeros(stored.size, weight.values.dtype)
        values[ends] = weight.values
        entries = tensor(values, f"{weight.name}/values")
        return decoded("Gaps", weight, entries, tensor(stored, f"{weight.name}/steps"))

    def _stops(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        return steps // self.most


class PackedGaps:
    """A step of four bits for each non-zero, and a list of the steps that are longer.

    Each entry of the list adds 16 to a step, and stands for it by its own steps through the list of steps
    (patched frame of reference: Zukowski et al., Super-Scalar RAM-CPU Cache Compression, ICDE 2006). The
    low halves of the bytes are the first steps, the high halves the others; what a shift would drop is
    masked before, as in `Bitmask`. The smallest from about 76%
    to 93% sparsity.
    """

    name = "gaps"
    function = f"""
    PackedGaps <shape, to> (values, steps, longer) => (weight) {{
        fifteen = Constant <value = uint8[1] {{15}}> ()
        upper_bits = Constant <value = uint8[1] {{240}}> ()
        four = Constant <value = uint8[1] {{4}}> ()
        first = Constant <value_ints = [0]> ()
        along = Constant <value_int = 0> ()
        low = BitwiseAnd (steps, fifteen)
        upper = BitwiseAnd (steps, upper_bits)
        high = BitShift <direction = "RIGHT"> (upper, four)
        halves = Concat <axis = 0> (low, high)
        count = Shape (values)
        short = Slice (halves, first, count)
        counted = Cast <to = 6> (short)
        apart = Cast <to = 6> (longer)
        which = CumSum (apart, along)
        sixteen = Constant <value = int32[1] {{16}}> ()
        times = Shape (longer)
        added = Expand (sixteen, times)
        whole = ScatterElements <axis = 0, reduction = "add"> (counted, which, added)
        place = CumSum (whole, along)
        {SCATTER}
    }}
    """

    def payload(self, weight: SparseWeight) -> int | None:
        """A value and half a byte for each non-zero, and the list."""
        if not weight.decodable:
            return None
        return weight.values.nbytes + -(-weight.values.size // 2) + self._longer(_steps(weight)).nbytes

    def encode(self, weight: SparseWeight) -> Encoded:
        """A call of the decoder."""
        weight = weight.at_least_one()
        steps = _steps(weight)
        half = -(-steps.size // 2)
        short = np.zeros(2 * half, np.uint8)
        short[: steps.size] = steps & 15
        return decoded(
            "PackedGaps",
            weight,
            tensor(weight.values, f"{weight.name}/values"),
            tensor(short[:half] | short[half:] << 4, f"{weight.name}/steps"),
            tensor(self._longer(steps), f"{weight.name}/longer"),
        )

    @staticmethod
    def _longer(steps: NDArray[np.int64]) -> NDArray[np.integer]:
        apart = np.diff(np.repeat(np.arange(steps.size), steps >> 4), prepend=0)
        largest = int(apart.max(initial=0))
        return apart.astype(np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.int32)
