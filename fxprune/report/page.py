"""The report as one HTML page that opens offline: no script, font or picture comes from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fxprune.errors import ReportError
from fxprune.files import replacing
from fxprune.report.statistics import CompressionReport
from fxprune.report.text import lines, remark, shapes, warnings


def require_writable(path: Path) -> None:
    """Raise `ReportError` unless a file can stand at `path`: its folder exists, and it is no folder itself."""
    if path.is_dir():
        raise ReportError(f"{path}: expected a path for an HTML file, got a folder; add a file name to it")
    if not path.parent.is_dir():
        raise ReportError(f"{path}: expected a file in a folder that exists, got no folder {path.parent}; make it")


def write_page(report: CompressionReport, path: Path) -> None:
    """Write the page to a file, which appears whole or not at all; one that stands there is replaced.

    Raises:
        ReportError: it cannot be written.
    """
    require_writable(path)
    try:
        with replacing(path) as temporary:
            temporary.write_text(page(report), encoding="utf-8")
    except OSError as error:
        raise ReportError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another path"
        ) from error


def page(report: CompressionReport) -> str:
    """The page; whatever comes from the model is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from fxprune.report.plots import plots  # matplotlib takes a second to import

    environment = Environment(
        loader=PackageLoader("fxprune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    said = warnings(report)
    return environment.get_template("page.html").render(
        report=report,
        totals=report.totals,
        warnings=[line.removeprefix("WARNING: ") for line in said],
        lines=[line.partition(": ") for line in lines(report) if line not in said],
        plots={title: Markup(svg) for title, svg in plots(report).items()},
        remark=remark,
        shapes=shapes,
    )
