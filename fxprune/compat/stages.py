"""`examine`: take one model through the stages, note what is seen, and fail where a promise is not kept."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import nn

from fxprune import zoo
from fxprune.capture import MODES, CapturedModel, capture
from fxprune.compat.child import GIB, Journal, Task
from fxprune.compat.inputs import Example, example
from fxprune.errors import CompatError
from fxprune.model import PrunedModel

SPARSITY = 0.9
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
        device: where all of it is, ``"cpu"`` or ``"meta"``.
    """

    module: nn.Module
    example: Example
    captured: CapturedModel
    device: str


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
        with journal.stage("prune"):
            journal.note(left_out=f"needs about {_needed(subject.module) / GIB:.0f} GiB of memory")
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
    subject = built = None
    try:
        built = _build(task, "meta")
        journal.note(parameters=sum(p.numel() for p in built[0].parameters()))
        if task.stage == "capture" or _needed(built[0]) > task.memory:
            subject = Subject(*built, _captured(*built), "meta")
    except Exception as error:  # building runs the library's code, which may want values
        if built is not None and _needed(built[0]) > task.memory:
            raise
        journal.note(not_on_meta=" ".join(str(error).split())[:200])
    if subject is None:
        built = _build(task, "cpu")
        journal.note(parameters=sum(p.numel() for p in built[0].parameters()))
        subject = Subject(*built, _captured(*built), "cpu")
    regions = subject.captured.regions
    programs = [region._fxprune[mode] for region in regions.values() for mode in MODES]
    journal.note(
        device=subject.device,
        inputs=subject.example.shapes,
        regions=len(regions),
        nodes={mode: sum(len(region._fxprune[mode].graph.nodes) for region in regions.values()) for mode in MODES},
        dynamic_batch=all(program.dynamic_batch for program in programs),
    )
    checks = Checks()
    lost = set(subject.module.state_dict()) ^ set(subject.captured.host.state_dict())
    checks.require(not lost, f"the state dict of the captured model differs in {', '.join(sorted(lost)[:4])}")
    checks.verdict()
    return subject


def _build(task: Task, device: str) -> tuple[nn.Module, Example]:
    torch.manual_seed(task.seed)
    with torch.device(device):
        module, shape = zoo.build(zoo.ModelSpec(task.model))
    return module, example(task.model, shape, seed=task.seed, device=device)


def _captured(module: nn.Module, inputs: Example) -> CapturedModel:
    return capture(module, inputs.args, inputs.kwargs)


def _needed(module: nn.Module) -> int:
    return BYTES_PER_PARAMETER * sum(p.numel() for p in module.parameters())


def _prune(task: Task, subject: Subject, journal: Journal) -> PrunedModel:
    raise NotImplementedError


def _export(pruned: PrunedModel, journal: Journal) -> None:
    raise NotImplementedError
