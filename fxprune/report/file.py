"""Bytes of an ONNX file: what it takes, what general compressors make of it, and what is the least."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxprune.errors import ExportError
from fxprune.model import PrunedModel
from fxprune.onnx.encodings import DOMAIN


@dataclass(frozen=True)
class FileBytes:
    """Sizes in bytes.

    Attributes:
        path: the file.
        bytes: of the file, its external data included.
        gzip: of the file under gzip, level 6.
        zstd: of the file under zstd, level 3.
        entropy_bound: see `fxprune.onnx.sizes.entropy_bound`.
        by_encoding: bytes of the prunable weights by how they are stored: ``"dense"``, ``"coo"``, the name of a
            decoder, or ``"written out"`` where a decoder is not a function; and ``"other"``, all else.
        flushed: values kept that are zero in the file, being too small for a normal number of the stored type.
    """

    path: str
    bytes: int
    gzip: int
    zstd: int
    entropy_bound: int
    by_encoding: dict[str, int]
    flushed: int


def require_file_of(pruned: PrunedModel, file: Path) -> None:
    """Raise `ExportError` unless the file says of itself that it has as many weights kept as the model."""
    facts, masks = _facts(file), pruned.masks
    if (facts.get("kept"), facts.get("prunable")) != (masks.kept, masks.numel):
        raise ExportError(
            f"{file}: expected the file of this model, with {masks.kept} of {masks.numel} weights kept, got one "
            f"with {facts.get('kept')} of {facts.get('prunable')}; export the model again"
        )


def _facts(file: Path) -> dict[str, Any]:
    """What a file says of itself."""
    import onnx

    try:
        entries = {entry.key: entry.value for entry in onnx.load(file, load_external_data=False).metadata_props}
        return dict(json.loads(entries["fxprune"]))
    except Exception as error:  # protobuf's errors share no class
        raise ExportError(f"{file}: expected an ONNX file that fxprune exported, got {error!r}") from error


def bytes_of(pruned: PrunedModel, file: Path, dense_bytes: int) -> FileBytes:
    """Sizes of the file of a model.

    Args:
        pruned: the model.
        file: its file.
        dense_bytes: size of the network as a file without masks, or of its state, where there is no such file.
    """
    import onnx

    from fxprune.onnx.external import data_files
    from fxprune.onnx.sizes import entropy_bound, file_bytes, gzip_bytes, zstd_bytes

    proto = onnx.load(file, load_external_data=False)
    files = [file, *(file.parent / name for name in sorted(data_files(proto)))]
    size = file_bytes(file)
    masks = pruned.masks
    names = [weight.name for weight in pruned.weights if "eval" in weight.sites]
    counts = [(masks[name].numel(), int(masks[name].sum())) for name in names]
    width = next(tensor.element_size() for tensor in pruned.parameters() if tensor.is_floating_point())
    rest = dense_bytes - width * sum(numel for numel, _ in counts)
    stored = by_encoding(proto.graph, names)
    return FileBytes(
        str(file),
        size,
        sum(map(gzip_bytes, files)),
        sum(map(zstd_bytes, files)),
        math.ceil(entropy_bound(counts, value_bits=8 * width, rest=rest)),
        {**stored, "other": size - sum(stored.values())},
        int(_facts(file).get("flushed", 0)),
    )


def by_encoding(graph: Any, names: Iterable[str]) -> dict[str, int]:
    """Bytes of the weights of these names, by how they are stored."""
    dense = {tensor.name: tensor for tensor in graph.initializer}
    sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    makers = {name: node for node in graph.node for name in node.output}
    found: Counter[str] = Counter()
    counted: set[str] = set()
    for name in names:
        parts = _behind(name, makers, {name})
        stored = [dense[part] for part in parts if part in dense]
        coordinates = [sparse[part] for part in parts if part in sparse]
        decoder = makers[name].op_type if name in makers and makers[name].domain == DOMAIN else None
        how = decoder or ("coo" if coordinates else "dense" if len(stored) == 1 else "written out")
        if stored or coordinates:
            new = [tensor for tensor in stored if tensor.name not in counted]  # decoders may share a shape
            found[how] += sum(map(_size, new)) + sum(part.ByteSize() for part in coordinates)
            counted |= parts
    return dict(sorted(found.items()))


def _behind(name: str, makers: Mapping[str, Any], seen: set[str]) -> set[str]:
    """The tensors that one is computed from."""
    for part in makers[name].input if name in makers else ():
        if part not in seen:
            seen.add(part)
            _behind(part, makers, seen)
    return seen


def _size(tensor: Any) -> int:
    lengths = [int(entry.value) for entry in tensor.external_data if entry.key == "length"]
    return int(tensor.ByteSize()) + sum(lengths)
