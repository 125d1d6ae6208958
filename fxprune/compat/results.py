"""What a row of the compatibility matrix is the result of, and how many passed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from fxprune.rows import Kind, Row, own_version

ROWS = Kind("`fxprune compat`", {"model": str, "stage": str, "ok": bool, "versions": dict})

# What decides over the result of a stage, beside fxprune and the library that the model is from.
_DISTRIBUTIONS = {
    "capture": ("torch",),
    "prune": ("torch",),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "shrink": ("torch", "onnx", "onnxscript", "onnxruntime"),
}


def key(row: Mapping[str, Any], *, own: bool = True) -> tuple[str, str, str]:
    """What a row is the result of: model, stage and versions; that of fxprune is left out unless `own`."""
    counting = {name: version for name, version in row["versions"].items() if own or name != "fxprune"}
    return row["model"], row["stage"], json.dumps(counting, sort_keys=True)


def latest(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """The last row of each model and stage."""
    return {(row["model"], row["stage"]): row for row in rows}


def versions(model: str, stage: str) -> dict[str, str]:
    """The versions that a row of this model and stage depends on, by distribution."""
    library = model.partition(":")[0]
    found = {name: metadata.version(name) for name in (*_DISTRIBUTIONS[stage], library)}
    return {"fxprune": own_version(), **found}


@dataclass
class Tally:
    """How many of the models tried so far got through a stage; as a string, the line of a progress bar."""

    stage: str
    passed: int = 0
    count: int = 0

    def add(self, row: Row) -> None:
        """Count a row."""
        self.passed += row["ok"]
        self.count += 1

    @property
    def all_passed(self) -> bool:
        """Whether no model failed."""
        return self.passed == self.count

    def __str__(self) -> str:
        rate = f" ({self.passed / self.count:.1%})" if self.count else ""
        return f"{self.stage}: {self.passed} of {self.count} passed{rate}"
