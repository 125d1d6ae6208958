"""`report`: what was removed, what is left and what it costs, counted."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fxprune.analysis.effective import Effective, effective
from fxprune.analysis.flow import GradientNorms, gradient_norms
from fxprune.errors import ReportError
from fxprune.loss import Loss
from fxprune.model import PrunedModel, PruneRecord, require_pruned
from fxprune.progress import working
from fxprune.regions import CapturedModel
from fxprune.report.file import FileBytes, bytes_of, require_file_of
from fxprune.report.latency import DenseFile, compare_with_dense
from fxprune.scoring import Batch

BINS = 61  # of the histogram: odd, so that zero is the middle of a bin


@dataclass(frozen=True)
class WeightRow:
    """One prunable weight.

    Attributes:
        name: the weight.
        shape: its shape.
        operators: the products that use it.
        derived: whether it is computed from parameters.
        numel: number of elements.
        kept: number of elements kept.
        effective: number of those that lie on a path from an input to an output (`fxprune.analysis.effective`).
        cut_off: why nothing of what is kept lies on a path, in words; None where something does.
        macs: multiply-adds a sample, dense, in evaluation mode. A dense runtime executes all of them.
        nonzero_macs: those with a weight that is kept.
        deployed: whether the evaluation graph, and so the ONNX file, has it.
        whole: its shape before channels were cut; None where none were.
    """

    name: str
    shape: tuple[int, ...]
    operators: tuple[str, ...]
    derived: bool
    numel: int
    kept: int
    effective: int
    cut_off: str | None
    macs: int
    nonzero_macs: int
    deployed: bool
    whole: tuple[int, ...] | None = None

    @property
    def sparsity(self) -> float:
        """Share removed."""
        return 1 - self.kept / self.numel

    @property
    def effective_sparsity(self) -> float:
        """Share removed or on no path."""
        return 1 - self.effective / self.numel


@dataclass(frozen=True)
class Histogram:
    """Values of all kept weights together.

    Attributes:
        edges: of the bins, ascending, one more than there are bins; symmetric about zero.
        counts: number of values in each bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class CompressionReport:
    """Statistics of a pruned model, counted from its masks and measured on its file.

    MACs are those of products with prunable weights; attention's products of activations, normalisations
    and element-wise operators are not counted. A dense runtime executes all of them, zero or not.

    Attributes:
        rows: the prunable weights, in the order of use.
        skipped: why each other parameter was not pruned.
        parameters: number of elements of all parameters of the original.
        record: how the masks came about.
        dense_bytes: size of the parameters and buffers of the original.
        histogram: values of the kept weights.
        file: sizes of the ONNX file, if there is one.
        dense: the same network without masks as a file, and how fast the two run, if they were compared.
        gradient: squared gradient norm before and after pruning, if it was measured.
    """

    rows: tuple[WeightRow, ...]
    skipped: dict[str, str]
    parameters: int
    record: PruneRecord | None
    dense_bytes: int
    histogram: Histogram
    file: FileBytes | None = None
    dense: DenseFile | None = None
    gradient: GradientNorms | None = None

    @property
    def totals(self) -> dict[str, float]:
        """Counts over all rows, and the shares that follow from them."""

        def total(name: str) -> int:
            return sum(getattr(row, name) for row in self.rows)

        prunable, kept, on_a_path = total("numel"), total("kept"), total("effective")
        return {
            "prunable": prunable,
            "kept": kept,
            "sparsity": 1 - kept / prunable,
            "effective": on_a_path,
            "effective_sparsity": 1 - on_a_path / prunable,
            "parameters": self.parameters,
            "sparsity_of_all": (prunable - kept) / self.parameters,
            "macs": total("macs"),
            "nonzero_macs": total("nonzero_macs"),
        }

    @property
    def cut_off(self) -> dict[str, str]:
        """Why, by name of a weight of which something is kept and nothing lies on a path."""
        return {row.name: row.cut_off for row in self.rows if row.cut_off is not None}

    def to_json(self) -> dict[str, Any]:
        """As plain dicts and lists: the attributes, ``totals``, and for each row the shares as well.

        Keys are added to this form, but not renamed. What was not measured is None.
        """
        rows = [
            {**asdict(row), "sparsity": row.sparsity, "effective_sparsity": row.effective_sparsity}
            for row in self.rows
        ]
        return {**asdict(self), "rows": rows, "totals": self.totals}

    def to_html(self) -> str:
        """One HTML page that needs no other file."""
        from fxprune.report.page import page

        return page(self)

    def __str__(self) -> str:
        from fxprune.report.text import plain

        return plain(self)


