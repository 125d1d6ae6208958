"""Which outputs of a masked model no longer depend on its input?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fxprune.regions import CapturedModel, Region
from fxprune.scoring import Scoring

# Outputs of different samples that differ by less, relative to the largest output, are rounding noise.
_NOISE = 1e-6


def cut_off(scoring: Scoring, masks: Mapping[str, Tensor], inputs: Any) -> tuple[int, ...]:
    """Places, in flat order, of the outputs that the masks make independent of the input.

    Measured at the point where the weights were scored: an output is cut off when it is the same for all
    samples of `inputs`, and was not without masks. It therefore holds for any architecture; a path that
    none of these samples uses is not seen. Of a model that is captured in parts, the outputs are those of
    its regions, one region after the other, and their inputs are varied where they stand.

    Args:
        scoring: the model.
        masks: a mask by weight name.
        inputs: a batch of at least two different samples; of any number for a model captured in parts.
    """
    dense, masked = replace(scoring, masks=None), replace(scoring, masks=masks)
    with torch.no_grad():
        if isinstance(scoring.model, Region):
            before, after = _varies(dense, inputs), _varies(masked, inputs)
        else:
            calls = list(_region_calls(dense, inputs))
            before, after = ([r for call in calls for r in _responds(s, *call)] for s in (dense, masked))
    return tuple(i for i, (was, is_) in enumerate(zip(before, after, strict=True)) if was and not is_)


def _varies(scoring: Scoring, inputs: Any) -> list[bool]:
    """For each output, whether it differs between samples."""
    leaves = pytree.tree_leaves(scoring.forward(inputs))
    return [isinstance(leaf, Tensor) and _differs_between_samples(leaf) for leaf in leaves]


def _differs_between_samples(output: Tensor) -> bool:
    if not output.is_floating_point() or output.dim() == 0 or len(output) < 2:
        return False
    spread = output.amax(0) - output.amin(0)
    return bool(spread.max() > _NOISE * output.abs().max())


def _region_calls(scoring: Scoring, inputs: Any) -> Iterator[tuple[str, Any]]:
    """The path of each region that is called, with the arguments of its first call."""
    calls: dict[str, Any] = {}
    handles = []
    for path, region in CapturedModel(scoring.model).regions.items():

        def note(_: Any, args: Any, kwargs: Any, path: str = path) -> None:
            calls.setdefault(path, (args, kwargs))

        handles.append(region.register_forward_pre_hook(note, with_kwargs=True))
    try:
        scoring.forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
    yield from calls.items()


def _responds(scoring: Scoring, path: str, arguments: Any) -> list[bool]:
    """For each output of a region, whether it changes with the region's input."""
    region, prefix = scoring.model.get_submodule(path), f"{path}."
    state = {
        name.removeprefix(prefix): tensor for name, tensor in scoring.state().items() if name.startswith(prefix)
    }
    args, kwargs = arguments
    outputs = pytree.tree_leaves(functional_call(region, state, args, kwargs))
    args, kwargs = pytree.tree_map(_disturbed, arguments)
    others = pytree.tree_leaves(functional_call(region, state, args, kwargs))
    return [
        isinstance(a, Tensor)
        and a.is_floating_point()
        and a.numel() > 0
        and bool((a - b).abs().max() > _NOISE * a.abs().max())
        for a, b in zip(outputs, others, strict=True)
    ]


def _disturbed(leaf: Any) -> Any:
    """Values of the same size elsewhere: noise as large as a tensor is added to it."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or not leaf.numel():
        return leaf
    generator = torch.Generator(leaf.device).manual_seed(0)
    return leaf + torch.randn(leaf.shape, generator=generator, device=leaf.device).to(leaf) * leaf.abs().max()
