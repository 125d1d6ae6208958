"""`cut_dead`: channels of which masks have left nothing that works are cut, so that tensors get smaller.

A channel is *dead* if none of its weights lies on a path from an input to an output
(`fxprune.analysis.effective`): nothing reads it, or it is a constant, such as the shift of the normalisation
behind a filter that is gone. Where a product reads a constant, that becomes part of its bias, or of the running
mean of the batch normalisation right behind it. This is exact if the constant is the same in both modes and at
every place; it is not across zero padding, where the border reads zeros instead, nor in recurrent layers, whose
constants change with time. Channels of which it is not exact stay.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune import operators
from fxprune.analysis.effective import effective
from fxprune.coupling import Coupling, couple
from fxprune.coupling.atoms import Labels
from fxprune.coupling.flow import Flow
from fxprune.errors import ShrinkError
from fxprune.model import PrunedModel, Whole, require_pruned
from fxprune.operators import argument
from fxprune.program import attribute, state_reads
from fxprune.proof import ROUNDED, compare, without_chance
from fxprune.regions import MODES, CapturedModel, Mode, Region
from fxprune.rewrite import drop_masks
from fxprune.shrink import Kept, removed, shrink
from fxprune.weights import Weights, find_weights

_SAME = 1e-6  # relative: constants of both modes that differ by less are one
_FOLDABLE = frozenset(("conv1d", "conv2d", "conv3d", "linear"))
_SHAPED = frozenset(("empty_like", "new_empty"))  # take a shape alone, and give what memory holds

# By name of a parameter or buffer and number of a unit: what is to be added to it when that unit goes.
Shifts = dict[str, dict[int, Tensor]]


def cut_dead(pruned: PrunedModel) -> PrunedModel:
    """The same network without its dead channels.

    What it computes is held against what it computed, in both modes, before it is returned. The model that is
    given stays as it is. Masks go on working on what is left.

    Args:
        pruned: the model.

    Raises:
        ShrinkError: channels of it were cut before, or its masks have a pattern, which fewer inputs would break.
    """
    require_pruned(pruned, ShrinkError)
    record = pruned.record
    if record is not None and (record.removed or record.pattern):
        got = f"a pattern of {record.pattern}" if record.pattern else "a model whose channels were cut"
        raise ShrinkError(f"expected single weights pruned to a sparsity, got {got}")
    captured = drop_masks(pruned.captured, pruned.weights)
    coupling = couple(captured)
    weights = find_weights(captured)
    gone, shifts = _exactly(pruned, captured, coupling, _candidates(pruned, coupling, weights))
    shifted = CapturedModel(copy.deepcopy(captured.host))
    with torch.no_grad():
        for name, by_unit in shifts.items():
            attribute(shifted.host, name).add_(sum(by_unit.values()))
    kept = Kept(coupling, gone)
    shrunk = shrink(shifted, coupling, gone)
    masks = {w.name: kept.of(pruned.masks[w.name], coupling.labels_of(w)) for w in pruned.weights}
    left = tuple(weight for weight in find_weights(shrunk) if weight.name in masks)
    if record is not None and gone:
        record = replace(record, removed=removed(coupling, gone), whole=Whole.of(captured, weights))
    result = PrunedModel(shrunk, Weights(left, pruned.weights.skipped), masks, record).train(pruned.training)
    compare(pruned.captured, result.captured, ROUNDED)
    return result


def _candidates(pruned: PrunedModel, coupling: Coupling, weights: Weights) -> set[int]:
    """Units that have weights, none of which is on a path."""
    used = effective(pruned).masks
    deployed = {weight.name for weight in pruned.weights if "eval" in weight.sites}
    having, alive = set[int](), {0}
    for weight in weights:
        works = torch.ones(weight.shape, dtype=torch.bool)
        if weight.name in used:  # what only training uses is on no path, and is used all the same
            works = used[weight.name] if weight.name in deployed else pruned.masks[weight.name].cpu()
        if operators.RECURRENT & set(weight.operators):  # hidden units read one another, and change with time
            works = torch.ones_like(works)
        for dim, labels in enumerate(coupling.labels_of(weight)):
            roots = coupling.atoms.roots(labels)
            some = works.movedim(dim, 0).flatten(1).any(1).numpy()
            having.update(roots.tolist())
            alive.update(roots[some].tolist())
    return _sparing(coupling, having - alive)


def _sparing(coupling: Coupling, dead: set[int]) -> set[int]:
    """All but one where everything along a dimension is dead, since a tensor has to have some size."""
    spared: set[int] = set()
    for _, _, labels in coupling.lines():
        roots = set(coupling.atoms.roots(labels).tolist())
        if roots <= dead - spared:
            spared.add(min(roots))
    return dead - spared


def _exactly(
    pruned: PrunedModel, captured: CapturedModel, coupling: Coupling, dead: set[int]
) -> tuple[set[int], Shifts]:
    """Those of the dead units that can go without a change, and what has to be added where."""
    model = without_chance(captured.alias())
    while dead:
        shifts: list[Shifts] = []
        blamed = set[int]()
        for path, region in model.regions.items():
            found = [_Watch(pruned, region, path, mode, coupling, dead) for mode in MODES]
            for watch in found:
                watch.look()
                blamed |= watch.blamed
            merged, odd = _merged(region, [watch.shifts for watch in found])
            blamed |= odd
            prefix = f"{path}." if path else ""
            shifts.append({prefix + name: by_unit for name, by_unit in merged.items()})
        if not blamed:
            return dead, {name: by_unit for each in shifts for name, by_unit in each.items()}
        dead = dead - blamed
    return dead, {}


def _merged(region: Region, found: list[Shifts]) -> tuple[Shifts, set[int]]:
    """What both modes agree on, and the units on which they do not."""
    merged: Shifts = {}
    odd = set[int]()
    for name in {name for shifts in found for name in shifts}:
        read = [
            shifts.get(name, {})
            for mode, shifts in zip(MODES, found, strict=True)
            if any(node.target == name for node in state_reads(region._fxprune[mode].graph))
        ]
        for unit in {unit for by_unit in read for unit in by_unit}:
            values = [by_unit.get(unit) for by_unit in read]
            first = values[0]
            same = first is not None and all(v is not None and _alike(first, v) for v in values)
            if same and first is not None:
                merged.setdefault(name, {})[unit] = first
            else:
                odd.add(unit)
    return merged, odd


def _alike(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= _SAME * float(one.abs().max())


class _Watch(fx.Interpreter):
    """Runs one graph with masked weights, and looks at every operator that reads dead channels.

    What it gives for other channels has to be the same without them, or to differ by a constant. That is asked of
    operators whose result has the same dead channels too: a layer with a shortcut around it reads those that it
    adds to.

    Attributes:
        blamed: dead units that change something when they go.
        shifts: what makes up for the others.
    """

    def __init__(
        self, pruned: PrunedModel, region: Region, path: str, mode: Mode, coupling: Coupling, dead: set[int]
    ) -> None:
        program = region._fxprune[mode]
        # running statistics move in training, so that each run has its own
        super().__init__(fx.GraphModule(copy.deepcopy(region), program.graph), garbage_collect_values=False)
        self._inputs = program.sample_inputs(program.batch)  # that of the labels: heads may be part of the batch
        self._coupling, self._dead = coupling, np.array(sorted(dead))
        flow: Flow = coupling.flows[path, mode]
        self._labels: dict[str, Any] = {node.name: labels for node, labels in flow.values.items()}
        self._dead_in = {name: self._of_dead(labels) for name, labels in self._labels.items()}
        self._masks = {
            weight.sites[mode]: pruned.masks[weight.name]
            for weight in pruned.weights
            if weight.region == path and mode in weight.sites
        }
        self.blamed: set[int] = set()
        self.shifts: Shifts = {}

    @torch.no_grad()
    def look(self) -> None:
        """Run it once."""
        device = next(iter(self._masks.values())).device if self._masks else torch.device("cpu")
        self.run(*(leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in self._inputs))

    def run_node(self, node: fx.Node) -> Any:
        read = self._read(node)
        units = (self._dead[:0], self._dead)
        if read and not self._same_alive(node, *(self._called(node, read, each) for each in units)):
            self._differs(node, read)
        value = super().run_node(node)
        if node.name in self._masks:
            value = torch.where(self._masks[node.name], value, torch.zeros_like(value))
        return value

    def _read(self, node: fx.Node) -> list[fx.Node]:
        """The arguments of a call that have dead units."""
        if node.op != "call_function" or operators.name_of(node) in _SHAPED:
            return []
        tensors = [each for each in node.all_input_nodes if isinstance(self.env[each], Tensor)]
        return [each for each in tensors if self._dead_in.get(each.name)]

    def _called(self, node: fx.Node, read: list[fx.Node], without: NDArray[np.int64]) -> Any:
        """What a call gives without some units: on copies, as it may change them, and as kernels go by strides."""
        values: dict[fx.Node, Any] = {each: self.env[each].clone() for each in operators.changed(node)}
        values |= {each: self._zeroed(self.env[each], self._labels[each.name], without) for each in read}
        return node.target(*self._given(node.args, values), **self._given(node.kwargs, values))  # type: ignore[operator]

    def _same_alive(self, node: fx.Node, *values: Any) -> bool:
        """Whether two results are equal in all places but those of dead units."""
        labels = self._labels[node.name]
        several = isinstance(values[0], (tuple, list))
        return all(
            _equal(
                *(self._zeroed(value, found, self._dead) if isinstance(value, Tensor) else value for value in pair)
            )
            for *pair, found in (zip(*values, labels, strict=True) if several else [(*values, labels)])
        )

    def _differs(self, node: fx.Node, read: list[fx.Node]) -> None:
        """Make up for what changes when dead units go, or keep them."""
        if operators.name_of(node) in _FOLDABLE and (place := _shiftable(node)):
            self._fold(node, *place)
        else:
            self.blamed |= {
                unit for each in read for unit in self._dead_in[each.name] if self._is_something(each, unit)
            }

    def _of_dead(self, labels: Any) -> set[int]:
        arrays = [array for array in pytree.tree_leaves(labels) if isinstance(array, np.ndarray)]
        return {int(root) for array in arrays for root in np.intersect1d(self._roots(array), self._dead)}

    def _roots(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._coupling.atoms.roots(labels)

    def _given(self, arguments: Any, values: Mapping[fx.Node, Any]) -> Any:
        return fx.node.map_arg(arguments, lambda node: values.get(node, self.env[node]))

    def _zeroed(self, value: Tensor, labels: Labels, units: NDArray[np.int64]) -> Tensor:
        """A copy with zeros in the place of units."""
        value = value.clone()
        for dim, array in enumerate(labels):
            places = np.flatnonzero(np.isin(self._roots(array), units))
            if len(places):
                value.index_fill_(dim, torch.from_numpy(places).to(value.device), 0)
        return value

    def _is_something(self, node: fx.Node, unit: int) -> bool:
        value = self.env[node]
        return not torch.equal(self._zeroed(value, self._labels[node.name], np.array([unit])), value)

    def _fold(self, node: fx.Node, name: str, sign: float) -> None:
        """What a convolution or linear layer adds up from channels that are constant, for results that stay."""
        assert isinstance(node.args[0], fx.Node)
        inputs, weight = self._given(node.args[:2], {})
        dim = inputs.dim() - 1 if weight.dim() == 2 else inputs.dim() - weight.dim() + 1
        roots, results = (self._roots(self._labels[each.name][dim]) for each in (node.args[0], node))
        alive = torch.from_numpy(~np.isin(results, self._dead)).to(weight.device)[:, None]
        rows = inputs.movedim(dim, 0).flatten(1)
        groups = argument(node, 6, "groups", 1) if weight.dim() > 2 else 1
        for unit in np.intersect1d(roots, self._dead).tolist():
            taps = {c: _taps(weight, int(c), groups) * alive for c in np.flatnonzero(roots == unit)}
            channels = [c for c in taps if bool((taps[c] != 0).any()) and bool((rows[c] != 0).any())]
            if not channels:
                continue
            constant = all(bool((rows[c] == rows[c, 0]).all()) for c in channels)
            if not (constant and _covered(node)):
                self.blamed.add(unit)
                continue
            shift = sign * sum(taps[c].double().sum(1) * rows[c, 0].double() for c in channels)
            known = self.shifts.setdefault(name, {})
            if unit in known:  # the layer is used twice, and needs the same both times
                self.blamed.add(unit)
            known[unit] = shift.to(weight.dtype)


def _taps(weight: Tensor, channel: int, groups: int) -> Tensor:
    """What a convolution or linear layer multiplies one channel with, for each of its results."""
    inputs, results = weight.shape[1], len(weight) // groups
    group = slice(channel // inputs * results, (channel // inputs + 1) * results)
    taps = torch.zeros_like(weight[:, 0])
    taps[group] = weight[group, channel % inputs]
    return taps.reshape(len(weight), -1)


def _shiftable(node: fx.Node) -> tuple[str, float] | None:
    """The tensor that can take a constant of a product's result, and the sign with which it is counted."""
    bias = argument(node, 2, "bias")
    if isinstance(bias, fx.Node):
        return (str(bias.target), 1.0) if bias.op == "get_attr" and len(bias.users) == 1 else None
    behind = next(iter(node.users), None)
    if behind is None or len(node.users) > 1 or operators.name_of(behind) != "batch_norm":
        return None
    mean = argument(behind, 3, "running_mean")
    fits = isinstance(mean, fx.Node) and mean.op == "get_attr" and len(mean.users) == 1 and behind.args[0] is node
    return (str(mean.target), -1.0) if fits else None


def _covered(node: fx.Node) -> bool:
    """Whether the whole kernel always lies on the input."""
    if operators.name_of(node) == "linear":
        return True
    padding = argument(node, 4, "padding", 0)
    return padding == "valid" or not np.any(np.array(padding, dtype=object))


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)
