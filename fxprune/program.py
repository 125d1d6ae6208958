"""`Program`: an immutable FX graph over named state, compiled to a Python function."""

from __future__ import annotations

import inspect
import keyword
import linecache
import math
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError, CheckpointError

Pass = Callable[[fx.Graph], object]
_serial = count()


@dataclass(frozen=True)
class Input:
    """One leaf of a program's flattened inputs.

    Attributes:
        name: the leaf's placeholder, after the argument of `forward` that it came from.
        shape: sizes of a tensor, None for a dimension that may change; None for what is no tensor.
        constant: the value of what is no tensor; the graph was specialised to it.
        sizes: sizes of a tensor at the captured example.
        dtype: dtype of a tensor.
        example: what the capture got for a tensor of indices or flags, whose values cannot be made up.
        limits: least and largest size of the dimensions that may change.
    """

    name: str
    shape: tuple[int | None, ...] | None
    constant: object = None
    sizes: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    example: Tensor | None = None
    limits: Mapping[int, tuple[int, float]] = field(default_factory=dict)

    def sample(self, batch: int, generator: torch.Generator) -> object:
        """A value to try the program with: normal where it is floating-point, the example's otherwise.

        The first size is `batch` if it may change; the others are the captured ones.
        """
        if self.shape is None:
            return self.constant
        sizes = list(self.sizes)
        if sizes and self.shape[0] is None:
            sizes[0] = batch
        if self.example is None:
            return torch.randn(sizes, generator=generator, dtype=torch.float32).to(self.dtype)
        rows = torch.arange(sizes[0]) % len(self.example) if sizes else None
        return self.example if rows is None else self.example[rows]

    def check(self, leaf: object) -> None:
        """Raise `CaptureError` unless `leaf` is what the graph was captured for."""
        if self.shape is None:
            if isinstance(leaf, Tensor) or leaf != self.constant:
                raise CaptureError(
                    f"input {self.name!r}: the graph was captured for {self.constant!r}, got {leaf!r}; "
                    "capture the model again with this value in example_inputs"
                )
        elif not isinstance(leaf, Tensor):
            raise CaptureError(f"input {self.name!r}: expected a tensor, got {type(leaf).__name__}")
        elif len(leaf.shape) != len(self.shape) or any(
            want is not None and want != got for want, got in zip(self.shape, leaf.shape, strict=False)
        ):
            want = "x".join("*" if size is None else str(size) for size in self.shape)
            got = "x".join(str(size) for size in leaf.shape)
            raise CaptureError(
                f"input {self.name!r}: the graph was captured for shape {want} (* may change), got {got}; "
                "capture the model again with example_inputs of this shape"
            )
        else:
            for i, (least, most) in self.limits.items():
                if not least <= leaf.shape[i] <= most:
                    raise CaptureError(
                        f"input {self.name!r}: the graph holds for sizes {least} to {most} of dimension {i}, for "
                        "which the model's code takes the captured branch and batch statistics have two values, "
                        f"got {leaf.shape[i]}; give such a size, or capture the model again with example_inputs "
                        "of this one"
                    )


