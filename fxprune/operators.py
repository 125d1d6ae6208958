"""What ATen operators mean to pruning: which multiply weights, which only move them, which scale.

Operators go by the name of their overload packet, ``conv2d`` for ``aten.conv2d.padding``; an in-place
variant goes by the name of the other, ``add`` for ``aten.add_.Tensor``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

# Each element of the result is a copy of one element of the first argument. A mask on that argument
# is therefore a mask on the result.
SELECTIONS = frozenset(
    "alias chunk clone contiguous detach diagonal embedding expand expand_as flatten flip gather getitem "
    "index index_select lift_fresh_copy movedim narrow permute ravel repeat repeat_interleave reshape "
    "reshape_as roll select slice split split_with_sizes squeeze swapaxes swapdims t tensor_split tile to "
    "_to_copy transpose type_as unbind unflatten _unsafe_view unsqueeze view view_as".split()
)

CONVOLUTIONS = frozenset("conv1d conv2d conv3d convolution _convolution".split())
TRANSPOSED = frozenset("conv_transpose1d conv_transpose2d conv_transpose3d".split())

# Arguments that are weights by their place, whatever the others are. A list is searched whole.
_WEIGHT_SLOTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(CONVOLUTIONS | TRANSPOSED, (1,)),
    "linear": (1,),
    "bilinear": (2,),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), (2, 3)),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), (2, 3)),
}

# Products in which a weight may stand on either side, the other being an activation.
_PRODUCT_SLOTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("matmul", "mm", "bmm", "mv"), (0, 1)),
    **dict.fromkeys(("addmm", "addmv", "baddbmm", "addbmm"), (1, 2)),
    "einsum": (1,),
}

RECURRENT = frozenset(name for name, slots in _WEIGHT_SLOTS.items() if slots == (2, 3))

NORMALISATIONS: dict[str, tuple[int, int]] = {  # places of scale and shift
    "batch_norm": (1, 2),
    "native_batch_norm": (1, 2),
    "instance_norm": (1, 2),
    "layer_norm": (2, 3),
    "native_layer_norm": (2, 3),
    "group_norm": (2, 3),
    "rms_norm": (2, -1),
}

_BIASES = {**dict.fromkeys(CONVOLUTIONS | TRANSPOSED | {"linear"}, 2), "bilinear": 3}


def name_of(node: fx.Node) -> str:
    """The operator that a node calls, ``""`` for a node that calls none."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        name = str(node.target.overloadpacket).rpartition(".")[2]
        # only a single trailing underscore marks an in-place variant
        return name[:-1] if name.endswith("_") and not name.endswith("__") else name
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return str(node.target.name())
    return "getitem" if node.target is operator.getitem else getattr(node.target, "__name__", "")


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or by name."""
    return node.args[place] if place < len(node.args) else node.kwargs.get(name, default)


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def source(node: fx.Node) -> fx.Node:
    """The tensor that `node` shows: follow selections (views, slices, casts, gathers) upwards."""
    while name_of(node) in SELECTIONS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


_COPIES = frozenset("alias clone contiguous detach lift_fresh_copy to _to_copy type_as".split())


def dims_of(node: fx.Node, origin: fx.Node) -> dict[int, int]:
    """Which dimension of `origin` each dimension of a view of it runs along, all of it and in order.

    Told by strides. Dimensions that were split, joined, cut or copied into another order are left out.
    """
    path: list[fx.Node] = []
    while node is not origin:
        path.append(node)
        node = node.args[0]  # type: ignore[assignment]  # a selection's first argument is what it shows
    whole = torch.empty(origin.meta["shape"], device="meta")
    view: Any = whole
    for step in reversed(path):
        if name_of(step) in _COPIES:
            continue  # whatever the copy's memory looks like, its dimensions are the same
        if len(step.all_input_nodes) > 1:
            return {}
        view = step.target(view, *step.args[1:], **step.kwargs)  # type: ignore[operator]  # a function
        if isinstance(view, torch.Tensor) and view.untyped_storage()._cdata != whole.untyped_storage()._cdata:
            return {}
    runs = {
        (size, stride): dim for dim, (size, stride) in enumerate(zip(whole.shape, whole.stride(), strict=True))
    }
    shown = enumerate(zip(view.shape, view.stride(), strict=True))
    return {dim: runs[run] for dim, run in shown if run in runs}


def allocated(node: fx.Node) -> int:
    """Elements that a call makes room for, at the captured batch size; none for a view."""
    if source(node) is not node:
        return 0
    shapes = [node.meta["shape"]] if "shape" in node.meta else [user.meta.get("shape", ()) for user in node.users]
    return sum(math.prod(shape) for shape in shapes)


def changed(node: fx.Node) -> list[fx.Node]:
    """The arguments that a call changes in place."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    written = [arg.alias_info is not None and arg.alias_info.is_write for arg in node.target._schema.arguments]
    return [arg for arg, is_ in zip(node.args, written, strict=False) if is_ and isinstance(arg, fx.Node)]


def weight_slots(node: fx.Node) -> list[fx.Node]:
    """The arguments of a node that are weights by their place, as the weight of a convolution is."""
    return _nodes_at(node, _WEIGHT_SLOTS.get(name_of(node), ()))


def product_operands(node: fx.Node) -> list[fx.Node]:
    """The factors of a node that is a product in which either side may be a weight."""
    return _nodes_at(node, _PRODUCT_SLOTS.get(name_of(node), ()))


