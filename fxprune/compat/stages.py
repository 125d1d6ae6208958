"""`examine`: take one model through the stages, note what is seen, and fail where a promise is not kept."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxprune import (
    CapturedModel,
    PrunedModel,
    Weights,
    capture,
    criteria,
    export_onnx,
    find_weights,
    prune,
    prune_channels,
    zoo,
)
from fxprune.compat.child import GIB, Journal, Task
from fxprune.coupling import Coupling, couple
from fxprune.errors import CompatError
from fxprune.examples import Example, example
from fxprune.masks import kept_count
from fxprune.program import Program
from fxprune.scoring import Scoring
from fxprune.seeds import stream

SPARSITY = 0.9
SHARE = 0.5  # of the multiply-adds that are left when channels are cut
TEMPERATURE = 200.0

# The model, its captured copy, the scoring copy's gradients and products, masks and saliencies:
# benchmarks/large.py prunes a billion parameters within 20 GiB.
BYTES_PER_PARAMETER = 20

# float32 outputs relative to their largest; the graph runs the same kernels as the module in the same
# order, so that mostly the difference is zero.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Subject:
    """A model under test.

    Attributes:
        module: as its library made it.
        example: two samples.
        captured: its captured copy.
        shape: one sample, as `fxprune.zoo.build` gives it.
        device: where all of it is, ``"cpu"`` or ``"meta"``.
    """

    module: nn.Module
    example: Example
    captured: CapturedModel
    shape: tuple[int, ...]
    device: str

    @property
    def programs(self) -> list[Program]:
        """The graphs of all regions, in both modes."""
        return [program for region in self.captured.regions.values() for program in region._fxprune.values()]

    @property
    def dynamic_batch(self) -> bool:
        """Whether every graph takes any batch size."""
        return all(program.dynamic_batch for program in self.programs)


class Checks:
    """Promises that a stage holds a model to; all are looked at before the stage fails."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def require(self, holds: bool, otherwise: str) -> None:
        """Remember what is wrong if the promise does not hold."""
        if not holds:
            self.broken.append(otherwise)

    def verdict(self) -> None:
        """Raise `CompatError` if a promise was broken."""
        if self.broken:
            raise CompatError("; ".join(self.broken))


