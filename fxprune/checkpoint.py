"""Checkpoints: a folder with a safetensors file and a JSON file, from which a pruned model is rebuilt.

Nothing in a checkpoint is executed. Where the model is named by a spec of a library, the spec
is enough to build it again; a model that comes from the user's own code has to be named again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fxprune.capture import capture
from fxprune.errors import CheckpointError, ModelSpecError, ShrinkError
from fxprune.examples import example
from fxprune.files import readable, replacing, synced
from fxprune.lock import sole_writer
from fxprune.model import PrunedModel, PruneRecord, require_pruned
from fxprune.progress import working
from fxprune.rewrite import mask_name
from fxprune.shrink import without
from fxprune.training.state import TrainingState
from fxprune.weights import Weights, find_weights
from fxprune.zoo import ModelSpec, build, runs_user_code

logger = logging.getLogger(__name__)

MANIFEST = "fxprune.json"
_FORMAT = "fxprune checkpoint 1"
_TENSORS = re.compile(r"(weights|training)-[0-9a-f]{12}\.safetensors")
_LEFTOVER = re.compile(rf"{_TENSORS.pattern}|\.(weights|training)-\d+\.tmp|\.{re.escape(MANIFEST)}\..*")


@dataclass(frozen=True)
class Manifest:
    """The JSON file of a checkpoint.

    Attributes:
        model: the spec that the model was built from; None for a module that was handed over.
        input_shape: shape of one sample, channels first; None where the model was given no spec.
        record: how the masks came about.
        weights: names of the weights that have masks.
        skipped: reason by parameter that was not pruned.
        weights_file: name of the safetensors file, in the same folder.
        sha256: digest of that file.
        training: name and digest of the file with the state of a training that is not over, in the same folder.
        notes: what the commands remember: the data, the history of training.
    """

    model: ModelSpec | None
    input_shape: tuple[int, ...] | None
    record: PruneRecord | None
    weights: tuple[str, ...]
    skipped: dict[str, str]
    weights_file: str
    sha256: str
    training: tuple[str, str] | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain dicts and lists."""
        from fxprune import __version__

        return {
            "format": _FORMAT,
            "versions": {"fxprune": __version__, "torch": torch.__version__},
            "model": self.model.to_json() if self.model else None,
            "input_shape": list(self.input_shape) if self.input_shape else None,
            "record": self.record.to_json() if self.record else None,
            "weights": list(self.weights),
            "skipped": self.skipped,
            "weights_file": self.weights_file,
            "sha256": self.sha256,
            "training": list(self.training) if self.training else None,
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Manifest:
        """Check and convert what `to_json` wrote; raises KeyError, TypeError or ValueError."""
        file = values["weights_file"]
        if not _names_tensors(file, "weights"):
            raise ValueError(
                f"weights_file must name a file of the folder, weights-<digest>.safetensors, got {file!r}"
            )
        training = values["training"]
        if training is not None and not (len(training) == 2 and _names_tensors(training[0], "training")):
            raise ValueError(f"training must name a file of the folder and its digest, got {training!r}")
        shape = values["input_shape"]
        if shape is not None and not _is_shape(shape):
            raise ValueError(f"input_shape: expected positive integers, got {shape}")
        return cls(
            None if values["model"] is None else ModelSpec.from_json(values["model"]),
            None if shape is None else tuple(shape),
            None if values["record"] is None else PruneRecord.from_json(values["record"]),
            tuple(str(name) for name in values["weights"]),
            {str(name): str(reason) for name, reason in values["skipped"].items()},
            file,
            str(values["sha256"]),
            None if training is None else (training[0], str(training[1])),
            dict(values["notes"]),
        )


def _is_shape(shape: object) -> bool:
    return isinstance(shape, (tuple, list)) and all(isinstance(size, int) and size > 0 for size in shape)


def _names_tensors(name: object, kind: str) -> bool:
    """Whether this is the name of a file of the folder, and of nothing else."""
    return isinstance(name, str) and name.startswith(kind) and _TENSORS.fullmatch(name) is not None


def require_free(folder: Path, *, force: bool = False) -> None:
    """Refuse a folder that holds something else, and without `force` one that holds a checkpoint.

    Raises:
        CheckpointError: see above.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / MANIFEST).is_file():
        if all(_LEFTOVER.fullmatch(entry.name) for entry in folder.iterdir()):
            return  # a save that was interrupted before there was a checkpoint
        raise CheckpointError(
            f"{folder}: expected an empty folder or a checkpoint of fxprune, got one that holds something else; "
            "choose another output"
        )
    if not force:
        raise CheckpointError(f"{folder} holds a checkpoint; choose another output, or overwrite it with --force")


def save(
    pruned: PrunedModel,
    folder: str | os.PathLike[str],
    *,
    model: ModelSpec | None = None,
    input_shape: tuple[int, ...] | None = None,
    notes: Mapping[str, Any] | None = None,
    training: TrainingState | None = None,
) -> None:
    """Write a checkpoint. One that stands in the folder is replaced in the moment the new one is whole.

    Args:
        pruned: the model.
        folder: made if it is missing.
        model: the spec it was built from, so that `load` can build it again.
        input_shape: shape of one sample.
        notes: what else to remember, as JSON values.
        training: what `fxprune.training.fit` needs to go on from here, if training is not over.

    Raises:
        CheckpointError: the folder holds something else, or cannot be written, or another process writes to it, or
            what is to be saved is not of the types above.
    """
    require_pruned(pruned, CheckpointError)
    folder = Path(folder)
    if input_shape is not None and not _is_shape(input_shape):
        raise CheckpointError(f"input_shape: expected positive integers, such as (3, 32, 32), got {input_shape!r}")
    try:
        json.dumps(dict(notes or {}))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"notes: expected JSON values, got what is none: {error}") from error
    # two that write in turns would each remove the other's tensors
    with sole_writer(folder):
        require_free(folder, force=True)
        _save(pruned, folder, model, input_shape, dict(notes or {}), training)


def _save(
    pruned: PrunedModel,
    folder: Path,
    model: ModelSpec | None,
    input_shape: tuple[int, ...] | None,
    notes: dict[str, Any],
    training: TrainingState | None,
) -> None:
    try:
        # named by content: until the last step the manifest that stands names the old files
        weights = _write_tensors(folder, "weights", _unshared(pruned.state_dict()))
        state = None
        if training is not None:
            values = {"values": json.dumps(training.values)}
            state = _write_tensors(folder, "training", training.tensors, values)
        manifest = Manifest(
            model,
            input_shape,
            pruned.record,
            tuple(weight.name for weight in pruned.weights),
            dict(pruned.weights.skipped),
            *weights,
            state,
            notes,
        )
        _write_manifest(folder, manifest)
        for old in folder.iterdir():
            if _LEFTOVER.fullmatch(old.name) and old.name not in (weights[0], state and state[0]):
                old.unlink()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {folder}: {error}; free some space or choose another output"
        ) from error


def _write_tensors(
    folder: Path, kind: str, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> tuple[str, str]:
    """Write a safetensors file; its name, which says its content, and its digest."""
    temporary = folder / f".{kind}-{os.getpid()}.tmp"
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        synced(temporary)
        readable(temporary)
        digest = _digest(temporary)
        final = folder / f"{kind}-{digest[:12]}.safetensors"
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    return final.name, digest


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: the folder holds no checkpoint, or one that cannot be read.
    """
    path = Path(folder) / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        lacking = isinstance(error, FileNotFoundError) and Path(folder).is_dir()
        got = f"a folder without {MANIFEST}" if lacking else f"{error.strerror or error}"
        raise CheckpointError(
            f"{folder}: expected a checkpoint of fxprune, got {got}; fxprune prune makes one"
        ) from error
    try:
        values = json.loads(content)
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise ValueError(f"format is not {_FORMAT!r}")
        return Manifest.from_json(values)
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        ModelSpecError,
    ) as error:
        raise CheckpointError(
            f"{path}: expected the manifest of a checkpoint, got {type(error).__name__}: {error}; "
            "it was damaged, or written by another version"
        ) from error


