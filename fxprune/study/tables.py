"""Means over seeds, and Markdown tables of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxprune.rows import Row


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of a sample, so with one fewer degree of freedom) over seeds."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        found = list(values)
        return cls(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0, len(found))

    def to_json(self) -> dict[str, Any]:
        """Rounded, as a plain dict."""
        return {"mean": _rounded(self.mean), "std": _rounded(self.deviation), "seeds": self.count}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Spread:
        """What `to_json` gave."""
        return cls(values["mean"], values["std"], values["seeds"])

    def percent(self, wanted: int | None = None) -> str:
        """As ``97.2 ± 0.3``; says how many seeds there are where that is not as many as wanted."""
        text = f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f}"
        return text if wanted in (None, self.count) else f"{text} ({self.count} of {wanted} seeds)"

    def among(self, best: float, wanted: int) -> str:
        """As `percent`, in bold where the mean is the best."""
        text = self.percent(wanted)
        return f"**{text}**" if self.mean == best else text

    def number(self) -> str:
        """As ``12.3 ± 3.4`` or ``(5.68 ± 0.55)e+05``: both with the decimals that give the larger three digits."""
        larger = max(abs(self.mean), abs(self.deviation))
        power = math.floor(math.log10(larger)) if larger else 0
        if -4 < power < 4:
            decimals = max(0, 2 - power)
            return f"{self.mean:.{decimals}f} ± {self.deviation:.{decimals}f}"
        return f"({self.mean / 10**power:.2f} ± {self.deviation / 10**power:.2f})e{power:+03d}"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def grouped(rows: Iterable[Row], by: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by what a function says of each, in order of appearance."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(by(row), []).append(row)
    return found


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; cells must hold no line break."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in [header, rule, *lines])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
