"""How labels go through operators: a table of rules, one for each kind.

A rule joins what has to be cut together, keeps what cannot be cut without another result, and gives the labels of
what the operator computes. What is cut is zero in the weights on both of its sides, so that an operator that works
on each channel by itself needs no more than that. One that mixes channels without a weight (a mean, a
normalisation, a softmax over them) computes something else when some are gone. Where what it is given is zero
there (`zeros`), a mean and a normalisation can count as many zeros instead, and `fxprune.shrink` has them do so;
else channels stay. So they do for an operator that has no rule here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from fxprune import operators
from fxprune.coupling.atoms import Labels
from fxprune.coupling.flow import Flow, fixed, told
from fxprune.operators import argument

Rule = Callable[[Flow, fx.Node], Any]

# Reductions in which zeros can be counted, and those that do not change with their number.
COUNT_ZEROS = frozenset("mean amax amin var std".split())
_SUMS = frozenset(("sum", "linalg_vector_norm"))


def rule(node: fx.Node) -> Rule:
    """The rule of the operator that a node calls."""
    name = operators.name_of(node)
    if name in _RULES:
        return _RULES[name]
    if _is_pointwise(name):
        return _pointwise
    return _unknown


def _is_pointwise(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    overloads = packet.overloads() if packet is not None and name else ()
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in overloads)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Sizes of a node's value at the captured example."""
    return tuple(node.meta["shape"])


def _dimension(labels: Labels, place: int) -> int:
    return place % len(labels) if labels else 0


# --- element by element, and without a rule


def _unknown(flow: Flow, node: fx.Node) -> Any:
    for value in node.all_input_nodes:
        flow.keep(value, f"{told(node)} has no rule")
    return fixed(node) if "shape" in node.meta else None


def _pointwise(flow: Flow, node: fx.Node) -> Any:
    if "shape" not in node.meta:  # a size
        return None
    leaves = [leaf for leaf in node.all_input_nodes if "shape" in leaf.meta]
    return flow.aligned(node, [flow.labels(leaf) for leaf in leaves])


def _prelu(flow: Flow, node: fx.Node) -> Any:
    data, slopes = flow.labels(node.args[0]), flow.labels(node.args[1])
    if len(slopes[0]) > 1:
        flow.join(data[1], slopes[0])
    return data


def _same(flow: Flow, node: fx.Node) -> Any:
    return flow.labels(node.args[0])


def _new(_: Flow, node: fx.Node) -> Any:
    return fixed(node) if "shape" in node.meta else None


# --- products with weights


def _convolution(flow: Flow, node: fx.Node) -> Any:
    data, weight = flow.labels(node.args[0]), flow.labels(node.args[1])
    bias, groups = argument(node, 2, "bias"), argument(node, 6, "groups", 1)
    channel = _over_places(flow, node, data, weight)
    outputs, inputs = weight[0], weight[1]
    if groups == 1:
        flow.join(data[channel], inputs)
    else:
        _grouped(flow, node, data[channel], inputs, outputs, groups)
    return _with_bias(flow, node, bias, data[:channel], outputs)


def _transposed(flow: Flow, node: fx.Node) -> Any:
    data, weight = flow.labels(node.args[0]), flow.labels(node.args[1])
    bias, groups = argument(node, 2, "bias"), argument(node, 6, "groups", 1)
    channel = _over_places(flow, node, data, weight)
    outputs = weight[1]
    flow.join(data[channel], weight[0])
    if groups > 1:
        flow.keep_all((data[channel], weight[1]), f"{told(node)} has groups")
        outputs = np.zeros(len(weight[1]) * groups, np.int64)
    return _with_bias(flow, node, bias, data[:channel], outputs)


def _over_places(flow: Flow, node: fx.Node, data: Labels, weight: Labels) -> int:
    """The channels' dimension of what a kernel slides over."""
    channel = len(data) - len(weight) + 1
    flow.keep_all(data[channel + 1 :], f"{told(node)} slides over it")
    flow.keep_all(weight[2:], "a kernel's size")
    return channel


