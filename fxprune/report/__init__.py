"""The compression report: what was removed, what is left and what it costs, as text, as JSON and as a page."""

from __future__ import annotations

from fxprune.report.statistics import CompressionReport, report

__all__ = ["CompressionReport", "report"]
