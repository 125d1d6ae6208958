"""`encode_weights`: replace the weights of a graph by what is smaller and decodes to them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fxprune.errors import ExportError
from fxprune.onnx.encodings import DOMAIN, ENCODINGS, Encoded, Encoding, SparseWeight

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, TensorProto

Values = Literal["fp32", "fp16"]
VALUES: tuple[Values, ...] = ("fp32", "fp16")


@dataclass(frozen=True)
class Storage:
    """How the weights of a file are stored.

    Attributes:
        values: ``"fp32"``: as the model has them; ``"fp16"``: rounded to float16.
        encodings: number of weights by encoding.
        nonzero: non-zeros that are stored.
        flushed: non-zeros of the model that are zero in the file: too small for a normal number.
    """

    values: Values
    encodings: dict[str, int]
    nonzero: int
    flushed: int


def check_choice(encoding: str, values: str) -> None:
    """Raise ExportError for an encoding or a type of values that does not exist."""
    for what, got, known in (("encoding", encoding, ENCODINGS), ("values", values, VALUES)):
        if got not in known:
            raise ExportError(f"{what}: expected one of {', '.join(sorted(known))}, got {got!r}")


def stored_type(dtype: np.dtype[Any], values: Values) -> np.dtype[Any]:
    """The type that values of a weight of type `dtype` are stored in."""
    return np.dtype(np.float16) if values == "fp16" else dtype


def encode_weights(
    model: ModelProto, names: Collection[str], encoding: str = "auto", values: Values = "fp32"
) -> Storage:
    """Store initializers of `model` in another way; a node with the name of the weight makes it again.

    Decoders are ONNX functions of standard operators in the domain ``fxprune``, one for all weights of an
    encoding: a runtime that folds constants has plain weights once the session is open.

    Args:
        model: changed in place.
        names: the initializers.
        encoding: a name of `ENCODINGS`. ``"auto"`` takes the smallest for each weight, and a decoder only
            where its weights save more bytes than it has.
        values: ``"fp32"`` leaves the type as it is.

    Raises:
        ExportError: there is no such choice, or a weight cannot be stored so.
    """
    from onnx import helper

    check_choice(encoding, values)
    graph = model.graph
    tensors = [tensor for tensor in graph.initializer if tensor.name in names]
    options = ENCODINGS[encoding]
    functions = _functions(options, _opset(model))
    chosen = _choose(
        [_costs(_weight(tensor, values), options) for tensor in tensors], functions, encoding, tensors
    )
    nonzero, flushed = 0, 0
    taken = {tensor.name for tensor in graph.initializer}
    for tensor, option in zip(tensors, chosen, strict=True):
        weight = _weight(tensor, values)
        nonzero, flushed = nonzero + weight.positions.size, flushed + weight.flushed
        if option.name == "dense" and weight.values.dtype == weight.dtype and not weight.flushed:
            continue
        encoded = option.encode(weight)
        _require_free(encoded, taken, weight)
        _replace(graph, tensor, encoded, weight)
    used = {node.op_type for node in graph.node if node.domain == DOMAIN}
    if used:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        model.functions.extend(function for name, function in functions.items() if name in used)
    counts = Counter(option.name for option in chosen)
    return Storage(values, dict(sorted(counts.items())), nonzero, flushed)


def _weight(tensor: TensorProto, values: Values) -> SparseWeight:
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)
    return SparseWeight.of(tensor.name, array, stored_type(array.dtype, values))


def _opset(model: ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _functions(options: Sequence[Encoding], opset: int) -> dict[str, FunctionProto]:
    from onnx import parser

    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>'
    parsed = [parser.parse_function(header + option.function) for option in options if option.function]
    return {function.name: function for function in parsed}


Costs = Mapping[Encoding, tuple[int, str]]  # bytes, and name of the decoder or nothing


def _costs(weight: SparseWeight, options: Sequence[Encoding]) -> Costs:
    """Bytes of a file that each encoding takes for a weight, its decoder apart."""
    # names and node of one element, to which the numbers are added
    one = (np.zeros(1, np.int64), np.ones(1, weight.values.dtype))
    small = SparseWeight(weight.name, (1,) * len(weight.shape), weight.dtype, *one, 0)
    found: dict[Encoding, tuple[int, str]] = {}
    for option in options:
        payload, least = option.payload(weight), option.payload(small)
        if payload is not None and least is not None:
            stub = option.encode(small)
            frame = sum(part.ByteSize() + 4 for part in _parts(stub, small)) - least
            decoders = [node.op_type for node in stub.nodes if node.domain == DOMAIN]
            found[option] = (payload + frame, decoders[0] if decoders else "")
    return found


def _parts(encoded: Encoded, weight: SparseWeight) -> Iterator[Any]:
    yield from encoded.tensors
    yield from encoded.sparse
    yield from encoded.nodes
    if encoded.nodes:
        yield _declared(weight)


def _declared(weight: SparseWeight) -> Any:
    """What a decoder makes, for whoever does not look into functions."""
    from onnx import helper

    return helper.make_tensor_value_info(
        weight.name, helper.np_dtype_to_tensor_dtype(weight.dtype), list(weight.shape)
    )


def _choose(
    costs: Sequence[Costs], functions: Mapping[str, FunctionProto], encoding: str, tensors: Sequence[TensorProto]
) -> list[Encoding]:
    """The encodings that make the file smallest, over all sets of decoders."""
    impossible = [tensor for tensor, own in zip(tensors, costs, strict=True) if not own]
    if impossible:
        raise ExportError(
            f"{impossible[0].name!r} of shape {tuple(impossible[0].dims)} cannot be stored as {encoding}, which "
            "wants a dimension or more and 1 to 2^31 - 1 elements; use encoding='auto' or 'dense'"
        )
    best, least = [], math.inf
    for count in range(len(functions) + 1):
        for used in itertools.combinations(functions, count):
            allowed = [{e: c for e, (c, by) in own.items() if not by or by in used} for own in costs]
            if all(allowed):
                total = sum(functions[name].ByteSize() for name in used) + sum(min(a.values()) for a in allowed)
                if total < least:
                    best, least = [min(a, key=a.__getitem__) for a in allowed], total
    return best


def _require_free(encoded: Encoded, taken: set[str], weight: SparseWeight) -> None:
    names = {part.name for part in encoded.tensors} - {weight.name}
    if names & taken:
        raise ExportError(f"the model already has a tensor named {(names & taken).pop()!r}; use encoding='dense'")


def _replace(graph: GraphProto, tensor: TensorProto, encoded: Encoded, weight: SparseWeight) -> None:
    if encoded.tensors:
        tensor.CopyFrom(encoded.tensors[0])
        graph.initializer.extend(encoded.tensors[1:])
    else:
        graph.initializer.remove(tensor)
    graph.sparse_initializer.extend(encoded.sparse)
    for node in reversed(encoded.nodes):
        graph.node.insert(0, node)
    if encoded.nodes:
        graph.value_info.append(_declared(weight))