def _grouped(
    flow: Flow,
    node: fx.Node,
    data: NDArray[np.int64],
    inputs: NDArray[np.int64],
    outputs: NDArray[np.int64],
    groups: int,
) -> None:
    """Whole groups are cut where there are more of them than channels in each, else the same channels of all."""
    data, outputs = data.reshape(groups, -1), outputs.reshape(groups, -1)
    if whole_groups(groups, data.size):
        flow.keep_all((inputs,), f"{told(node)} is cut by whole groups")
        first = np.broadcast_to(data[:, :1], data.shape)
        flow.join(first, data)
        flow.join(np.broadcast_to(data[:, :1], outputs.shape), outputs)
    else:
        flow.join(np.broadcast_to(inputs, data.shape), data)
        flow.join(np.broadcast_to(outputs[:1], outputs.shape), outputs)


def whole_groups(groups: int, channels: int) -> bool:
    """Whether a grouped convolution of so many input channels is cut by groups rather than within all of them."""
    return groups * groups >= channels


def _with_bias(flow: Flow, node: fx.Node, bias: Any, before: Labels, outputs: NDArray[np.int64]) -> Labels:
    if bias is not None:
        flow.join(outputs, flow.labels(bias)[0])
    places = tuple(np.zeros(size, np.int64) for size in shape_of(node)[len(before) + 1 :])
    return (*before, outputs, *places)


def _linear(flow: Flow, node: fx.Node) -> Any:
    data, weight = flow.labels(node.args[0]), flow.labels(node.args[1])
    bias = argument(node, 2, "bias")
    flow.join(data[-1], weight[-1])
    if len(weight) == 1:
        return data[:-1]
    if bias is not None:
        flow.join(weight[0], flow.labels(bias)[0])
    return (*data[:-1], weight[0])


def _contracted(flow: Flow, node: fx.Node, arrays: Sequence[NDArray[np.int64]], operands: Sequence[Any]) -> None:
    """A sum of products over a dimension: what is cut of a weight is zero, of an activation it may be anything."""
    flow.join(*arrays)
    moving = sum(operand in flow.activations for operand in operands)
    if moving != 1:
        of = "activations" if moving else "parameters"
        flow.keep_all((arrays[0],), f"{told(node)} sums products of {of} over it")


def _matmul(flow: Flow, node: fx.Node) -> Any:
    return _product(flow, node, node.args[0], node.args[1])


def _addmm(flow: Flow, node: fx.Node) -> Any:
    product = _product(flow, node, node.args[1], node.args[2])
    return flow.aligned(node, [product, flow.labels(node.args[0])])


def _product(flow: Flow, node: fx.Node, left: Any, right: Any) -> Labels:
    first, second = flow.labels(left), flow.labels(right)
    inner = second[-2] if len(second) > 1 else second[-1]
    _contracted(flow, node, (first[-1], inner), (left, right))
    batch = flow.aligned(node, [first[:-2], second[:-2]])
    return (*batch, *(first[-2:-1] if len(first) > 1 else ()), *(second[-1:] if len(second) > 1 else ()))


def _einsum(flow: Flow, node: fx.Node) -> Any:
    equation, operands = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
    if "..." in equation or "->" not in equation:
        return _unknown(flow, node)
    terms, result = equation.split("->")
    found: dict[str, list[tuple[NDArray[np.int64], Any]]] = {}
    for term, operand in zip(terms.split(","), operands, strict=True):
        for index, array in zip(term, flow.labels(operand), strict=True):
            found.setdefault(index, []).append((array, operand))
    for index, arrays in found.items():
        if index in result or len(arrays) == 1:
            flow.aligned(node, [(array,) for array, _ in arrays])
        else:
            _contracted(flow, node, [array for array, _ in arrays], [operand for _, operand in arrays])
        if index not in result and len(arrays) == 1:
            flow.keep_all([array for array, _ in arrays], f"{told(node)} sums over it")
    return tuple(max((array for array, _ in found[index]), key=len) for index in result)


