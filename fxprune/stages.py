"""The stages of the command line: each works on a checkpoint folder, and `run` goes through all of them."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxprune import criteria, distributed, zoo
from fxprune import data as data_sets
from fxprune.analysis.flow import GradientNorms, gradient_norms
from fxprune.batches import score_batches
from fxprune.capture import capture
from fxprune.channels import check_channels
from fxprune.checkpoint import MANIFEST, annotate, load, read_manifest, read_training, require_free, save
from fxprune.coupling import couple
from fxprune.dead import cut_dead
from fxprune.devices import find_device
from fxprune.errors import CheckpointError, DataError, MaskError, ResumeError
from fxprune.examples import example
from fxprune.lock import sole_writer
from fxprune.loss import classification
from fxprune.masks import check_cut
from fxprune.masks import schedule as sparsities
from fxprune.memory import check_memory
from fxprune.model import PrunedModel
from fxprune.onnx.verify import Verification
from fxprune.pattern import check_pattern
from fxprune.pipeline import DEFAULT_FLOOR, prune, prune_channels
from fxprune.regions import CapturedModel
from fxprune.report import CompressionReport, report
from fxprune.report.page import require_writable, write_page
from fxprune.sampling import check_positive
from fxprune.sanity import check_sanity
from fxprune.seeds import check_seed
from fxprune.training import Callback, Epoch, Run, TrainConfig, TrainingState, fit
from fxprune.weights import find_weights
from fxprune.zoo import ModelSpec

logger = logging.getLogger(__name__)

ONNX_FILE = "model.onnx"
REPORT_FILE = "report.html"
RESULTS_FILE = "results.json"
_COMPARED = 50  # images, spread over the test set, on which a file's classes are compared with the model's

# Twenty images of 224 x 224, the chunks in which GraSP's official code scores ImageNet; a batch of
# hundreds at the size of CIFAR.
_CHUNK_PIXELS = 2**20

# settings of a job that `prune` and `prune_channels` have under the same names
_SHARED = ("criterion", "temperature", "ranking", "floor", "live", "include", "exclude", "seed")
_WEIGHTS = ("sparsity", "pattern", "rounds", "schedule", "sanity")
_CHANNELS = ("budget", "normalise", "round_to")


@dataclass(frozen=True)
class PruneJob:
    """What to prune, on what data, and how; the settings are those of `fxprune.prune`.

    Attributes:
        model: the network. Its number of classes follows the data unless it is given.
        data: data spec, see `fxprune.data.load`; None for criteria that need none.
        sparsity: share of single weights to remove; None for channels and patterns.
        granularity: ``"weight"``; or ``"channel"`` for smaller tensors, see `fxprune.prune_channels`; or a pattern
            such as ``"2:4"``.
        budget: what channels may cost, as ``"macs=0.5"``.
        per_class: score images of each class.
        score_batch: score images at a time; by default as many as hold a million pixels.
        memory: GiB that GraSP may use to be fast; 0 asks for as little as possible, None for 60% of what is free.
        device: where to score.
    """

    model: ModelSpec
    data: str | None
    sparsity: float | None = None
    criterion: str = "grasp"
    per_class: int = 10
    score_batch: int | None = None
    temperature: float = 200.0
    rounds: int = 1
    schedule: str = "exponential"
    ranking: str = "global"
    floor: float = DEFAULT_FLOOR
    live: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sanity: str | None = None
    memory: float | None = None
    seed: int = 0
    device: str = "cpu"
    granularity: str = "weight"
    budget: str | None = None
    normalise: str = "cost"
    round_to: int = 1

    def __post_init__(self) -> None:
        # mistakes are told before a model is built and data is read
        if self.pattern is not None:
            if ":" not in self.pattern:
                raise MaskError(
                    f"granularity: expected weight, channel or a pattern such as 2:4, got {self.granularity!r}"
                )
            check_pattern(self.pattern, None, self.rounds, self.sanity)
        if (self.sparsity is None) == (self.granularity == "weight") or (self.budget is None) == self.wide:
            raise MaskError(
                "expected a sparsity, such as 0.9, to prune weights, or a budget, such as macs=0.5, and "
                "granularity channel, or granularity 2:4 and neither; got "
                f"sparsity {self.sparsity}, budget {self.budget} and granularity {self.granularity}"
            )
        ranking = self.ranking if self.wide else "global"
        check_channels(self.budget or "macs=1", self.normalise, self.floor, self.round_to, ranking)
        check_cut(self.sparsity or 0.0, self.ranking, self.floor)
        sparsities(self.sparsity or 0.0, self.rounds, self.schedule)  # type: ignore[arg-type]  # checked there
        check_sanity(self.sanity)
        self._check_other_granularities()
        check_seed(self.seed)
        check_memory(self.memory)
        check_positive(per_class=self.per_class, score_batch=self.score_batch)
        criteria.get(self.criterion)
        classification(self.temperature)

    def _check_other_granularities(self) -> None:
        """What only another granularity has is not left out in silence."""
        defaults = {field.name: field.default for field in fields(self)}
        others = ("rounds", "schedule", "sanity") if self.wide else ("normalise", "round_to")
        for name in others:
            if getattr(self, name) != defaults[name]:
                wanted = "weight" if self.wide else "channel"
                raise MaskError(
                    f"{name}: expected with granularity {wanted} only, got {getattr(self, name)!r} with "
                    f"granularity {self.granularity}; leave it out"
                )

    @property
    def wide(self) -> bool:
        """Whether whole channels go."""
        return self.granularity == "channel"

    @property
    def pattern(self) -> str | None:
        """``"2:4"`` where every group of weights keeps as many."""
        return None if self.granularity in ("weight", "channel") else self.granularity

    @property
    def goal(self) -> str:
        """What is asked for, in words."""
        if self.wide:
            return f"{self.budget} by channels"
        return f"{self.sparsity:.1%} sparsity" if self.sparsity is not None else f"a pattern of {self.pattern}"

    @property
    def spec(self) -> ModelSpec:
        """The model with the number of classes that the data has."""
        if self.model.num_classes is not None or self.data is None:
            return self.model
        return replace(self.model, num_classes=data_sets.num_classes(self.data))


def prune_stage(
    job: PruneJob, folder: Path, *, force: bool = False, notes: Mapping[str, Any] | None = None
) -> PrunedModel:
    """Build the model, prune it at its initialisation, and save it in `folder`, with notes of the caller's."""
    with sole_writer(folder):
        require_free(folder, force=force)
        return _prune(job, folder, notes or {})


