"""`capture`: an unmodified `nn.Module` becomes FX graphs, for training and for evaluation, over one state."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.parts import capture_parts
from fxprune.program import bind
from fxprune.regions import MODES, CapturedModel, Region
from fxprune.trace import Example, trace, with_real_batch

logger = logging.getLogger(__name__)


def capture(
    module: nn.Module,
    args: Tensor | tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> CapturedModel:
    """Capture `module` with `torch.export`, in training and in evaluation mode.

    A model that cannot be exported whole, because its Python depends on values of tensors (torchvision's
    detectors), is captured in parts: its largest submodules that can be become regions, and a copy of
    the model goes on driving them (`fxprune.parts`).

    The module is left as it was: parameters, buffers, hooks, modes and the state of the random number
    generators. The result owns copies of its parameters and buffers, under the same state-dict keys.

    Args:
        module: any module.
        args: example inputs, positional, or the only one. Their first dimension is taken for the batch; a batch
            of one is doubled for the capture, since torch specialises graphs to sizes of one. A model that is
            captured in parts is run on them in both modes.
        kwargs: example inputs by keyword.
        dynamic_shapes: as in `torch.export.export`. Default: the batch dimension may change and
            everything else is fixed.

    Raises:
        CaptureError: neither the model nor any part of it can be exported; the message quotes torch's reason.
    """
    require_module(module)
    _require_initialised(module)
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    inputs = bind(inspect.signature(module.forward), args, dict(kwargs or {}))
    try:
        return _capture_whole(module, inputs, dynamic_shapes)
    except CaptureError as error:
        if dynamic_shapes is not None:
            raise
        return capture_parts(module, *inputs, whole=error)


def _capture_whole(module: nn.Module, inputs: Any, shapes: Any) -> CapturedModel:
    (args, kwargs), batch = with_real_batch(inputs)
    if shapes is None:
        by_place = pytree.tree_map(lambda leaf: _dynamic_batch(leaf, batch), (args, kwargs))
        shapes = dict(inspect.signature(module.forward).bind(*by_place[0], **by_place[1]).arguments)
    example = Example(args, kwargs, shapes, batch)
    state, names = _copy_state(module)
    programs = {mode: trace(module, mode, example, state, names) for mode in MODES}
    region = Region(state, programs)
    region.train(module.training)
    if not all(program.dynamic_batch for program in programs.values()):
        logger.warning("the batch size is fixed at %d: the model's own code depends on it", batch)
    return CapturedModel(region)


def require_module(module: object) -> None:
    """Raise `CaptureError` for what is no module, such as its class or its name."""
    if not isinstance(module, nn.Module):
        raise CaptureError(
            f"expected a torch.nn.Module to capture, got {module!r}; make one, or fxprune.zoo.build one by name"
        )


def _require_initialised(module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise CaptureError(
                f"{name!r} of a lazy module has no shape yet; run the model once before it is captured"
            )


def _dynamic_batch(leaf: Any, batch: int) -> dict[int, Any] | None:
    if not isinstance(leaf, Tensor):
        return None
    # AUTO, not DYNAMIC: a model that fixes its batch size is then captured with that size
    return {0: torch.export.Dim.AUTO} if leaf.dim() > 0 and leaf.shape[0] == batch else {}


def _copy_state(module: nn.Module) -> tuple[nn.Module, dict[int, str]]:
    """A tree of plain modules with copies of all parameters and buffers, and the name of each by its id.

    What is shared in `module` (a submodule or a tensor under two names) is shared in the copy, and goes
    by the name that comes first.
    """
    names: dict[int, str] = {}
    copies: dict[int, nn.Module | Tensor] = {}

    def copy_tensor(tensor: Tensor | None, name: str) -> Any:
        if tensor is None:
            return None
        if id(tensor) not in copies:
            clone = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                clone = nn.Parameter(clone, requires_grad=tensor.requires_grad)
            copies[id(tensor)], names[id(tensor)] = clone, name
        return copies[id(tensor)]

    def copy_module(original: nn.Module, prefix: str) -> nn.Module:
        if id(original) in copies:
            return copies[id(original)]  # type: ignore[return-value]
        state = nn.Module()
        state._version = original._version  # what state dicts say of how to read them
        copies[id(original)] = state
        for name, parameter in original._parameters.items():
            state._parameters[name] = copy_tensor(parameter, prefix + name)
        for name, buffer in original._buffers.items():
            state._buffers[name] = copy_tensor(buffer, prefix + name)
        state._non_persistent_buffers_set = set(original._non_persistent_buffers_set)
        for name, child in original._modules.items():
            state._modules[name] = None if child is None else copy_module(child, f"{prefix}{name}.")
        return state

    return copy_module(module, ""), names
