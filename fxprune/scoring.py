"""`Scoring`: a captured model made ready to be differentiated twice with respect to its weights.

Only here do the graphs differ from those that train: each prunable weight is a leaf, random operators
give their expectation, operators without a second derivative are rewritten into ones that have it, and
the parameters stand at the live point (`fxprune.live`). Nothing of it reaches the model that is pruned.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from fxprune import operators
from fxprune.batches import check_batch
from fxprune.capture import CapturedModel, Mode, Region
from fxprune.errors import DataError, ScoreError
from fxprune.live import LiveChange, open_branches, revive
from fxprune.loss import Loss
from fxprune.program import Pass, node_named, operand_value
from fxprune.weights import Weights

logger = logging.getLogger(__name__)

aten = torch.ops.aten

Batch = tuple[Any, Tensor]


@dataclass(frozen=True)
class Scoring:
    """What a criterion sees.

    Attributes:
        model: the network, in the mode to score in; it owns its buffers, so batch statistics may change.
        leaves: by weight name, the parameter of `model` that products use for the weight.
        batches: pairs of inputs and targets, the same at every pass; None where no data was given.
        loss_fn: loss of output and target, a mean over the samples.
        seed: for criteria that draw.
        changes: what the live point changed.
        masks: weights that count as zero, by name; None for all kept.
        constants: inputs by keyword that are no tensors, which every call is given.
        memory: bytes that may be used for speed; None for a share of what is free.
    """

    model: nn.Module
    leaves: Mapping[str, str]
    batches: Iterable[Batch] | None
    loss_fn: Loss
    seed: int = 0
    changes: tuple[LiveChange, ...] = ()
    masks: Mapping[str, Tensor] | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    memory: int | None = None

    @property
    def operands(self) -> dict[str, Tensor]:
        """The weights by name: leaves that require a gradient.

        Plain weights share the memory of the captured model's parameters: do not change them in place.
        """
        return {name: self.model.get_parameter(path) for name, path in self.leaves.items()}

    @property
    def batch_count(self) -> int | None:
        """How many batches there are, if the data says."""
        return len(self.batches) if isinstance(self.batches, Sized) else None

    def forward(self, inputs: Any) -> Any:
        """Output for a tensor, for a tuple of positional inputs or for a dict of inputs by name."""
        if isinstance(inputs, Mapping):
            return self.call((), {**self.constants, **inputs})
        args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
        return self.call(args, dict(self.constants))

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Output of the masked network, on whatever device the inputs are."""
        operands = self.operands
        args, kwargs = on_device((args, kwargs), next(iter(operands.values())).device)
        masked = {self.leaves[n]: torch.where(m, operands[n], 0.0) for n, m in (self.masks or {}).items()}
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            return torch.func.functional_call(self.model, masked, args, kwargs)

    def singly(self) -> Scoring:
        """The same with every sample as a batch of its own."""
        return replace(self, batches=None if self.batches is None else _Singly(self.batches))

    def passes(self, start: int = 0) -> Iterator[tuple[int, Tensor, float]]:
        """For each batch from `start` on, its number of samples, the sum of their losses, and a checksum.

        Raises:
            DataError: there is no data, or no batch in it.
        """
        if self.batches is None:
            raise DataError(
                "this criterion needs data: give batches of (inputs, targets), or --data on the command line"
            )
        device = next(self.model.parameters()).device
        empty = True
        with repeatable(self.seed, self.batches):
            for index, batch in enumerate(self.batches):
                # every batch draws from a seed of its own, whether the batches before it were computed or not
                torch.manual_seed(self.seed + index)
                if index < start:
                    continue
                inputs, targets = on_device(check_batch(batch), device)
                empty = False
                mark = _checksum((inputs, targets))
                # not kept in a variable here: it would hold this batch's graph while the next one is built
                yield len(targets), self._loss(inputs, targets) * len(targets), mark
                torch.manual_seed(self.seed + index)
        if empty and not start:
            raise DataError("data: expected batches of (inputs, targets), got none; is the loader empty?")

    def _loss(self, inputs: Any, targets: Tensor) -> Tensor:
        try:
            loss = self.loss_fn(self.forward(inputs), targets)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise DataError(f"data: the model or its loss cannot take this batch: {reason}") from error
        if not isinstance(loss, Tensor) or loss.dim() > 0:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ScoreError(f"loss_fn: expected one number, the mean over the samples, got {got}")
        return loss


