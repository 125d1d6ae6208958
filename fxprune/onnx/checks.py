"""Checks of what a file holds: its form, where it comes from, its weights."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fxprune.model import PrunedModel
from fxprune.onnx.encode import Values, stored_type
from fxprune.onnx.encodings import SparseWeight
from fxprune.onnx.read import Constants
from fxprune.pattern import Pattern

if TYPE_CHECKING:
    from onnx import ModelProto

OLDEST_OPSET = 18
METADATA = "fxprune"  # the key of what a file says of itself

_LARGE = 1024  # bytes: smaller tensors may well be equal by chance


@dataclass(frozen=True)
class Check:
    """One thing that was checked: what, whether it holds, and what was seen."""

    name: str
    passed: bool
    detail: str


def facts_of(model: ModelProto) -> dict[str, Any]:
    """What a file says of itself; nothing if fxprune did not write it, or if it is damaged."""
    entries = {entry.key: entry.value for entry in model.metadata_props}
    try:
        facts = json.loads(entries.get(METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def state_digest(pruned: PrunedModel) -> str:
    """SHA-256 of all parameters, buffers and masks, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(pruned.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def weights_as_stored(pruned: PrunedModel, values: Values) -> dict[str, NDArray[Any]]:
    """The weights of the evaluation graph as a file has them: masked, rounded, without denormals."""
    arrays = {w.name: pruned.effective_weight(w.name).numpy() for w in pruned.weights if "eval" in w.sites}
    return {
        name: SparseWeight.of(name, array, stored_type(array.dtype, values)).dense().astype(array.dtype)
        for name, array in arrays.items()
    }


def check_format(path: Path, model: ModelProto) -> Check:
    """The checker of onnx and its shape inference, IR version and opsets."""
    import onnx

    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    described = ", ".join(f"{domain} {version}" for domain, version in versions.items())
    if versions.get("ai.onnx", 0) < OLDEST_OPSET:
        return Check("format", False, f"expected opset {OLDEST_OPSET} or later, got {described or 'none'}")
    sparse = bool(model.graph.sparse_initializer)
    try:
        onnx.checker.check_model(str(path), full_check=not sparse)
        if sparse:
            onnx.checker.check_model(_sparse_as_inputs(model), full_check=True)
    except Exception as error:  # checker and shape inference raise errors of several classes
        return Check("format", False, str(error).strip().partition("\n")[0])
    return Check("format", True, f"valid, shapes inferred, IR version {model.ir_version}, opset {described}")


def _sparse_as_inputs(model: ModelProto) -> ModelProto:
    """The model with inputs for sparse initializers, which onnx's shape inference takes for no tensors."""
    import onnx
    from onnx import helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    for sparse in model.graph.sparse_initializer:
        values = sparse.values
        result.graph.input.append(helper.make_tensor_value_info(values.name, values.data_type, sparse.dims))
    del result.graph.sparse_initializer[:]
    return result


def check_source(facts: Mapping[str, Any], pruned: PrunedModel) -> Check:
    """Whether the model is, bit by bit, what it was when the file was written."""
    if "source" not in facts:
        return Check("source", True, "the file does not say what it was exported from")
    if facts["source"] != state_digest(pruned):
        return Check("source", False, "the model is not, or no longer, the one that the file was exported from")
    masks = pruned.masks
    said = facts.get("kept"), facts.get("prunable")
    if said != (masks.kept, masks.numel):
        got = f"the file says {said[0]} of {said[1]}"
        return Check("source", False, f"expected {masks.kept} of {masks.numel} kept, {got}")
    return Check("source", True, f"the model is unchanged since the export, SHA-256 {facts['source'][:12]}")


def check_weights(
    constants: Constants, wanted: Mapping[str, NDArray[Any]], pruned: PrunedModel
) -> tuple[list[Check], int]:
    """Zero pattern, values and duplicates; and the number of non-zeros of all decoded weights."""
    filled, altered, missing, broken = [], [], [], []
    pattern = _pattern(pruned)
    contents: Counter[bytes] = Counter()
    nonzero, kept, flushed = 0, 0, 0
    masks = pruned.masks
    for name, want in wanted.items():
        mask = masks[name].numpy()
        try:
            found = constants.get(name)
        except Exception:  # ONNX Runtime's errors share no class
            found = None
        if found is None:
            missing.append(name)
            continue
        contents[_content(found)] += 1
        kept, nonzero = kept + int(mask.sum()), nonzero + int(np.count_nonzero(found))
        flushed += int(np.count_nonzero(pruned.effective_weight(name).numpy())) - int(np.count_nonzero(want))
        if found.shape != mask.shape or np.any(found[~mask]):
            filled.append(name)
        elif found.dtype != want.dtype or not np.array_equal(found, want):
            altered.append(name)
        if pattern and not pattern.holds(pruned.weights[name], torch.tensor(found)):
            broken.append(name)
    zeros = f"{nonzero:,} non-zero of {kept:,} kept" + (f", {flushed:,} flushed" if flushed else "")
    zeros += _named("filled", filled) + _named("missing", missing)
    checks = [
        Check("zero pattern", not (filled or missing), zeros),
        Check("weights", not altered, "equal, bit for bit" if not altered else _named("differ", altered)),
        _check_duplicates(constants, contents, wanted, pruned),
    ]
    if pattern:
        seen = f"{pattern} along the inputs of {len(wanted)} weights"
        checks.append(Check("pattern", not broken, seen + _named("broken", broken)))
    return checks, nonzero


def _pattern(pruned: PrunedModel) -> Pattern | None:
    said = pruned.record.pattern if pruned.record else None
    return Pattern.parse(said) if said else None


def _check_duplicates(
    constants: Constants, decoded: Counter[bytes], wanted: Mapping[str, NDArray[Any]], pruned: PrunedModel
) -> Check:
    """Whether a tensor is in the file more often than in the model, where equal ones may be several.

    A constant of the exporter may be equal to a tensor of the model, such as a bias of zeros, but not twice; one
    that is equal to none may be there once in each shape.
    """
    from onnx import numpy_helper

    parts = {each for name in wanted for each in constants.needed(name)}
    try:
        others = [numpy_helper.to_array(tensor) for name, tensor in constants.dense.items() if name not in parts]
    except Exception as error:  # onnx's errors share no class
        return Check("duplicates", False, f"a tensor cannot be read: {error}")
    large = [(_content(array), array.shape) for array in others if array.nbytes >= _LARGE]
    found = decoded + Counter(content for content, _ in large)
    shapes = Counter(content for content, _ in set(large))
    own = Counter(map(_content, [*wanted.values(), *_state(pruned)]))
    most = {c: own[c] + (c not in decoded) if own[c] else max(1, shapes[c]) for c in found}
    twice = sum(max(0, count - most[content]) for content, count in found.items())
    detail = f"{twice} tensors are stored again under another name" if twice else "every tensor is stored once"
    return Check("duplicates", not twice, detail)


def _state(pruned: PrunedModel) -> Iterator[NDArray[Any]]:
    """Parameters and buffers, tied ones once."""
    for tensor in {id(tensor): tensor for tensor in [*pruned.parameters(), *pruned.buffers()]}.values():
        if tensor.dtype is not torch.bool and tensor.dtype is not torch.bfloat16:
            yield tensor.detach().numpy()


def _content(array: NDArray[Any]) -> bytes:
    digest = hashlib.sha256(array.dtype.str.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


def _named(what: str, names: list[str]) -> str:
    return f"; {what} in {', '.join(names[:4])}" if names else ""
