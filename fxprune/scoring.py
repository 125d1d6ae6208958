"""`Scoring`: a captured model made ready to be differentiated twice with respect to its weights.

Only here do the graphs differ from those that train: each prunable weight is a leaf, random operators
give their expectation, operators without a second derivative are rewritten into ones that have it, and
the parameters stand at the live point (`fxprune.live`). Nothing of it reaches the model that is pruned.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune import distributed, operators
from fxprune.batches import check_batch
from fxprune.doubly import make_doubly_differentiable, twice_differentiable_calls
from fxprune.errors import DataError, ScoreError
from fxprune.live import LiveChange, open_branches, revive
from fxprune.loss import Loss
from fxprune.memory import exhausted
from fxprune.program import Pass, node_named, operand_value
from fxprune.regions import CapturedModel, Mode, Region
from fxprune.weights import Weights

logger = logging.getLogger(__name__)

aten = torch.ops.aten

Batch = tuple[Any, Any]


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
        return self.call(*self.arguments(inputs))

    def arguments(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments by position and by keyword, on the weights' device."""
        args: tuple[Any, ...] = ()
        if isinstance(inputs, Mapping):
            kwargs = {**self.constants, **inputs}
        else:
            args, kwargs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), dict(self.constants)
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = on_device((args, kwargs), self._device)
        return arguments

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Output of the masked network, on whatever device the inputs are."""
        args, kwargs = on_device((args, kwargs), self._device)
        with contextlib.nullcontext() if isinstance(self.model, Region) else twice_differentiable_calls():
            return torch.func.functional_call(self.model, self.state(), args, kwargs)

    def state(self) -> dict[str, Tensor]:
        """The weights as the network reads them, masked, by their names in `model`."""
        return {self.leaves[name]: self.masked(name, operand) for name, operand in self.operands.items()}

    def masked(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of a weight's shape with zeros where the weight is removed."""
        masks = self.masks or {}
        return torch.where(masks[name], tensor, 0.0) if name in masks else tensor

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def singly(self) -> Scoring:
        """The same with every sample as a batch of its own."""
        return replace(self, batches=None if self.batches is None else _Singly(self.batches))

    def passes(
        self, start: int = 0, value: Callable[[Any, Tensor], Tensor] | None = None
    ) -> Iterator[tuple[int, Tensor, float]]:
        """For each batch from `start` on, its number of samples, the sum of their losses, and a checksum.

        Where there are several processes (`fxprune.distributed`), only this one's batches count.

        Args:
            start: the batches before this one are left out.
            value: is summed in place of the loss: a function of inputs and targets, a mean over the samples.

        Raises:
            DataError: there is no data, or no batch in it.
        """
        if self.batches is None:
            raise DataError(
                "this criterion needs data: give batches of (inputs, targets), or --data on the command line"
            )
        value = value or (lambda inputs, targets: self.loss_of(self.forward(inputs), targets))
        index, place = -1, -1  # among all batches, and among those of this process
        with repeatable(self.seed, self.batches):
            for index, batch in enumerate(self.batches):
                # every batch draws from a seed of its own, whether the batches before it were computed or not
                torch.manual_seed(self.seed + index)
                place += distributed.is_mine(index)
                if place < start or not distributed.is_mine(index):
                    continue
                inputs, targets = on_device(check_batch(batch), self._device)
                mark = _checksum((inputs, targets))
                # not kept in a variable here: it would hold this batch's graph while the next one is built
                yield len(targets), _computed(value, inputs, targets) * len(targets), mark
                torch.manual_seed(self.seed + index)
        if index < 0:
            raise DataError("data: expected batches of (inputs, targets), got none; is the loader empty?")

    def loss_of(self, output: Any, targets: Tensor) -> Tensor:
        """The loss of an output.

        Raises:
            ScoreError: the loss is not one number, or one that no gradient leads back from.
        """
        loss = self.loss_fn(output, targets)
        if not isinstance(loss, Tensor) or loss.dim() > 0:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ScoreError(f"loss_fn: expected one number, the mean over the samples, got {got}")
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ScoreError(
                "loss_fn: expected a loss with a gradient, got one that was detached from the model's output; "
                "compute it from the output by differentiable operations"
            )
        return loss


def _computed(value: Callable[[Any, Tensor], Tensor], inputs: Any, targets: Tensor) -> Tensor:
    try:
        return value(inputs, targets)
    except RuntimeError as error:
        if exhausted(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"data: the model or its loss cannot take this batch: {reason}") from error


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
    region._fxprune[mode] = region._fxprune[mode].rewritten(
        _read(reads), out_of_place, expect, make_doubly_differentiable
    )
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


def out_of_place(graph: fx.Graph) -> None:
    """Replace calls that change a tensor in place by those that return a new one, and drop what nobody reads.

    Buffers are then no longer updated, of which scoring needs nothing. A change of a view stays: whatever else
    shows the same memory sees it.
    """
    for node in list(graph.nodes):
        changed = operators.changed(node)
        if len(changed) != 1 or operators.source(changed[0]) is not changed[0]:
            continue
        if any(user < node and operators.name_of(user) in operators.SELECTIONS for user in changed[0].users):
            continue
        packet = getattr(aten, node.target._schema.name.removeprefix("aten::").removesuffix("_"), None)
        if packet is None or node.target._overloadname not in packet.overloads():
            continue
        node.target = getattr(packet, node.target._overloadname)
        for user in [user for user in changed[0].users if user > node]:
            user.replace_input_with(changed[0], node)
    graph.eliminate_dead_code()


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
                yield _sample(inputs, i), targets[i : i + 1]


def _sample(tree: Any, i: int) -> Any:
    """Sample `i` as a batch: tensors have their samples along the first dimension, lists one by one."""
    if isinstance(tree, (Tensor, list)):
        return tree[i : i + 1]
    if isinstance(tree, Mapping):
        return {name: _sample(part, i) for name, part in tree.items()}
    return tuple(_sample(part, i) for part in tree) if isinstance(tree, tuple) else tree


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