def _nodes_at(node: fx.Node, places: tuple[int, ...]) -> list[fx.Node]:
    found: list[fx.Node] = []
    for argument in (node.args[place] for place in places if place < len(node.args)):
        listed = argument if isinstance(argument, (list, tuple)) else [argument]
        found.extend(item for item in listed if isinstance(item, fx.Node))
    return found


def input_dim(node: fx.Node, operand: fx.Node) -> int | None:
    """The dimension of an operand that a product sums over; None where there is not just one.

    Taps of a kernel do not count. A convolution in groups has its inputs in dimension 1; a transposed one in
    dimension 0, all groups one after the other.
    """
    name, shape = name_of(node), operand.meta["shape"]
    if name in TRANSPOSED:
        return 0 if argument(node, 6, "groups", 1) == 1 else None
    if name in CONVOLUTIONS or name in RECURRENT:
        return 1
    if name in ("linear", "bilinear"):
        return len(shape) - 1
    if name == "einsum":
        return _einsum_input_dim(node, operand)
    return len(shape) - 1 if _is_first_factor(node, operand) else len(shape) - 2


def _einsum_input_dim(node: fx.Node, operand: fx.Node) -> int | None:
    equation, operands = node.args[:2]
    terms, arrow, result = str(equation).replace(" ", "").partition("->")
    term = terms.split(",")[list(operands).index(operand)]  # type: ignore[arg-type]
    if not arrow or "." in term:
        return None
    summed = [dim for dim, index in enumerate(term) if index not in result]
    return summed[0] if len(summed) == 1 else None


def macs(node: fx.Node, operand: fx.Node) -> int:
    """Multiply-adds that a dense product spends on one operand; a multiply-add counts one, padding counts."""
    name, shape = name_of(node), operand.meta["shape"]
    produced = math.prod(node.meta.get("shape", ()))
    if name in CONVOLUTIONS:
        return produced * math.prod(shape[1:])
    if name in TRANSPOSED:
        return math.prod(_input_shape(node)) * math.prod(shape[1:])
    if name == "linear":
        return produced * int(shape[-1])
    if name == "bilinear":
        return produced * math.prod(shape[1:])
    if name in RECURRENT:
        return math.prod(_input_shape(node)[:-1]) * math.prod(shape)
    if name == "einsum":
        return _einsum_macs(node)
    return produced * int(shape[-1] if _is_first_factor(node, operand) else shape[-2])


def _is_first_factor(node: fx.Node, operand: fx.Node) -> bool:
    place = 0 if name_of(node) in ("matmul", "mm", "bmm", "mv") else 1
    return node.args[place] is operand


def _input_shape(node: fx.Node) -> tuple[int, ...]:
    data = node.args[0]
    assert isinstance(data, fx.Node)
    shape: tuple[int, ...] = data.meta["shape"]
    return shape


def _einsum_macs(node: fx.Node) -> int:
    equation, operands = node.args[:2]
    terms = str(equation).replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):  # type: ignore[arg-type]
        shape = list(operand.meta["shape"])
        head, dots, tail = term.partition("...")
        spread = len(shape) - len(head) - len(tail) if dots else 0
        indices = [*head, *(f".{i - spread}" for i in range(spread)), *tail]
        for index, size in zip(indices, shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    return math.prod(sizes.values())


def input_dependent(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose value follows the inputs of the graph; a shape that does counts too."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def reaching_output(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that the result of a graph follows, and all that write into a tensor, whoever reads it then."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in found or changed(node):
            found.update((node, *node.all_input_nodes))
    return found


def scales(graph: fx.Graph) -> Iterator[fx.Node]:
    """The tensors that rescale activations: scales of normalisations, and factors of ``mul``.

    Yields the origin (`source`) of each.
    """
    activations = input_dependent(graph)
    for node in graph.nodes:
        name = name_of(node)
        if name in NORMALISATIONS:
            yield from map(source, _nodes_at(node, NORMALISATIONS[name][:1]))
        elif name == "mul" and node in activations:
            yield from (origin for origin in map(source, _nodes_at(node, (0, 1))) if origin not in activations)


def role(node: fx.Node, operand: fx.Node) -> str:
    """What `operand` is to `node`, in words that explain why it is not pruned."""
    name = name_of(node)
    place = next((i for i, argument in enumerate(node.args) if argument is operand), None)
    if name in NORMALISATIONS:
        scale, shift = NORMALISATIONS[name]
        return {scale: f"scale of {name}", shift: f"shift of {name}"}.get(place or 0, f"state of {name}")
    if name in RECURRENT or (place is not None and _BIASES.get(name) == place):
        return f"bias of {name}"
    if operand in [*weight_slots(node), *product_operands(node)]:
        vector = len(operand.meta["shape"]) < 2
        return f"a vector, in {name}" if vector else f"used by {name} in evaluation mode only"
    if place == 0 and name in _WEIGHT_SLOTS:
        return f"constant input of {name}"
    if name == "embedding":
        return "table of an embedding: looked up, not multiplied"
    if name in ("add", "sub", "rsub", "addmm", "baddbmm"):
        return "added to activations"
    if name in ("mul", "div"):
        return "scales activations element by element"
    if name == "cat":
        return "joined to activations, as a token is"
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return f"read inside a block that is captured as one ({name})"
    return "returned by the model" if node.op == "output" else f"operand of {name}, which is no product of weights"
