"""Non-zero values and one bit an element."""

from __future__ import annotations

import numpy as np

from fxprune.onnx.encodings.weight import Encoded, SparseWeight, decoded, tensor


class Bitmask:
    """The smallest where more than a quarter of the elements is left.

    Bit b of byte i belongs to element ``b * bytes + i``: shifting all bytes by b gives a run of elements in
    their order, with nothing to interleave, which ONNX Runtime does much faster. A running count of the
    bits then is the place of an element's value, and zero is put before the values for elements without.
    Each bit is masked before it is shifted: the other way round OpenVINO 2026.4 got other places, for a
    reason not found (its shift by itself is right).
    """

    name = "bitmask"
    function = """
    Bitmask <shape, to> (values, mask) => (weight) {
        shifts = Constant <value = uint8[8, 1] {0, 1, 2, 3, 4, 5, 6, 7}> ()
        places = Constant <value = uint8[8, 1] {1, 2, 4, 8, 16, 32, 64, 128}> ()
        first = Constant <value_ints = [0]> ()
        flat = Constant <value_ints = [-1]> ()
        along = Constant <value_int = 0> ()
        single = BitwiseAnd (mask, places)
        bits = BitShift <direction = "RIGHT"> (single, shifts)
        padded = Reshape (bits, flat)
        dims = Constant <value_ints: ints = @shape> ()
        size = ReduceProd <keepdims = 1> (dims)
        kept = Slice (padded, first, size)
        counted = Cast <to = 6> (kept)
        count = CumSum (counted, along)
        rank = Mul (count, counted)
        nothing = Constant <value = float[1] {0.0}> ()
        zero = Cast <to: int = @to> (nothing)
        entries = Concat <axis = 0> (zero, values)
        line = GatherElements <axis = 0> (entries, rank)
        weight = Reshape (line, dims)
    }
    """

    def payload(self, weight: SparseWeight) -> int | None:
        """A value for each non-zero, a bit for each element."""
        if not weight.decodable:
            return None
        return weight.values.nbytes + -(-weight.numel // 8)

    def encode(self, weight: SparseWeight) -> Encoded:
        """A call of the decoder."""
        weight = weight.at_least_one()
        columns = -(-weight.numel // 8)
        bits = np.zeros(8 * columns, np.bool_)
        bits[weight.positions] = True
        mask = np.packbits(bits.reshape(8, columns), axis=0, bitorder="little").reshape(-1)
        values = tensor(weight.values, f"{weight.name}/values")
        return decoded("Bitmask", weight, values, tensor(mask, f"{weight.name}/mask"))
