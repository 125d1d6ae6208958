"""`shrink`: cut units out of a captured model, so that its tensors are smaller and nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from fxprune import operators
from fxprune.coupling import Coupling, couple
from fxprune.coupling.atoms import Labels
from fxprune.coupling.rules import COUNT_ZEROS, reduced_over, takes_all, whole_groups
from fxprune.errors import ShrinkError
from fxprune.operators import argument
from fxprune.regions import CapturedModel


def shrink(captured: CapturedModel, coupling: Coupling, cut: Collection[int]) -> CapturedModel:
    """A copy of a captured model without some of its units.

    Args:
        captured: left as it is.
        coupling: what `couple` found in it.
        cut: numbers of units.

    Raises:
        ShrinkError: there is no such unit, or nothing would be left of a tensor.
    """
    kept = Kept(coupling, cut)
    result = captured.alias()
    _cut_state(result.host, coupling, kept)
    for path, region in result.regions.items():
        for mode, program in region._fxprune.items():
            flow = coupling.flows[path, mode]
            values = {node.name: labels for node, labels in flow.values.items()}
            region._fxprune[mode] = program.rewritten(partial(_resize, values=values, kept=kept))
            _regroup(region, region._fxprune[mode].graph)
    return result


def removed(coupling: Coupling, cut: Collection[int]) -> tuple[tuple[str, int, tuple[int, ...]], ...]:
    """What `without` needs to cut the same units again: an index of each, by tensor and dimension."""
    units = coupling.units()
    found: dict[tuple[str, int], list[int]] = {}
    for number in sorted(cut):
        first = units[number].slices[0]
        found.setdefault((first.tensor, first.dim), []).append(first.indices[0])
    return tuple((tensor, dim, tuple(indices)) for (tensor, dim), indices in found.items())


def without(captured: CapturedModel, removed: Iterable[tuple[str, int, tuple[int, ...]]]) -> CapturedModel:
    """Cut the units that `removed` told of.

    Raises:
        ShrinkError: the model has no such unit.
    """
    coupling = couple(captured)
    cut: set[int] = set()
    for tensor, dim, indices in removed:
        labels = coupling.state.get(tensor, ())
        if not 0 <= dim < len(labels) or not set(indices) <= set(range(len(labels[dim]))):
            raise ShrinkError(
                f"expected a dimension {dim} of {tensor!r} with indices up to {max(indices, default=0)}"
            )
        roots = coupling.roots(tensor, dim)[list(indices)]
        if not roots.all():
            raise ShrinkError(f"{tensor}: dimension {dim} cannot be cut: {coupling.frozen(tensor, dim)}")
        cut.update(int(root) for root in roots)
    return shrink(captured, coupling, cut)


class Kept:
    """Which indices are left when units are cut.

    Args:
        coupling: of the model.
        cut: numbers of units.

    Raises:
        ShrinkError: there is no such unit, or nothing would be left of a tensor.
    """

    def __init__(self, coupling: Coupling, cut: Collection[int]) -> None:
        numbers = coupling.units().keys()
        unknown = sorted(set(cut) - numbers)
        if unknown:
            raise ShrinkError(f"expected units of the model, got {unknown[:3]}; see fxprune groups")
        self._atoms = coupling.atoms
        self._cut = np.zeros(len(coupling.atoms), bool)
        self._cut[list(cut)] = True
        for name, dim, labels in coupling.lines():
            if not self(labels).any():
                raise ShrinkError(
                    f"{name}: expected to keep some of dimension {dim}, got cuts of all {len(labels)}; cut less"
                )

    def __call__(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True for each index that is left."""
        kept: NDArray[np.bool_] = ~self._cut[self._atoms.roots(labels)]
        return kept

    def count(self, labels: NDArray[np.int64]) -> int:
        """How many indices are left."""
        return int(self(labels).sum())

    def of(self, tensor: Tensor, labels: Labels) -> Tensor:
        """What is left of a tensor."""
        for dim, array in enumerate(labels):
            kept = self(array)
            if not kept.all():
                index = torch.from_numpy(np.flatnonzero(kept)).to(tensor.device)
                tensor = tensor.index_select(dim, index)
        return tensor