def examine(task: Task, journal: Journal) -> None:
    """Go through the stages up to that of the task.

    Raises:
        FxpruneError: a stage cannot be gone through, or a check of it failed.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(task.threads)
    # in evaluation nn.MultiheadAttention takes a fused kernel, which no graph holds and which rounds otherwise
    torch.backends.mha.set_fastpath_enabled(False)
    with journal.stage("capture"):
        subject = _capture(task, journal)
    if task.stage == "capture":
        return
    if subject.device == "meta":
        return  # too large: the row says so
    if task.stage == "shrink":
        with journal.stage("shrink"):
            _shrink(task, subject, journal)
        return
    with journal.stage("prune"):
        pruned = _prune(task, subject, journal)
    if task.stage == "prune":
        return
    del subject
    with journal.stage("onnx"):
        _export(pruned, journal)


# --- capture


def _capture(task: Task, journal: Journal) -> Subject:
    """Capture a model: without values if that is all that is asked for, or all that memory allows."""
    subject, too_large = None, False
    try:
        built = _build(task, "meta")
        needed = BYTES_PER_PARAMETER * _count(built[0])
        too_large = needed > task.memory
        if too_large:
            journal.note(too_large=f"{_count(built[0]):,} parameters need about {needed / GIB:.0f} GiB")
        if task.stage == "capture" or too_large:
            subject = _captured(*built, "meta")
    except Exception as error:  # building runs the library's code, which may want values
        if too_large:
            raise
        journal.note(not_on_meta=" ".join(str(error).split())[:200])
    subject = subject or _with_values(task, journal)
    regions = subject.captured.regions.values()
    nodes = Counter[str]()
    for region in regions:
        nodes.update({mode: len(program.graph.nodes) for mode, program in region._fxprune.items()})
    journal.note(
        parameters=_count(subject.module),
        device=subject.device,
        inputs=subject.example.shapes,
        regions=len(regions),
        nodes=dict(nodes),
        dynamic_batch=subject.dynamic_batch,
    )
    checks = Checks()
    lost = set(subject.module.state_dict()) ^ set(subject.captured.host.state_dict())
    checks.require(not lost, f"the state dict of the captured model differs in {', '.join(sorted(lost)[:4])}")
    checks.verdict()
    return subject


def _with_values(task: Task, journal: Journal) -> Subject:
    """Capture a model on the CPU: for the images asked for, if it takes them, else for those of its own size."""
    module, shape = _build(task, "cpu")
    if task.image and len(shape) == 3 and max(shape[1:]) > task.image:
        try:
            return _captured(*_build(task, "cpu", (shape[0], task.image, task.image)), "cpu")
        except Exception as error:  # a model's own code finds out, in any way
            journal.note(own_size=" ".join(str(error).split())[:200])
    return _captured(module, shape, "cpu")


def _build(task: Task, device: str, shape: tuple[int, ...] | None = None) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(task.seed)
    with torch.device(device):
        module, shape = zoo.build(zoo.ModelSpec(task.model, shape))
    if task.stage == "shrink" and device != "meta":
        _differ(module, task.seed)
    return module, shape


def _captured(module: nn.Module, shape: tuple[int, ...], device: str) -> Subject:
    inputs = example(module, shape, device=device)
    if device != "meta":
        _settle(module, inputs)
    return Subject(module, inputs, capture(module, inputs.args, inputs.kwargs), shape, device)


def _settle(module: nn.Module, inputs: Example) -> None:
    """Give batch normalisations the statistics of the example.

    With those that they are made with, what goes through a deep network in evaluation mode vanishes, or grows
    without bounds, and outputs that are the same for all inputs would show nothing.
    """
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0  # the new value only
    with torch.no_grad():
        module.train()(*inputs.args, **inputs.kwargs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- prune


def _prune(task: Task, subject: Subject, journal: Journal) -> PrunedModel:
    """Prune a model by GraSP to 90%, and hold the result against the model itself.

    The model is left with the masked parameters.
    """
    checks = Checks()
    weights = find_weights(subject.captured)
    journal.note(**_discovery(subject.module, weights))

    batch = (subject.example.inputs, subject.example.targets)
    options: dict[str, Any] = {"loss_fn": any_output, "seed": task.seed, "memory": task.memory // 2}
    options |= {"data": [batch], "sparsity": SPARSITY, "criterion": _Once()}
    plain = prune(subject.captured, live=False, floor=0.0, **options)
    pruned = prune(subject.captured, **options)
    record, masks = pruned.record, pruned.masks
    assert plain.record is not None
    assert record is not None
    journal.note(
        plain_zero=round(plain.record.zero_share, 4),
        plain_empty=len(plain.masks.empty),
        plain_cut_off=len(plain.record.cut_off),
        zero=round(record.zero_share, 4),
        empty=len(masks.empty),
        changes=len(record.changes),
        floor=record.floor_used,
        floored=len(record.floored),
    )
    del plain
    kept = kept_count(weights.numel, SPARSITY)
    checks.require(masks.kept == kept, f"expected {kept:,} weights kept, got {masks.kept:,}")
    checks.require(not masks.empty, f"nothing is left of {', '.join(masks.empty[:4])}")
    checks.require(not record.cut_off, f"output {record.cut_off} does not depend on the input any more")

    dense = PrunedModel(subject.captured, weights, {name: torch.ones_like(mask) for name, mask in masks.items()})
    _compare(task, dense, subject, checks, journal, "ones")
    del dense
    left_out = _mask_module(subject.module, pruned)
    journal.note(compared=len(weights) - len(left_out), of=len(weights))
    _compare(task, _without(subject.captured, pruned, left_out), subject, checks, journal, "masked")
    checks.verdict()
    return pruned


class _Once:
    """GraSP, which is computed once for a model of which the live point changes nothing."""

    __name__ = "grasp"

    def __init__(self) -> None:
        self._plain: Mapping[str, Tensor] = {}

    def __call__(self, scoring: Scoring) -> Mapping[str, Tensor]:
        if scoring.changes:
            return criteria.get("grasp").score(scoring)
        self._plain = self._plain or criteria.get("grasp").score(scoring)
        return self._plain


def _discovery(module: nn.Module, weights: Weights) -> dict[str, Any]:
    parameters = dict(module.named_parameters())
    total = sum(p.numel() for p in parameters.values())
    prunable = {name for weight in weights for name in weight.parameters}
    return {
        "prunable": round(sum(parameters[name].numel() for name in prunable) / total, 4),
        "weights": len(weights),
        "derived": sum(weight.derived for weight in weights),
        "tied": sum(len(weight.operators) > 1 for weight in weights),
        "skipped": dict(Counter(weights.skipped.values()).most_common()),
    }


def any_output(output: Any, targets: Tensor) -> Tensor:
    """A loss for any output: the losses that the model returns, or cross-entropy over all numbers of a sample.

    For logits ``[batch, classes]`` it is that of `fxprune.loss.classification`. Feature maps, flows and the
    like have no classes; there, each sample is to be told from the others by one of its numbers.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    losses = [leaf for leaf in leaves if leaf.dim() == 0]
    samples = [leaf.flatten(1) for leaf in leaves if leaf.dim() > 1 and len(leaf) == len(targets)]
    return torch.stack(
        losses
        or [F.cross_entropy(leaf / TEMPERATURE, targets.to(leaf.device) % leaf.shape[1]) for leaf in samples]
    ).mean()


