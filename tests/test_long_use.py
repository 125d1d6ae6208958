"""What a process holds after many rounds; `benchmarks/long_use.py` has the figures of 200."""

from __future__ import annotations

import gc
import linecache
from pathlib import Path

import long_use
import pytest
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import fxprune
from fxprune import trace


def traces() -> int:
    gc.collect()
    return sum(type(each) is ShapeEnv for each in gc.get_objects())


def test_captures_that_are_over_leave_nothing() -> None:
    fxprune.capture(long_use.network(), (torch.zeros(2, 1, 8, 8),))
    before = traces()
    for _ in range(4):
        fxprune.capture(long_use.network(), (torch.zeros(2, 1, 8, 8),))
    assert traces() <= before + 1


def test_the_sources_of_old_graphs_go(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = fx.graph_module._loader.eval_cache
    fxprune.capture(long_use.network(), (torch.zeros(2, 1, 8, 8),))
    piled = len(sources)
    monkeypatch.setattr(trace, "_SOURCES", 3)
    captured = fxprune.capture(long_use.network(), (torch.zeros(2, 1, 8, 8),))
    assert 0 < len(sources) < piled
    assert sum(name.startswith("<eval_with_key>") for name in linecache.cache) <= len(sources)
    captured.host.eval()(torch.zeros(2, 1, 8, 8))


def test_rounds_level_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are counted, which does not depend on what else the machine does; memory follows them."""
    figures, after = long_use.measure(8)
    assert figures["files_a_round"] == 0
    assert figures["threads_a_round"] == 0
    assert figures["objects_a_round"] < 600  # of 5,000 that a round makes; torch and onnx keep some
    assert len(after) == 8