def _cut_state(host: nn.Module, coupling: Coupling, kept: Kept) -> None:
    """Replace parameters and buffers, those of several names by one."""
    labels = {id(tensor): coupling.state[name] for name, tensor in _state(host) if name in coupling.state}
    smaller: dict[int, Tensor] = {}
    for module in host.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None or id(tensor) not in labels:
                    continue
                if id(tensor) not in smaller:
                    value = kept.of(tensor.detach(), labels[id(tensor)]).clone()
                    smaller[id(tensor)] = (
                        nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
                    )
                store[name] = smaller[id(tensor)]  # type: ignore[assignment]


def _state(host: nn.Module) -> list[tuple[str, Tensor]]:
    return [*host.named_parameters(remove_duplicate=False), *host.named_buffers(remove_duplicate=False)]


def _resize(graph: fx.Graph, values: dict[str, Any], kept: Kept) -> None:
    """Sizes that are written into the calls of a graph become those that are left."""
    for node in list(graph.nodes):  # not what is added on the way
        labels = values.get(node.name)
        if "shape" in node.meta and isinstance(labels, tuple) and len(labels) == len(node.meta["shape"]):
            node.meta.setdefault("whole", node.meta["shape"])  # weights keep the names that they had
            node.meta["shape"] = tuple(kept.count(array) for array in labels)
        if node.op == "call_function":
            change = _CHANGES.get(operators.name_of(node))
            if change is not None and labels is not None:
                change(_Call(node, labels, values, kept))


def _regroup(region: nn.Module, graph: fx.Graph) -> None:
    """Modules that keep their own Python, as those of a model in parts do, have the groups of the graph."""
    for node in graph.nodes:
        place, name = _GROUPS.get(operators.name_of(node), (None, ""))
        weight = node.args[place] if place is not None and place < len(node.args) else None
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            module = region.get_submodule(str(weight.target).rpartition(".")[0])
            if name in vars(module):
                setattr(module, name, node.args[1] if name == "num_groups" else argument(node, 6, "groups", 1))


@dataclass(frozen=True)
class _Call:
    """A call with the labels of its value, and of its arguments."""

    node: fx.Node
    labels: Any
    values: dict[str, Any]
    kept: Kept

    def of(self, place: int) -> Labels:
        """Labels of an argument."""
        source = self.node.args[place]
        assert isinstance(source, fx.Node)
        found: Labels = self.values[source.name]
        return found

    def dim(self, place: int, name: str, default: int) -> int:
        """A dimension that an argument names, from the left."""
        return int(argument(self.node, place, name, default)) % len(self.of(0))

    def followed(self, node: fx.Node, operator: Callable[..., Any], *args: Any) -> fx.Node:
        """Another call on what this one gives, or what follows it, in its place."""
        with node.graph.inserting_after(node):
            new = node.graph.call_function(operator, (node, *args))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self.values[new.name] = self.labels
        return new


def _sizes(call: _Call) -> None:
    """Sizes of the result; where one is computed and gets smaller, it is left to be inferred, and no other is."""
    sizes = list(argument(call.node, 1, "size"))
    left = [call.kept.count(array) for array in call.labels[-len(sizes) :]]
    smaller = [now != len(array) for now, array in zip(left, call.labels[-len(sizes) :], strict=True)]
    computed = any(isinstance(size, fx.Node) and less for size, less in zip(sizes, smaller, strict=True))
    inferred = computed and operators.name_of(call.node) != "expand"  # whose -1 is no size
    for at, (size, now, less) in enumerate(zip(sizes, left, smaller, strict=True)):
        if size == -1:
            sizes[at] = now if inferred else -1
        elif less:
            sizes[at] = -1 if isinstance(size, fx.Node) else now
    call.node.update_arg(1, sizes)


def _unflatten(call: _Call) -> None:
    dim, sizes = call.dim(1, "dim", 0), list(argument(call.node, 2, "sizes"))
    arrays = call.labels[dim : dim + len(sizes)]
    call.node.update_arg(
        2, [size if size == -1 else call.kept.count(array) for size, array in zip(sizes, arrays, strict=True)]
    )


def _split(call: _Call) -> None:
    dim = call.dim(2, "dim", 0)
    sizes = [call.kept.count(piece[dim]) for piece in call.labels]
    if sizes != [len(piece[dim]) for piece in call.labels]:
        call.node.target = torch.ops.aten.split_with_sizes.default
        call.node.args, call.node.kwargs = (call.node.args[0], sizes, dim), {}


