"""The report's plots, as SVG elements to stand in an HTML page.

Text and axes take the colour of the text around them and series the page's own colours, so that a plot is
readable in light and in dark. The same report gives the same bytes: no date, no random identifiers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fxprune.report.statistics import CompressionReport

# Colours that nothing else has, and what the page calls them.
_INK, _FAINT, _ALL, _KEPT = "#010203", "#040506", "#070809", "#0a0b0c"
_NAMES = {_INK: "currentColor", _FAINT: "var(--faint)", _ALL: "var(--all)", _KEPT: "var(--kept)"}

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "fxprune",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}


def plots(report: CompressionReport) -> dict[str, str]:
    """SVG elements by title."""
    drawn = {}
    if report.record and report.record.whole:
        drawn["Widths"] = _svg("widths", lambda axes: _widths(axes, report))
    else:
        drawn["Sparsity by depth"] = _svg("sparsity", lambda axes: _sparsity(axes, report))
    drawn["MACs by layer"] = _svg("macs", lambda axes: _macs(axes, report))
    drawn["Values of the kept weights"] = _svg("values", lambda axes: _values(axes, report))
    if report.file:
        drawn["Bytes"] = _svg("bytes", lambda axes: _bytes(axes, report))
    return drawn


def _svg(name: str, draw: Callable[[Axes], None]) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")  # inches of 72 units: about a phone's width
        draw(figure.subplots())
        if figure.axes[0].get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper left", ncols=3, fontsize=8.5)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg, count=1, flags=re.DOTALL)
    for colour, variable in _NAMES.items():
        svg = svg.replace(colour, variable)
    # several plots share a page, and so must not share identifiers
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)


def _sparsity(axes: Axes, report: CompressionReport) -> None:
    places = range(1, len(report.rows) + 1)
    axes.step(places, [row.sparsity for row in report.rows], where="mid", color=_ALL, linewidth=3, label="removed")
    effective = [row.effective_sparsity for row in report.rows]
    axes.step(places, effective, where="mid", color=_KEPT, linewidth=1.2, label="or on no path")
    axes.axhline(report.totals["sparsity"], color=_INK, linewidth=0.8, linestyle=":", label="overall")
    axes.set(xlabel="weight, from input to output", ylabel="share removed", ylim=(-0.03, 1.03))
    _whole(axes)


def _widths(axes: Axes, report: CompressionReport) -> None:
    places = range(1, len(report.rows) + 1)
    axes.bar(places, [(row.whole or row.shape)[0] for row in report.rows], color=_ALL, width=0.9, label="before")
    axes.bar(places, [row.shape[0] for row in report.rows], color=_KEPT, width=0.9, label="after")
    axes.set(xlabel="weight, from input to output", ylabel="size of the first dimension")
    _whole(axes)


def _macs(axes: Axes, report: CompressionReport) -> None:
    places = range(1, len(report.rows) + 1)
    axes.bar(places, [row.macs for row in report.rows], color=_ALL, width=0.9, label="executed, zero or not")
    axes.bar(
        places, [row.nonzero_macs for row in report.rows], color=_KEPT, width=0.9, label="with a non-zero weight"
    )
    axes.set(xlabel="weight, from input to output", ylabel="MACs a sample")
    axes.yaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
    _whole(axes)


def _values(axes: Axes, report: CompressionReport) -> None:
    edges, counts = report.histogram.edges, report.histogram.counts
    axes.stairs(counts, edges, fill=True, color=_KEPT)
    axes.set(xlabel="value", ylabel="weights", yscale="symlog")
    axes.yaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))


def _bytes(axes: Axes, report: CompressionReport) -> None:
    file = report.file
    assert file is not None
    bars = {"entropy bound": file.entropy_bound, "this file, zstd": file.zstd, "this file, gzip": file.gzip}
    axes.barh(list(bars), list(bars.values()), color=_ALL)
    left = 0
    for i, (name, size) in enumerate(file.by_encoding.items()):
        axes.barh("this file", size, left=left, color=_KEPT, alpha=_shade(i, len(file.by_encoding)), label=name)
        left += size
    dense = report.dense.bytes if report.dense else report.dense_bytes
    axes.barh("dense file" if report.dense else "dense tensors", dense, color=_ALL)
    axes.set(xlabel="bytes")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))


def _shade(place: int, count: int) -> float:
    return 1 - 0.75 * place / max(1, count - 1) if count > 1 else 1.0


def _whole(axes: Axes) -> None:
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
