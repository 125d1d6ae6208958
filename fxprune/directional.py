"""Directional derivatives of a graph's outputs, in little memory.

Every value of the graph is accompanied by its derivative along one direction of the weights (Pearlmutter, "Fast
exact multiplication by the Hessian", 1994). The gradient of the loss's derivative along `v` is ``H v``: a
Hessian product that never holds the graph of a gradient. And since what comes out is differentiated
once only, stretches of the graph can be computed again in the backward pass instead of being remembered
(Chen et al., "Training deep nets with sublinear memory cost", 2016): between two segments only the
tensors stay in memory that cross from one to the other.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from fxprune import memory, operators
from fxprune.program import Program, attribute

_CPU = torch.device("cpu")
_LIMITS = 24  # how many sizes of segments are tried, each 0.8 of the one before

# A value and its derivative: trees of one structure, the second with None where nothing depends on the direction.
Dual = tuple[Any, Any]


@dataclass(frozen=True)
class _Segment:
    """Calls that follow each other, the nodes they read from outside, and those that are read outside."""

    calls: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    def run(self, *flat: Any) -> tuple[Any, ...]:
        """From the inputs' values and derivatives to those of the outputs; values come first."""
        count = len(self.inputs)
        duals = dict(zip(self.inputs, zip(flat[:count], flat[count:], strict=True), strict=True))
        last = {node: call for call in self.calls for node in call.all_input_nodes}
        for call in self.calls:
            duals[call] = _call(call, duals)
            for node in call.all_input_nodes:
                if last[node] is call and node not in self.outputs:
                    del duals[node]
        values, derivatives = zip(*(duals[node] for node in self.outputs), strict=True)
        return (*values, *derivatives)


class Directional:
    """A program that computes derivatives along with its values.

    Args:
        program: without calls that change a tensor in place.
        ceiling: where the process holds more bytes of main memory than this, what the C library has kept of freed
            tensors is given back, between segments: scattered among others, it is of little use for new ones.

    Raises:
        NotImplementedError: there is such a call.
    """

    def __init__(self, program: Program, ceiling: int | None = None) -> None:
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        _load_forward_derivatives()
        changing = next((call for call in calls if operators.changed(call)), None)
        if changing is not None:
            raise NotImplementedError(f"{changing.name} changes a tensor in place")
        self._program, self._ceiling = program, ceiling
        self._segments = [_segment(calls[a:b]) for a, b in itertools.pairwise(_cuts(calls))]

    def __call__(
        self,
        state: nn.Module,
        values: Mapping[str, Tensor],
        direction: Mapping[str, Tensor],
        leaves: Sequence[Any],
    ) -> list[Dual]:
        """Outputs of the graph and their derivatives.

        Args:
            state: holds the tensors that the graph reads.
            values: taken in place of those of `state`, by the name that the graph reads.
            direction: of the derivative, by the same names.
            leaves: flat inputs.

        Raises:
            NotImplementedError: torch has no forward derivative of an operator.
        """
        graph = self._program.graph
        duals: dict[fx.Node, Dual] = {}
        inputs = iter(leaves)
        for node in graph.nodes:
            if node.op == "placeholder":
                duals[node] = (next(inputs), None)
            elif node.op == "get_attr":
                name = str(node.target)
                value = values[name] if name in values else attribute(state, name)
                duals[node] = (value, direction.get(name))
        for segment in self._segments:
            flat = [duals[node][part] for part in (0, 1) for node in segment.inputs]
            if segment is self._segments[-1]:  # the backward pass starts here, with all that is remembered
                result = self._run(segment, *flat)
            else:
                # stopping early leaves the traceback of an exception that holds what was computed
                result = checkpoint(self._run, segment, *flat, use_reentrant=False, early_stop=False)
            count = len(segment.outputs)
            duals |= zip(segment.outputs, zip(result[:count], result[count:], strict=True), strict=True)
            del flat, result
        (output,) = (node for node in graph.nodes if node.op == "output")
        return [duals[leaf] if isinstance(leaf, fx.Node) else (leaf, None) for leaf in output.args[0]]

    def _run(self, segment: _Segment, *flat: Any) -> tuple[Any, ...]:
        result = segment.run(*flat)
        if self._ceiling is not None and memory.used(_CPU) > self._ceiling:
            memory.release()
            # tensors in use cannot be given back: do not try in vain each time
            self._ceiling = max(self._ceiling, int(1.25 * memory.used(_CPU)))
        return result


