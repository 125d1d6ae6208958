"""Settings files: TOML tables, in which a model's file is named from where the settings are."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fxprune import zoo
from fxprune.errors import FxpruneError
from fxprune.zoo import ModelSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_tables(
    path: Path, what: str, known: Mapping[str, Sequence[str] | None], error: type[FxpruneError]
) -> dict[str, dict[str, Any]]:
    """The tables of a file, those that it lacks as empty ones.

    Args:
        path: the file.
        what: what it should be, for messages.
        known: the tables there are, with their entries; None where something else checks these.
        error: what to raise.

    Raises:
        error: the file cannot be read, or says something that no setting is for.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as reason:
        raise error(
            f"{path}: expected {what} in TOML, got {reason.strerror or reason}; check the path"
        ) from reason
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as reason:
        raise error(f"{path}: expected {what} in TOML, got {reason}") from reason
    require_known(path, "tables", tables, known, error)
    for name, entries in known.items():
        table = tables.setdefault(name, {})
        if not isinstance(table, dict):
            raise error(f"{path}: expected a table [{name}], got {table!r}")
        if entries is not None:
            require_known(path, f"[{name}]", table, entries, error)
    return tables


def require_known(
    path: Path, where: str, given: Iterable[str], known: Iterable[str], error: type[FxpruneError]
) -> None:
    """Check that all names are known.

    Raises:
        error: one is not; says which there are.
    """
    for name in given:
        if name not in known:
            raise error(f"{path}: unknown {name!r} in {where}; there are {', '.join(known)}")


def model_spec(path: Path, name: str, table: Mapping[str, Any]) -> ModelSpec:
    """The model of a table with ``input``, ``num_classes`` and ``kwargs``, each if need be.

    Args:
        path: the settings file, from whose folder ``file.py:FACTORY`` is found.
        name: the model, as on the command line.
        table: says the rest.
    """
    file, separator, factory = name.rpartition(":")
    if separator and file.endswith(".py"):
        name = f"{(path.parent / file).resolve()}:{factory}"
    shape = zoo.parse_shape(str(table["input"])) if "input" in table else None
    return ModelSpec(name, shape, table.get("num_classes"), table.get("kwargs", {}))
