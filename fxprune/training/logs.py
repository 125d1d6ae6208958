"""Logs of a training run, as callbacks: a CSV file, and TensorBoard where that is installed."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from fxprune.errors import TrainError
from fxprune.files import replacing, require_place
from fxprune.training.callbacks import Callback, Run
from fxprune.training.config import Epoch


class CsvLog(Callback):
    """Keeps a table of the epochs: number, loss, accuracies in [0, 1], seconds. It is whole at any time."""

    name = "csv"

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, run: Run) -> None:  # noqa: ARG002
        """Find out whether the table can be written."""
        with self._saying_so():
            require_place(self._path)

    def after_epoch(self, run: Run) -> None:
        """Write all epochs so far, those before an interruption included."""
        with self._saying_so(), replacing(self._path) as temporary, temporary.open("w", newline="") as file:
            rows = csv.DictWriter(file, [field.name for field in fields(Epoch)])
            rows.writeheader()
            rows.writerows(epoch.to_json() for epoch in run.history)

    @contextlib.contextmanager
    def _saying_so(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainError(
                f"cannot write {self._path}: {error.strerror or error}; choose another log"
            ) from error


class TensorBoard(Callback):
    """Writes the same to a folder that TensorBoard reads.

    Raises:
        TrainError: TensorBoard is not installed, or cannot write there.
    """

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainError(
                "expected tensorboard, which is not installed: pip install fxprune[tensorboard]"
            ) from error
        try:
            self._writer = SummaryWriter(folder)
        except OSError as error:
            raise TrainError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error

    def after_epoch(self, run: Run) -> None:
        """Add the epoch that is over."""
        epoch = run.history[-1]
        for name in ("loss", "train_accuracy", "test_accuracy"):
            self._writer.add_scalar(name, getattr(epoch, name), epoch.epoch)
        self._writer.flush()
