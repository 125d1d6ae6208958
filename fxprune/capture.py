"""`capture`: an unmodified `nn.Module` becomes FX graphs, for training and for evaluation, over one state."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.program import Input, Program, attribute, bind, copy_graph, retarget

logger = logging.getLogger(__name__)

Mode = Literal["train", "eval"]
MODES: tuple[Mode, Mode] = ("train", "eval")


class Region(nn.Module):
    """A module that runs captured graphs instead of the Python they came from.

    It holds the parameters and buffers of the original under the original names, in a tree of plain
    modules, and one `Program` for each mode; `training` picks the program. (Exported graphs cannot be
    switched: dropout, drop path and batch normalisation are fixed when they are traced.) Freezing a
    submodule with ``region.bn1.eval()`` therefore has no effect; call `eval` on the whole.

    The graphs reach their state as attributes of this module, so it has no public attribute of its own
    that could hide one of the model's.
    """

    _fxprune: dict[Mode, Program]

    def __init__(self, state: nn.Module, programs: Mapping[Mode, Program]) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = state._parameters, state._buffers, state._modules
        self._non_persistent_buffers_set = state._non_persistent_buffers_set
        self._version = state._version
        self._fxprune = dict(programs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program of the present mode; takes and returns what the original's `forward` does."""
        return self._fxprune["train" if self.training else "eval"].run(self, args, kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Region:
        probe = _probe(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if probe is not None:
            moved = fn(probe)
            self._fxprune = {mode: p.retargeted(probe, moved) for mode, p in self._fxprune.items()}
            for nested in (child for child in self.children() if isinstance(child, fx.GraphModule)):
                retarget(nested.graph, probe, moved)
                nested.recompile()
        return self


@dataclass(frozen=True)
class CapturedModel:
    """A module whose computation, or the parts of it that can be, are FX graphs.

    Attributes:
        host: the module to call. It is itself the only region where the whole model could be captured.
    """

    host: nn.Module

    @property
    def regions(self) -> dict[str, Region]:
        """The captured regions by their path in the host; the path of the host itself is ``""``."""
        return {path: module for path, module in self.host.named_modules() if isinstance(module, Region)}

    def alias(self) -> CapturedModel:
        """A copy with buffers of its own whose parameters are other objects on the same memory."""
        parameters = {
            id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in self.host.parameters()
        }
        return CapturedModel(copy.deepcopy(self.host, dict(parameters)))


def capture(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> CapturedModel:
    """Capture `module` with `torch.export`, in training and in evaluation mode.

    The module is left as it was: parameters, buffers, hooks, modes and the state of the random number
    generators. The result owns copies of its parameters and buffers, under the same state-dict keys.

    Args:
        module: any module.
        args: example inputs, positional. Their first dimension is taken for the batch; a batch of one is
            doubled for the capture, since torch specialises graphs to sizes of one.
        kwargs: example inputs by keyword.
        dynamic_shapes: as in `torch.export.export`. Default: the batch dimension may change and
            everything else is fixed.

    Raises:
        CaptureError: the model cannot be exported; the message quotes torch's reason.
    """
    if not isinstance(module, nn.Module):
        raise CaptureError(f"expected a torch.nn.Module to capture, got {type(module).__name__}")
    _require_initialised(module)
    signature = inspect.signature(module.forward)
    inputs = bind(signature, tuple(args), dict(kwargs or {}))
    inputs, batch = _with_real_batch(inputs)
    if dynamic_shapes is None:
        shapes = pytree.tree_map(lambda leaf: _dynamic_batch(leaf, batch), inputs)
        dynamic_shapes = dict(signature.bind(*shapes[0], **shapes[1]).arguments)
    leaves = pytree.tree_leaves(inputs)
    state, names = _copy_state(module)
    programs: dict[Mode, Program] = {}
    for mode in MODES:
        with _left_as_it_was(module):
            module.train(mode == "train")
            exported = _export(module, inputs, dynamic_shapes, mode)
        programs[mode] = _unlift(exported, module, state, names, mode, signature, batch, leaves)
    region = Region(state, programs)
    region.train(module.training)
    if not all(program.dynamic_batch for program in programs.values()):
        logger.warning("the batch size is fixed at %d: the model's own code depends on it", batch)
    return CapturedModel(region)


def _require_initialised(module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise CaptureError(
                f"{name!r} of a lazy module has no shape yet; run the model once before it is captured"
            )


def _with_real_batch(inputs: Any) -> tuple[Any, int]:
    """Double a batch of one: torch.export treats sizes of 0 and 1 as constants."""
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    if not tensors:
        raise CaptureError("example inputs hold no tensor with a batch dimension; give at least one")
    batch = tensors[0].shape[0]
    if batch == 0:
        raise CaptureError("example inputs are an empty batch; give at least one sample")
    if batch > 1:
        return inputs, batch

    def double(leaf: Any) -> Any:
        follows = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == 1
        return torch.cat([leaf, leaf]) if follows else leaf

    return pytree.tree_map(double, inputs), 2


def _dynamic_batch(leaf: Any, batch: int) -> dict[int, Any] | None:
    if not isinstance(leaf, Tensor):
        return None
    # AUTO, not DYNAMIC: a model that fixes its batch size is then captured with that size
    return {0: torch.export.Dim.AUTO} if leaf.dim() > 0 and leaf.shape[0] == batch else {}


def _export(module: nn.Module, inputs: Any, dynamic_shapes: Any, mode: Mode) -> torch.export.ExportedProgram:
    args, kwargs = inputs
    module.register_forward_hook(_register_dataclasses)
    try:
        return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # torch.export raises errors of very many classes
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        raise CaptureError(
            f"torch.export cannot capture {type(module).__name__} in {mode} mode: "
            f"{type(error).__name__}: {reason}\nRun the model once in plain torch to see whether the inputs "
            "fit it; if they do, its Python depends on values of tensors (an `if` on a result, a shape that "
            "is computed from data), which a graph cannot hold."
        ) from error


def _register_dataclasses(_module: nn.Module, _args: Any, output: Any) -> None:
    """Let outputs that are plain dataclasses pass through torch.export, which asks for registration."""
    known = pytree.SUPPORTED_NODES
    if dataclasses.is_dataclass(output) and not isinstance(output, type) and type(output) not in known:
        torch.export.register_dataclass(type(output))


@contextlib.contextmanager
def _left_as_it_was(module: nn.Module) -> Iterator[None]:
    """Undo whatever tracing does to the attributes of `module` and to the random number generators."""
    before = [(m, dict(m.__dict__), _contents(m)) for m in module.modules()]
    devices = {t.device for t in [*module.parameters(), *module.buffers()] if t.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(sorted(device.index or 0 for device in devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for submodule, attributes, contents in before:
            submodule.__dict__.clear()
            submodule.__dict__.update(attributes)
            for name, content in contents.items():
                # in place: handles of hooks refer to these very dicts
                container = submodule.__dict__[name]
                container.clear()
                container.extend(content) if isinstance(content, list) else container.update(content)


def _contents(module: nn.Module) -> dict[str, Any]:
    kinds = (dict, set, list)
    return {name: copy.copy(value) for name, value in module.__dict__.items() if isinstance(value, kinds)}


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


def _unlift(
    exported: torch.export.ExportedProgram,
    module: nn.Module,
    state: nn.Module,
    names: Mapping[int, str],
    mode: Mode,
    signature: inspect.Signature,
    batch: int,
    leaves: list[Any],
) -> Program:
    """Turn the inputs of an exported graph that are state into reads of that state.

    Tensors that the trace met but no module registers become buffers of `state` outside its state dict.
    """
    graph = copy_graph(exported.graph)
    kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    reads: dict[str, fx.Node] = {}
    inputs: list[Input] = []
    for node in list(graph.nodes):
        if node.op == "get_attr":  # a nested graph, such as the body of a torch.no_grad block
            name = f"_fxprune_{mode}_{node.target}"
            state._modules[name] = getattr(exported.graph_module, node.target)
            node.target = name
        if node.op != "placeholder":
            continue
        spec = kinds[node.name]
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(_describe(node, spec.arg, leaves[len(inputs)], exported.range_constraints))
            continue
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            name = names[id(attribute(module, spec.target))]
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            name = f"_fxprune_{mode}_{spec.target.replace('.', '_')}"
            state.register_buffer(name, exported.constants[spec.target].detach().clone(), persistent=False)
        else:
            raise CaptureError(f"the model uses {spec.kind.name} {spec.target!r}, which a graph here cannot hold")
        if name not in reads:
            with graph.inserting_before(node):
                reads[name] = graph.create_node(
                    "get_attr", name, name=node.name.removeprefix("p_").removeprefix("b_")
                )
                reads[name].meta = node.meta
        node.replace_all_uses_with(reads[name])
        graph.erase_node(node)
    _tidy(graph)
    return Program(graph, signature, tuple(inputs), exported.call_spec.in_spec, exported.call_spec.out_spec, batch)


def _describe(node: fx.Node, argument: Any, leaf: Any, ranges: Mapping[Any, Any]) -> Input:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return Input(node.name, None, getattr(argument, "value", None))
    shape = tuple(None if _is_free(size) else int(size) for size in value.shape)
    limits = {i: _limits(size, ranges) for i, size in enumerate(value.shape) if _is_free(size)}
    example = None if leaf.is_floating_point() else leaf.detach().clone()
    return Input(node.name, shape, dtype=leaf.dtype, example=example, limits=limits)


def _is_free(size: Any) -> bool:
    """Whether a size may change; a symbol that the trace found to have one value may not."""
    return not isinstance(size, int) and bool(size.node.expr.free_symbols)


def _limits(size: Any, ranges: Mapping[Any, Any]) -> tuple[int, float]:
    """The sizes for which the trace holds: a branch on the size limits it to one side.

    A least size of 2 is what torch assumes of every size that may change; its graphs hold for 1 as well.
    """
    found = ranges.get(size.node.expr)
    if found is None:
        return 0, math.inf
    return int(found.lower) if found.lower > 2 else 0, _finite_or_inf(found.upper)


def _finite_or_inf(bound: Any) -> float:
    try:
        return int(bound)
    except (OverflowError, TypeError, AttributeError, ValueError):
        return math.inf


def _tidy(graph: fx.Graph) -> None:
    """Drop checks and unused reads, make views safe, replace metadata by sizes."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)  # holds only for the dtype and device of the example
        elif node.op == "get_attr" and not node.users:
            graph.erase_node(node)
        elif node.target is torch.ops.aten.view.default:
            # whether a view is legal depends on strides, and these on the kernel that attention runs by:
            # on another device, or where a second derivative is asked for, it is another one
            node.target = torch.ops.aten.reshape.default
    for node in graph.nodes:
        node.meta = _sizes(node.meta.get("val"))


def _sizes(value: Any) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        return {}
    return {
        "shape": tuple(size if isinstance(size, int) else int(size.node.hint) for size in value.shape),
        "dynamic": tuple(i for i, size in enumerate(value.shape) if _is_free(size)),
        "dtype": value.dtype,
    }


def _probe(module: nn.Module) -> Tensor | None:
    """An empty tensor with the device and dtype of the module's floating-point state."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            return torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return None