def _attention(flow: Flow, node: fx.Node) -> Any:
    query, key, value = (flow.labels(node.args[place]) for place in range(3))
    flow.keep_all((query[-1], key[-1]), f"{told(node)} sums products of activations over it")
    flow.keep_all((query[-2], key[-2], value[-2]), f"{told(node)} mixes it")
    heads = [query[:-2], key[:-2], value[:-2]]
    if argument(node, 7, "enable_gqa", default=False):
        repeats = len(query[-3]) // len(key[-3])
        heads[1:] = [(*labels[:-1], np.repeat(labels[-1], repeats)) for labels in heads[1:]]
    mask = argument(node, 3, "attn_mask")
    if mask is not None:
        labels = flow.labels(mask)
        flow.keep_all(labels[-2:], f"{told(node)} mixes it")
        heads.append(labels[:-2])
    return (*flow.aligned(node, heads), query[-2], value[-1])


def _recurrent(flow: Flow, node: fx.Node) -> Any:
    """An LSTM, a GRU or a plain one: a hidden unit begins as zero and stays so without the weights of its gates.

    All layers and directions have the same number of them, and lose the same ones.
    """
    args: tuple[Any, ...] = node.args
    states, parameters, biases, layers = args[1:5]
    states = states if isinstance(states, (list, tuple)) else [states]
    directions, step = 1 + bool(args[7]), 4 if biases else 2
    fresh = all(operators.name_of(state) == "zeros" and len(state.users) == 1 for state in states)
    if not fresh or len(parameters) != step * layers * directions:
        return _unknown(flow, node)
    data = flow.labels(args[0])
    flow.keep_all(data[:-1], f"{told(node)} takes one after the other")
    found = [flow.labels(parameter) for parameter in parameters]
    hidden, inputs = found[1][1], data[-1]
    for place in range(0, len(found), step):
        if place and place % (step * directions) == 0:
            inputs = np.tile(hidden, directions)
        flow.join(inputs, found[place][1])
        flow.join(hidden, found[place + 1][1])
        for labels in found[place : place + step]:
            gates = labels[0].reshape(-1, len(hidden))
            flow.join(np.broadcast_to(hidden, gates.shape), gates)
    last = (*(np.zeros(size, np.int64) for size in shape_of(states[0])[:-1]), hidden)
    return ((*data[:-1], np.tile(hidden, directions)), *[last] * len(states))


# --- normalisations, reductions, pools


def _batch_norm(flow: Flow, node: fx.Node) -> Any:
    data = flow.labels(node.args[0])
    flow.keep_all(data[2:], f"{told(node)} takes it together")
    for place in range(1, 5):
        value = node.args[place] if place < len(node.args) else None
        if value is not None:
            flow.join(data[1], flow.labels(value)[0])
    return data


def _over_last(place: int) -> Rule:
    """A normalisation over the last dimensions, with its scale and shift from an argument on."""

    def normalised(flow: Flow, node: fx.Node) -> Any:
        data = flow.labels(node.args[0])
        count = len(node.args[1])  # type: ignore[arg-type]
        if not _counts_zeros(flow, node):
            flow.keep_all(data[-count:], f"{told(node)} normalises over it")
        for value in node.args[place : place + 2]:
            if isinstance(value, fx.Node):
                flow.aligned(node, [data[-count:], flow.labels(value)])
        return data

    return normalised


def _group_norm(flow: Flow, node: fx.Node) -> Any:
    data, groups = flow.labels(node.args[0]), int(node.args[1])  # type: ignore[arg-type]
    flow.keep_all(data[2:], f"{told(node)} takes it together")
    channels = data[1].reshape(groups, -1)
    if groups == 1:
        flow.keep_all((data[1],), f"{told(node)} normalises over it")
    flow.join(np.broadcast_to(channels[:, :1], channels.shape), channels)
    for place in (2, 3):
        value = argument(node, place, ("weight", "bias")[place - 2])
        if value is not None:
            flow.join(data[1], flow.labels(value)[0])
    return data