def _call(node: fx.Node, duals: Mapping[fx.Node, Dual]) -> Dual:
    """Call a node's operator on values and derivatives."""
    assert callable(node.target)
    if all(t is None for source in node.all_input_nodes for t in pytree.tree_leaves(duals[source][1])):
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: duals[source][0])
        value = node.target(*args, **kwargs)
        return value, pytree.tree_map(lambda _: None, value)
    with forward_ad.dual_level():
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _join(*duals[source]))
        joined = node.target(*args, **kwargs)
        return pytree.tree_map(_value, joined), pytree.tree_map(_derivative, joined)


@functools.cache
def _load_forward_derivatives() -> None:
    """Let torch load what it loads at the first use, without the warnings that it gives about its own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


def _join(value: Any, derivative: Any) -> Any:
    if derivative is None:
        return value
    return pytree.tree_map(lambda v, d: v if d is None else forward_ad.make_dual(v, d), value, derivative)


def _value(leaf: Any) -> Any:
    return forward_ad.unpack_dual(leaf).primal if isinstance(leaf, Tensor) else leaf


def _derivative(leaf: Any) -> Tensor | None:
    return forward_ad.unpack_dual(leaf).tangent if isinstance(leaf, Tensor) else None


def _segment(calls: Sequence[fx.Node]) -> _Segment:
    inside = set(calls)
    inputs = dict.fromkeys(n for call in calls for n in call.all_input_nodes if n not in inside)
    outputs = [call for call in calls if any(user not in inside for user in call.users)]
    return _Segment(tuple(calls), tuple(inputs), tuple(outputs))


def _cuts(calls: Sequence[fx.Node]) -> list[int]:
    """Where segments start, and the end: a choice between many small crossings and few large segments."""
    place = {call: i for i, call in enumerate(calls)}
    sizes = [operators.allocated(call) for call in calls]
    ends = list(itertools.accumulate(sizes, initial=0))
    last = {call: i for i, call in enumerate(calls)}
    for call in calls:
        owner = operators.source(call)  # a tensor lives as long as its views
        if owner in last:
            last[owner] = max(last[owner], *(place.get(user, len(calls)) for user in call.users), place[call])
    crossing = [0] * (len(calls) + 1)
    for i, call in enumerate(calls):
        for cut in range(i + 1, last[call] + 1):
            crossing[cut] += sizes[i]
    choices = [_greedy(ends, crossing, ends[-1] * 0.8**k) for k in range(_LIMITS)]
    return min(choices, key=lambda cuts: _cost(cuts, ends, crossing))


def _greedy(ends: Sequence[int], crossing: Sequence[int], limit: float) -> list[int]:
    """Cuts into segments of at most `limit` elements where that is possible, each where least crosses."""
    cuts, end = [0], len(ends) - 1
    while ends[end] - ends[cuts[-1]] > limit:
        start = cuts[-1]
        within = [cut for cut in range(start + 1, end) if ends[cut] - ends[start] <= limit]
        if not within and start + 1 == end:
            break
        # the elements that cross, for each that the segment spares
        cuts.append(min(within or [start + 1], key=lambda cut: crossing[cut] / max(1, ends[cut] - ends[start])))
    return [*cuts, end]


def _cost(cuts: Sequence[int], ends: Sequence[int], crossing: Sequence[int]) -> int:
    """Elements in memory at once: all crossings, and the largest segment with as much again to work in."""
    largest = max(ends[b] - ends[a] for a, b in itertools.pairwise(cuts))
    return sum(crossing[cut] for cut in cuts) + 2 * largest
