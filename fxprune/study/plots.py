"""Line plots of studies, as figures that are written to PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# x -> mean and deviation of y
Points = Mapping[float, tuple[float, float]]

_MARKERS = "osD^v<>phX*Pd"
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
_EMPHASISED = "grasp"  # what all of this is about


def lines(
    panels: Mapping[str, tuple[Mapping[str, Points], float | None]],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    falling: bool = False,
    markers: bool = True,
) -> Figure:
    """One panel beside the other, each with its series and, dashed, the level of the dense network.

    Args:
        panels: by title: points by name of the series, and the level or None.
        x_label: of the axis.
        y_label: of the axis.
        log_x: logarithmic axis.
        log_y: logarithmic axis.
        falling: the largest x on the left.
        markers: at the points.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.4 * len(panels) + 1.6, 3.8), layout="constrained", dpi=110)
        names = list(dict.fromkeys(name for series, _ in panels.values() for name in series))
        for axes, (title, (series, level)) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            for name, points in series.items():
                if not points:
                    continue
                place = names.index(name)
                xs = sorted(points)
                means, deviations = zip(*(points[x] for x in xs), strict=True)
                strong = name == _EMPHASISED
                axes.errorbar(
                    xs,
                    means,
                    deviations if any(deviations) else None,
                    label=name,
                    color="black" if strong else f"C{place % 10}",
                    linestyle="-" if place < 10 or strong else "--",
                    linewidth=2.2 if strong else 1.1,
                    marker=_MARKERS[place % len(_MARKERS)] if markers else "",
                    markersize=4,
                    capsize=2,
                    zorder=3 if strong else 2,
                )
            if level is not None:
                axes.axhline(level, color="#888888", linestyle=":", label="dense")
            axes.set(title=title, xlabel=x_label, ylabel=y_label)
            if log_x:
                axes.set_xscale("log")
                axes.set_xticks(sorted({x for points in series.values() for x in points}))
                axes.xaxis.set_major_formatter(ScalarFormatter())
                axes.minorticks_off()
            if log_y:
                axes.set_yscale("log")
            if falling:
                axes.invert_xaxis()
        shown: dict[str, Any] = {}
        for axes in figure.axes:
            handles, labels = axes.get_legend_handles_labels()
            shown |= {label: handle for label, handle in zip(labels, handles, strict=True) if label not in shown}
        shown = {name: shown[name] for name in [*names, *shown] if name in shown}
        figure.legend(shown.values(), shown.keys(), loc="outside right upper", fontsize=8)
    return figure