def _mixed(flow: Flow, node: fx.Node) -> Any:
    """What is computed from all of a dimension, for each index of it."""
    data = flow.labels(node.args[0])
    flow.keep_all((data[_dimension(data, argument(node, 1, "dim", -1))],), f"{told(node)} mixes it")
    return data


def _counts_zeros(flow: Flow, node: fx.Node) -> bool:
    """Whether zeros can be counted in the place of what is cut."""
    smallest = operators.name_of(node) == "linalg_vector_norm" and argument(node, 1, "ord", 2) < 0
    return node.args[0] in flow.zeros and node.args[0] in flow.activations and not smallest


def reduced_over(node: fx.Node, rank: int) -> set[int]:
    """The dimensions over which a mean or another reduction is taken."""
    dims = argument(node, 2 if "norm" in operators.name_of(node) else 1, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    return {dim % max(rank, 1) for dim in dims} if dims else set(range(rank))


def _reduced(flow: Flow, node: fx.Node) -> Any:
    data = flow.labels(node.args[0])
    if any(isinstance(other, fx.Node) for other in node.args[1:2]):  # the larger of two tensors
        return _pointwise(flow, node)
    over = reduced_over(node, len(data))
    if not (operators.name_of(node) in COUNT_ZEROS | _SUMS and _counts_zeros(flow, node)):
        flow.keep_all([data[place] for place in over], f"{told(node)} is taken over it")
    shape, several = _result(node)
    left = [array for place, array in enumerate(data) if place not in over]
    if len(shape) == len(data):
        left = [np.zeros(1, np.int64) if place in over else array for place, array in enumerate(data)]
    return (tuple(left), tuple(left)) if several else tuple(left)


def _result(node: fx.Node) -> tuple[tuple[int, ...], bool]:
    """Sizes of what a call gives, and whether it gives two such (values and where they were found)."""
    if "shape" in node.meta:
        return shape_of(node), False
    return next((shape_of(user) for user in node.users if "shape" in user.meta), ()), True


def _pooled(flow: Flow, node: fx.Node) -> Any:
    """Places are pooled or resized, each channel by itself."""
    data = flow.labels(node.args[0])
    found = re.search(r"([123])d", operators.name_of(node))
    places = int(found.group(1)) if found else 2
    flow.keep_all(data[-places:], f"{told(node)} slides over it")
    shape, several = _result(node)
    result = (*data[:-places], *(np.zeros(size, np.int64) for size in shape[-places:]))
    return (result, result) if several else result


# --- moved, taken apart, put together


def _reshaped(flow: Flow, node: fx.Node) -> Any:
    data, shape = flow.labels(node.args[0]), shape_of(node)
    if node.target is torch.ops.aten.squeeze.default:
        flow.keep_all(data, f"{told(node)} would take away what is left of it, if that were one")
    result = flow.reshaped(node, data, shape)
    sizes = argument(node, 1, "size")
    if isinstance(sizes, fx.Node):  # view_as
        return flow.aligned(node, [result, flow.labels(sizes)])
    if isinstance(sizes, (list, tuple)) and len(sizes) == len(shape):
        computed = [array for size, array in zip(sizes, result, strict=True) if isinstance(size, fx.Node)]
        computed = [array for array in computed if flow.can_be_cut(array)]
        inferred = -1 in sizes and sizes.index(-1) in node.meta["dynamic"]
        if len(computed) > 1 or inferred:  # else -1 can stand for it, and a number for what was -1
            flow.keep_all(computed, f"{told(node)} computes its size from the batch's")
    return result


def _permuted(flow: Flow, node: fx.Node) -> Any:
    data = flow.labels(node.args[0])
    strides = torch.empty([2] * len(data), device="meta")
    args = fx.map_arg(node.args[1:], lambda _: None)
    moved = node.target(strides, *args)  # type: ignore[operator]
    order = [int(math.log2(strides.numel() / stride)) - 1 for stride in moved.stride()]
    return tuple(data[place] for place in order)


def _expanded(flow: Flow, node: fx.Node) -> Any:
    data, shape = flow.labels(node.args[0]), shape_of(node)
    result = [np.zeros(size, np.int64) for size in shape]
    for place in range(-len(data), 0):
        if len(data[place]) == shape[place]:
            result[place] = data[place]
        else:
            flow.keep_all((data[place],), f"{told(node)} spreads it")
    like = argument(node, 1, "size")
    return flow.aligned(node, [tuple(result), flow.labels(like)]) if isinstance(like, fx.Node) else tuple(result)


def _repeated(flow: Flow, node: fx.Node) -> Any:
    data, times = flow.labels(node.args[0]), list(node.args[1])  # type: ignore[arg-type]
    whole = [np.zeros(1, np.int64)] * (len(times) - len(data)) + list(data)
    return tuple(np.tile(array, size // len(array)) for array, size in zip(whole, shape_of(node), strict=True))


def _repeat_interleaved(flow: Flow, node: fx.Node) -> Any:
    data, times, dim = flow.labels(node.args[0]), node.args[1], argument(node, 2, "dim")
    if not isinstance(times, int) or dim is None:
        return _unknown(flow, node)
    place = _dimension(data, dim)
    return (*data[:place], np.repeat(data[place], times), *data[place + 1 :])


def _joined(flow: Flow, node: fx.Node) -> Any:
    parts = [flow.labels(part) for part in node.args[0]]  # type: ignore[union-attr]
    parts = [part for part in parts if not (len(part) == 1 and not len(part[0]))]  # torch lets empty ones in
    place = _dimension(parts[0], argument(node, 1, "dim", 0))
    result = list(parts[0])
    for other in range(len(result)):
        if other == place:
            result[other] = np.concatenate([part[other] for part in parts])
        else:
            flow.join(*(part[other] for part in parts))
    return tuple(result)


def _stacked(flow: Flow, node: fx.Node) -> Any:
    parts = [flow.labels(part) for part in node.args[0]]  # type: ignore[union-attr]
    result = list(flow.aligned(node, parts))
    dim = argument(node, 1, "dim", 0)
    result.insert(dim % (len(result) + 1), np.zeros(len(parts), np.int64))
    return tuple(result)


def _split(flow: Flow, node: fx.Node) -> Any:
    """``split``, ``chunk``, ``split_with_sizes`` and ``tensor_split``: pieces, one after the other."""
    data = flow.labels(node.args[0])
    name = operators.name_of(node)
    place = _dimension(data, argument(node, 2, "dim", 0))
    if _varies(node, place):
        flow.keep_all((data[place],), f"{told(node)} cuts what follows the batch's size")
    size = len(data[place])
    if name == "chunk":
        step = -(-size // int(node.args[1]))  # type: ignore[arg-type]
        sizes = [min(step, size - start) for start in range(0, size, step)]
    elif isinstance(node.args[1], int):
        sizes = [min(node.args[1], size - start) for start in range(0, size, node.args[1])]
    elif all(isinstance(part, int) for part in node.args[1]):  # type: ignore[union-attr]
        sizes = list(node.args[1])  # type: ignore[arg-type]
    else:
        return _unknown(flow, node)
    ends: Any = node.args[1] if name == "tensor_split" else np.cumsum(sizes)[:-1]
    pieces = np.array_split(data[place], ends)
    return tuple((*data[:place], piece, *data[place + 1 :]) for piece in pieces)


def _unbound(flow: Flow, node: fx.Node) -> Any:
    data = flow.labels(node.args[0])
    place = _dimension(data, argument(node, 1, "dim", 0))
    flow.keep_all((data[place],), f"{told(node)} takes it apart")
    return ((*data[:place], *data[place + 1 :]),) * len(data[place])


def _picked(flow: Flow, node: fx.Node) -> Any:
    found = flow.values.get(node.args[0])  # type: ignore[arg-type]
    index = node.args[1]
    if isinstance(found, tuple) and isinstance(index, int) and all(isinstance(each, tuple) for each in found):
        return found[index] if index < len(found) else fixed(node)
    return fixed(node) if "shape" in node.meta else None


def _selected(flow: Flow, node: fx.Node) -> Any:
    data = flow.labels(node.args[0])
    place = _dimension(data, node.args[1])  # type: ignore[arg-type]
    flow.keep_all((data[place],), f"{told(node)} picks one of it")
    return (*data[:place], *data[place + 1 :])


def takes_all(node: fx.Node, size: int) -> bool:
    """Whether a slice takes all of a dimension, whatever its size."""
    start, end = argument(node, 2, "start", 0), argument(node, 3, "end", None)
    return start in (None, 0) and (end is None or end > size)


def _varies(node: fx.Node, place: int) -> bool:
    """Whether a dimension of the first argument follows the size of the batch, as where heads are part of it."""
    source = node.args[0]
    return isinstance(source, fx.Node) and place in source.meta["dynamic"]


def _sliced(flow: Flow, node: fx.Node) -> Any:
    data = flow.labels(node.args[0])
    place = _dimension(data, argument(node, 1, "dim", 0))
    start, end, step = (argument(node, i, n, d) for i, n, d in ((2, "start", 0), (3, "end", None), (4, "step", 1)))
    if not all(isinstance(bound, int | None) for bound in (start, end, step)):
        flow.keep_all((data[place],), f"{told(node)} computes where it cuts")
        return (*data[:place], np.zeros(shape_of(node)[place], np.int64), *data[place + 1 :])
    if step != 1:
        flow.keep_all((data[place],), f"{told(node)} takes every {step}th of it")
    elif _varies(node, place) and not takes_all(node, len(data[place])):
        flow.keep_all((data[place],), f"{told(node)} cuts what follows the batch's size")
    return (*data[:place], data[place][slice(start, end, step)], *data[place + 1 :])


def _reordered(flow: Flow, node: fx.Node) -> Any:
    """``flip`` and ``roll``: within the dimensions that they name, which stay."""
    data, name = flow.labels(node.args[0]), operators.name_of(node)
    dims = argument(node, 1 if name == "flip" else 2, "dims", [])
    over = [_dimension(data, dim) for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]
    flow.keep_all([data[place] for place in over or range(len(data))], f"{told(node)} reorders it")
    return data


def _padded(flow: Flow, node: fx.Node) -> Any:
    data, shape = flow.labels(node.args[0]), shape_of(node)
    grown = [place for place, array in enumerate(data) if len(array) != shape[place]]
    flow.keep_all([data[place] for place in grown], f"{told(node)} pads it")
    return tuple(np.zeros(shape[p], np.int64) if p in grown else array for p, array in enumerate(data))


def _indexed(flow: Flow, node: fx.Node) -> Any:
    data, indices = flow.labels(node.args[0]), list(node.args[1])  # type: ignore[arg-type]
    places = [place for place, index in enumerate(indices) if index is not None]
    for index in (index for index in indices if index is not None):
        flow.keep(index, f"{told(node)} looks it up")
    if places != list(range(places[0], places[-1] + 1)) or len(data) < len(indices):
        return _unknown(flow, node)
    flow.keep_all([data[place] for place in places], f"{told(node)} looks it up")
    middle = len(shape_of(node)) - (len(data) - len(places))
    new = [np.zeros(size, np.int64) for size in shape_of(node)[places[0] : places[0] + middle]]
    return (*data[: places[0]], *new, *data[places[-1] + 1 :])


def _index_selected(flow: Flow, node: fx.Node) -> Any:
    data = flow.labels(node.args[0])
    place = _dimension(data, node.args[1])  # type: ignore[arg-type]
    flow.keep_all((data[place],), f"{told(node)} looks it up")
    flow.keep(node.args[2], f"{told(node)} looks it up")
    return (*data[:place], np.zeros(shape_of(node)[place], np.int64), *data[place + 1 :])


def _embedded(flow: Flow, node: fx.Node) -> Any:
    table = flow.labels(node.args[0])
    flow.keep_all(table[:1], f"{told(node)} looks it up")
    return (*fixed(node)[:-1], table[-1])


def _halved(flow: Flow, node: fx.Node) -> Any:
    data = flow.labels(node.args[0])
    place = _dimension(data, argument(node, 1, "dim", -1))
    first, second = np.split(data[place], 2)
    return (*data[:place], flow.join(first, second), *data[place + 1 :])


def _shuffled_up(flow: Flow, node: fx.Node) -> Any:
    data, factor = flow.labels(node.args[0]), int(node.args[1])  # type: ignore[arg-type]
    channels = data[-3].reshape(-1, factor * factor)
    flow.join(np.broadcast_to(channels[:, :1], channels.shape), channels)
    flow.keep_all(data[-2:], f"{told(node)} mixes it")
    return (*data[:-3], channels[:, 0].copy(), *fixed(node)[-2:])


def _shuffled_down(flow: Flow, node: fx.Node) -> Any:
    data, factor = flow.labels(node.args[0]), int(node.args[1])  # type: ignore[arg-type]
    flow.keep_all(data[-2:], f"{told(node)} mixes it")
    return (*data[:-3], np.repeat(data[-3], factor * factor), *fixed(node)[-2:])


def _words(text: str, found: Rule) -> dict[str, Rule]:
    return dict.fromkeys(text.split(), found)


_RULES: dict[str, Rule] = {
    **_words("conv1d conv2d conv3d", _convolution),
    **_words("conv_transpose1d conv_transpose2d conv_transpose3d", _transposed),
    "linear": _linear,
    **_words("matmul mm bmm mv dot", _matmul),
    **_words("addmm baddbmm", _addmm),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **_words("lstm gru rnn_tanh rnn_relu", _recurrent),
    **_words("batch_norm instance_norm", _batch_norm),
    **_words("layer_norm rms_norm", _over_last(2)),
    "group_norm": _group_norm,
    **_words("softmax log_softmax _softmax _log_softmax cumsum cumprod logcumsumexp", _mixed),
    **_words(
        "mean sum amax amin max min prod std var logsumexp norm linalg_vector_norm all any argmax argmin "
        "var_mean std_mean",
        _reduced,
    ),
    **_words(
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "max_pool2d_with_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d "
        "upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_bilinear2d_aa "
        "_upsample_bicubic2d_aa",
        _pooled,
    ),
    **_words("view reshape _unsafe_view view_as reshape_as flatten unflatten squeeze unsqueeze ravel", _reshaped),
    **_words("permute transpose t movedim swapaxes swapdims numpy_T adjoint mT", _permuted),
    **_words("expand expand_as", _expanded),
    **_words("repeat tile", _repeated),
    "repeat_interleave": _repeat_interleaved,
    **_words("cat concat concatenate", _joined),
    "stack": _stacked,
    **_words("split split_with_sizes chunk tensor_split", _split),
    "unbind": _unbound,
    "getitem": _picked,
    "select": _selected,
    "slice": _sliced,
    **_words("flip roll", _reordered),
    **_words("pad constant_pad_nd", _padded),
    "index": _indexed,
    "index_select": _index_selected,
    "embedding": _embedded,
    "glu": _halved,
    "pixel_shuffle": _shuffled_up,
    "pixel_unshuffle": _shuffled_down,
    **_words(
        "clone contiguous dropout feature_dropout alpha_dropout alias to _to_copy detach lift_fresh_copy type_as "
        "zeros_like ones_like rand_like full_like empty_like bernoulli identity requires_grad zero fill",
        _same,
    ),
    # torch tags as element-wise what it takes apart last, and these it does not
    **_words("where masked_fill lerp clamp addcmul addcdiv hardswish hardsigmoid hardtanh relu6 silu", _pointwise),
    **_words("mish gelu elu selu celu leaky_relu softplus softshrink logsigmoid relu threshold copy", _pointwise),
    "prelu": _prelu,
    **_words(
        "zeros ones full empty arange rand randn scalar_tensor new_zeros new_ones new_full new_empty linspace eye "
        "sym_size sym_numel _assert_tensor_metadata _assert_scalar sym_constrain_range_for_size",
        _new,
    ),
}
