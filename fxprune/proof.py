"""`proven`: a model that was shrunk computes what it computed with zeros in the place of what is gone."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune import operators
from fxprune.coupling import Coupling
from fxprune.errors import ShrinkError
from fxprune.masks import Masks
from fxprune.regions import MODES, CapturedModel, Mode
from fxprune.rewrite import insert_masks
from fxprune.scoring import on_device
from fxprune.shrink import Kept
from fxprune.weights import PrunableWeight, find_weights

# of the largest output, in float64, where rounding is far below: a wrong cut shows even in a branch that is scaled
# down to next to nothing, as branches are that begin so
EXACT = 1e-9
ROUNDED = 1e-6  # where a model has constants that were rounded to float32
_BATCHES = (2, 3)
_NOISE = frozenset("bernoulli cauchy exponential geometric log_normal normal rand_like randn_like uniform".split())


def proven(captured: CapturedModel, shrunk: CapturedModel, coupling: Coupling, cut: Collection[int]) -> float:
    """The largest difference between a shrunk model and the masked one, in both modes at two batch sizes.

    Both get the same normal inputs; nothing is dropped at random, since what is drawn depends on sizes. Both are
    computed in float64: sums of another length are rounded otherwise, and a deep network in float32 may make more
    of that than a wrong cut would show. Neither is changed.

    Args:
        captured: before.
        shrunk: what `fxprune.shrink.shrink` made of it.
        coupling: of `captured`.
        cut: numbers of the units that are gone.

    Returns:
        The difference over the largest output.

    Raises:
        ShrinkError: it is more than `EXACT`, or not a number.
    """
    return compare(masked(captured, coupling, cut), shrunk)


def compare(whole: CapturedModel, shrunk: CapturedModel, tolerance: float = EXACT) -> float:
    """The largest difference between two models that are to compute the same; as `proven`."""
    worst = 0.0
    regions = _doubled(shrunk).regions
    for call in _calls(whole):
        region = regions[call.region].train(call.mode == "train")
        with torch.no_grad():
            found = pytree.tree_leaves(region(*call.args, **call.kwargs))
        worst = max(worst, _difference(call.outputs, found))
        if not worst <= tolerance:
            raise ShrinkError(
                f"the shrunk model differs from the masked one by {worst:.1e} of the largest output "
                f"in mode {call.mode!r}, more than {tolerance:g}: a mistake of fxprune; please report it"
            )
    return worst


@dataclass(frozen=True)
class _Call:
    """What a region was given in a mode, and what came out."""

    region: str
    mode: Mode
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Any]


def _calls(captured: CapturedModel) -> list[_Call]:
    """All calls of a model's regions for its sample inputs: in both modes at all batch sizes, in float64.

    One region at a time, and not the whole: the Python between the regions of a detector may find nothing in what
    they give, and takes equal scores in any order.
    """
    copy, found = _doubled(captured), list[_Call]()

    def begin(path: str, region: nn.Module, args: Any, kwargs: Any) -> None:
        mode: Mode = "train" if region.training else "eval"
        args, kwargs = pytree.tree_map(_cloned, (args, kwargs))  # what is called may change them
        found.append(_Call(path, mode, args, kwargs, []))

    def end(_: nn.Module, __: Any, output: Any) -> None:
        found[-1].outputs.extend(pytree.tree_leaves(pytree.tree_map(_cloned, output)))

    for path, region in copy.regions.items():
        region.register_forward_pre_hook(partial(begin, path), with_kwargs=True)
        region.register_forward_hook(end)
    device = next((tensor.device for tensor in copy.host.parameters()), torch.device("cpu"))
    for mode in MODES:
        for batch in _BATCHES:
            args, kwargs = pytree.tree_map(_double, on_device(captured.sample_inputs(batch), device))
            # the Python between regions may draw samples
            with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(0)
                copy.host.train(mode == "train")(*args, **kwargs)
    return found


def _doubled(captured: CapturedModel) -> CapturedModel:
    copy = without_chance(captured.alias())
    copy.host.double()
    return copy


def _difference(before: Sequence[Any], after: Sequence[Any]) -> float:
    """The largest of a tensor from that in the other list over its largest element.

    Infinite if there is another number of them, if shapes differ, or where something is not a number.
    """
    if len(before) != len(after):
        return math.inf
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if not isinstance(old, Tensor) or not old.is_floating_point() or not old.numel():
            continue
        if old.shape != new.shape:
            return math.inf
        away = torch.where(old == new, 0.0, (old - new).abs()).max() / old.abs().max().clamp(min=1e-30)
        worst = max(worst, float(away.nan_to_num(math.inf, math.inf)))
    return worst


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def masked(captured: CapturedModel, coupling: Coupling, cut: Collection[int]) -> CapturedModel:
    """A copy in which all weights, biases and scales of units are zero.

    Operands are masked where products take them, so that a weight that is computed is zero there too.
    """
    kept = Kept(coupling, cut)
    weights = find_weights(captured)
    masks = Masks({weight.name: _mask(weight, coupling, kept) for weight in weights})
    operands = {name for weight in weights for name in weight.parameters}
    result = insert_masks(CapturedModel(copy.deepcopy(captured.host)), weights, masks)
    with torch.no_grad():
        for name, parameter in result.host.named_parameters():
            if name not in operands and name in coupling.state:
                for dim, labels in enumerate(coupling.state[name]):
                    sizes = [-1 if place == dim else 1 for place in range(parameter.dim())]
                    parameter.mul_(torch.from_numpy(kept(labels)).view(sizes).to(parameter.device))
    return result


def _mask(weight: PrunableWeight, coupling: Coupling, kept: Kept) -> Tensor:
    mask = torch.ones(weight.shape, dtype=torch.bool)
    for dim, array in enumerate(coupling.labels_of(weight)):
        mask &= torch.from_numpy(kept(array)).view([-1 if place == dim else 1 for place in range(mask.dim())])
    return mask


def without_chance(captured: CapturedModel) -> CapturedModel:
    """The model itself, whose graphs drop nothing at random from now on."""
    for region in captured.regions.values():
        region._fxprune = {mode: program.rewritten(_certain) for mode, program in region._fxprune.items()}
    return captured


def _certain(graph: fx.Graph) -> None:
    """Drop nothing, with a probability of zero or of one to stay; noise is one everywhere."""
    for node in graph.nodes:
        name = operators.name_of(node)
        if name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
            node.update_arg(1, 0.0)
        elif name == "scaled_dot_product_attention" and len(node.args) > 4:
            node.update_arg(4, 0.0)
        elif name in operators.RECURRENT and len(node.args) > 5:
            node.update_arg(5, 0.0)  # between layers
        elif name == "rrelu":
            node.args = node.args[:3]  # as in evaluation
        elif name in _NOISE and operators.changed(node):
            node.target, node.args, node.kwargs = torch.ops.aten.fill_.Scalar, (node.args[0], 1.0), {}
        elif name in ("rand", "randn"):
            node.target = torch.ops.aten.ones.default
        elif name in _NOISE:
            node.target, node.args, node.kwargs = torch.ops.aten.ones_like.default, (node.args[0],), {}
