"""How long ONNX Runtime takes for a model's files."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fxprune.model import PrunedModel
from fxprune.onnx.outputs import named_inputs
from fxprune.onnx.read import open_session

RUNS = 50  # of each file, unless they take longer than
SECONDS = 10.0  # for all files together
_LEAST = 5


def call_times(files: Sequence[Path], model: PrunedModel) -> list[list[float]]:
    """Times of calls of each file on the model's sample inputs, in milliseconds, on torch's number of threads.

    The files take turns in a changing order, so that whatever else goes on in the machine meets all alike; the
    median leaves out the calls that it met worst.
    """
    inputs = named_inputs(model)
    calls = [_call(file, inputs, torch.get_num_threads()) for file in files]
    for call in calls:
        call()  # the first run of a session allocates
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    while len(times[0]) < RUNS and (len(times[0]) < _LEAST or time.perf_counter() - start < SECONDS):
        places = range(len(calls))
        for place in reversed(places) if len(times[0]) % 2 else places:
            begun = time.perf_counter()
            calls[place]()
            times[place].append(1000 * (time.perf_counter() - begun))
    return times


def latency_ratio(file: Path, whole: Path, model: PrunedModel) -> float:
    """The median time of a call of `file` over that of `whole`."""
    ours, theirs = map(statistics.median, call_times([file, whole], model))
    return ours / theirs


def _call(path: Path, inputs: dict[str, Any], threads: int) -> Callable[[], object]:
    session = open_session(path, threads=threads)
    taken = {entry.name for entry in session.get_inputs()}
    given = {name: value for name, value in inputs.items() if name in taken}
    return lambda: session.run(None, given)