def report(
    pruned: PrunedModel,
    file: str | os.PathLike[str] | None = None,
    *,
    latency: bool = False,
    data: Iterable[Batch] | None = None,
    loss_fn: Loss | None = None,
    original: CapturedModel | None = None,
) -> CompressionReport:
    """Count what is kept and what it costs.

    Args:
        pruned: the model; left as it is.
        file: its ONNX file, to report the size of.
        latency: export the network without its masks as well, to hold the file's size and speed against.
        data: score batches, to report the gradient norm on, before and after pruning. Take the model as it was
            pruned: training moves the weights.
        original: with `latency`: what channels were cut of, to hold the file against. By default that is the
            network without its masks, which for a model of fewer channels is itself.
        loss_fn: of the model's output and the targets; cross-entropy by default.

    Raises:
        ExportError: the file is not there, or was exported from another model; or latency was asked for
            without a file.
        DataError: the data does not fit the model.
        ReportError: the model is not a pruned one.
    """
    require_pruned(pruned, ReportError)
    if file is not None:
        require_file_of(pruned, Path(file))
    with working("following paths"):
        found = effective(pruned)
    dense = compare_with_dense(pruned, file, original) if latency else None
    dense_bytes = _bytes_of_original(pruned)
    rows = tuple(_rows(pruned, found))
    return CompressionReport(
        rows=rows,
        skipped=dict(pruned.weights.skipped),
        parameters=sum(p.numel() for p in pruned.parameters()),
        record=pruned.record,
        dense_bytes=dense_bytes,
        histogram=_histogram(pruned),
        file=None if file is None else bytes_of(pruned, Path(file), dense.bytes if dense else dense_bytes),
        dense=dense,
        gradient=None if data is None else gradient_norms(pruned, data, loss_fn),
    )


def _rows(pruned: PrunedModel, found: Effective) -> Iterable[WeightRow]:
    masks = pruned.masks
    whole = pruned.record.whole.shapes if pruned.record and pruned.record.whole else {}
    for weight in pruned.weights:
        kept = int(masks[weight.name].sum())
        yield WeightRow(
            weight.name,
            weight.shape,
            weight.operators,
            weight.derived,
            weight.numel,
            kept,
            int(found.masks[weight.name].sum()),
            found.cut_off.get(weight.name),
            weight.macs,
            weight.macs * kept // weight.numel,
            "eval" in weight.sites,
            whole.get(weight.name),
        )


def _histogram(pruned: PrunedModel) -> Histogram:
    values = [pruned.effective_weight(name)[mask].float() for name, mask in pruned.masks.items()]
    values = [kept[kept.isfinite()] for kept in values]
    largest = max((float(kept.abs().max()) for kept in values if kept.numel()), default=0.0) or 1.0
    counts = torch.zeros(BINS, dtype=torch.float64)
    for kept in values:
        counts += torch.histc(kept.double(), BINS, -largest, largest).cpu()  # float32 counts to 2 ** 24 only
    edges = torch.linspace(-largest, largest, BINS + 1, dtype=torch.float64)
    return Histogram(tuple(edges.tolist()), tuple(int(count) for count in counts.tolist()))


def _bytes_of_original(pruned: PrunedModel) -> int:
    state = {id(t): t for t in [*pruned.parameters(), *pruned.buffers()]}
    # masks are not of the original, nor are the constants that its graphs met
    constants = {id(buffer) for name, buffer in pruned.named_buffers() if name.startswith("_fxprune")}
    hidden = {id(mask) for mask in pruned.masks.values()} | constants
    return sum(t.numel() * t.element_size() for key, t in state.items() if key not in hidden)
