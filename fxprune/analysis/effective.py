"""Effective sparsity: a weight that lies on no path from an input to an output counts as removed.

SynFlow's path products (Tanaka et al., NeurIPS 2020) tell which weights those are: with non-linearities as
the identity and weights by their absolute values, the sum of the products over all paths through a weight is
zero exactly when there is none. Vysogorets and Kempe (Connectivity Matters, JMLR 2023) count sparsity by them.
Only whether a product is zero matters here, so all that enters it is zero or one and no depth makes it vanish
or overflow: `_Paths` runs the evaluation graph on marks instead of numbers, and every mark, on its way
forward and as a gradient on its way back, is cut to zero or one again after each operator.

What counts as a path:

- It starts at an input of the model, at a product of a weight with a constant alone (a learned query, a table
  of positions), or at a parameter that is joined to activations (a class token). A bias does not start one:
  behind a channel that nothing from the input reaches, a weight passes on a constant, which could as well be
  part of the next bias.
- It goes wherever a result can depend on an argument: through both sides of a sum or of a product of
  activations, through a normalisation or a softmax to everything that it normalises together. A product with
  what is zero throughout, such as a gate of which no weight and no bias is left, ends it.
- Kept weights count as non-zero whatever their values, as do the other parameters, scales included: masks
  stay while values are trained. Buffers and constants are taken by their values.
- Padding is no input: the outer elements of a kernel that is larger than what it slides over are on no path.
- A weight that is used in several places is effective if any of its uses is. One that only the training graph
  has is not.
- Cancellation, as in ``x - x``, is not seen: such weights count as effective. So do those of an operator that
  has no rule here, all of whose results are taken to depend on all of its arguments.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from fxprune.masks import Masks
from fxprune.model import PrunedModel
from fxprune.program import attribute, state_reads
from fxprune.rewrite import fold
from fxprune.scoring import differentiating


@dataclass(frozen=True)
class Effective:
    """What of a pruned model lies on a path from an input to an output.

    Attributes:
        masks: True where a weight is kept and on a path.
        cut_off: why, in words, by name of a weight of which something is kept and nothing is on a path.
    """

    masks: Masks
    cut_off: Mapping[str, str]


@differentiating()
def effective(pruned: PrunedModel) -> Effective:
    """Find the weights that lie on a path from an input to an output of the evaluation graph.

    One sample is followed (or as many as the model was captured for, where that is fixed), on the CPU. It
    takes about three passes forward and one back, and the memory of a training step on that sample. Of a
    model captured in parts, each region is followed by itself.
    """
    model = copy.deepcopy(pruned).cpu().float()  # half precision lacks kernels on some CPUs
    found: dict[str, Tensor] = {}
    reasons: dict[str, str] = {}
    for path in model.captured.regions:
        part = _effective_in(model, path)
        found |= part.masks
        reasons |= part.cut_off
    return Effective(Masks({name: found[name] for name in model.masks}), reasons)


def _effective_in(model: PrunedModel, path: str) -> Effective:
    own = [weight for weight in model.weights if weight.region == path]
    leaves = {weight.name: model.masks[weight.name].float().requires_grad_() for weight in own}
    traced, state, inputs = _trace(model, path)
    arguments = [_of_state(model, name, value, leaves) for name, value in state.items()]
    arguments += [_Marks(_ones(leaf), _ones(leaf)) if isinstance(leaf, Tensor) else leaf for leaf in inputs]
    outputs = pytree.tree_leaves(_Paths(traced).run(*arguments))
    reached = [leaf.live.sum() for leaf in outputs if isinstance(leaf, _Marks) and leaf.live is not None]
    on_a_path = _gradients(reached, list(leaves.values()))
    found = {name: mask.bool() & (g > 0.5) for (name, mask), g in zip(leaves.items(), on_a_path, strict=True)}
    lost = [name for name, mask in leaves.items() if bool(mask.any()) and not bool(found[name].any())]
    deployed = {weight.name for weight in own if "eval" in weight.sites}
    layers = _Layers(traced.graph, list(state), model.masks.empty)
    reasons = {name: layers.why(name) if name in deployed else "only training uses it" for name in lost}
    return Effective(Masks(found), reasons)


def _gradients(reached: Sequence[Tensor], leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    total = torch.stack(list(reached)).sum() if reached else torch.zeros(())
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(total, leaves, materialize_grads=True)


def _trace(model: PrunedModel, path: str) -> tuple[fx.GraphModule, dict[str, Tensor], list[object]]:
    """A region's evaluation graph in basic operators, the state that it takes first, and one sample for the rest.

    State goes by its name in the whole model.
    """
    folded = fold(model.captured, model.weights, path)
    prefix = f"{path}." if path else ""
    names = dict.fromkeys(str(node.target) for node in state_reads(folded.graph))
    state = {prefix + name: value for name in names if isinstance(value := attribute(folded, name), Tensor)}
    inputs = model.captured.regions[path]._fxprune["eval"].sample_inputs(1)

    def call(state: dict[str, Tensor], *inputs: object) -> Any:
        own = {name.removeprefix(prefix): value for name, value in state.items()}
        return functional_call(folded, own, inputs)

    # without kernels of their own, attention and recurrent layers come apart into basic operators
    with warnings.catch_warnings(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")  # leaving `flags` sets options of Intel GPUs, which warns without one
        with torch.backends.mkldnn.flags(enabled=False):
            traced = make_fx(functionalize(call, remove="mutations_and_views"))(state, *inputs)
    traced.graph.eliminate_dead_code()  # such as the indices of maxima, which no rule gives
    traced.recompile()
    return traced, state, inputs


def _of_state(model: PrunedModel, name: str, value: Tensor, leaves: Mapping[str, Tensor]) -> Any:
    """Weights by their masks, other parameters as all non-zero, buffers as they are."""
    if name in leaves:
        return _Marks(None, leaves[name])
    buffer = name in dict(model.named_buffers())
    return value if buffer or not value.is_floating_point() else _Marks(None, _ones(value))


# --- marks


@dataclass(frozen=True)
class _Marks:
    """What is known of a tensor, element by element, as 0 or 1 in float32.

    Attributes:
        live: whether it is on a path from a source; None for a tensor computed from state alone. Carries
            the autograd graph, by which paths are followed back.
        on: whether it may be other than zero. Carries a graph where it is computed from state alone, since
            there the weights are; it has none in an activation, where it is given and no path.
    """

    live: Tensor | None
    on: Tensor

    @property
    def from_source(self) -> Tensor:
        return torch.zeros_like(self.on) if self.live is None else self.live


class _Cut(torch.autograd.Function):
    """To 0 or 1, forward and back. What is cut are sums of ones: a half is above all that a kernel rounds."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        return (value > 0.5).float()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return (gradient > 0.5).float()


