"""ONNX's own sparse initializers: coordinates and values."""

from __future__ import annotations

from fxprune.onnx.encodings.weight import Encoded, SparseWeight, cast, tensor


class Coo:
    """A ``sparse_initializer`` with flat INT64 coordinates, as onnx's checker demands: 8 bytes a position.

    ONNX Runtime makes it dense when it loads it. onnx's shape inference, its reference evaluator and
    OpenVINO do not take it where an operator wants a tensor, hence ``auto`` leaves it out. It would be the
    smallest only for weights of fewer than about 30 non-zeros, by some 200 bytes and what a decoder takes.
    """

    name = "coo"
    function = None

    def payload(self, weight: SparseWeight) -> int | None:
        """A value and a coordinate for each non-zero."""
        return weight.positions.size * (weight.values.dtype.itemsize + 8) if weight.decodable else None

    def encode(self, weight: SparseWeight) -> Encoded:
        """A sparse initializer; behind a Cast where it is stored in another type."""
        from onnx import helper

        weight = weight.at_least_one()
        rounded = weight.values.dtype != weight.dtype
        name = f"{weight.name}/values" if rounded else weight.name
        places = tensor(weight.positions, f"{weight.name}/positions")
        sparse = helper.make_sparse_tensor(tensor(weight.values, name), places, weight.shape)
        return Encoded(sparse=(sparse,), nodes=cast(weight, name, weight.name) if rounded else ())
