"""The methods by name."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from fxprune.errors import TopologyError
from fxprune.topology.deep_r import DeepR
from fxprune.topology.dsr import DSR
from fxprune.topology.movement import Movement
from fxprune.topology.rigl import RigL
from fxprune.topology.set import SET

_METHODS: tuple[type[Movement], ...] = (SET, RigL, DeepR, DSR)
TOPOLOGIES: dict[str, type[Movement]] = {method.name: method for method in _METHODS}


def make(name: str, /, seed: int = 0, **settings: Any) -> Movement:
    """The callback of the method called `name`.

    Args:
        name: one of `TOPOLOGIES`.
        seed: of what it draws.
        settings: of the method; each has its paper's default.

    Raises:
        TopologyError: there is no such method or setting, or a setting is out of range.
    """
    if name not in TOPOLOGIES:
        raise TopologyError(f"unknown topology {name!r}; {_hint(name, TOPOLOGIES)}")
    method = TOPOLOGIES[name]
    known = [field.name for field in fields(method) if field.init and field.name != "seed"]  # type: ignore[arg-type]
    for setting in settings:
        if setting not in known:
            raise TopologyError(f"unknown setting {setting!r} of {name}; {_hint(setting, known)}")
    return method(seed=seed, **settings)  # type: ignore[call-arg]


def _hint(name: object, known: Any) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"there are {', '.join(known)}"
