"""`couple`: find the units of a captured model that can be cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fxprune.coupling.atoms import FIXED, Atoms, Labels
from fxprune.coupling.flow import Flow, Splits
from fxprune.program import attribute, state_reads
from fxprune.regions import MODES, CapturedModel, Mode
from fxprune.weights import PrunableWeight

_READINGS = 12  # how often the model is read anew at most; each time some splits are read otherwise


@dataclass(frozen=True)
class Slice:
    """Indices of one dimension of a parameter or buffer."""

    tensor: str
    dim: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """What is cut together: a channel, a head, or whatever an architecture makes of them.

    Attributes:
        slices: of parameters and buffers.
    """

    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Family:
    """Units that are alike: each has as many indices of the same dimensions.

    Attributes:
        units: their numbers.
        dims: names of parameters and buffers, a dimension of each, and how many of its indices a unit has.
    """

    units: tuple[int, ...]
    dims: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Coupling:
    """The units of a model, and where their labels are in its graphs.

    Attributes:
        atoms: what is joined.
        state: labels of parameters and buffers by name.
        parameters: names of the parameters among `state`.
        flows: labels of the values in each region's graphs.
    """

    atoms: Atoms
    state: Mapping[str, Labels]
    parameters: frozenset[str]
    flows: Mapping[tuple[str, Mode], Flow]

    def labels_at(self, region: str, mode: Mode, node: str) -> Labels:
        """Labels of the value of a node."""
        values = self.flows[region, mode].values
        return next(labels for each, labels in values.items() if each.name == node)

    def labels_of(self, weight: PrunableWeight) -> Labels:
        """Labels of a weight as products take it."""
        mode: Mode = "eval" if "eval" in weight.sites else "train"
        return self.labels_at(weight.region, mode, weight.sites[mode])

    def roots(self, tensor: str, dim: int) -> NDArray[np.int64]:
        """The unit of each index of a dimension, 0 for those that stay."""
        return self.atoms.roots(self.state[tensor][dim])

    def units(self) -> dict[int, Unit]:
        """All units by their number, in the order of the parameters."""
        slices: dict[int, list[Slice]] = {}
        for tensor, labels in self.state.items():
            for dim, _ in enumerate(labels):
                found: dict[int, list[int]] = {}
                for index, root in enumerate(self.roots(tensor, dim).tolist()):
                    found.setdefault(root, []).append(index)
                for root in sorted(found.keys() - {FIXED}):
                    slices.setdefault(root, []).append(Slice(tensor, dim, tuple(found[root])))
        return {root: Unit(tuple(parts)) for root, parts in slices.items()}

    def families(self) -> list[Family]:
        """All units, those that are alike together."""
        alike: dict[tuple[tuple[str, int, int], ...], list[int]] = {}
        for number, unit in self.units().items():
            alike.setdefault(tuple((s.tensor, s.dim, len(s.indices)) for s in unit.slices), []).append(number)
        return [Family(tuple(numbers), dims) for dims, numbers in alike.items()]

    def lines(self) -> Iterator[tuple[str, int, NDArray[np.int64]]]:
        """Name, dimension and labels of every tensor, activations included, dimension by dimension."""
        values = [*self.state.items()]
        values += [(node.name, value) for flow in self.flows.values() for node, value in flow.values.items()]
        for name, value in values:
            several = bool(value) and isinstance(value[0], tuple)
            for labels in value if several else [value]:
                for dim, array in enumerate(labels or ()):
                    if len(array):
                        yield name, dim, array

    def frozen(self, tensor: str, dim: int) -> str:
        """Why some of a dimension stays, ``""`` if all of it can be cut."""
        return self.atoms.why(self.state[tensor][dim])


def couple(captured: CapturedModel) -> Coupling:
    """Find what has to be cut together.

    Args:
        captured: the model, with masks or without.
    """
    splits = Splits()
    for _ in range(_READINGS):
        found = _read(captured, splits)
        if not splits.next(found.atoms):
            break
    return found


def _read(captured: CapturedModel, splits: Splits) -> Coupling:
    atoms = Atoms()
    by_id: dict[int, Labels] = {}
    state: dict[str, Labels] = {}
    flows = {}
    for path, region in captured.regions.items():
        prefix = f"{path}." if path else ""
        local: dict[str, Labels] = {}
        for mode in MODES:
            for name in dict.fromkeys(str(read.target) for read in state_reads(region._fxprune[mode].graph)):
                tensor = attribute(region, name)
                if not isinstance(tensor, Tensor):
                    continue
                if id(tensor) not in by_id:
                    by_id[id(tensor)] = _draw(atoms, prefix + name, tensor)
                    state[prefix + name] = by_id[id(tensor)]
                local[name] = by_id[id(tensor)]
        parameters = {name for name in local if isinstance(attribute(region, name), nn.Parameter)}
        for mode in MODES:
            # the Python of a model in parts, which its ONNX file is made from, counts no zeros
            flows[path, mode] = Flow(
                atoms, splits, region._fxprune[mode], local, parameters, whole=captured.is_whole
            )
    parameters = {name for name, _ in captured.host.named_parameters()}
    return Coupling(atoms, state, frozenset(parameters & set(state)), flows)


def _draw(atoms: Atoms, name: str, tensor: Tensor) -> Labels:
    labels = tuple(atoms.draw(size, f"{name}, dimension {dim}") for dim, size in enumerate(tensor.shape))
    for array in labels:
        if len(array) == 1:
            atoms.keep(array, "there is one of it")
    return labels
