"""`capture_parts`: a model whose Python no graph can hold keeps it, and runs graphs where it calls submodules.

The model is run once in each mode, to see what each submodule receives; then, from the top down, every
submodule that can be exported becomes a region. In torchvision's Faster R-CNN these are the backbone, the
head of the region proposals and those of the boxes; anchors, sampling and suppression stay what they are.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.program import Program, bind
from fxprune.regions import MODES, CapturedModel, Mode, Region
from fxprune.trace import Example, left_as_it_was, trace, with_real_batch

logger = logging.getLogger(__name__)

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def capture_parts(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], whole: CaptureError
) -> CapturedModel:
    """Capture the largest submodules of `module` that can be exported; a copy of it runs them.

    Sizes that change with the input, such as those of images or the number of proposals, may change in the
    regions, except where a graph holds for one size only.

    Args:
        module: left as it was.
        args: example inputs that the model runs on in both modes: images and targets, for a detector.
        kwargs: example inputs by keyword.
        whole: why the model cannot be captured whole.

    Raises:
        CaptureError: the model does not run on these inputs, or no part of it can be captured either.
    """
    try:
        host = copy.deepcopy(module)
    except Exception as error:  # what modules hold decides what is raised
        raise CaptureError(
            f"{whole}\nNor can it be captured in parts, for it cannot be copied: {error}"
        ) from error
    calls = _record(host, args, kwargs, whole)
    captured: list[str] = []
    left: dict[str, str] = {}
    _partition(host, "", calls, _samples(args, kwargs), captured, left)
    if not captured:
        raise whole
    logger.info("captured in parts, since %s", whole)
    logger.info("captured regions: %s", ", ".join(captured))
    host.__dict__["_fxprune_example"] = (
        args,
        kwargs,
    )  # made-up inputs would not do: only its user knows what it takes
    for path, reason in left.items():
        logger.warning("%s is not captured, and so not pruned: %s", path, reason)
    return CapturedModel(host)


@dataclass
class _Calls:
    """What the submodules of a host received while it ran.

    Attributes:
        inputs: by module and mode, the inputs of each call.
        entered: modules whose insides were called while they were not themselves running: were such a module
            a region, these calls would run past its graph.
    """

    inputs: dict[nn.Module, dict[Mode, list[Inputs]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    entered: set[nn.Module] = field(default_factory=set)


def _record(host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], whole: CaptureError) -> _Calls:
    """Run a copy of the host in both modes and note what each submodule is called with."""
    calls = _Calls()
    for mode in MODES:
        with left_as_it_was(host), _noting(host, mode, calls), torch.no_grad():
            before = {name: tensor.clone() for name, tensor in host.named_buffers()}
            host.train(mode == "train")
            try:
                host(*copy.deepcopy(args), **copy.deepcopy(kwargs))
            except Exception as error:  # the model's own code
                reason = str(error).strip().partition("\n")[0]
                raise CaptureError(
                    f"{whole}\nNor can it be captured in parts, for in {mode} mode it does not run on the example "
                    f"inputs: {type(error).__name__}: {reason}\nGive inputs that the model runs on in both modes, "
                    "such as images and targets for a detector."
                ) from error
            for name, buffer in host.named_buffers():
                buffer.copy_(before[name])
    return calls


@contextlib.contextmanager
def _noting(host: nn.Module, mode: Mode, calls: _Calls) -> Iterator[None]:
    running: list[nn.Module] = [host]
    above: dict[nn.Module, set[nn.Module]] = defaultdict(set)
    for module in host.modules():
        for inner in module.modules():
            above[inner].add(module)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.entered |= above[module] - {module} - set(running)
        calls.inputs[module][mode].append(pytree.tree_map(_kept, bind(_signature(module), args, kwargs)))
        running.append(module)

    def leave(*_: object) -> None:
        running.pop()

    handles = []
    for module in set(host.modules()) - {host}:
        handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kept(leaf: Any) -> Any:
    """Hosts may change what they passed: indices are copied, since their values matter."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.detach() if leaf.is_floating_point() else leaf.detach().clone()


def _partition(
    parent: nn.Module, prefix: str, calls: _Calls, samples: int, captured: list[str], left: dict[str, str]
) -> None:
    """Make regions of the children of `parent`, or of theirs."""
    for name, child in parent.named_children():
        path = prefix + name
        if isinstance(child, Region) or not any(True for _ in child.parameters()):
            continue
        try:
            programs = _programs(child, calls, samples)
        except CaptureError as error:
            logger.debug("%s: %s", path, error)
            if any(True for inner in child.children() for _ in inner.parameters()):
                _partition(child, f"{path}.", calls, samples, captured, left)
            else:
                left[path] = str(error).partition("\n")[0]
        else:
            Region.adopt(child, programs)
            captured.append(path)


def _programs(module: nn.Module, calls: _Calls, samples: int) -> dict[Mode, Program]:
    """The programs of a submodule, which hold for all calls that were seen; else `CaptureError`."""
    if module in calls.entered:
        raise CaptureError("what is inside is called from outside")
    seen = calls.inputs.get(module, {})
    if not seen:
        raise CaptureError("not called while the model ran on the example inputs")
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    names: dict[int, str] = {}
    for name, tensor in named:
        names.setdefault(id(tensor), name)
    programs: dict[Mode, Program] = {}
    for mode in MODES:
        own = seen.get(mode) or [call for others in seen.values() for call in others]
        programs[mode] = trace(module, mode, _example(module, own, seen, samples), module, names)
        for args, kwargs in own:
            programs[mode].leaves(args, kwargs)
    return programs


def _example(module: nn.Module, own: list[Inputs], seen: dict[Mode, list[Inputs]], samples: int) -> Example:
    """The first call of which no tensor is empty, with all of its sizes free to change."""
    every = [*own, *(call for others in seen.values() for call in others)]
    full = [call for call in every if all(leaf.numel() for leaf in _tensors(call))]
    (args, kwargs), _ = with_real_batch((full or every)[0])
    args, kwargs = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    free = pytree.tree_map(_all_free, (args, kwargs))
    shapes = dict(_signature(module).bind(*free[0], **free[1]).arguments)
    return Example(args, kwargs, shapes, samples)


def _all_free(leaf: Any) -> Any:
    return dict.fromkeys(range(leaf.dim()), torch.export.Dim.AUTO) if isinstance(leaf, Tensor) else None


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _samples(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many samples a host is called with: the length of its first input."""
    first = next(iter([*args, *kwargs.values()]), ())
    return max(len(first), 1) if isinstance(first, (Tensor, list, tuple)) else 1


def _signature(module: nn.Module) -> inspect.Signature:
    forward: Callable[..., Any] = module.forward
    return inspect.signature(forward)
