"""Lottery tickets: train, cut the smallest weights, go back to the beginning, train again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fxprune.errors import TopologyError
from fxprune.masks import Masks, check_sparsity, cut, kept_count
from fxprune.model import PrunedModel
from fxprune.rewrite import mask_name
from fxprune.saliency import Saliency
from fxprune.topology.settings import check_integer, check_share
from fxprune.training.callbacks import Callback, Run
from fxprune.training.config import Epoch

Train = Callable[[PrunedModel, Sequence[Callback]], list[Epoch]]


@dataclass(frozen=True)
class Ticket:
    """A sparse network that was found by training, and trained.

    Attributes:
        number: of the round, from 1 on.
        sparsity: the sparsity asked for.
        masks: its masks; copies.
        history: the epochs of its training.
    """

    number: int
    sparsity: float
    masks: Masks
    history: list[Epoch]


def tickets(pruned: PrunedModel, train: Train, sparsities: Sequence[float], rewind: int = 0) -> Iterator[Ticket]:
    """Iterative magnitude pruning with rewinding.

    Frankle and Carbin, The lottery ticket hypothesis, ICLR 2019: train; remove the smallest of the trained
    weights, over all layers; put what is left back to its initial value; train again. With `rewind`, weights go
    back to what they were after so many steps of the first training (late resetting: Frankle et al., Stabilizing
    the lottery ticket hypothesis, 2019), which deep networks need. Each training runs its whole schedule, from the
    first step on and without the momentum of the one before.

    Weights that are computed from parameters are removed by their computed value.

    Args:
        pruned: trained first with the masks it has, mostly all ones; left as the last ticket, trained.
        train: trains the model in place, as ``lambda model, callbacks: fit(model, data, config, callbacks)``.
        sparsities: of the rounds, ascending, such as `rounds_to` gives.
        rewind: step to go back to; 0 is the initialisation.

    Returns:
        The tickets, each as soon as it is trained; until the next is asked for, `pruned` has its trained weights.

    Raises:
        TopologyError: the sparsities do not ascend or the model is sparser already; the training has fewer steps
            than `rewind`, or does not call its callbacks.
        MaskError: a sparsity is out of range.
    """
    check_integer("rewind", rewind, 0)
    _check_ascending(sparsities, pruned.masks)
    return _rounds(pruned, train, tuple(sparsities), rewind)


def _check_ascending(sparsities: Sequence[float], masks: Masks) -> None:
    for sparsity in sparsities:
        check_sparsity(sparsity)
    if not sparsities or any(before >= after for before, after in pairwise(sparsities)):
        raise TopologyError(f"sparsities: expected at least one, ascending, got {list(sparsities)!r}")
    if kept_count(masks.numel, sparsities[0]) > masks.kept:
        raise TopologyError(
            f"sparsities: expected at least {masks.sparsity:.4f}, which the model has, got {sparsities[0]!r}"
        )


def _rounds(pruned: PrunedModel, train: Train, sparsities: tuple[float, ...], rewind: int) -> Iterator[Ticket]:
    snapshot = _Snapshot(rewind)
    train(pruned, [snapshot])
    if not snapshot.tensors:
        raise TopologyError(
            "train: expected it to hand its callbacks on to fxprune.training.fit, but none was called"
        )
    for number, sparsity in enumerate(sparsities, 1):
        masks = cut(_magnitudes(pruned), sparsity, within=pruned.masks)
        pruned.set_masks(masks)
        _put_back(pruned, snapshot.tensors)
        history = train(pruned, [])
        yield Ticket(number, sparsity, masks, history)


class _Snapshot(Callback):
    """Copies parameters and buffers, but for the masks, after a number of steps."""

    name = "snapshot"

    def __init__(self, step: int) -> None:
        self.step = step
        self.tensors: Mapping[str, Tensor] = {}

    def begin(self, run: Run) -> None:
        if self.step > run.steps:
            raise TopologyError(f"rewind: expected at most the {run.steps} steps of the training, got {self.step}")
        self.after_step(run)

    def after_step(self, run: Run) -> None:
        if run.step == self.step:
            assert isinstance(run.model, PrunedModel)
            self.tensors = {name: tensor.detach().clone() for name, tensor in _unmasked(run.model)}


def _unmasked(pruned: PrunedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, but for the masks."""
    masks = {mask_name(weight) for weight in pruned.weights}
    yield from pruned.named_parameters()
    yield from ((name, buffer) for name, buffer in pruned.named_buffers() if name not in masks)


@torch.no_grad()
def _put_back(pruned: PrunedModel, tensors: Mapping[str, Tensor]) -> None:
    for name, own in _unmasked(pruned):
        own.copy_(tensors[name])


@torch.no_grad()
def _magnitudes(pruned: PrunedModel) -> Saliency:
    return Saliency({weight.name: pruned.effective_weight(weight.name).abs() for weight in pruned.weights})


def rounds_to(sparsity: float, rate: float = 0.2, stops: Sequence[float] = ()) -> list[float]:
    """Sparsities of rounds that each remove at most a share `rate` of what is left.

    Each stop, and `sparsity`, is met exactly. Between two stops each round removes the same share: as many rounds
    as with steps of `rate` and a small one at the end, and none is spent on a remnant.

    Args:
        sparsity: of the last round, in (0, 1).
        rate: 0.2 in Frankle and Carbin's experiments.
        stops: sparsities on the way to meet exactly; those of `sparsity` and above are left out.

    Raises:
        TopologyError: an argument is out of range.
    """
    for name, value in (("sparsity", sparsity), ("rate", rate), *(("stops", stop) for stop in stops)):
        check_share(name, value)
    goals = [*sorted({stop for stop in stops if stop < sparsity}), sparsity]
    found = []
    for start, goal in pairwise([0.0, *goals]):
        ratio = (1 - goal) / (1 - start)
        rounds = math.ceil(math.log(ratio) / math.log(1 - rate) - 1e-9)  # 0.36 is two rounds of 0.2
        found += [1 - (1 - start) * ratio ** (i / rounds) for i in range(1, rounds)] + [goal]
    return found