def _mask_module(module: nn.Module, pruned: PrunedModel) -> list[str]:
    """Zero the parameters of the module as the masks say; the names of the weights that no parameter can show."""
    state = pruned.dense_state_dict(skip_derived=True)
    own = dict(pruned.named_parameters())
    masks = pruned.masks
    left_dense = [
        weight.name
        for weight in pruned.weights
        if not bool(masks[weight.name].all())
        and torch.equal(state[weight.parameters[0]], own[weight.parameters[0]])
    ]
    module.load_state_dict(state)
    return left_dense


def _without(captured: CapturedModel, pruned: PrunedModel, names: list[str]) -> PrunedModel:
    """The pruned model with some of its weights dense."""
    masks = {name: torch.ones_like(mask) if name in names else mask for name, mask in pruned.masks.items()}
    return PrunedModel(captured, pruned.weights, masks)


def _compare(
    task: Task, model: PrunedModel, subject: Subject, checks: Checks, journal: Journal, what: str
) -> None:
    """Hold outputs, and buffers after training mode, against the module's own; note the largest difference."""
    found: dict[str, float] = {}
    with torch.no_grad():
        for mode, inputs in (("train", subject.example), ("eval", _other_batch(task, subject))):
            outputs = []
            for network in (subject.module, model):
                network.train(mode == "train")
                torch.manual_seed(task.seed)
                outputs.append(network(*inputs.args, **inputs.kwargs))
            found[mode] = difference(*outputs)
        buffers = dict(subject.module.named_buffers())
        own = {name: buffer for name, buffer in model.named_buffers() if name in buffers}
        found["buffers"] = difference({name: buffers[name] for name in own}, own)
    noted = {mode: float(f"{value:.2g}") if math.isfinite(value) else None for mode, value in found.items()}
    journal.note(**{what: {**noted, "varies": _varies(outputs[0])}})
    for mode, value in found.items():
        checks.require(
            value <= TOLERANCE,
            f"{mode}, {what}: the graph differs from the module by {value:.1e}, expected at most {TOLERANCE:.0e}",
        )


def _other_batch(task: Task, subject: Subject) -> Example:
    """Three samples where the batch size may change, else other values."""
    size = 3 if subject.dynamic_batch else 2
    return example(subject.module, subject.shape, batch=size, seed=task.seed + 1)


