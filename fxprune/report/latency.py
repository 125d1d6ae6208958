"""How fast an ONNX file runs, beside the same network without masks."""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from fxprune.model import PrunedModel
from fxprune.progress import working
from fxprune.regions import CapturedModel


@dataclass(frozen=True)
class DenseFile:
    """The network without its masks, or with all of its channels, as an ONNX file, and the time that both take.

    Attributes:
        bytes: size of the dense file.
        batch: samples in a call.
        threads: threads of ONNX Runtime.
        runs: calls of each file, one of the one and one of the other in turn.
        dense_ms: median time of a call of the dense file, in milliseconds.
        sparse_ms: that of the pruned file.
        runtime: name and version of what ran them.
    """

    bytes: int
    batch: int
    threads: int
    runs: int
    dense_ms: float
    sparse_ms: float
    runtime: str

    @property
    def ratio(self) -> float:
        """Time of the pruned file over time of the dense one; 1 is no faster."""
        return self.sparse_ms / self.dense_ms


def compare_with_dense(
    pruned: PrunedModel, file: str | os.PathLike[str] | None, original: CapturedModel | None = None
) -> DenseFile:
    """Export the dense network, and time ONNX Runtime on that file and on `file`.

    The dense network is `original`, or `pruned` with masks of all ones.

    Raises:
        ExportError: there is no file, or the dense network cannot be exported.
    """
    from fxprune.errors import ExportError
    from fxprune.onnx.export import export_onnx
    from fxprune.onnx.sizes import file_bytes

    if file is None:
        raise ExportError("latency: expected the model's ONNX file to measure, got none; export the model first")
    if original is None:
        model = copy.deepcopy(pruned).cpu()
        model.set_masks({name: torch.ones_like(mask) for name, mask in model.masks.items()})
    else:
        model = PrunedModel.dense(original).cpu().train(pruned.training)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        export_onnx(model, path, encoding="dense")
        with working("measuring latency"):
            return _measured(model, file_bytes(path), path, Path(file))


def _measured(model: PrunedModel, size: int, dense: Path, sparse: Path) -> DenseFile:
    import onnxruntime

    from fxprune.onnx.outputs import named_inputs
    from fxprune.onnx.timing import call_times

    times = call_times([dense, sparse], model)
    batch = next((len(value) for value in named_inputs(model).values() if value.ndim), 1)
    dense_ms, sparse_ms = map(statistics.median, times)
    runtime = f"ONNX Runtime {onnxruntime.__version__}"
    return DenseFile(size, batch, torch.get_num_threads(), len(times[0]), dense_ms, sparse_ms, runtime)