def _slice(call: _Call) -> None:
    dim = call.dim(1, "dim", 0)
    kept = call.kept(call.of(0)[dim])
    if kept.all() or takes_all(call.node, len(kept)):
        return
    start, end, _ = slice(argument(call.node, 2, "start"), argument(call.node, 3, "end")).indices(len(kept))
    call.node.args = (call.node.args[0], dim, int(kept[:start].sum()), int(kept[:end].sum()))
    call.node.kwargs = {}


def _convolution(call: _Call) -> None:
    groups = argument(call.node, 6, "groups", 1)
    data, weight = call.of(0), call.of(1)
    channels = data[len(data) - len(weight) + 1]
    if groups > 1 and whole_groups(groups, len(channels)):
        _with_argument(call.node, 6, "groups", int(call.kept(channels.reshape(groups, -1)).all(1).sum()))


def _group_norm(call: _Call) -> None:
    groups = int(call.node.args[1])  # type: ignore[arg-type]
    call.node.update_arg(1, int(call.kept(call.of(0)[1].reshape(groups, -1)).all(1).sum()))


def _mean(call: _Call) -> None:
    """What is gone counts as zeros: the sum is the same, and is divided by the size that it had."""
    data = call.of(0)
    arrays = [data[place] for place in reduced_over(call.node, len(data))]
    share = math.prod(call.kept.count(array) for array in arrays) / math.prod(len(array) for array in arrays)
    if share != 1:
        call.followed(call.node, torch.ops.aten.mul.Tensor, share)


def _among_zeros(call: _Call) -> None:
    """The largest, the least or the variance of what is left and of zeros where some are gone."""
    _padded(call, reduced_over(call.node, len(call.of(0))))


def _normalisation(call: _Call) -> None:
    """Over as many elements as before, zeros where some are gone; of the result only what is left has a scale."""
    node, rank = call.node, len(call.labels)
    over = range(rank - len(argument(node, 1, "normalized_shape")), rank)
    if not _padded(call, over):
        return
    affine = node.args[2:4] if operators.name_of(node) == "layer_norm" else node.args[2:3]
    node.args = (*node.args[:2], *(None for _ in affine), *node.args[2 + len(affine) :])
    left, last = node.meta["shape"], node
    node.meta["shape"] = node.meta["whole"]
    for place in over:
        last = call.followed(last, torch.ops.aten.slice.Tensor, place, 0, left[place])
    last.meta["shape"] = left
    for parameter, operator in zip(affine, (torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor), strict=False):
        last = call.followed(last, operator, parameter) if parameter is not None else last


def _padded(call: _Call, over: Container[int]) -> bool:
    """Put zeros behind what is left along some dimensions of the first argument; whether any is gone."""
    data = call.of(0)
    gone = [len(array) - call.kept.count(array) if place in over else 0 for place, array in enumerate(data)]
    source = call.node.args[0]
    assert isinstance(source, fx.Node)
    if any(gone):
        widths = [width for count in reversed(gone) for width in (0, count)]
        with call.node.graph.inserting_before(call.node):
            padded = call.node.graph.call_function(torch.ops.aten.constant_pad_nd.default, (source, widths))
        sizes = zip(source.meta["shape"], gone, strict=True)
        padded.meta = {**source.meta, "shape": tuple(size + count for size, count in sizes)}
        call.node.update_arg(0, padded)
    return any(gone)


def _recurrent(call: _Call) -> None:
    """The states that it begins with are made with a size of their own."""
    args: tuple[Any, ...] = call.node.args
    hidden = call.kept.count(call.values[args[2][1].name][1])
    for state in args[1] if isinstance(args[1], (list, tuple)) else [args[1]]:
        state.update_arg(0, [*state.args[0][:-1], hidden])
        state.meta["shape"] = (*state.meta["shape"][:-1], hidden)


def _with_argument(node: fx.Node, place: int, name: str, value: Any) -> None:
    if place < len(node.args):
        node.update_arg(place, value)
    else:
        node.update_kwarg(name, value)


# the place of a weight, and what its module calls the groups
_GROUPS = {**dict.fromkeys(("conv1d", "conv2d", "conv3d"), (1, "groups")), "group_norm": (2, "num_groups")}

_CHANGES: dict[str, Callable[[_Call], None]] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "expand"), _sizes),
    "unflatten": _unflatten,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), _split),
    "slice": _slice,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "group_norm": _group_norm,
    "mean": _mean,
    **dict.fromkeys(COUNT_ZEROS - {"mean"}, _among_zeros),
    **dict.fromkeys(("layer_norm", "rms_norm"), _normalisation),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
}
