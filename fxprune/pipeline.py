"""`prune`: the stages from a module to a pruned model, composed."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune import criteria, distributed
from fxprune.analysis.connectivity import cut_off
from fxprune.batches import check_batch, replayable
from fxprune.capture import capture, require_module
from fxprune.channels import Among, Budget, Normalise, check_channels, check_included, choose
from fxprune.coupling import couple
from fxprune.criteria.registry import Criterion, Score
from fxprune.errors import CaptureError, ScoreError
from fxprune.latency import within_latency
from fxprune.loss import Loss, classification
from fxprune.masks import Cut, Masks, Ranking, Schedule, check_cut, cut, cut_alive
from fxprune.masks import schedule as schedule_of
from fxprune.memory import check_memory, kept_by_the_allocator, scoring_within
from fxprune.model import PrunedModel, PruneRecord, Whole
from fxprune.pattern import Pattern, check_pattern
from fxprune.progress import working
from fxprune.proof import proven
from fxprune.regions import CapturedModel
from fxprune.saliency import Saliency
from fxprune.sanity import Sanity, check_sanity, invert, reinitialise, shuffle
from fxprune.scoring import Batch, Scoring, differentiating, on_device, prepare, repeatable
from fxprune.seeds import check_seed
from fxprune.shrink import removed, shrink
from fxprune.weights import find_weights

logger = logging.getLogger(__name__)

DEFAULT_FLOOR = 0.05


@differentiating()
def prune(
    model: nn.Module | CapturedModel,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    data: Iterable[Batch] | None = None,
    *,
    sparsity: float | None = None,
    pattern: str | Pattern | None = None,
    criterion: str | Score = "grasp",
    example_kwargs: Mapping[str, Any] | None = None,
    loss_fn: Loss | None = None,
    temperature: float = 200.0,
    rounds: int = 1,
    schedule: Schedule = "exponential",
    ranking: Ranking = "global",
    floor: float = DEFAULT_FLOOR,
    live: bool = True,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    sanity: Sanity | None = None,
    memory: int | None = None,
    seed: int = 0,
) -> PrunedModel:
    """Prune a module at initialisation and return the sparse network; the module is left as it was.

    ``live=False, floor=0`` gives the GraSP paper to the letter.

    Where `torch.distributed` is initialised, as under ``torchrun``, every process calls this with the same
    model and the same batches; each scores its share of the batches, and all get the same masks.

    Args:
        model: any module, on any device; or a captured one (`fxprune.capture`), which saves the capture where
            a model is pruned more than once.
        example_inputs: what `model` is called with; by default the inputs of the first batch of `data`. A
            captured model needs none.
        data: batches ``(inputs, targets)`` to score on: a list, a `DataLoader`, any iterable. `inputs` is
            a tensor, a tuple of positional inputs or a dict of inputs by name. An iterator that can be
            read once only is kept in memory. All of it is used: give about ten samples a class, balanced
            (`fxprune.score_batches`), not the whole training set.
        sparsity: share of the prunable weights to remove, in [0, 1); exact.
        pattern: instead of a sparsity: ``"2:4"`` keeps two of every four weights along the inputs of each product
            (`fxprune.pattern`), in one round; `ranking` and `floor` then decide nothing. Weights that cannot
            take it stay dense, and `PrunedModel.weights.skipped` says why.
        criterion: name of a criterion (`fxprune.criteria.names`), or a function from `Scoring` to
            saliencies.
        example_kwargs: example inputs by keyword.
        loss_fn: a mean over samples, of the model's output and the targets. Default: cross-entropy of
            ``logits / temperature``.
        temperature: divides the logits in the default loss; 200 as in GraSP's official code.
        rounds: how often to score and cut; each round scores what the one before it left. SynFlow wants
            100, the others are meant for one.
        schedule: of the sparsity over the rounds, ``"exponential"`` or ``"linear"``.
        ranking: ``"global"`` compares all weights; ``"layer"`` gives each the same density, ``"erk"`` that of
            the Erdős-Rényi kernel.
        floor: least density of each weight, as a share of the overall one. It keeps layers from being
            emptied, and is raised where an output would not depend on the input any more.
        live: score at the live point (`fxprune.live`), where no branch is closed by its initialisation.
        include: one glob of weight names to prune, or several; all by default.
        exclude: one glob of weight names to leave dense, or several.
        sanity: a check of the masks' merit (`fxprune.sanity`): ``"invert"`` keeps what the criterion would
            remove first, ``"shuffle"`` shuffles each mask, ``"reinitialise"`` draws the weights anew.
        memory: bytes that GraSP may use to be fast; 0 asks for as little as possible. Default: 60% of what is
            free. Where less than one batch needs is free, products are computed in another way, and
            numbers may differ in their last digits.
        seed: of whatever is drawn; the same seed, data and machine give the same masks.

    Raises:
        CaptureError: the model cannot be captured.
        WeightError: a glob matches nothing, or there is nothing to prune, or a weight that is included by name
            cannot take the pattern.
        DataError: the data is not batches of inputs and targets, or does not fit the model.
        ScoreError: the criterion is unknown, or gives a number that is not finite, or the processes hold
            different models.
        MaskError: sparsity, pattern, ranking or floor is out of range.
    """
    _check_common(seed, memory, loss_fn)
    pattern = check_pattern(pattern, sparsity, rounds, sanity)
    check_cut(sparsity or 0.0, ranking, floor)
    check_sanity(sanity)
    sparsities = schedule_of(sparsity or 0.0, rounds, schedule)
    chosen = criteria.get(criterion)
    batches, first, captured = _begin(model, example_inputs, example_kwargs, data, seed)
    weights = find_weights(captured).select(include, exclude)
    weights = pattern.takers(weights, include) if pattern else weights
    loss_fn = loss_fn or classification(temperature)
    at_live_point = live and chosen.live
    constants = _constants(example_kwargs)
    scoring = prepare(captured, weights, batches, loss_fn, live=at_live_point, mode=chosen.mode, seed=seed)
    scoring = replace(scoring, constants=constants, memory=memory)
    inverted = sanity == "invert"
    saliency, within, zero_share = _score(chosen, scoring, sparsities, ranking, floor, inverted=inverted)
    # at the live point, paths that the initialisation closes do not count as cut: training opens them
    if not (at_live_point and chosen.mode == "train"):
        scoring = replace(prepare(captured, weights, None, loss_fn, seed=seed), constants=constants)
    probe = _probe(captured, first)
    if pattern:
        result = Cut(pattern.cut(saliency, weights), 0.0, ())
    else:
        result = cut_alive(
            saliency,
            sparsities[-1],
            lambda masks: not cut_off(scoring, masks, probe),
            ranking=ranking,
            floor=floor,
            within=within,
        )
    masks = shuffle(result.masks, seed) if sanity == "shuffle" else result.masks
    record = PruneRecord(
        criterion=chosen.name,
        sparsity=masks.sparsity if sparsity is None else sparsity,
        rounds=rounds,
        ranking=ranking,
        floor=0.0 if pattern else floor,
        floor_used=result.floor,
        floored=result.floored,
        live=at_live_point,
        changes=scoring.changes if at_live_point else (),
        zero_share=zero_share,
        cut_off=cut_off(scoring, masks, probe),
        sanity=sanity,
        seed=seed,
        pattern=str(pattern) if pattern else None,
    )
    pruned = PrunedModel(captured, weights, masks, record)
    if sanity == "reinitialise":
        reinitialise(pruned, seed)
    return pruned


@differentiating()
def prune_channels(
    model: nn.Module | CapturedModel,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    data: Iterable[Batch] | None = None,
    *,
    budget: str | Budget,
    criterion: str | Score = "grasp",
    example_kwargs: Mapping[str, Any] | None = None,
    loss_fn: Loss | None = None,
    temperature: float = 200.0,
    ranking: Among = "global",
    normalise: Normalise = "cost",
    floor: float = DEFAULT_FLOOR,
    round_to: int = 1,
    live: bool = True,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    memory: int | None = None,
    seed: int = 0,
) -> PrunedModel:
    """Cut whole channels and attention heads of a module at initialisation; what is left are smaller tensors.

    What has to be cut together is found in the captured graphs (`fxprune.coupling`) and ranked by the sum of its
    weights' saliencies (`fxprune.channels`). The result is a smaller dense network, whose masks keep everything.
    It computes what the whole one computes with zeros in the places that are gone, which is tried in both modes
    before it is returned (`fxprune.proof`). The module is left as it was.

    Args:
        model: as of `prune`.
        example_inputs: as of `prune`.
        data: as of `prune`.
        criterion: as of `prune`; one that is meant for many rounds scores once.
        example_kwargs: as of `prune`.
        loss_fn: as of `prune`.
        temperature: as of `prune`.
        live: as of `prune`.
        memory: as of `prune`.
        seed: as of `prune`.
        budget: what may be left: ``"macs=0.5"`` for half of the multiply-adds of products with prunable weights,
            ``"params=0.5"`` for half of the parameters, ``"latency=0.5"`` for half of the time that ONNX Runtime
            takes here and now: that one is measured, and so is not the same each time.
        ranking: ``"global"`` compares all units; ``"layer"`` cuts the same share of those that are alike.
        normalise: divide a unit's saliency by what it costs (``"cost"``), by its ``"size"``, or by ``"none"``.
        floor: least share of the units along each dimension that stays, and one in any case.
        round_to: keep a multiple of so many channels, 8 for some runtimes.
        include: one glob of weight names that may become smaller, or several; all by default.
        exclude: one glob of weight names to leave, or several.

    Raises:
        ShrinkError: the budget cannot be met, or none of what is included can lose a channel; says what can.
        CaptureError, WeightError, DataError, ScoreError: as of `prune`.
    """
    _check_common(seed, memory, loss_fn)
    budget = check_channels(budget, normalise, floor, round_to, ranking)
    chosen = criteria.get(criterion)
    batches, first, captured = _begin(model, example_inputs, example_kwargs, data, seed)
    weights = find_weights(captured)
    selected = weights.select(include, exclude)
    with working("finding what is cut together"):
        coupling = couple(captured)
    check_included(coupling, weights, selected, (include,) if isinstance(include, str) else include)
    loss_fn = loss_fn or classification(temperature)
    at_live_point = live and chosen.live
    scoring = prepare(captured, selected, batches, loss_fn, live=at_live_point, mode=chosen.mode, seed=seed)
    scoring = replace(scoring, constants=_constants(example_kwargs), memory=memory)
    with scoring_within(), kept_by_the_allocator():
        saliency = chosen.saliency(scoring)
    options: dict[str, Any] = {"ranking": ranking, "normalise": normalise, "floor": floor, "round_to": round_to}

    def chosen_within(budget: Budget) -> list[int]:
        return choose(coupling, weights, selected, saliency, budget, **options)

    cut = partial(shrink, captured, coupling)
    if budget.cost == "latency":
        gone = within_latency(captured, lambda macs: chosen_within(Budget("macs", macs)), cut, budget.share)
    else:
        gone = chosen_within(budget)
    shrunk = cut(gone)
    with working("comparing with the masked model"):
        proven(captured, shrunk, coupling, gone)
    left = find_weights(shrunk)
    plain = replace(prepare(shrunk, left, None, loss_fn, seed=seed), constants=_constants(example_kwargs))
    masks = Masks({weight.name: torch.ones(weight.shape, dtype=torch.bool) for weight in left})
    record = PruneRecord(
        criterion=chosen.name,
        sparsity=1 - left.numel / weights.numel,
        rounds=1,
        ranking=ranking,
        floor=floor,
        floor_used=floor,
        floored=(),
        live=at_live_point,
        changes=scoring.changes if at_live_point else (),
        zero_share=saliency.zero_share,
        cut_off=cut_off(plain, masks, _probe(captured, first)),
        sanity=None,
        seed=seed,
        budget=str(budget),
        removed=removed(coupling, gone),
        whole=Whole.of(captured, weights),
    )
    return PrunedModel(shrunk, left, masks, record)


def _check_common(seed: object, memory: object, loss_fn: object) -> None:
    check_seed(seed)
    check_memory(memory)
    if not (loss_fn is None or callable(loss_fn)):
        raise ScoreError(f"loss_fn: expected a function of output and targets, got {loss_fn!r}")


def _host(model: nn.Module | CapturedModel) -> nn.Module:
    return model.host if isinstance(model, CapturedModel) else model


def _begin(
    model: nn.Module | CapturedModel,
    example_inputs: Tensor | tuple[Any, ...] | None,
    example_kwargs: Mapping[str, Any] | None,
    data: Iterable[Batch] | None,
    seed: int,
) -> tuple[Iterable[Batch] | None, Any, CapturedModel]:
    """The batches, the inputs of the first, and the captured model."""
    if not isinstance(model, CapturedModel):
        require_module(model)
    if any(parameter.is_meta for parameter in _host(model).parameters()):
        raise CaptureError(
            "expected a model with values, got one on the device meta; use to_empty and load a state"
        )
    distributed.require_equal(_host(model).parameters())
    batches = None if data is None else replayable(data)
    with repeatable(seed, batches):
        first = _first_inputs(batches)
    if isinstance(model, CapturedModel):
        return batches, first, model
    with working("capturing the model"):
        return batches, first, capture(model, *_example(model, example_inputs, example_kwargs, first))


def _score(
    criterion: Criterion,
    scoring: Scoring,
    sparsities: Sequence[float],
    ranking: Ranking,
    floor: float,
    *,
    inverted: bool,
) -> tuple[Saliency, Masks | None, float]:
    """Score and cut round by round; the last cut is left to the caller.

    Returns:
        The last saliencies, the masks that they were computed under, and the share of the first
        saliencies that were exactly zero.
    """
    masks: Masks | None = None
    zero_share = math.nan
    for sparsity in sparsities:
        with scoring_within(), kept_by_the_allocator():
            saliency = criterion.saliency(replace(scoring, masks=masks))
        if masks is None:
            zero_share = saliency.zero_share
        saliency = invert(saliency) if inverted else saliency
        if sparsity < sparsities[-1]:
            masks = cut(saliency, sparsity, ranking=ranking, floor=floor, within=masks)
    if zero_share > 0.5:
        logger.warning(
            "%.0f%% of the saliencies are exactly zero, where %s cannot choose: branches closed at initialisation "
            "(live=True opens them), kernels larger than their input, or numbers too small for %s",
            100 * zero_share,
            criterion.name,
            next(iter(saliency.values())).dtype,
        )
    return saliency, masks, zero_share


def _constants(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments by keyword that hold no tensor."""

    def holds_tensor(value: Any) -> bool:
        return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))

    return {name: value for name, value in (kwargs or {}).items() if not holds_tensor(value)}


