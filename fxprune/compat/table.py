"""Rows of the compatibility matrix -> pass rates and a table, as Markdown and as one HTML page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fxprune.compat.child import PATHS, STAGES
from fxprune.compat.results import ROWS
from fxprune.errors import CompatError
from fxprune.files import replacing
from fxprune.rows import Row, reading
from fxprune.zoo import LIBRARIES

PASSED, FAILED, TOO_LARGE = "passed", "failed", "too large"

_BEGIN, _END = "<!-- fxprune compat table: begin -->", "<!-- fxprune compat table: end -->"
_HEADER = ("model", "parameters", *STAGES, "prunable", "zero scores", "emptied", "seconds", "GiB")


@dataclass(frozen=True)
class Entry:
    """What is known of a model, from the last row that says something of each stage.

    Attributes:
        model: its name.
        status: `PASSED`, `FAILED` or `TOO_LARGE` by stage; stages that were not reached are missing.
        facts: what was measured, by stage.
        reasons: why it failed, by stage.
        versions: of the last row.
        seconds: of all stages.
        peak_gib: the largest of all stages.
    """

    model: str
    status: Mapping[str, str]
    facts: Mapping[str, Mapping[str, Any]]
    reasons: Mapping[str, str]
    versions: Mapping[str, str]
    seconds: float
    peak_gib: float

    @property
    def library(self) -> str:
        """The library that the model is from."""
        return self.model.partition(":")[0]

    def fact(self, stage: str, name: str) -> Any:
        """Something measured, or None."""
        return self.facts.get(stage, {}).get(name)


@dataclass(frozen=True)
class Rate:
    """How many models of a library got through a stage.

    Attributes:
        tried: those that reached the stage and fit the machine.
        passed: those among them that got through.
        too_large: those that were captured without values only.
    """

    library: str
    stage: str
    tried: int
    passed: int
    too_large: int

    def __str__(self) -> str:
        share = f" ({_percent(self.passed, self.tried)})" if self.tried else ""
        extra = f"; {self.too_large} too large" if self.too_large else ""
        return f"{self.passed:,} of {self.tried:,}{share}{extra}"


@reading(ROWS)
def entries(rows: Iterable[Row]) -> list[Entry]:
    """One entry a model, in the order of the libraries and then of the names.

    Args:
        rows: from the oldest to the latest, as `read_rows` gives them.

    Raises:
        ResultsError: they do not say what `fxprune compat` writes.
    """
    last: dict[str, dict[str, Row]] = {}
    for row in rows:
        known = last.setdefault(row["model"], {})
        for stage in PATHS[row["stage"]]:
            # on the way to a later stage, images may be smaller than where the stage was looked at for itself
            passed = stage in row and _failed_stage(row) != stage
            if stage != row["stage"] and passed and known.get(stage, {}).get("stage") == stage:
                continue
            known.pop(stage, None)
            if _reached(row, stage):
                known[stage] = row
    found = [_entry(model, known) for model, known in last.items() if known]
    return sorted(found, key=lambda entry: (LIBRARIES.index(entry.library), entry.model))


def _reached(row: Row, stage: str) -> bool:
    too_large = stage in PATHS[row["stage"]][1:2] and "too_large" in row.get("capture", {})
    return stage in row or too_large or _failed_stage(row) == stage


def _failed_stage(row: Row) -> str | None:
    if row["ok"]:
        return None
    return row["failed"]["stage"] or STAGES[0]  # None: before it could begin


def _entry(model: str, rows: Mapping[str, Row]) -> Entry:
    status, reasons = {}, {}
    for stage, row in rows.items():
        status[stage] = PASSED if stage in row else TOO_LARGE
        if _failed_stage(row) == stage:
            stays = "".join(f"; stays: {reason} ({share:.0%})" for reason, share in _stays(row))
            status[stage], reasons[stage] = FAILED, "{kind}: {reason}".format(**row["failed"]) + stays
    facts = {stage: row.get(stage, {}) for stage, row in rows.items()}
    latest = max(rows.values(), key=lambda row: row["at"])
    return Entry(
        model,
        status,
        facts,
        reasons,
        latest["versions"],
        round(sum(known.get("seconds", 0.0) for known in facts.values()), 2),
        max(row["peak_gib"] for row in rows.values()),
    )


def _stays(row: Row) -> list[tuple[str, float]]:
    """The main reasons why weights of a model cannot be cut, with the share of the prunable elements of each."""
    return list(row.get("shrink", {}).get("stays", {}).items())[:2]


def rates(found: Sequence[Entry]) -> list[Rate]:
    """Pass rates of each library and stage of which there is anything."""
    result = []
    for library in LIBRARIES:
        for stage in STAGES:
            status = [e.status[stage] for e in found if e.library == library and stage in e.status]
            if status:
                too_large = status.count(TOO_LARGE)
                result.append(Rate(library, stage, len(status) - too_large, status.count(PASSED), too_large))
    return result


@reading(ROWS)
def summary(found: Sequence[Entry]) -> str:
    """The pass rates, as a Markdown table."""
    cells = {(rate.library, rate.stage): str(rate) for rate in rates(found)}
    libraries = [library for library in LIBRARIES if any(key[0] == library for key in cells)]
    rows = [[library, *(cells.get((library, stage), "") for stage in STAGES)] for library in libraries]
    return _table(("", *STAGES), rows)


@reading(ROWS)
def markdown(found: Sequence[Entry]) -> str:
    """Pass rates, versions, failures with their reasons, and all models."""
    parts = ["# Compatibility", summary(found), _versions(found)]
    failures = [[e.model, stage, reason] for e in found for stage, reason in e.reasons.items()]
    if failures:
        parts += ["## Failures", _table(("model", "stage", "reason"), failures)]
    parts += ["## Models", _table(_HEADER, [_cells(entry) for entry in found])]
    return "\n\n".join(parts) + "\n"


def _versions(found: Sequence[Entry]) -> str:
    seen: dict[str, set[str]] = {}
    for entry in found:
        for name, version in entry.versions.items():
            seen.setdefault(name, set()).add(version)
    return "Versions: " + "; ".join(f"{name} {', '.join(sorted(seen[name]))}" for name in seen) + "."


def _cells(entry: Entry) -> list[str]:
    parameters, prunable = entry.fact("capture", "parameters"), entry.fact("prune", "prunable")
    return [
        entry.model,
        "" if parameters is None else f"{parameters:,}",
        *(_status(entry, stage) for stage in STAGES),
        "" if prunable is None else f"{prunable:.1%}",
        _two(entry, "zero", "{:.1%}"),
        _two(entry, "empty", "{}"),
        f"{entry.seconds:.1f}",
        f"{entry.peak_gib:.2f}",
    ]


def _status(entry: Entry, stage: str) -> str:
    """The status, and what is remarkable about how it was reached."""
    status = entry.status.get(stage, "")
    remarks = []
    if stage == "capture" and status == PASSED:
        regions = entry.fact(stage, "regions")
        remarks += [f"{regions} regions"] if regions != 1 else []
        remarks += ["fixed batch"] if entry.fact(stage, "dynamic_batch") is False else []
    if stage == "shrink" and status == PASSED:
        remarks.append(f"{entry.fact(stage, 'macs'):.1%} of the MACs")
    return f"{status} ({', '.join(remarks)})" if remarks else status


def _two(entry: Entry, name: str, form: str) -> str:
    """A fact of plain GraSP, and that with live point and floor."""
    values = [entry.fact("prune", f"plain_{name}"), entry.fact("prune", name)]
    return "" if None in values else " → ".join(form.format(value) for value in values)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _percent(part: int, whole: int) -> str:
    """A share that is 100% only if nothing is missing, and 0% only if nothing is there."""
    rounded = round(100 * part / whole, 1)
    return f"{min(rounded, 99.9) if part < whole else rounded:g}%"


@reading(ROWS)
def html(found: Sequence[Entry]) -> str:
    """One page that sorts and filters, with everything in it."""
    data = {
        "stages": STAGES,
        "rates": [
            {"library": r.library, "stage": r.stage, "text": str(r), "all": r.passed == r.tried}
            for r in rates(found)
        ],
        "versions": _versions(found),
        "models": [
            {
                "model": entry.model,
                "status": dict(entry.status),
                "shown": {stage: _status(entry, stage) for stage in STAGES},
                "reasons": dict(entry.reasons),
                "parameters": entry.fact("capture", "parameters"),
                "prunable": entry.fact("prune", "prunable"),
                "derived": entry.fact("prune", "derived"),
                "zero": [entry.fact("prune", "plain_zero"), entry.fact("prune", "zero")],
                "empty": [entry.fact("prune", "plain_empty"), entry.fact("prune", "empty")],
                "difference": entry.fact("onnx", "difference"),
                "seconds": entry.seconds,
                "peak": entry.peak_gib,
                "commit": entry.versions.get("fxprune", ""),
            }
            for entry in found
        ],
    }
    page = resources.files("fxprune.compat").joinpath("page.html").read_text(encoding="utf-8")
    return page.replace('"DATA"', json.dumps(data, separators=(",", ":")).replace("</", "<\\/"))


def update(path: Path, found: Sequence[Entry]) -> None:
    """Put the pass rates between the two markers of a Markdown file.

    Raises:
        CompatError: the file lacks the markers.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CompatError(f"{path}: expected a Markdown file with the two markers, got {error}") from error
    pattern = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
    if not pattern.search(text):
        raise CompatError(f"{path}: expected the lines {_BEGIN} and {_END}, to put the pass rates between")
    section = f"{_BEGIN}\n{summary(found)}\n{_END}"
    write(path, pattern.sub(lambda _: section, text, count=1))


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        CompatError: it cannot be written.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CompatError(f"cannot write {path}: {error.strerror or error}; choose another file") from error
