"""The README's list of what is public is what can be imported, and the other way round."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def listed() -> dict[str, list[str]]:
    """Names by module, of the section's table."""
    section = README.read_text(encoding="utf-8").partition("\n## What is public\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", section, re.MULTILINE)
    return {module: re.findall(r"`(\w+)`", names) for module, names in rows}


def test_there_is_a_list() -> None:
    assert {"fxprune", "fxprune.criteria", "fxprune.topology", "fxprune.training"} <= set(listed())


@pytest.mark.parametrize("module", listed())
def test_it_is_what_the_module_offers(module: str) -> None:
    assert sorted(listed()[module]) == sorted(importlib.import_module(module).__all__)


@pytest.mark.parametrize("module", listed())
def test_public_things_are_there_and_say_what_they_are(module: str) -> None:
    found = importlib.import_module(module)
    for name in listed()[module]:
        value = getattr(found, name)
        if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), name