def _first_inputs(batches: Iterable[Batch] | None) -> Any:
    if batches is None:
        return None
    inputs, _ = check_batch(next(iter(batches)))
    return inputs


def _example(
    model: nn.Module, inputs: Tensor | tuple[Any, ...] | None, kwargs: Mapping[str, Any] | None, first: Any
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Example inputs as positional and keyword arguments, from the data if none are given."""
    if inputs is None and not kwargs:
        if first is None:
            raise CaptureError("expected example_inputs or data, got neither; give example_inputs=(x,)")
        inputs, kwargs = ((), first) if isinstance(first, Mapping) else (first, None)
    args = tuple(inputs) if isinstance(inputs, (tuple, list)) else () if inputs is None else (inputs,)
    state = next((t for t in [*model.parameters(), *model.buffers()]), None)
    return on_device((args, kwargs or {}), state.device) if state is not None else (args, kwargs or {})


def _probe(captured: CapturedModel, first: Any) -> Any:
    """Inputs of at least two different samples: the first batch if it is that, else made-up ones."""
    sizes = [len(leaf) for leaf in pytree.tree_leaves(first) if isinstance(leaf, Tensor) and leaf.dim()]
    if first is not None and (sizes[0] > 1 or not captured.is_whole):
        return first
    args, kwargs = captured.sample_inputs(4)
    return kwargs if kwargs and not args else args