def annotate(folder: str | os.PathLike[str], **notes: Any) -> None:
    """Add to the notes of a checkpoint, as JSON values.

    Raises:
        CheckpointError: the folder holds no checkpoint, or cannot be written.
    """
    read_manifest(folder)  # before a lock, which would make a folder
    with sole_writer(Path(folder)):
        manifest = read_manifest(folder)
        _write_manifest(Path(folder), replace(manifest, notes={**manifest.notes, **notes}))


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    try:
        with replacing(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest.to_json(), indent=1))
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder}: {error}; free some space or choose another output"
        ) from error


def load(
    folder: str | os.PathLike[str],
    model: nn.Module | ModelSpec | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> PrunedModel:
    """Rebuild the pruned model of a checkpoint: build, capture, put the masks in, load the state.

    Args:
        folder: the checkpoint.
        model: the module or spec that was pruned, for a checkpoint whose model is the user's own code;
            none of that is run unless it is named here. Its parameters are replaced.
        example_inputs: what the model is called with; by default what `fxprune.examples` makes of the
            recorded input shape.
        example_kwargs: the same by keyword.

    Raises:
        CheckpointError: the checkpoint is damaged, or does not fit the model, or the model or example
            inputs have to be given.
    """
    if not isinstance(model, (nn.Module, ModelSpec, type(None))):
        raise CheckpointError(
            f"model: expected a module or a fxprune.ModelSpec, got {model!r}; fxprune.ModelSpec(name) makes one"
        )
    folder = Path(folder)
    manifest = read_manifest(folder)
    state = _read_tensors(folder / manifest.weights_file, manifest.sha256)
    module, shape = _module(folder, manifest, model)
    if example_inputs is None and not example_kwargs:
        if shape is None:
            raise CheckpointError(f"{folder} records no input shape; give example_inputs=(x,)")
        made = example(module, shape)
        example_inputs, example_kwargs = made.args, made.kwargs
    with working("capturing the model"):
        captured = capture(module, example_inputs or (), example_kwargs)
    if manifest.record is not None and manifest.record.removed:
        try:
            captured = without(captured, manifest.record.removed)
        except ShrinkError as error:
            raise CheckpointError(f"{folder}: its channels are not those of the model: {error}") from error
    weights = _recorded_weights(find_weights(captured), manifest, state, folder)
    masks = {weight.name: state[mask_name(weight)].bool() for weight in weights}
    pruned = PrunedModel(captured, weights, masks, manifest.record)
    _load_state(pruned, state, folder)
    return pruned


def _module(
    folder: Path, manifest: Manifest, model: nn.Module | ModelSpec | None
) -> tuple[nn.Module, tuple[int, ...] | None]:
    if isinstance(model, nn.Module):
        return model, manifest.input_shape
    if model is None and manifest.model is None:
        raise CheckpointError(f"{folder} was saved from a module without a spec; give that module again")
    spec = model or manifest.model
    assert spec is not None
    if model is None and runs_user_code(spec):
        raise CheckpointError(
            f"{folder} was saved from {spec.name}, your own code; name the model again to run it (--model)"
        )
    return build(spec)


def read_training(folder: str | os.PathLike[str]) -> TrainingState | None:
    """The state of the training that a checkpoint is in the middle of, or None.

    Raises:
        CheckpointError: the folder holds no checkpoint, or one that is damaged.
    """
    manifest = read_manifest(folder)
    if manifest.training is None:
        return None
    name, digest = manifest.training
    path = Path(folder) / name
    tensors = _read_tensors(path, digest)
    try:
        with safe_open(path, "pt") as file:
            values = json.loads(file.metadata()["values"])
        return TrainingState(tensors, dict(values))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected the state of a training, got {error}; train afresh") from error


def _read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        if _digest(path) != sha256:
            raise CheckpointError(f"{path}: its digest is not the recorded one; the file was truncated or changed")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected the tensors of a checkpoint, got {error}") from error


def _recorded_weights(weights: Weights, manifest: Manifest, state: Mapping[str, Tensor], folder: Path) -> Weights:
    """The weights of the model that have masks in the checkpoint."""
    masked = tuple(weight for weight in weights if weight.name in manifest.weights)
    found = {weight.name for weight in masked if mask_name(weight) in state}
    missing = [name for name in manifest.weights if name not in found]
    if missing or not masked:
        raise CheckpointError(
            f"{folder} has masks for {len(manifest.weights)} weights; the model or the file lacks {missing[:3]}; "
            "was it saved from another model, or captured by another version of torch?"
        )
    for weight in masked:
        shape = tuple(state[mask_name(weight)].shape)
        if shape != weight.shape:
            raise CheckpointError(
                f"{folder}: mask of {weight.name!r}: expected shape {weight.shape}, got {shape}; was it saved "
                "from another model?"
            )
    return Weights(masked, manifest.skipped)


def _load_state(pruned: PrunedModel, state: Mapping[str, Tensor], folder: Path) -> None:
    """Load a state from which `_unshared` left out all but one name of a shared tensor."""
    own = pruned.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in own.items() if name in state}
    full = {name: state[names[id(tensor)]] for name, tensor in own.items() if id(tensor) in names}
    missing = [name for name in own if name not in full]
    unexpected = [name for name in state if name not in own]
    misshapen = [name for name in full if full[name].shape != own[name].shape]
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"{folder} does not fit the model: missing {missing[:3]}, unexpected {unexpected[:3]}, of another "
            f"shape {misshapen[:3]}; was it saved from another model?"
        )
    dtypes = {tensor.dtype for tensor in full.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        pruned.to(dtypes.pop())  # the graphs follow; a model of mixed precision is captured as such
    pruned.load_state_dict(full)


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One name for each tensor: safetensors stores no tensor twice, and `_load_state` knows the others."""
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        first.setdefault((tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else (id(tensor), ()), name)
    return {name: state[name] for name in first.values()}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
