"""What several recipes came to, in one table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from fxprune.recipes import RunResult


def side_by_side(names: Sequence[str], results: Sequence[RunResult]) -> Table:
    """A column for each recipe, beside the dense network where that was measured."""
    table = Table("", *names, title="Side by side", title_justify="left")
    files = [(result.report.file, result.report.dense) for result in results]
    totals = [result.report.totals for result in results]
    wholes = [result.report.record.whole if result.report.record else None for result in results]
    executed = [t["macs"] / (whole.macs if whole else t["macs"]) for t, whole in zip(totals, wholes, strict=True)]
    table.add_row("weights kept of those there", *(f"{t['kept'] / t['prunable']:.1%}" for t in totals))
    table.add_row("MACs that a dense runtime executes", *(f"{share:.1%} of the dense" for share in executed))
    table.add_row("bytes of the file", *(f"{file.bytes:,}" if file else "" for file, _ in files))
    table.add_row(
        "of the dense file",
        *(f"{file.bytes / dense.bytes:.3f}" if file and dense else "" for file, dense in files),
    )
    table.add_row("latency beside the dense file", *(f"{dense.ratio:.2f}" if dense else "" for _, dense in files))
    table.add_row("test accuracy", *(f"{result.pruned_accuracy:.2%}" for result in results))
    dense = [result.dense_accuracy for result in results]
    table.add_row("of the dense network", *("" if found is None else f"{found:.2%}" for found in dense))
    return table