@dataclass(frozen=True)
class Program:
    """One mode (train or eval) of a region as a graph of ATen calls.

    The graph reads parameters and buffers through `get_attr` nodes, one for each tensor, and takes and
    returns flat lists of leaves. It is never changed in place: `rewritten` gives a new program. Copies
    of a module therefore share it.

    Every node that yields a tensor has `meta["shape"]`, its sizes at the captured example,
    `meta["dynamic"]`, the indices of the sizes that follow the input's, and `meta["dtype"]`; where channels
    were cut also `meta["whole"]`, its sizes before.

    Attributes:
        graph: the graph; treat as read-only.
        signature: the signature of the captured `forward`.
        inputs: the leaves that the graph takes, in order.
        in_spec: tree of ``(args, kwargs)``.
        out_spec: tree of the result.
        batch: the size of the batch dimension in the captured example.
    """

    graph: fx.Graph
    signature: inspect.Signature
    inputs: tuple[Input, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    batch: int
    function: Callable[..., tuple[Any, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", _compile(self.graph))

    def __deepcopy__(self, memo: dict[int, object]) -> Program:
        return self

    def __copy__(self) -> Program:
        return self

    def __reduce__(self) -> NoReturn:
        raise CheckpointError("a captured model cannot be pickled; use fxprune.save, or save its state_dict()")

    @property
    def output_names(self) -> list[str]:
        """A name for each leaf of the result: its key or field, ``output_1`` in a tuple, else ``output``."""
        tree = pytree.tree_unflatten(range(self.out_spec.num_leaves), self.out_spec)
        paths = [path for path, _ in pytree.tree_leaves_with_path(tree)]
        names = [
            "_".join(["output"] * (not path or _is_index(path[0])) + [_key(k) for k in path]) for path in paths
        ]
        return _distinct([re.sub(r"\W", "_", name) for name in names])

    def sample_inputs(self, batch: int, seed: int = 0) -> list[object]:
        """Flat inputs to try the program with, of the size within its limits that is nearest to `batch`."""
        generator = torch.Generator().manual_seed(seed)
        least, most = self.batch_limits
        size = int(min(max(batch, least), most)) if self.dynamic_batch else self.batch
        return [leaf.sample(size, generator) for leaf in self.inputs]

    def sample_call(self, batch: int, seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`sample_inputs` as arguments by position and by keyword."""
        args, kwargs = pytree.tree_unflatten(self.sample_inputs(batch, seed), self.in_spec)
        return args, kwargs

    @property
    def batch_limits(self) -> tuple[int, float]:
        """Least and largest batch size for which the graph holds, by all of its inputs."""
        limits = [leaf.limits[0] for leaf in self.inputs if 0 in leaf.limits]
        return max((least for least, _ in limits), default=0), min((most for _, most in limits), default=math.inf)

    @property
    def dynamic_batch(self) -> bool:
        """Whether the batch size may differ from the captured one."""
        return any(leaf.shape is not None and None in leaf.shape for leaf in self.inputs)

    def run(self, state: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the graph on the tensors that `state` holds; raises as `leaves` does."""
        return pytree.tree_unflatten(self.function(state, *self.leaves(args, kwargs)), self.out_spec)

    def leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The graph's flat inputs for a call with these arguments.

        Raises:
            CaptureError: the inputs differ from the captured ones in structure, in a fixed size, or in
                the value of what is no tensor.
        """
        leaves, spec = pytree.tree_flatten(bind(self.signature, args, kwargs))
        if spec != self.in_spec:
            raise CaptureError(
                f"inputs: expected the captured structure {self.in_spec}, got {spec}; call the model as at "
                "its capture, or capture it again with example inputs of this structure"
            )
        for leaf, expected in zip(leaves, self.inputs, strict=True):
            expected.check(leaf)
        return leaves

    def rewritten(self, *passes: Pass) -> Program:
        """A new program: a copy of the graph, changed in place by each pass in turn, and linted."""
        graph = copy_graph(self.graph)
        for change in passes:
            change(graph)
        return replace(self, graph=graph)

    def retargeted(self, old: Tensor, new: Tensor) -> Program:
        """Follow a move of the state: the device and floating dtype of `old` become those of `new`.

        Tracing bakes devices and dtypes into calls such as ``zeros(..., device="cpu")``. The dtype that
        the model was captured in stands for "the model's dtype", wherever it is written.
        """
        if (old.device, old.dtype) == (new.device, new.dtype):
            return self

        moved = self.rewritten(lambda graph: retarget(graph, old, new))
        inputs = [replace(i, dtype=new.dtype) if i.dtype is old.dtype else i for i in self.inputs]
        return replace(moved, inputs=tuple(inputs))


def operand_value(
    state: nn.Module, program: Program, site: str, replaced: Mapping[str, Tensor] | None = None
) -> Tensor:
    """The value of a node that depends on state alone, detached.

    Args:
        state: holds the tensors.
        program: holds the node.
        site: name of the node.
        replaced: tensors to take in place of those of `state`, by name.
    """
    tensors = dict(replaced or {})
    graph, target = fx.Graph(), node_named(program.graph, site)
    if target.op == "get_attr":
        found = tensors.get(str(target.target), attribute(state, str(target.target)))
        assert isinstance(found, Tensor)
        return found.detach()
    needed = {target}
    for node in reversed(program.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.op == "get_attr":
                tensors.setdefault(node.target, attribute(state, node.target))
    graph.output(copies[target])
    # buffers are cloned: a weight computed in training mode may update them, as power iteration does
    root = {name: t.detach().clone() if isinstance(t, Tensor) else t for name, t in tensors.items()}
    with torch.no_grad():
        value: Tensor = fx.GraphModule(root, graph)()
    return value


def attribute(module: nn.Module, path: str) -> Any:
    """What `module` holds at a dotted path."""
    prefix, _, name = path.rpartition(".")
    return getattr(module.get_submodule(prefix), name)


def retarget(graph: fx.Graph, old: Tensor, new: Tensor) -> None:
    """Replace the device and the dtype of `old` by those of `new` in the arguments of calls, in place."""

    def move(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == old.device.type:
            return new.device
        return new.dtype if value is old.dtype else value

    for node in graph.nodes:
        if node.op == "call_function":
            node.args = pytree.tree_map(move, node.args, is_leaf=lambda v: isinstance(v, fx.Node))
            node.kwargs = pytree.tree_map(move, node.kwargs, is_leaf=lambda v: isinstance(v, fx.Node))


def bind(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Sort arguments into the one form that capture and calls share: positional where possible.

    Raises:
        CaptureError: the arguments do not fit the signature of `forward`.
    """
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(f"inputs do not fit forward{signature}: {error}; give what forward takes") from error
    return bound.args, bound.kwargs


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` whose nodes keep their names and have their own metadata dict."""
    copy = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        values[node] = copy.node_copy(node, values.__getitem__)
        # node_copy draws names from the namespace: nodes are told apart by name across copies, so keep it
        values[node].name = node.name
        values[node].meta = dict(node.meta)
    return copy


def _distinct(names: list[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        serial = next(i for i in count() if (f"{name}_{i}" if i else name) not in found)
        found.append(f"{name}_{serial}" if serial else name)
    return found


def _key(key: Any) -> str:
    return str(next(getattr(key, a) for a in ("idx", "key", "name") if hasattr(key, a)))


def _is_index(key: Any) -> bool:
    return hasattr(key, "idx")


def node_named(graph: fx.Graph, name: str) -> fx.Node:
    """The node called `name`."""
    return next(node for node in graph.nodes if node.name == name)


def state_reads(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes that read a parameter, a buffer or a nested graph."""
    return (node for node in graph.nodes if node.op == "get_attr")


def _spelt(path: str) -> tuple[str, str]:
    """An attribute as torch.fx spells it, and as Python can read it where a part is a keyword."""
    torch_fx = python = "self"
    for part in path.split("."):
        torch_fx = f"{torch_fx}.{part}" if part.isidentifier() else f'getattr({torch_fx}, "{part}")'
        plain = part.isidentifier() and not keyword.iskeyword(part)
        python = f"{python}.{part}" if plain else f'getattr({python}, "{part}")'
    return f"= {torch_fx}\n", f"= {python}\n"


def _compile(graph: fx.Graph) -> Callable[..., tuple[Any, ...]]:
    graph.lint()
    code = graph.python_code("self")
    source = code.src
    for node in state_reads(graph):
        source = source.replace(*_spelt(str(node.target)))
    # registered with linecache so that tracebacks and debuggers show the generated lines
    filename = f"<fxprune program {next(_serial)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    scope = dict(code.globals)
    exec(compile(source, filename, "exec"), scope)
    function: Callable[..., tuple[Any, ...]] = scope["forward"]
    weakref.finalize(function, linecache.cache.pop, filename, None)
    return function
