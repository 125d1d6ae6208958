"""`report`: what was removed, what is left and what it costs, as text and as JSON."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fxprune.errors import ExportError
from fxprune.masks import Masks
from fxprune.model import PrunedModel, PruneRecord


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
        macs: multiply-adds a sample, dense, in evaluation mode.
        nonzero_macs: those with a weight that is kept.
        deployed: whether the evaluation graph, and so the ONNX file, has it.
    """

    name: str
    shape: tuple[int, ...]
    operators: tuple[str, ...]
    derived: bool
    numel: int
    kept: int
    macs: int
    nonzero_macs: int
    deployed: bool

    @property
    def sparsity(self) -> float:
        """Share removed."""
        return 1 - self.kept / self.numel


@dataclass(frozen=True)
class CompressionReport:
    """Statistics of a pruned model, counted from its masks.

    MACs are those of products with prunable weights; attention's products of activations, normalisations
    and element-wise operators are not counted. A dense runtime executes all of them, zero or not.

    Attributes:
        rows: the prunable weights.
        skipped: why each other parameter was not pruned.
        parameters: number of elements of all parameters of the original.
        record: how the masks came about.
        file_bytes: size of the ONNX file, if there is one.
        dense_bytes: size of the parameters and buffers of the original.
    """

    rows: tuple[WeightRow, ...]
    skipped: dict[str, str]
    parameters: int
    record: PruneRecord | None
    file_bytes: int | None
    dense_bytes: int

    @property
    def totals(self) -> dict[str, float]:
        """Counts over all rows, and the shares that follow from them."""
        prunable, kept = (sum(getattr(row, name) for row in self.rows) for name in ("numel", "kept"))
        macs, nonzero = (sum(getattr(row, name) for row in self.rows) for name in ("macs", "nonzero_macs"))
        return {
            "prunable": prunable,
            "kept": kept,
            "sparsity": 1 - kept / prunable,
            "parameters": self.parameters,
            "sparsity_of_all": (prunable - kept) / self.parameters,
            "macs": macs,
            "nonzero_macs": nonzero,
        }

    def to_json(self) -> dict[str, Any]:
        """As plain dicts and lists."""
        rows = [{**asdict(row), "sparsity": row.sparsity} for row in self.rows]
        return {**asdict(self), "rows": rows, "totals": self.totals}

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=120, no_color=True, markup=False)
        for part in self.renderables():
            console.print(part)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    def renderables(self) -> list[Table | str]:
        """The report in parts that rich can print."""
        return [self._table(), *self._lines()]

    def _table(self) -> Table:
        table = Table(title="Weights", title_justify="left")
        table.add_column("weight", overflow="fold")
        for name in ("shape", "elements", "kept", "sparsity", "MACs", "non-zero"):
            table.add_column(name, justify="right", no_wrap=name != "shape", overflow="fold")
        for row in self.rows:
            table.add_row(
                row.name + (" (derived)" if row.derived else "") + ("" if row.deployed else " (training only)"),
                "x".join(map(str, row.shape)),
                f"{row.numel:,}",
                f"{row.kept:,}",
                f"{row.sparsity:.2%}",
                f"{row.macs:,}",
                f"{row.nonzero_macs:,}",
                style="bold red" if row.kept == 0 else None,
            )
        return table

    def _lines(self) -> list[str]:
        t = self.totals
        lines = [
            f"weights: {t['kept']:,} of {t['prunable']:,} prunable kept, sparsity {t['sparsity']:.2%}; "
            f"{t['sparsity_of_all']:.2%} of all {t['parameters']:,} parameters removed",
            f"MACs a sample: {t['macs']:,} dense, {t['nonzero_macs']:,} with a non-zero weight; "
            "a dense runtime executes all of them",
            f"bytes: {self.dense_bytes:,} of dense parameters and buffers"
            + (f", {self.file_bytes:,} in the ONNX file" if self.file_bytes is not None else ""),
        ]
        reasons = Counter(self.skipped.values())
        if reasons:
            what = "; ".join(f"{count} as {reason}" for reason, count in reasons.most_common())
            lines.append(f"not pruned: {len(self.skipped)} parameters: {what}")
        return lines + (self._how() if self.record else [])

    def _how(self) -> list[str]:
        record = self.record
        assert record is not None
        lines = [
            f"masks: {record.criterion}, {record.ranking} ranking, {_rounds(record.rounds)}, seed {record.seed}; "
            f"{record.zero_share:.2%} of the saliencies are exactly zero"
        ]
        if record.sanity:
            lines.append(f"sanity check: {record.sanity}")
        if record.changes:
            names = ", ".join(f"{change.name} ({change.change})" for change in record.changes[:3])
            more = ", ..." if len(record.changes) > 3 else ""
            lines.append(f"live point: tensors changed while scoring: {len(record.changes)}: {names}{more}")
        if record.floored:
            lines.append(
                f"floor {record.floor_used:g} kept more of {len(record.floored)} weights than their ranking: "
                + ", ".join(record.floored[:3])
                + (", ..." if len(record.floored) > 3 else "")
            )
        empty = [row.name for row in self.rows if row.kept == 0]
        if empty:
            lines.append(f"WARNING: nothing is left of {len(empty)} weights: {', '.join(empty[:5])}")
        if record.cut_off:
            lines.append(f"WARNING: outputs {record.cut_off} no longer depend on the input")
        return lines


def _size_of(file: Path, masks: Masks) -> int:
    """Bytes of an ONNX file, which must say of itself that it was exported with as many weights kept."""
    import onnx

    try:
        entries = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        facts = json.loads(entries["fxprune"])
    except Exception as error:  # protobuf's errors share no class
        raise ExportError(f"{file}: expected an ONNX file that fxprune exported, got {error!r}") from error
    if (facts.get("kept"), facts.get("prunable")) != (masks.kept, masks.numel):
        raise ExportError(
            f"{file}: expected the file of this model, with {masks.kept} of {masks.numel} weights kept, got one "
            f"with {facts.get('kept')} of {facts.get('prunable')}; export the model again"
        )
    return file.stat().st_size


def _rounds(count: int) -> str:
    return "one round" if count == 1 else f"{count} rounds"


def report(pruned: PrunedModel, file: str | os.PathLike[str] | None = None) -> CompressionReport:
    """Count what is kept and what it costs.

    Args:
        pruned: the model.
        file: its ONNX file, to report the size of.

    Raises:
        ExportError: the file is not there, or was exported from another model.
    """
    masks = pruned.masks
    size = None if file is None else _size_of(Path(file), masks)
    rows = []
    for weight in pruned.weights:
        kept = int(masks[weight.name].sum())
        rows.append(
            WeightRow(
                weight.name,
                weight.shape,
                weight.operators,
                weight.derived,
                weight.numel,
                kept,
                weight.macs,
                weight.macs * kept // weight.numel,
                "eval" in weight.sites,
            )
        )
    state = {id(t): t for t in [*pruned.parameters(), *pruned.buffers()]}
    # masks are not of the original, nor are the constants that its graphs met
    constants = {id(buffer) for name, buffer in pruned.named_buffers() if name.startswith("_fxprune")}
    hidden = {id(mask) for mask in masks.values()} | constants
    return CompressionReport(
        rows=tuple(rows),
        skipped=dict(pruned.weights.skipped),
        parameters=sum(p.numel() for p in pruned.parameters()),
        record=pruned.record,
        file_bytes=size,
        dense_bytes=sum(t.numel() * t.element_size() for key, t in state.items() if key not in hidden),
    )