@contextlib.contextmanager
def differentiating() -> Iterator[None]:
    """Record gradients inside the block, even where the caller does not."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@differentiating()
def prepare(
    captured: CapturedModel,
    weights: Weights,
    batches: Iterable[Batch] | None,
    loss_fn: Loss,
    *,
    live: bool = True,
    mode: Mode = "train",
    seed: int = 0,
) -> Scoring:
    """Make a captured model ready for scoring; `captured` itself is left as it is.

    Args:
        captured: the model, with or without masks.
        weights: the weights to score.
        batches: data to score on, iterated once or twice by a criterion.
        loss_fn: a mean over the samples.
        live: score at the live point; False scores at the initialisation as it is.
        mode: whether batch normalisation uses the statistics of the score batches, or its own.
        seed: for fresh values of weights that are all zero, and for criteria that draw.
    """
    scoring = captured.alias()
    scoring.host.train(mode == "train")
    scoring.host.requires_grad_(False)
    changes = open_branches(scoring, weights) if live else []
    leaves: dict[str, str] = {}
    for path, region in scoring.regions.items():
        own = [weight for weight in weights if weight.region == path]
        training = region._fxprune["train"]
        values = {weight.name: operand_value(region, training, weight.sites["train"]) for weight in own}
        for name, drawn in revive(values, seed) if live else ():
            values[name] = drawn
            changes.append(LiveChange(name, "all zero: drawn afresh"))
        prefix = f"{path}." if path else ""
        sites = {weight.name: weight.sites[mode] for weight in own if mode in weight.sites}
        attributes = _make_leaves(region, mode, sites, values)
        leaves |= {name: prefix + attribute for name, attribute in attributes.items()}
    if changes:
        logger.info("live point: %d tensors are changed while scoring, the first %s", len(changes), changes[0])
    return Scoring(scoring.host, leaves, batches, loss_fn, seed, tuple(changes))


def _make_leaves(
    region: Region, mode: Mode, sites: Mapping[str, str], values: Mapping[str, Tensor]
) -> dict[str, str]:
    """Replace each weight's node by a read of a parameter of its own, and fit the graph for scoring."""
    leaves = {name: f"_fxprune_operand_{i}" for i, name in enumerate(values)}
    for name, attribute in leaves.items():
        region.register_parameter(attribute, nn.Parameter(values[name]))
    reads = {site: leaves[name] for name, site in sites.items()}
    region._fxprune[mode] = region._fxprune[mode].rewritten(_read(reads), expect, make_twice_differentiable)
    return leaves


def _read(attributes: Mapping[str, str]) -> Pass:
    """A pass that replaces nodes, by name, by reads of attributes."""

    def change(graph: fx.Graph) -> None:
        for name, attribute in attributes.items():
            node = node_named(graph, name)
            with graph.inserting_before(node):
                read = graph.create_node("get_attr", attribute)
            read.meta = dict(node.meta)
            node.replace_all_uses_with(read)
        graph.eliminate_dead_code()

    return change


# Where dropout operators say that they are training, and what recurrent layers and attention drop.
_TRAINING_FLAG = {"dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "feature_alpha_dropout": 2}
_DROP_RATE = {"lstm": 5, "gru": 5, "rnn_tanh": 5, "rnn_relu": 5, "scaled_dot_product_attention": 4}


def expect(graph: fx.Graph) -> None:
    """Replace random operators by their expectation, so that every pass sees one and the same network."""
    for node in list(graph.nodes):
        name = operators.name_of(node)
        if name in _TRAINING_FLAG:
            node.update_arg(_TRAINING_FLAG[name], False)
        elif name in _DROP_RATE and len(node.args) > _DROP_RATE[name]:
            node.update_arg(_DROP_RATE[name], 0.0)
        elif name == "scaled_dot_product_attention" and "dropout_p" in node.kwargs:
            node.update_kwarg("dropout_p", 0.0)
        elif name == "rrelu":
            node.update_arg(3, False)
        elif name == "bernoulli" and len(node.args) > 1:  # drop path draws its gates with a fixed rate
            with graph.inserting_before(node):
                rate = graph.call_function(aten.full_like.default, node.args[:2])
            _substitute(graph, node, rate)


def make_twice_differentiable(graph: fx.Graph) -> None:
    """Rewrite operators whose backward pass has no derivative in torch, or none at zero, into equals that have."""
    for node in list(graph.nodes):
        name = operators.name_of(node)
        if name == "linalg_vector_norm" and node.args[1:2] in ((), (2,)):
            with graph.inserting_before(node):
                result = _euclidean_norm(graph, node)
            _substitute(graph, node, result)
        if name in ("hardsigmoid", "hardswish"):
            x = node.args[0]
            with graph.inserting_before(node):
                raised = graph.call_function(aten.add.Tensor, (x, 3))
                gate = graph.call_function(aten.clamp.default, (raised, 0, 6))
                result = graph.call_function(aten.div.Tensor, (gate, 6))
                if name == "hardswish":
                    result = graph.call_function(aten.mul.Tensor, (x, result))
            _substitute(graph, node, result)


def _euclidean_norm(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """The norm as a root that is kept away from zero, where its derivatives are infinite; 0 there."""
    x = node.args[0]
    dims = node.args[2] if len(node.args) > 2 else None
    keep = node.args[3] if len(node.args) > 3 else False
    squares = graph.call_function(aten.mul.Tensor, (x, x))
    total = graph.call_function(aten.sum.dim_IntList, (squares, dims, keep))
    positive = graph.call_function(aten.gt.Scalar, (total, 0))
    safe = graph.call_function(aten.where.ScalarOther, (positive, total, 1.0))
    root = graph.call_function(aten.sqrt.default, (safe,))
    return graph.call_function(aten.where.ScalarOther, (positive, root, 0.0))


def _substitute(graph: fx.Graph, node: fx.Node, other: fx.Node) -> None:
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)
    graph.erase_node(node)


@dataclass(frozen=True)
class _Singly:
    """Batches cut into batches of one sample."""

    batches: Iterable[Batch]

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            inputs, targets = check_batch(batch)
            for i in range(len(targets)):
                yield pytree.tree_map(lambda leaf, i=i: leaf[i : i + 1], inputs), targets[i : i + 1]


@contextlib.contextmanager
def repeatable(seed: int, batches: object) -> Iterator[None]:
    """Seed the generators, so that a shuffling loader gives the same order again, and put them back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    own = getattr(batches, "generator", None)
    state = own.get_state() if isinstance(own, torch.Generator) else None
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if state is not None:
                own.set_state(state)  # type: ignore[union-attr]  # there is a state, so there is a generator


def _checksum(batch: Any) -> float:
    return sum(
        float(leaf.sum(dtype=torch.float64)) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)
    )


def on_device(tree: Any, device: torch.device) -> Any:
    """A tree of inputs with its tensors on `device`."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)