def _prune(job: PruneJob, folder: Path, notes: Mapping[str, Any]) -> PrunedModel:
    spec = job.spec
    torch.manual_seed(job.seed)
    module, shape = zoo.build(spec)
    module.to(find_device(job.device))
    made = example(module, shape)
    settings = {name: getattr(job, name) for name in (*_SHARED, *(_CHANNELS if job.wide else _WEIGHTS))}
    settings["memory"] = None if job.memory is None else int(job.memory * 2**30)
    start = prune_channels if job.wide else prune
    pruned = start(module, made.args, _score_data(job, shape), example_kwargs=made.kwargs, **settings).cpu()
    score = {"per_class": job.per_class, "score_batch": job.score_batch}
    notes = {**notes, "data": job.data, "score": score, "training": []}
    if distributed.rank() == 0:
        save(pruned, folder, model=spec, input_shape=shape, notes=notes)
        for stale in (ONNX_FILE, RESULTS_FILE, REPORT_FILE):  # of the checkpoint that stood here before
            (folder / stale).unlink(missing_ok=True)
    distributed.wait()
    return pruned


def _score_data(job: PruneJob, shape: tuple[int, ...]) -> list[Any] | None:
    if job.data is None:
        return None
    images = data_sets.load(job.data, shape)
    chunk = job.score_batch or max(2, _CHUNK_PIXELS // math.prod(shape[1:]))
    return score_batches(
        images.score, classes=images.num_classes, per_class=job.per_class, batch_size=chunk, seed=job.seed
    )


def groups_stage(model: ModelSpec) -> dict[str, Any]:
    """What of a model would be cut together, and what stays: families of units, and reasons by weight.

    Returns:
        ``families``, a list of ``units`` (how many) and ``dims`` (tensor, dimension, indices a unit); and
        ``stays``, a list of ``weight``, ``dim`` and ``reason`` for the first two dimensions of prunable weights.
    """
    module, shape = zoo.build(model)
    made = example(module, shape)
    captured = capture(module, made.args, made.kwargs)
    coupling = couple(captured)
    operands = {name for weight in find_weights(captured) for name in weight.parameters}
    return {
        "families": [{"units": len(f.units), "dims": [list(dim) for dim in f.dims]} for f in coupling.families()],
        "stays": [
            {"weight": name, "dim": dim, "reason": reason}
            for name, labels in coupling.state.items()
            for dim in range(min(2, len(labels)))
            if name in operands and (reason := coupling.frozen(name, dim))
        ],
    }


def shrink_stage(
    folder: Path, output: Path, *, model: ModelSpec | None = None, force: bool = False
) -> PrunedModel:
    """Cut the dead channels of a checkpoint's model, and save what is left in another folder.

    Raises:
        CheckpointError: the two are one folder, or a training of the checkpoint is not over.
        ShrinkError: see `cut_dead`.
    """
    if output.resolve() == folder.resolve():
        raise CheckpointError(f"{output}: expected another folder than that of the checkpoint, got the same")
    if read_training(folder) is not None:
        raise CheckpointError(
            f"{folder} is in the middle of a training, whose state is of the present sizes; end it first, or "
            "begin anew with fxprune train --fresh"
        )
    with sole_writer(output):
        require_free(output, force=force)
        pruned, shape, notes = _open(folder, model)
        shrunk = cut_dead(pruned)
        notes.pop("export", None)  # the file is of the wider network
        save(shrunk, output, model=read_manifest(folder).model, input_shape=shape, notes=notes)
        return shrunk


def train_stage(
    folder: Path,
    config: TrainConfig,
    callbacks: Sequence[Callback] = (),
    *,
    data: str | None = None,
    model: ModelSpec | None = None,
    fresh: bool = False,
) -> list[Epoch]:
    """Train the pruned model of a checkpoint; the checkpoint is replaced after each epoch.

    A training that was interrupted goes on after its last whole epoch, and ends with the weights that it would
    have had.

    Args:
        folder: the checkpoint.
        config: settings.
        callbacks: see `fxprune.training.fit`.
        data: data spec; by default what the model was pruned on.
        model: the model again, if it is the user's own code.
        fresh: train on from the present weights with a schedule of its own, even if a training was interrupted.
    """
    read_manifest(folder)  # a folder that is not there is not to be made
    with sole_writer(folder):
        return _train(folder, config, callbacks, data, model, None if fresh else read_training(folder))


def _train(
    folder: Path,
    config: TrainConfig,
    callbacks: Sequence[Callback],
    data: str | None,
    model: ModelSpec | None,
    state: TrainingState | None,
) -> list[Epoch]:
    pruned, shape, notes = _open(folder, model)
    spec = _data_spec(folder, data, notes)
    config = replace(config, device=str(find_device(config.device)))
    notes.pop("export", None)  # an exported file is of the weights before training
    keeping = _Keeping(folder, pruned, notes, callbacks, before=len(state.history) if state else 0)
    try:
        # an epoch is saved before anyone is told of it
        return fit(pruned, data_sets.load(spec, shape), config, [keeping, *callbacks], resume=state)
    except ResumeError as error:
        raise ResumeError(
            f"{folder} is in the middle of a training: {error}; --fresh trains on from its present weights, with "
            "a schedule of its own"
        ) from error


class _Keeping(Callback):
    """Replaces the checkpoint after each epoch, with what training needs to go on while it is not over."""

    name = "keeping"

    def __init__(
        self,
        folder: Path,
        pruned: PrunedModel,
        notes: dict[str, Any],
        callbacks: Sequence[Callback],
        *,
        before: int,
    ) -> None:
        self._folder, self._pruned, self._notes, self._callbacks = folder, pruned, notes, callbacks
        self._manifest = read_manifest(folder)
        history = list(notes.get("training", []))
        self._earlier = history[: len(history) - before]  # of trainings that are over

    def after_epoch(self, run: Run) -> None:
        done = [epoch.to_json() for epoch in run.history]
        if distributed.rank() == 0:
            over = len(run.history) == run.config.epochs
            save(
                self._pruned,
                self._folder,
                model=self._manifest.model,
                input_shape=self._manifest.input_shape,
                notes={**self._notes, "training": [*self._earlier, *done]},
                training=None if over else TrainingState.of(run, self._callbacks),
            )
        distributed.wait()


def export_stage(
    folder: Path,
    file: Path | None = None,
    *,
    model: ModelSpec | None = None,
    data: str | None = None,
    **options: Any,
) -> Verification:
    """Export the model of a checkpoint to an ONNX file, ``model.onnx`` in its folder by default.

    Args:
        folder: the checkpoint.
        file: the file to write.
        model: the model again, if it is the user's own code.
        data: spec of images to compare the best class on, see `_images`.
        options: of `export_onnx`.
    """
    from fxprune.onnx.export import export_onnx

    read_manifest(folder)
    with sole_writer(folder):
        pruned, shape, notes = _open(folder, model)
        target = file or folder / ONNX_FILE
        result = export_onnx(pruned, target, images=_images(shape, data, notes), **options)
        annotate(folder, export={"file": str(target.resolve()), **result.to_json()})
        return result


def verify_stage(
    file: Path, folder: Path, *, model: ModelSpec | None = None, data: str | None = None
) -> Verification:
    """Hold an ONNX file against the model of a checkpoint; arguments as of `export_stage`."""
    from fxprune.onnx.read import read_model
    from fxprune.onnx.verify import verify_onnx

    read_model(file)  # before the model is built, which takes longer
    pruned, shape, notes = _open(folder, model)
    return verify_onnx(file, pruned, images=_images(shape, data, notes))


def _images(shape: tuple[int, ...] | None, given: str | None, notes: Mapping[str, Any]) -> Tensor | None:
    """Test images to compare a file with its model on: of the data that is named, or was pruned on, or digits.

    None where the model takes no images, or the data that it was pruned on is not here.
    """
    spec = given or notes.get("data") or "digits"
    try:
        images = data_sets.load(spec, shape or ()).test
    except DataError:
        if given is None:
            return None
        raise
    return torch.stack([images[i][0] for i in range(0, len(images), -(-len(images) // _COMPARED))])


def report_stage(
    folder: Path,
    *,
    model: ModelSpec | None = None,
    latency: bool = False,
    gradient: bool = False,
    page: Path | None = None,
) -> CompressionReport:
    """The statistics of a checkpoint, and of its ONNX file if it was exported.

    Args:
        folder: the checkpoint.
        model: its spec again, where that is code of the user's.
        latency: export the network without masks too, and hold the file against it.
        gradient: measure the gradient norm at the initialisation, if seed and score batches are recorded.
        page: HTML file to write as well.
    """
    if page is not None:
        require_writable(page)  # before anything is measured
    pruned, shape, notes = _open(folder, model)
    file = Path(notes["export"]["file"]) if "export" in notes else None
    file = file if file is not None and file.is_file() else None
    latency = latency and file is not None
    whole = _whole(folder, model) if latency and pruned.record and pruned.record.removed else None
    statistics = report(pruned, file, latency=latency, original=whole)
    if gradient:
        spec = read_manifest(folder).model
        assert spec is not None  # _open built it
        job = _recorded_job(pruned, replace(spec, name=model.name) if model else spec, notes)
        statistics = replace(statistics, gradient=_gradient_norms(pruned, job, shape) if job else None)
    if page is not None:
        write_page(statistics, page)
    return statistics


def _whole(folder: Path, model: ModelSpec | None) -> CapturedModel:
    """The model of a checkpoint with all of its channels, at random weights."""
    spec = read_manifest(folder).model
    assert spec is not None  # _open built it
    module, shape = zoo.build(replace(spec, name=model.name) if model else spec)
    made = example(module, shape)
    return capture(module, made.args, made.kwargs)


def _recorded_job(pruned: PrunedModel, spec: ModelSpec, notes: Mapping[str, Any]) -> PruneJob | None:
    """What decided the initial weights and the score batches; None where that is not recorded."""
    record, score = pruned.record, notes.get("score")
    if record is None or score is None or notes.get("data") is None:
        return None
    if record.sanity == "reinitialise" or record.removed:  # the initial weights were others, or more
        return None
    return PruneJob(spec, notes["data"], record.sparsity, seed=record.seed, **score)


def _gradient_norms(pruned: PrunedModel, job: PruneJob, shape: tuple[int, ...]) -> GradientNorms | None:
    try:
        data = _score_data(job, shape)
    except DataError as error:
        logger.warning("no gradient norm: the score batches are gone: %s", error)
        return None
    torch.manual_seed(job.seed)
    module, _ = zoo.build(job.spec)
    initial = copy.deepcopy(pruned)
    initial.load_state_dict(module.state_dict())  # without masks: those of the checkpoint stay
    return gradient_norms(initial, data or [])


def _open(folder: Path, model: ModelSpec | None) -> tuple[PrunedModel, tuple[int, ...], dict[str, Any]]:
    manifest = read_manifest(folder)
    if manifest.input_shape is None:
        raise CheckpointError(f"{folder} was saved from Python without an input shape; use fxprune.load there")
    _check_notes(folder, manifest.notes)
    if model is not None and manifest.model is not None:
        recorded = manifest.model  # the name is the caller's word that its code may run
        model = replace(recorded, name=model.name)
    return load(folder, model), manifest.input_shape, dict(manifest.notes)


def _check_notes(folder: Path, notes: Mapping[str, Any]) -> None:
    """Hold what the commands remember against what they write; a manifest may be damaged, or somebody's own."""
    score, exported = notes.get("score", {}), notes.get("export", {"file": ""})
    fits = {
        "data": isinstance(notes.get("data", ""), (str, type(None))),
        "score": isinstance(score, dict) and set(score) <= {"per_class", "score_batch"},
        "training": isinstance(notes.get("training", []), list),
        "export": isinstance(exported, dict) and isinstance(exported.get("file"), str),
    }
    for name in (name for name, holds in fits.items() if not holds):
        raise CheckpointError(
            f"{folder}: expected {name!r} among the notes as fxprune's commands write it, got {notes[name]!r}; "
            f"the manifest was damaged: remove the note from {folder / MANIFEST}"
        )


def _data_spec(folder: Path, given: str | None, notes: Mapping[str, Any]) -> str:
    spec = given or notes.get("data")
    if not isinstance(spec, str):
        raise DataError(f"{folder} was pruned without data; say what to train on with --data")
    return spec