def _cut(value: Tensor) -> Tensor:
    cut: Tensor = _Cut.apply(value)
    return cut


def _marks(live: Tensor | None, on: Tensor) -> _Marks:
    return _Marks(None, _cut(on)) if live is None else _Marks(_cut(live), _cut(on.detach()))


def _ones(like: Tensor) -> Tensor:
    return torch.ones(like.shape)


def _as_marks(value: Any) -> _Marks:
    """Marks of a constant, a tensor or a number, by its value."""
    if isinstance(value, _Marks):
        return value
    return _Marks(None, (torch.as_tensor(value) != 0).float())


# --- one operator at a time


@dataclass(frozen=True)
class _Call:
    """A call of an operator: its name without ``_copy`` and in-place marks, its arguments, its results' shapes."""

    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: Any

    @property
    def marks(self) -> list[_Marks]:
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, _Marks)]

    @property
    def is_state(self) -> bool:
        return all(mark.live is None for mark in self.marks)

    def of(self, part: Callable[[_Marks], Tensor], *args: Any) -> Any:
        """The operator's result with a part of every mark in the place of the mark."""
        taken = pytree.tree_map(
            lambda leaf: part(leaf) if isinstance(leaf, _Marks) else leaf, (args or self.args, self.kwargs)
        )
        return self.target(*taken[0], **taken[1])


class _Paths(fx.Interpreter):
    """Runs a graph of ATen operators on marks; what depends on no mark is computed as it is."""

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        name = getattr(n.target, "_schema", None) and n.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
        call = _Call((name or "").rstrip("_").removesuffix("_copy"), n.target, args, kwargs, n.meta.get("val"))
        if not call.marks or name is None:
            return super().run_node(n)
        return _rule(call)(call)


def _rule(call: _Call) -> Callable[[_Call], Any]:
    if call.name in _RULES:
        return _RULES[call.name]
    pointwise = torch.Tag.pointwise in getattr(call.target, "tags", ())
    return _pointwise if pointwise else _anything


