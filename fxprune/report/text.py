"""The report as text: tables and lines that rich prints."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from fxprune.model import PruneRecord
from fxprune.onnx.verify import Verification
from fxprune.report.statistics import CompressionReport, WeightRow


def plain(report: CompressionReport) -> str:
    """As text of 120 columns, without colours."""
    console = Console(file=io.StringIO(), width=120, no_color=True, markup=False)
    for part in renderables(report):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def renderables(report: CompressionReport) -> list[Table | str]:
    """In parts that rich can print."""
    return [_table(report), *lines(report)]


def verification(result: Verification) -> Table:
    """What was checked of a file."""
    table = Table("check", "", "seen", title="Verification of the ONNX file", title_justify="left")
    for check in result.checks:
        table.add_row(check.name, "passed" if check.passed else "FAILED", check.detail)
    return table


def _table(report: CompressionReport) -> Table:
    table = Table(title="Weights", title_justify="left")
    table.add_column("weight", overflow="fold")
    for name in ("shape", "elements", "kept", "sparsity", "effective", "MACs", "non-zero"):
        table.add_column(name, justify="right", no_wrap=name != "shape", overflow="fold")
    for row in report.rows:
        table.add_row(
            row.name + remark(row),
            shapes(row),
            f"{row.numel:,}",
            f"{row.kept:,}",
            f"{row.sparsity:.2%}",
            f"{row.effective_sparsity:.2%}",
            f"{row.macs:,}",
            f"{row.nonzero_macs:,}",
            style="bold red" if row.kept == 0 else None,
        )
    return table


def remark(row: WeightRow) -> str:
    """What is special about a weight, in brackets after its name."""
    return (" (derived)" if row.derived else "") + ("" if row.deployed else " (training only)")


def shapes(row: WeightRow) -> str:
    """The sizes of a weight, and where it was cut what they were."""
    shape = "x".join(map(str, row.shape))
    return shape if row.whole in (None, row.shape) else f"{shape} of {'x'.join(map(str, row.whole or ()))}"


def lines(report: CompressionReport) -> list[str]:
    """What the numbers over all weights are, one sentence a line."""
    return [
        *_weights(report),
        *_macs(report),
        *_bytes(report),
        *_speed(report),
        *(_masks(report.record) if report.record else ()),
        *_gradient(report),
        *warnings(report),
    ]


def _weights(report: CompressionReport) -> Iterator[str]:
    t = report.totals
    yield (
        f"weights: {t['kept']:,} of {t['prunable']:,} prunable kept, sparsity {t['sparsity']:.2%}; "
        f"{t['sparsity_of_all']:.2%} of all {t['parameters']:,} parameters removed"
    )
    yield (
        f"effective sparsity: {t['effective_sparsity']:.2%}: {t['effective']:,} weights lie on a path from an "
        "input to an output"
    )
    reasons = Counter(report.skipped.values())
    if reasons:
        what = "; ".join(f"{count} as {reason}" for reason, count in reasons.most_common())
        yield f"not pruned: {len(report.skipped)} parameters: {what}"


def _macs(report: CompressionReport) -> Iterator[str]:
    t = report.totals
    record = report.record
    if record and record.whole:
        whole = record.whole
        how = f"cut to {record.budget}" if record.budget else "without the dead ones"
        yield (
            f"channels: {how}: {t['macs'] / whole.macs:.1%} of {whole.macs:,} MACs and "
            f"{t['parameters'] / whole.parameters:.1%} of {whole.parameters:,} parameters are left"
        )
    yield (
        f"MACs a sample: {t['macs']:,} dense, {t['nonzero_macs']:,} with a non-zero weight; "
        f"a dense runtime executes all {t['macs']:,}"
    )


def _bytes(report: CompressionReport) -> Iterator[str]:
    file, dense = report.file, report.dense
    yield (
        f"bytes: {report.dense_bytes:,} of dense parameters and buffers"
        + (f", {dense.bytes:,} in a dense ONNX file" if dense else "")
        + (f", {file.bytes:,} in the ONNX file" if file else "")
        + (f" ({file.bytes / dense.bytes:.3f} of the dense one)" if file and dense else "")
    )
    if file:
        stored = ", ".join(f"{name} {size:,}" for name, size in file.by_encoding.items())
        yield (
            f"bytes of the file: {file.gzip:,} under gzip, {file.zstd:,} under zstd; the entropy bound is "
            f"{file.entropy_bound:,}; by encoding: {stored}"
        )
        if file.flushed:
            yield f"flushed: {file.flushed:,} kept values are zero in the file, too small for a normal number"


def _speed(report: CompressionReport) -> Iterator[str]:
    dense = report.dense
    if dense:
        yield (
            f"latency: dense {dense.dense_ms:.3g} ms, sparse {dense.sparse_ms:.3g} ms, ratio {dense.ratio:.2f} "
            f"({dense.runtime}, batch {dense.batch}, {_threads(dense.threads)}; medians of {dense.runs} runs in "
            "turn)"
        )
    yield speed_sentence(report)


def speed_sentence(report: CompressionReport) -> str:
    """What will not get faster, and why; of a model whose channels were cut, what will."""
    whole = report.record.whole if report.record else None
    if whole:
        return (
            "faster: tensors are smaller, and any runtime executes "
            f"{report.totals['macs'] / whole.macs:.1%} of the MACs that the whole model takes"
        )
    return (
        "not faster: runtimes with dense kernels, such as ONNX Runtime, multiply zeros like any other number; "
        f"all {report.totals['macs']:,} MACs are executed, and only removing whole channels makes them fewer"
    )


def _masks(record: PruneRecord) -> Iterator[str]:
    how = f"{record.pattern} along the inputs" if record.pattern else f"{record.ranking} ranking"
    what = "masks" if record.whole is None else "score"
    yield (
        f"{what}: {record.criterion}, {how}, {_rounds(record.rounds)}, seed {record.seed}; "
        f"{record.zero_share:.2%} of the saliencies are exactly zero"
    )
    if record.sanity:
        yield f"sanity check: {record.sanity}"
    if record.changes:
        changes = _some([f"{change.name} ({change.change})" for change in record.changes])
        yield f"live point: tensors changed while scoring: {len(record.changes)}: {changes}"
    if record.floored:
        yield (
            f"floor: {record.floor_used:g} of the density kept more of {len(record.floored)} weights than their "
            "ranking: " + _some(record.floored)
        )


def _gradient(report: CompressionReport) -> Iterator[str]:
    if report.gradient:
        before, after = report.gradient.before, report.gradient.after
        times = f", {after / before:.3g} times as much" if before else ""
        yield f"gradient norm: squared, at initialisation: {before:.3g} before pruning, {after:.3g} after{times}"


def warnings(report: CompressionReport) -> list[str]:
    """What probably went wrong."""
    found = []
    empty = [row.name for row in report.rows if row.kept == 0]
    if empty:
        found.append(f"WARNING: nothing is left of {len(empty)} weights: {_some(empty, 5)}")
    unreachable = [f"{name} ({why})" for name, why in report.cut_off.items()]
    if unreachable:
        found.append(f"WARNING: {len(unreachable)} weights are cut off: {_some(unreachable, 5)}")
    if report.record and report.record.cut_off:
        found.append(f"WARNING: outputs {report.record.cut_off} no longer depend on the input")
    return found


def _some(names: Iterable[str], count: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:count]) + (", ..." if len(listed) > count else "")


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _rounds(count: int) -> str:
    return "one round" if count == 1 else f"{count} rounds"
