"""`proven`: a model that was shrunk computes what it computed with zeros in the place of what is gone."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune import operators
from fxprune.coupling import Coupling
from fxprune.errors import ShrinkError
from fxprune.masks import Masks
from fxprune.regions import MODES, CapturedModel
from fxprune.rewrite import insert_masks
from fxprune.scoring import on_device
from fxprune.shrink import Kept
from fxprune.weights import PrunableWeight, find_weights

TOLERANCE = 1e-5  # of the largest output; sums of another length are rounded otherwise
_BATCHES = (2, 3)
_NOISE = frozenset("bernoulli cauchy exponential geometric log_normal normal rand_like randn_like uniform".split())


def proven(captured: CapturedModel, shrunk: CapturedModel, coupling: Coupling, cut: Collection[int]) -> float:
    """The largest difference between a shrunk model and the masked one, in both modes at two batch sizes.

    Both get the same normal inputs; nothing is dropped at random, since what is drawn depends on sizes. Neither
    is changed.

    Args:
        captured: before.
        shrunk: what `fxprune.shrink.shrink` made of it.
        coupling: of `captured`.
        cut: numbers of the units that are gone.

    Returns:
        The difference over the largest output.

    Raises:
        ShrinkError: it is more than `TOLERANCE`, or not a number.
    """
    return compare(masked(captured, coupling, cut), shrunk)


def compare(whole: CapturedModel, shrunk: CapturedModel) -> float:
    """The largest difference between two models that are to compute the same; as `proven`."""
    worst = 0.0
    models = [without_chance(model.alias()) for model in (whole, shrunk)]
    device = next((tensor.device for tensor in whole.host.parameters()), torch.device("cpu"))
    for mode in MODES:
        for batch in _BATCHES:
            args, kwargs = on_device(whole.sample_inputs(batch), device)
            with torch.no_grad():
                before, after = (
                    pytree.tree_leaves(model.host.train(mode == "train")(*args, **kwargs)) for model in models
                )
            for old, new in zip(before, after, strict=True):
                if isinstance(old, Tensor) and old.is_floating_point():
                    scale = max(float(old.abs().max()), 1e-30)
                    worst = max(worst, float((old - new).abs().max()) / scale)
                    if not worst <= TOLERANCE:
                        raise ShrinkError(
                            f"the shrunk model differs from the masked one by {worst:.1e} of the largest output "
                            f"in mode {mode!r}, more than {TOLERANCE:g}: a mistake of fxprune; please report it"
                        )
    return worst


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