def _linear(call: _Call, *args: Any, scale: float = 1.0) -> Any:
    """A sum, with coefficients that are not negative, of elements of the arguments, mostly one of them."""
    on = call.of(lambda mark: mark.on, *args)
    if call.is_state:
        return pytree.tree_map(lambda value: _marks(None, value * scale), on)
    live = call.of(lambda mark: mark.from_source, *args)
    return pytree.tree_map(lambda live, on: _marks(live * scale, on * scale), live, on)


def _moved(call: _Call) -> Any:
    """Each element of the result is one of an argument, or a constant; where they come from is fixed."""
    if any(isinstance(leaf, _Marks) for leaf in pytree.tree_leaves((call.args[1:], call.kwargs))):
        written = call.name in ("select_scatter", "slice_scatter")
        return _linear(call) if written else _anything(call)
    return _linear(call)


def _copied(call: _Call) -> Any:
    """``copy``: the second argument in the place of the first. Of itself it has no derivative."""
    target, source = (_as_marks(argument) for argument in call.args[:2])
    return _linear(replace(call, target=torch.ops.aten.expand.default, args=(source, target.on.shape), kwargs={}))


def _joined(call: _Call) -> Any:
    """``cat`` and ``stack``: a parameter that stands beside activations, as a token does, is a source."""
    if call.is_state:
        return _linear(call)

    def started(leaf: Any) -> Any:
        return _Marks(leaf.on, leaf.on) if isinstance(leaf, _Marks) and leaf.live is None else leaf

    return _linear(call, *pytree.tree_map(started, call.args))


def _averaged(call: _Call) -> Any:
    """Coefficients are at least one by the number of elements, up to a factor."""
    return _linear(call, scale=4.0 * call.marks[0].on.numel())


def _padded(call: _Call) -> Any:
    data, widths, *_ = call.args
    return _linear(call, data, widths)


def _chosen(call: _Call) -> Any:
    """``where`` and ``masked_fill``: by a constant condition, an element comes from one side or the other."""
    condition, *sides = call.args if call.name == "where" else (call.args[1], call.args[2], call.args[0])
    if isinstance(condition, _Marks):
        return _pointwise(call)
    first, second = map(_as_marks, sides)
    on = torch.where(condition, first.on, second.on)
    state = first.live is None and second.live is None
    live = None if state else torch.where(condition, first.from_source, second.from_source)
    return _marks(live, on)


def _pointwise(call: _Call) -> _Marks:
    """An element depends on those in its place; it may be non-zero if one of them is, or if f(0) is."""
    marks = [_as_marks(leaf) for leaf in call.args if isinstance(leaf, (_Marks, Tensor))]
    on = sum((mark.on for mark in marks), start=_at_zero(call))
    live = None if call.is_state else sum((mark.from_source for mark in marks), start=torch.zeros(()))
    return _marks(live, on)


def _at_zero(call: _Call) -> Tensor:
    def zero(leaf: Any) -> Any:
        return torch.zeros(1) if isinstance(leaf, (_Marks, Tensor)) else leaf

    args, kwargs = pytree.tree_map(zero, (call.args, call.kwargs))
    try:
        value = call.target(*args, **kwargs)
    except RuntimeError:  # defined for integers or flags alone
        return torch.ones(())
    return torch.as_tensor(value != 0).float().max()


def _multiplied(call: _Call) -> _Marks:
    """``mul`` and ``div``: zero where a factor is; a divisor never is."""
    first, second = map(_as_marks, call.args[:2])
    factor = torch.ones_like(second.on) + 0 * second.on if call.name == "div" else second.on
    if call.is_state:
        return _marks(None, first.on * factor)
    live = [first.live * factor] if first.live is not None else []
    live += [first.on * second.live] if second.live is not None else []
    return _marks(sum(live, start=torch.zeros(())), first.on * factor)


