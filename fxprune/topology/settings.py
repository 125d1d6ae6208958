"""Checks of the settings of this package."""

from __future__ import annotations

import math
from numbers import Real

from fxprune.errors import TopologyError


def _require(holds: bool, name: str, wanted: str, value: object) -> None:
    """Raise `TopologyError` unless a setting holds what it is to hold."""
    if not holds:
        raise TopologyError(f"{name}: expected {wanted}, got {value!r}")


def check_integer(name: str, value: object, least: int | None = None) -> None:
    """Raise `TopologyError` unless `value` is an integer, and of at least `least`."""
    wanted = "an integer" if least is None else f"an integer of at least {least}"
    whole = isinstance(value, int) and not isinstance(value, bool)
    _require(whole and (least is None or value >= least), name, wanted, value)  # type: ignore[operator]


def check_share(name: str, value: object) -> None:
    """Raise `TopologyError` unless `value` lies between 0 and 1, both left out."""
    _require(_is_number(value) and 0 < value < 1, name, "a share above 0 and below 1", value)  # type: ignore[operator]


def check_number(name: str, value: object, *, zero: bool = False) -> None:
    """Raise `TopologyError` unless `value` is a finite number above zero, or with `zero` not below it."""
    wanted = "a number of at least 0" if zero else "a positive number"
    holds = _is_number(value) and math.isfinite(value) and (value > 0 or (zero and value == 0))  # type: ignore
    _require(holds, name, wanted, value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
