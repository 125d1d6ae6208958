"""Files beyond 2 GB: tensors in a second file beside the ONNX file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fxprune.errors import ExportError
from fxprune.files import readable, synced

if TYPE_CHECKING:
    from onnx import ModelProto

LIMIT = 2_000_000_000  # bytes of tensors; a protobuf message holds 2^31, and the graph needs some of them
_SMALL = 1024  # bytes of tensors that stay in the graph: shape inference wants their values
_ALIGNMENT = 4096  # a page, so that runtimes can map the file


@contextlib.contextmanager
def data_beside(model: ModelProto, target: Path) -> Iterator[None]:
    """Move the tensors of a model that is too large for one file into a file beside `target`.

    That file is named by its content, so that the ONNX file that stands at `target` keeps its own until
    another takes its place. When the block succeeds the data of the former file is removed; when it
    raises, what was written here is.

    Raises:
        ExportError: there is no way to make the ONNX file small enough.
    """
    stood = set(_beside(target))
    own = _move_out(model, target) if _size(model) >= LIMIT else None
    try:
        yield
    except BaseException:
        if own is not None and own not in stood:
            own.unlink(missing_ok=True)
        raise
    for former in stood - {own}:
        former.unlink(missing_ok=True)


def data_files(model: ModelProto) -> set[str]:
    """Names of the files that hold tensors of a model, relative to its folder."""
    from onnx.external_data_helper import uses_external_data

    external = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    return {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}


def _beside(target: Path) -> list[Path]:
    pattern = re.compile(rf"{re.escape(target.name)}\.[0-9a-f]{{12}}\.data")
    folder = target.parent
    return [file for file in folder.iterdir() if pattern.fullmatch(file.name)] if folder.is_dir() else []


def _bytes(tensor: Any) -> int:
    from onnx import helper

    elements = 1
    for size in tensor.dims:
        elements *= size
    return elements * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _size(model: ModelProto) -> int:
    sparse = [part for tensor in model.graph.sparse_initializer for part in (tensor.values, tensor.indices)]
    if sum(map(_bytes, sparse)) >= LIMIT:
        raise ExportError(
            "ONNX keeps sparse initializers in the file, which cannot hold 2 GB of them; use encoding='gaps'"
        )
    return sum(map(_bytes, [*model.graph.initializer, *sparse]))


def _move_out(model: ModelProto, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".data")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = _write_tensors(model, file)
        synced(temporary)
        readable(temporary)
        final = target.with_name(f"{target.name}.{digest[:12]}.data")
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = final.name
    return final


def _write_tensors(model: ModelProto, file: BinaryIO) -> str:
    """Write large tensors to `file`, empty them, and return the digest of what was written."""
    from onnx.external_data_helper import set_external_data

    digest, offset = hashlib.sha256(), 0
    for tensor in model.graph.initializer:
        if _bytes(tensor) < _SMALL or not tensor.HasField("raw_data"):
            continue
        padding = bytes(-offset % _ALIGNMENT)
        for part in (padding, tensor.raw_data):
            file.write(part)
            digest.update(part)
        length = len(tensor.raw_data)
        set_external_data(tensor, "to be named", offset=offset + len(padding), length=length)
        tensor.ClearField("raw_data")
        offset += len(padding) + length
    return digest.hexdigest()