def _product(call: _Call) -> _Marks:
    """A sum of products of two arguments' elements, and mostly a third argument to add."""
    places, added = _PRODUCTS[call.name]
    first, second = (_as_marks(call.args[place]) for place in places)
    summand = None if added is None or call.args[added] is None else _as_marks(call.args[added])

    def product(a: Tensor, b: Tensor) -> Tensor:
        args = list(call.args)
        args[places[0]], args[places[1]] = a, b
        if call.name == "convolution":
            args[2] = None
        elif summand is not None:
            args[0] = torch.zeros(summand.on.shape)
        value: Tensor = call.target(*args)
        return value

    if first.live is None and second.live is None:
        on = product(first.on, second.on)
        live = on if on.requires_grad else None  # a weight's product with a constant is a source
    else:
        parts = [product(m.live, o.on) for m, o in ((first, second),) if m.live is not None]
        parts += [product(first.on, second.live)] if second.live is not None else []
        live = torch.stack(parts).sum(0)
        on = product(first.on.detach(), second.on.detach())
    if summand is not None:
        shape = (-1, *[1] * (on.dim() - 2)) if call.name == "convolution" else summand.on.shape
        on = on + summand.on.reshape(shape)
        if live is not None and summand.live is not None:
            live = live + summand.live.reshape(shape)
    return _marks(live, on)


def _looked_up(call: _Call) -> _Marks:
    """``embedding``: which row it is follows the index, so every row is."""
    table, index = call.args[:2]
    if not isinstance(index, _Marks):
        return _linear(call)
    rows = _as_marks(table).on.sum(0)
    return _marks(index.from_source[..., None] * rows, torch.ones_like(index.on)[..., None] * rows)


def _reduced(call: _Call) -> Any:
    """A result depends on all elements along some dimensions: extrema, variances, norms."""
    data, rest = _as_marks(call.args[0]), call.args[1:]
    dims = rest[0] if rest and isinstance(rest[0], (int, list, tuple)) and call.name not in _NORMS else None
    dims = rest[1] if call.name in _NORMS and len(rest) > 1 else dims
    dims = list(range(data.on.dim())) if dims is None or dims == [] else dims
    live = None if data.live is None else data.live.sum(dims, keepdim=True)
    on = data.on.sum(dims, keepdim=True) + 1

    def result(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return _marks(None if live is None else live.reshape(value.shape), on.reshape(value.shape))

    return pytree.tree_map(result, call.results)


def _mixed(call: _Call) -> Any:
    """What is normalised together depends on each other."""
    data = _as_marks(call.args[0])
    if call.name == "native_group_norm":
        groups = data.on.reshape(data.on.shape[0], call.args[6], -1)
        live = data.from_source.reshape(groups.shape).sum(-1, keepdim=True).expand(groups.shape)
        live = live.reshape(data.on.shape)
    else:
        live = data.from_source.sum(_together(call), keepdim=True).expand(data.on.shape)
    found = _marks(None if call.is_state else live, torch.ones_like(data.on))
    return (found, None, None) if call.name.startswith(("native", "_native", "_fused", "cudnn")) else found


def _together(call: _Call) -> list[int]:
    second = call.args[1]
    if call.name in ("native_layer_norm", "_fused_rms_norm"):
        return list(range(-len(second), 0))
    return [second]


def _batch_normalised(call: _Call) -> Any:
    """Element by element with running statistics; with those of the batch, each channel by all of itself."""
    data = _as_marks(call.args[0])
    training = call.name != "_native_batch_norm_legit_no_training" and (call.args[3] is None or call.args[5])
    dims = [i for i in range(data.on.dim()) if i != 1]
    live = data.from_source.sum(dims, keepdim=True).expand(data.on.shape) if training else data.from_source
    return _marks(live, torch.ones_like(data.on)), None, None


def _pooled(call: _Call) -> Any:
    """A maximum over windows depends on all of each window."""
    data, kernel, *rest = _as_marks(call.args[0]), *call.args[1:]
    strides, padding, dilation = [*rest, *([], 0, 1)[len(rest) :]][:3]
    rank = len(kernel)
    wanted = pytree.tree_leaves(call.results)[0].shape

    def pool(value: Tensor) -> Tensor:
        flat = value.reshape(-1, 1, *value.shape[-rank:])
        roomy = F.pad(flat, [0, max(kernel) * max(strides or kernel)] * rank)  # for windows that overhang
        conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
        out = conv(roomy, torch.ones(1, 1, *kernel), None, strides or kernel, padding, dilation)
        for i in range(rank):
            out = out.narrow(2 + i, 0, wanted[len(wanted) - rank + i])
        return out.reshape(wanted)

    found = _marks(None if data.live is None else pool(data.live), pool(data.on))
    return (found, None) if isinstance(call.results, (tuple, list)) else found


def _anything(call: _Call) -> Any:
    """All results depend on all arguments."""
    marks = call.marks
    live = None
    if not call.is_state:
        reach = torch.stack([mark.live.sum() for mark in marks if mark.live is not None]).sum()
        given = [mark.on.sum() for mark in marks if mark.live is None]
        live = _cut(reach) * (1 + sum(given)) if given else reach
    on = torch.stack([mark.on.sum() for mark in marks]).sum() + 1

    def result(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return _marks(None if live is None else live.expand(value.shape), on.expand(value.shape))

    return pytree.tree_map(result, call.results)


def _constant(call: _Call) -> Any:
    """Takes nothing but the shape of its argument."""
    return call.of(lambda mark: torch.zeros_like(mark.on))


# name -> places of the two factors, place of what is added
_PRODUCTS: dict[str, tuple[tuple[int, int], int | None]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot"), ((0, 1), None)),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), ((1, 2), 0)),
    "convolution": ((0, 1), 2),
}
_NORMS = ("linalg_vector_norm", "norm")

_RULES: dict[str, Callable[[_Call], Any]] = {
    **dict.fromkeys(
        "_reshape_alias _to_copy _unsafe_view alias channel_shuffle clone contiguous detach "
        "diagonal expand flip gather im2col index index_select lift lift_fresh permute pixel_shuffle "
        "pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d repeat replication_pad1d "
        "replication_pad2d replication_pad3d reshape roll select select_scatter slice slice_scatter split "
        "split_with_sizes squeeze t transpose tril triu unbind unfold unsafe_split "
        "unsafe_split_with_sizes unsqueeze upsample_nearest1d upsample_nearest2d upsample_nearest3d view".split(),
        _moved,
    ),
    **dict.fromkeys(
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d avg_pool1d avg_pool2d avg_pool3d col2im "
        "cumsum mean sum upsample_bilinear2d upsample_linear1d upsample_trilinear3d".split(),
        _averaged,
    ),
    **dict.fromkeys(
        "amax amin any argmax argmin logsumexp max min prod std std_mean var var_mean".split(), _reduced
    ),
    **dict.fromkeys(_NORMS, _reduced),
    **dict.fromkeys("_log_softmax _safe_softmax _softmax log_softmax softmax".split(), _mixed),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "_fused_rms_norm"), _mixed),
    **dict.fromkeys(
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm".split(),
        _batch_normalised,
    ),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), _pooled),
    **dict.fromkeys(("mul", "div"), _multiplied),
    **dict.fromkeys(("where", "masked_fill"), _chosen),
    **dict.fromkeys(
        "empty_like full_like new_empty new_full new_ones new_zeros ones_like zeros_like".split(), _constant
    ),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(("cat", "stack"), _joined),
    "copy": _copied,
    "constant_pad_nd": _padded,
    "embedding": _looked_up,
}


