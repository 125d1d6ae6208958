"""`SparseWeight`: a weight as it is stored, and what an encoding makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fxprune.errors import ExportError

if TYPE_CHECKING:
    from onnx import NodeProto, SparseTensorProto, TensorProto

DOMAIN = "fxprune"  # of the decoder functions
_MOST = 2**31 - 1  # elements: decoders count positions in int32


@dataclass(frozen=True)
class SparseWeight:
    """A weight to be stored.

    Attributes:
        name: its name in the graph.
        shape: its shape.
        dtype: its type in the graph.
        positions: flat places of the non-zeros in row-major order, int64, ascending.
        values: the non-zeros at these places, in the type that is stored.
        flushed: how many non-zeros were too small for a normal number of that type, and are zero now.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    positions: NDArray[np.int64]
    values: NDArray[Any]
    flushed: int

    @classmethod
    def of(cls, name: str, array: NDArray[Any], stored: np.dtype[Any]) -> SparseWeight:
        """The non-zeros of `array`, rounded to the type `stored`.

        Numbers below the smallest normal one become zero: they are slow on many processors and change no
        output that is told apart from rounding.

        Raises:
            ExportError: a number is too large for the type.
        """
        flat = array.reshape(-1)
        positions = np.flatnonzero(flat)
        exact = flat[positions]
        with np.errstate(over="ignore", under="ignore"):
            values = exact.astype(stored)
        overflown = np.isinf(values) & np.isfinite(exact)
        if overflown.any():
            raise ExportError(
                f"{name!r} has {int(overflown.sum())} values beyond {np.finfo(stored).max:g}, the largest of "
                f"{stored.name}, such as {exact[overflown][0]:g}; export it with values='fp32'"
            )
        normal = ~(np.abs(values) < np.finfo(stored).tiny)  # true for NaN, which verification has to find
        return cls(
            name,
            array.shape,
            array.dtype,
            positions[normal],
            values[normal],
            int(positions.size - np.count_nonzero(normal)),
        )

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def decodable(self) -> bool:
        """Whether decoder functions can make it: they want a dimension, an element, and places in int32."""
        return bool(self.shape) and 0 < self.numel <= _MOST

    def dense(self) -> NDArray[Any]:
        """The whole weight in the type that is stored."""
        whole = np.zeros(self.numel, self.values.dtype)
        whole[self.positions] = self.values
        return whole.reshape(self.shape)

    def at_least_one(self) -> SparseWeight:
        """Itself, or if all is zero, with a zero stored at the first place: runtimes dislike empty tensors."""
        if self.positions.size:
            return self
        one = (np.zeros(1, np.int64), np.zeros(1, self.values.dtype))
        return SparseWeight(self.name, self.shape, self.dtype, *one, self.flushed)


@dataclass(frozen=True)
class Encoded:
    """What stands for a weight in a graph: its name is that of a tensor, or of the output of the last node."""

    tensors: tuple[TensorProto, ...] = ()
    sparse: tuple[SparseTensorProto, ...] = ()
    nodes: tuple[NodeProto, ...] = ()


class Encoding(Protocol):
    """A way to store a weight."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def function(self) -> str | None:
        """The decoder, an ONNX function in onnx's textual form without header; None if there is none."""

    def payload(self, weight: SparseWeight) -> int | None:
        """Bytes of all stored numbers; None if the encoding cannot take the weight."""

    def encode(self, weight: SparseWeight) -> Encoded:
        """The weight as tensors and a node."""


def tensor(array: NDArray[Any], name: str) -> TensorProto:
    """An array as ONNX stores it."""
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def cast(weight: SparseWeight, stored: str, to: str) -> tuple[NodeProto, ...]:
    """A node that gives the tensor `stored` the type that the weight has in the graph."""
    from onnx import helper

    return (helper.make_node("Cast", [stored], [to], to, to=helper.np_dtype_to_tensor_dtype(weight.dtype)),)


def decoded(function: str, weight: SparseWeight, values: TensorProto, *places: TensorProto) -> Encoded:
    """Stored tensors and a call of the decoder that makes the weight of them.

    Values of another type are cast before: a cast inside the decoder, which mostly did nothing, would still
    cost ONNX Runtime a copy of them all when a session opens.
    """
    from onnx import helper

    rounded = weight.values.dtype != weight.dtype
    name = f"{values.name}/cast" if rounded else values.name
    before = cast(weight, values.name, name) if rounded else ()
    call = helper.make_node(
        function,
        [name, *(stored.name for stored in places)],
        [weight.name],
        name=weight.name,
        domain=DOMAIN,
        shape=weight.shape,
        to=helper.np_dtype_to_tensor_dtype(weight.dtype),
    )
    return Encoded((values, *places), nodes=(*before, call))


# The end of decoders that know where each value goes: `place` (int32), `values`, `shape` and `to` are given.
SCATTER = """
    dims = Constant <value_ints: ints = @shape> ()
    size = ReduceProd <keepdims = 1> (dims)
    nothing = Constant <value = float[1] {0.0}> ()
    zero = Cast <to: int = @to> (nothing)
    zeros = Expand (zero, size)
    line = ScatterElements <axis = 0> (zeros, place, values)
    weight = Reshape (line, dims)
"""
