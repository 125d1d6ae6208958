"""`Flow`: takes labels through a graph, operator by operator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from fxprune import operators
from fxprune.coupling.atoms import Atoms, Labels
from fxprune.coupling.reshaping import along, distinct, spread, stretches
from fxprune.program import Program


@dataclass
class Splits:
    """How dimensions that a reshape takes apart are read, where that is not plain.

    Channels that become heads of so many each can be cut by whole heads or by the same channel of all heads.
    The reading that leaves most atoms comes first; where what follows forbids to cut those, the next is tried.

    Attributes:
        tried: the number of the reading, by the operator and the sizes after.
        readings: how many there are, by the same.
    """

    tried: dict[str, int] = field(default_factory=dict)
    readings: dict[str, int] = field(default_factory=dict)

    def next(self, atoms: Atoms) -> bool:
        """Go on to the next reading of what could not be cut under this one; whether there was any."""
        held = [name for name in atoms.held if self.tried.get(name, 0) + 1 < self.readings.get(name, 0)]
        for name in held:
            self.tried[name] = self.tried.get(name, 0) + 1
        return bool(held)


class Flow:
    """Labels of the values of one graph.

    Attributes:
        atoms: shared by all graphs of a model.
        parameters: names of the parameters in `state`.
        values: labels by node; a tuple of them where the node gives several tensors, None where it gives none.
        activations: the nodes that follow an input.
        zeros: the nodes whose value is zero wherever it is cut, so that zeros can be counted in its place; none
            where the graph is not all that is run.
    """

    def __init__(
        self,
        atoms: Atoms,
        splits: Splits,
        program: Program,
        state: Mapping[str, Labels],
        parameters: Set[str],
        *,
        whole: bool,
    ) -> None:
        from fxprune.coupling.rules import rule
        from fxprune.coupling.zeros import gives_zero

        self.atoms, self._splits, self.parameters = atoms, splits, parameters
        self.values: dict[fx.Node, Any] = {}
        self.zeros: set[fx.Node] = set()
        self.activations = operators.input_dependent(program.graph)
        for node in program.graph.nodes:
            if node.op == "get_attr":
                self.values[node] = state.get(str(node.target))
            elif node.op == "output":
                for source in node.all_input_nodes:
                    self.keep(source, "it is an output of the model")
            elif node.op == "call_function":
                self.values[node] = rule(node)(self, node)
            else:
                self.values[node] = fixed(node)
            if whole and node.op != "output":
                self._note(node, zero=gives_zero(self, node))

    def _note(self, node: fx.Node, *, zero: bool) -> None:
        """Keep `zeros`, of what a call writes into and of all views of it too."""
        if zero:
            self.zeros.add(node)
            return
        written = {operators.source(each) for each in operators.changed(node)}
        self.zeros = (
            {each for each in self.zeros if operators.source(each) not in written} if written else self.zeros
        )

    # --- what rules ask

    def labels(self, value: Any) -> Labels:
        """The labels of an argument; those of a number are those of a tensor without dimensions."""
        found = self.values.get(value) if isinstance(value, fx.Node) else ()
        return found if found is not None else fixed(value)

    def join(self, *arrays: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cut the atoms of arrays of one length together; gives the first."""
        for array in arrays[1:]:
            self.atoms.join(arrays[0], array)
        return arrays[0]

    def keep(self, value: Any, reason: str) -> None:
        """Never cut what a value has."""
        self.keep_all(self.labels(value), reason)

    def keep_all(self, labels: Sequence[Any], reason: str) -> None:
        """Never cut what these are."""
        for array in labels:
            if isinstance(array, tuple):
                self.keep_all(array, reason)
            else:
                self.atoms.keep(array, reason)

    def can_be_cut(self, array: NDArray[np.int64]) -> bool:
        """Whether any of these may be cut, as far as is known."""
        return bool((self.atoms.roots(array) != 0).any())

    def aligned(self, node: fx.Node, operands: Sequence[Labels]) -> Labels:
        """Labels of what is computed element by element from tensors that are broadcast to one shape."""
        rank = max((len(labels) for labels in operands), default=0)
        result = []
        for place in range(-rank, 0):
            here = [labels[place] for labels in operands if len(labels) >= -place]
            size = max(len(array) for array in here)
            for array in here:
                if len(array) != size:
                    self.atoms.keep(array, f"{told(node)} spreads it over {size}")
            result.append(self.join(*(array for array in here if len(array) == size)))
        return tuple(result)

    def reshaped(self, node: fx.Node, labels: Labels, shape: Sequence[int]) -> Labels:
        """Labels after a reshape."""
        if not math.prod(shape):
            self.keep_all(labels, f"{told(node)} gives nothing")
            return tuple(np.zeros(size, np.int64) for size in shape)
        result = [np.zeros(size, np.int64) for size in shape]
        for old, new in stretches([len(array) for array in labels], shape):
            cut = [place for place in old if self.can_be_cut(labels[place])]
            if len(cut) > 1:
                self.keep_all([labels[place] for place in cut], f"{told(node)} puts it together with others")
            elif cut:
                sizes = [len(labels[place]) for place in old]
                elements = spread(labels[cut[0]], cut[0] - old.start, sizes).reshape([shape[p] for p in new])
                place, atoms = self._taken_apart(node, elements)
                result[new.start + place] = atoms
        return tuple(result)

    def _taken_apart(self, node: fx.Node, elements: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
        """The dimension whose indices are to be cut, and their labels."""
        roots = self.atoms.roots(elements)
        places = sorted(range(elements.ndim), key=lambda place: -distinct(roots, place))
        plain = [place for place in places if (along(roots, place) == along(roots, place)[:, :1]).all()]
        if plain:
            return plain[0], along(elements, plain[0])[:, 0].copy()
        places = [place for place in places if elements.shape[place] > 1]
        name = f"{operators.name_of(node)} to {'x'.join(map(str, elements.shape))}"
        self._splits.readings[name] = len(places)
        place = places[min(self._splits.tried.get(name, 0), len(places) - 1)]
        rows = along(elements, place)
        self.join(np.broadcast_to(rows[:, :1], rows.shape), rows)
        # atoms of their own, so that what keeps them is known to keep this reading
        return place, self.join(self.atoms.draw(len(rows), name), rows[:, 0])


def fixed(value: Any) -> Labels:
    """Labels of a tensor that is never cut."""
    shape = value.meta.get("shape", ()) if isinstance(value, fx.Node) else ()
    return tuple(np.zeros(size, np.int64) for size in shape)


def told(node: fx.Node) -> str:
    """An operator and which of its calls, for people."""
    return f"{operators.name_of(node)} ({node.name})"