def _varies(output: Any) -> bool:
    """Whether samples have different outputs; a comparison of outputs that do not shows little."""
    leaves = [
        leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.dim() > 1 and len(leaf)
    ]
    return any(leaf.is_floating_point() and not torch.equal(leaf[0], leaf[-1]) for leaf in leaves)


def difference(expected: Any, found: Any) -> float:
    """The largest difference of a tensor of one tree from that in the other, relative to its largest element.

    Infinite where the trees, shapes or dtypes differ, or where a number is not finite in one of them only.
    """
    (one, spec), (other, other_spec) = pytree.tree_flatten(expected), pytree.tree_flatten(found)
    if spec != other_spec:
        return math.inf
    return max((_leaf_difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)


def _leaf_difference(one: Any, other: Any) -> float:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return 0.0 if one == other else math.inf
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return math.inf
    if torch.equal(one, other):
        return 0.0
    finite = torch.isfinite(one)
    if not one.is_floating_point() or not torch.equal(finite, torch.isfinite(other)):
        return math.inf
    if not finite.any():
        return 0.0
    largest = (one[finite] - other[finite]).abs().max() / one[finite].abs().max()
    return float(largest) if torch.isfinite(largest) else math.inf


# --- shrink


def _shrink(task: Task, subject: Subject, journal: Journal) -> None:
    """Cut channels until half of the multiply-adds are left; `prune_channels` proves the cut, the export its file.

    By magnitude, which needs no data and no gradients: what is tried is what can be cut, not what should be.
    """
    captured = subject.captured
    coupling = couple(captured)
    weights = find_weights(captured)
    journal.note(units=sum(len(family.units) for family in coupling.families()), stays=_stays(coupling, weights))
    options: dict[str, Any] = {"criterion": "magnitude", "live": False, "floor": 0.0, "seed": task.seed}
    shrunk = prune_channels(captured, budget=f"macs={SHARE}", **options)
    whole, left = (sum(weight.macs for weight in found) for found in (weights, shrunk.weights))
    journal.note(macs=round(left / whole, 4), parameters=_count(shrunk))
    checks = Checks()
    least = SHARE - 0.05
    checks.require(left >= least * whole, f"{left / whole:.1%} of the multiply-adds are left: a unit is large")
    with TemporaryDirectory() as folder:
        result = export_onnx(shrunk, Path(folder) / "model.onnx", encoding="dense")
    journal.note(checks=[check.name for check in result.checks], difference=result.difference)
    checks.verdict()


def _differ(module: nn.Module, seed: int) -> None:
    """Give parameters that begin as one number, such as scales of zero, numbers that differ by up to 0.1.

    A branch that is closed would hide a wrong cut of it from the proof, as channels that are all alike would hide
    that one was taken for another.
    """
    generator = stream(seed, "parameters that differ")
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.1 * torch.rand(parameter.shape, generator=generator))


def _stays(coupling: Coupling, weights: Weights) -> dict[str, float]:
    """The share of the prunable elements of which no dimension can be cut, by the reason; the largest first."""
    found = Counter[str]()
    for weight in weights:
        labels = [coupling.state[name] for name in weight.parameters[:1] if name in coupling.state]
        if not any(coupling.atoms.roots(array).any() for dims in labels for array in dims):
            reason = next((coupling.atoms.why(array) for dims in labels for array in dims), "it is computed")
            found[reason.partition(" (")[0]] += weight.numel
    return {reason: round(count / weights.numel, 4) for reason, count in found.most_common(5)}


# --- onnx


def _export(pruned: PrunedModel, journal: Journal) -> None:
    """Write and verify a file; `fxprune.export_onnx` raises where it fails a check."""
    with TemporaryDirectory() as folder:
        result = export_onnx(pruned, Path(folder) / "model.onnx")
    journal.note(bytes=result.bytes, checks=[check.name for check in result.checks], difference=result.difference)
