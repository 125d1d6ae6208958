"""`gives_zero`: whether a value is zero wherever it can be cut, once parameters are zero where they are cut.

A mean over channels, or a normalisation over them, then stays what it was without some of them if as many zeros
are counted in their place. Parameters are zero there, and so is what a layer gives whose weight and bias are; what
makes zero of zero hands it on. Of operators that are not known here nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune import operators
from fxprune.coupling import rules
from fxprune.coupling.flow import Flow
from fxprune.operators import argument

# What these give is a copy of elements of their arguments, or zero if all of those are.
_MOVED = operators.SELECTIONS | frozenset("cat concat concatenate stack roll glu pixel_shuffle".split())
_REDUCED = frozenset("mean sum amax amin var std linalg_vector_norm".split())
_SAMPLES = (64, 1, 1, 1)  # some operators ask for a certain number of dimensions

# The dimensions of the result that a weight stands for, by the numbers of dimensions of both.
_CHANNELS: dict[str, Callable[[int, int], Collection[int]]] = {
    **dict.fromkeys(operators.CONVOLUTIONS, lambda rank, sizes: [rank - sizes + 1]),
    **dict.fromkeys(("batch_norm", "instance_norm", "group_norm"), lambda _, __: [1]),
    **dict.fromkeys(("layer_norm", "rms_norm"), lambda rank, sizes: range(rank - sizes, rank)),
    "linear": lambda rank, _: [rank - 1],
}


def gives_zero(flow: Flow, node: fx.Node) -> bool:
    """Whether a node's value is zero in all places that may be cut; true of one that has no such places."""
    arrays = [array for array in pytree.tree_leaves(flow.values[node]) if array is not None]
    if not any(flow.can_be_cut(array) for array in arrays):
        return True
    if node.op != "call_function":
        return node.op == "get_attr" and str(node.target) in flow.parameters
    name, rule = operators.name_of(node), rules.rule(node)
    if name in _CHANNELS:
        return _affine(flow, node, name)
    if name in _MOVED or name in _REDUCED or rule is rules._pooled:
        return all(source in flow.zeros for source in node.all_input_nodes)
    if name in ("pad", "constant_pad_nd"):
        return node.args[0] in flow.zeros and not argument(node, 3 if name == "pad" else 2, "value")
    return rule in (rules._pointwise, rules._same) and name != "empty_like" and _keeps_zero(flow, node)


def _affine(flow: Flow, node: fx.Node, name: str) -> bool:
    """Of a layer or a normalisation: what can be cut is what its weight has, and its bias is zero there."""
    scale, shift = operators.NORMALISATIONS.get(name, (1, 2))
    weight, bias = (node.args[place] if 0 <= place < len(node.args) else None for place in (scale, shift))
    if weight is None or weight in flow.activations or (bias is not None and bias not in flow.zeros):
        return False
    if name in operators.NORMALISATIONS and weight not in flow.zeros:  # weights of products are masked in any case
        return False
    labels = flow.labels(node)
    here = _CHANNELS[name](len(labels), len(flow.labels(weight)))
    return not any(flow.can_be_cut(array) for place, array in enumerate(labels) if place not in here)


def _keeps_zero(flow: Flow, node: fx.Node) -> bool:
    """Of what works element by element, tried: with zeros where arguments are zero, and samples for the others."""
    result = flow.labels(node)
    cut = [place - len(result) for place, array in enumerate(result) if flow.can_be_cut(array)]
    generator = torch.Generator().manual_seed(0)

    def value(source: fx.Node) -> Any:
        if "shape" not in source.meta:
            return 1  # a size
        labels, dtype = flow.labels(source), source.meta["dtype"]
        whole = all(len(labels) >= -place and len(labels[place]) == len(result[place]) for place in cut)
        if whole and source in flow.zeros:
            return torch.zeros(_SAMPLES, dtype=dtype)
        numbers = torch.randn(_SAMPLES, generator=generator)
        return numbers.to(dtype) if dtype.is_floating_point else (numbers > 0).to(dtype)

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    with torch.random.fork_rng([]), torch.no_grad():
        try:
            found = node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, TypeError):  # such as one that asks for other dimensions
            return False
    return isinstance(found, Tensor) and not bool(found.any())