# --- layer by layer


class _Layers:
    """The traced graph without the products of weights of which nothing is left."""

    def __init__(self, graph: fx.Graph, state: Sequence[str], empty: Sequence[str]) -> None:
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._weights = dict(zip(state, placeholders, strict=False))
        edges: nx.DiGraph[fx.Node] = nx.DiGraph()
        edges.add_edges_from((source, node) for node in graph.nodes for source in node.all_input_nodes)
        edges.add_nodes_from(graph.nodes)
        inputs = placeholders[len(state) :]
        self._activations = set(inputs).union(*(nx.descendants(edges, node) for node in inputs))
        edges.remove_nodes_from([node for name in empty if name in state for node in self._users(name)])
        self._edges = edges
        self._reached = set(inputs).union(*(nx.descendants(edges, node) for node in inputs))
        self._used = nx.ancestors(edges, next(node for node in graph.nodes if node.op == "output"))

    def _users(self, weight: str) -> list[fx.Node]:
        """The first nodes after a weight that are activations."""
        found: list[fx.Node] = []
        waiting = [self._weights[weight]]
        while waiting:
            for user in waiting.pop().users:
                (found if user in self._activations else waiting).append(user)
        return found

    def why(self, weight: str) -> str:
        users = [node for node in self._users(weight) if node in self._edges]
        before = {source for node in users for source in node.all_input_nodes if source in self._activations}
        if not before & self._reached:
            return "nothing from the input reaches it"
        if not set(users) & self._used:
            return "nothing after it reaches an output"
        return "none of its kept elements lies on a path"
