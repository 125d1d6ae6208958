"""`run`: experiments that a results file lacks, one or several at a time; an interrupted run goes on."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fxprune.errors import FxpruneError, ResultsError, StudyError, TrainError
from fxprune.progress import track
from fxprune.rows import Kind, Row, RowFile, now, own_version
from fxprune.study.experiment import Experiment, header, perform
from fxprune.study.lab import Lab
from fxprune.study.setting import Setting

_TEXTS = dict.fromkeys(("experiment", "setting", "kind", "network", "method"), str)
ROWS = Kind("`fxprune study`", {**_TEXTS, "sparsity": (int, float), "seed": int})


def run(setting: Setting, experiments: Sequence[Experiment], file: Path, *, jobs: int = 1) -> list[Row]:
    """Do what the file lacks, and return all rows of the experiments, old and new.

    An experiment that was interrupted is done again as a whole.

    Args:
        setting: where.
        experiments: what.
        file: JSON lines.
        jobs: experiments at a time, each in a process with its share of the cores. Sums of several threads round
            otherwise, which training amplifies: give the same number of jobs and threads for the same numbers.

    Raises:
        ResultsError: the file holds results of another setting, or another run writes to it.
        StudyError: an experiment cannot be done; says which. One that diverges is a row, ``failed`` saying why.
    """
    with RowFile(file, ROWS, resume=True) as results:
        require_setting(file, setting, results.rows)
        parts: dict[str, set[float]] = {}
        for row in results.rows:
            parts.setdefault(row["experiment"], set()).add(row["sparsity"])
        done = {e.key for e in experiments if set(e.sparsities) <= parts.get(e.key, set())}
        left = [experiment for experiment in experiments if experiment.key not in done]
        label = f"{len(experiments) - len(left)} of {len(experiments)} experiments were done"
        with _results(setting, left, jobs) as found:
            for rows in track(found, label, len(left)):
                for row in rows:
                    results.append(
                        {**row, "setting": setting.digests[row["kind"]], "versions": _versions(), "at": now()}
                    )
        wanted = {experiment.key for experiment in experiments}
        latest = {(row["experiment"], row["sparsity"]): row for row in results.rows}
        return [row for (key, _), row in latest.items() if key in wanted]


def require_setting(file: Path, setting: Setting, rows: Sequence[Row]) -> None:
    """Check that the rows of a file are of a setting.

    Raises:
        ResultsError: some are not.
    """
    if any(row["setting"] != setting.digests.get(row["kind"]) for row in rows):
        raise ResultsError(
            f"{file} has results of another setting ({setting.name} has changed since, or is not it): "
            "choose another output, or remove it"
        )


@contextmanager
def _results(setting: Setting, left: Sequence[Experiment], jobs: int) -> Iterator[Iterator[list[Row]]]:
    work = functools.partial(_perform, setting)
    if jobs < 2 or len(left) < 2:
        yield map(work, left)
        return
    # a fork of a process that has used torch's threads can hang
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with ProcessPoolExecutor(jobs, context, _begin, (threads,)) as pool:
        try:
            yield _ended(pool, work, left)
        finally:  # an error or Ctrl-C does not wait for what is running
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()


def _ended(
    pool: ProcessPoolExecutor, work: Callable[[Experiment], list[Row]], left: Sequence[Experiment]
) -> Iterator[list[Row]]:
    try:
        for future in as_completed([pool.submit(work, experiment) for experiment in left]):
            yield future.result()
    except BrokenProcessPool as error:
        raise StudyError(
            "a process that did experiments was killed, for want of memory most likely; give fewer --jobs, and "
            "the study goes on where it stopped"
        ) from error


def _begin(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)


def _perform(setting: Setting, experiment: Experiment) -> list[Row]:
    try:
        return list(perform(_lab(setting, experiment.network), experiment))
    except TrainError as error:  # it diverged, and would again
        return [header(experiment, sparsity) | {"failed": str(error)} for sparsity in experiment.sparsities]
    except FxpruneError as error:
        raise StudyError(f"{experiment}: {error}") from error


_labs: dict[tuple[str, str], Lab] = {}


def _lab(setting: Setting, network: str) -> Lab:
    """Labs are kept: capturing a network takes as long as training a small one."""
    key = (setting.digests["train"], network)
    if key not in _labs:
        _labs[key] = Lab(setting, network)
    return _labs[key]


@functools.cache
def _versions() -> dict[str, Any]:
    found = {name: metadata.version(name) for name in ("torch", "torchvision")}
    return {"fxprune": own_version(), **found}
