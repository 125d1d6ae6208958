"""`trace`: what a module computes in one mode, as a `Program` over its state."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import io
import linecache
import math
import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from fxprune import operators
from fxprune.errors import CaptureError
from fxprune.program import Input, Program, attribute, copy_graph
from fxprune.regions import Mode

_SOURCES = 500  # a capture makes about twenty


@dataclass(frozen=True)
class Example:
    """What a module is called with while it is traced.

    Attributes:
        args: positional arguments, as `bind` sorts them.
        kwargs: arguments by keyword.
        shapes: which sizes may change, by argument of `forward`, as `torch.export.export` takes it.
        batch: how many samples these are.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: Any
    batch: int


def trace(module: nn.Module, mode: Mode, example: Example, state: nn.Module, names: Mapping[int, str]) -> Program:
    """Export `module` in one mode; it is left as it was, and so are the random number generators.

    Args:
        module: the module.
        mode: the mode to trace.
        example: what to call it with.
        state: the module whose tensors the program is to read, which gets those that `module` does not register.
        names: the path in `state` of each parameter and buffer of `module`, by its id.

    Raises:
        CaptureError: torch.export cannot follow the module; the message quotes its reason.
    """
    with left_as_it_was(module):
        module.train(mode == "train")
        exported = _export(module, example, mode)
    program = _unlift(exported, module, mode, example, state, names)
    forget(exported)
    return program


def forget(exported: torch.export.ExportedProgram) -> None:
    """Let go of what torch remembers of a trace that is over, so that its memory can be freed with the program's.

    A shape environment and the tensors of its trace hold each other by way of C++, where Python's collector sees
    nothing, and caches of torch hold the environment: without this, each capture would stay in memory for good
    (``benchmarks/long_use.py``). So would the source of every function that a graph was made into, which torch
    keeps for tracebacks: those of the last ones stay. What another version of torch does not have is passed over.
    """
    values = [node.meta.get("val") for node in exported.graph.nodes]
    modes = [value.fake_mode for value in values if isinstance(value, FakeTensor)]
    for environment in {id(mode.shape_env): mode.shape_env for mode in modes}.values():
        if environment is not None:
            environment.tracked_fakes = None
            getattr(environment, "fake_tensor_cache", {}).clear()
    for cached in (FakeTensorMode, *vars(ShapeEnv).values()):
        getattr(cached, "cache_clear", lambda: None)()
    sources = getattr(getattr(fx.graph_module, "_loader", None), "eval_cache", {})
    for name in list(sources)[:-_SOURCES]:
        sources.pop(name, None)
        linecache.cache.pop(name, None)


def with_real_batch(inputs: Any) -> tuple[Any, int]:
    """Inputs with a batch of one doubled, and their batch size: torch.export takes sizes of 0 and 1 for constants.

    Raises:
        CaptureError: there is no tensor with a batch dimension, or the batch is empty.
    """
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


def _export(module: nn.Module, example: Example, mode: Mode) -> torch.export.ExportedProgram:
    module.register_forward_hook(_register_dataclasses)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():  # torch prints where it fails
            warnings.simplefilter("ignore")  # of what tracing does, and undoes; fatal where warnings are errors
            return torch.export.export(
                module, example.args, example.kwargs, dynamic_shapes=example.shapes, strict=False
            )
    except Exception as error:  # torch.export raises errors of very many classes
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        raise CaptureError(
            f"torch.export cannot capture {type(module).__name__} in {mode} mode: {type(error).__name__}: {reason}"
        ) from error


def _register_dataclasses(_module: nn.Module, _args: Any, output: Any) -> None:
    """Let outputs that are plain dataclasses pass through torch.export, which asks for registration."""
    known = pytree.SUPPORTED_NODES
    if dataclasses.is_dataclass(output) and not isinstance(output, type) and type(output) not in known:
        torch.export.register_dataclass(type(output))


@contextlib.contextmanager
def left_as_it_was(module: nn.Module) -> Iterator[None]:
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


def _unlift(
    exported: torch.export.ExportedProgram,
    module: nn.Module,
    mode: Mode,
    example: Example,
    state: nn.Module,
    names: Mapping[int, str],
) -> Program:
    """Turn the inputs of an exported graph that are state into reads of that state.

    Tensors that the trace met but no module registers become buffers of `state` outside its state dict.
    """
    graph = copy_graph(exported.graph)
    leaves = pytree.tree_leaves((example.args, example.kwargs))
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
    if any(_takes_statistics_of_samples(node, example.batch) for node in graph.nodes):
        inputs = [_of_two(leaf) for leaf in inputs]
    spec = exported.call_spec
    signature = inspect.signature(module.forward)
    return Program(graph, signature, tuple(inputs), spec.in_spec, spec.out_spec, example.batch)


def _takes_statistics_of_samples(node: fx.Node, batch: int) -> bool:
    """Whether a call needs two samples, as torch's modules check: each channel has one value of each."""
    if operators.name_of(node) != "batch_norm" or not node.args[5]:
        return False
    data = node.args[0]
    assert isinstance(data, fx.Node)
    samples, _, *places = data.meta["shape"]
    return samples == batch and math.prod(places) == 1


def _of_two(leaf: Input) -> Input:
    """The input with a batch of two at least, where that may change."""
    if leaf.shape is None or leaf.shape[:1] != (None,):
        return leaf
    least, most = leaf.limits[0]
    return replace(leaf, limits={**leaf.limits, 0: (max(2, least), most)})


def _describe(node: fx.Node, argument: Any, leaf: Any, ranges: Mapping[Any, Any]) -> Input:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return Input(node.name, None, getattr(argument, "value", None))
    shape = tuple(None if _is_free(size) else int(size) for size in value.shape)
    limits = {i: _limits(size, ranges) for i, size in enumerate(value.shape) if _is_free(size)}
    example = None if leaf.is_floating_point() else leaf.detach().clone()
    return Input(node.name, shape, None, tuple(leaf.shape), leaf.dtype, example, limits)


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
