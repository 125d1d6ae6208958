"""`fit`: one flat loop of stochastic gradient descent, for the command line, the recipes and the studies."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fxprune import distributed
from fxprune.batches import loader
from fxprune.data import ImageData
from fxprune.errors import TrainError
from fxprune.loss import classification, find_logits
from fxprune.progress import track
from fxprune.seeds import derived
from fxprune.training.callbacks import Callback, Run
from fxprune.training.config import Epoch, TrainConfig
from fxprune.training.state import TrainingState


def fit(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    callbacks: Sequence[Callback] = (),
    *,
    resume: TrainingState | None = None,
) -> list[Epoch]:
    """Train `model` in place by SGD on cross-entropy, and test it after each epoch.

    What an epoch draws (the order of the images, dropout, augmentation) depends on the seed and on its number
    only: a run that goes on from the state after an epoch ends with the same weights, bit for bit, as one that
    was not interrupted, on the CPUs of the same machine. (CUDA's kernels need not repeat themselves.)

    Where `torch.distributed` is initialised, each process takes its share of every batch, gradients are averaged
    by `DistributedDataParallel`, and all processes end with the same weights. Batch statistics are each
    process's own.

    Args:
        model: takes images, returns logits; dense or pruned.
        data: images to train and to test on.
        config: settings.
        callbacks: called in their order.
        resume: state of an interrupted run, whose weights `model` has.

    Returns:
        All epochs, those before an interruption included.

    Raises:
        TrainError: the loss is not finite, or the device is not there.
        ResumeError: the state does not fit the run.
    """
    run = _begin(model, data, config)
    for callback in callbacks:
        callback.begin(run)
    if resume is not None:
        resume.restore(run, callbacks)
    network = DistributedDataParallel(model) if distributed.active() else model
    for number in range(len(run.history), config.epochs):
        start = time.monotonic()
        seed = derived(config.seed, f"epoch {number}")
        torch.manual_seed(seed + distributed.rank())
        tally = _epoch(run, network, _train_batches(data, config, seed), callbacks)
        accuracy = evaluate(model, data, config.batch_size, config.device)
        seconds = time.monotonic() - start
        run.history.append(Epoch(number + 1, tally.loss, tally.accuracy, accuracy, seconds))
        for callback in callbacks:
            callback.after_epoch(run)
    return run.history


def _begin(model: nn.Module, data: ImageData, config: TrainConfig) -> Run:
    try:
        model.to(config.device)
    except RuntimeError as error:  # an unknown name, or a device that is not there
        reason = str(error).partition("\n")[0]
        raise TrainError(f"device: expected one that is here, got {config.device!r}: {reason}") from error
    decayed = [p for p in model.parameters() if config.decay_all or p.dim() > 1]
    others = [p for p in model.parameters() if not (config.decay_all or p.dim() > 1)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    nesterov = config.nesterov and config.momentum > 0
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
    each = len(_train_batches(data, config, 0))
    return Run(model, config, data, optimizer, config.epochs * each, each)


def _train_batches(data: ImageData, config: TrainConfig, seed: int) -> Any:
    processes = distributed.processes()
    if config.batch_size % processes:
        raise TrainError(f"batch_size: expected a multiple of {processes} processes, got {config.batch_size}")
    # a last batch that is not full, of one image at worst, would spoil the statistics of normalisations
    whole = len(data.train) >= config.batch_size
    return loader(data.train, config.batch_size // processes, shuffle=True, seed=seed, drop_last=whole)


@dataclass
class _Tally:
    """Sums over the images of an epoch."""

    losses: float = 0.0
    right: int = 0
    seen: int = 0
    start: float = 0.0

    @property
    def loss(self) -> float:
        return self.losses / self.seen

    @property
    def accuracy(self) -> float:
        return self.right / self.seen

    def add(self, loss: float, right: int, count: int) -> None:
        self.losses, self.right, self.seen = self.losses + loss * count, self.right + right, self.seen + count

    def of_all_processes(self, device: str) -> _Tally:
        """Summed over the processes."""
        if not distributed.active():
            return self
        sums = torch.tensor([self.losses, self.right, self.seen], dtype=torch.float64, device=device)
        distributed.add_up([sums], 0)
        losses, right, seen = sums.tolist()
        return _Tally(losses, int(right), int(seen), self.start)

    def line(self, phase: str) -> str:
        """What the progress bar says."""
        if not self.seen:
            return phase
        rate = self.seen / max(time.monotonic() - self.start, 1e-9)
        return f"{phase}: loss {self.loss:.3f}, {self.accuracy:.1%}, {rate:.0f} images/s"


def _epoch(run: Run, network: nn.Module, batches: Iterable[Any], callbacks: Sequence[Callback]) -> _Tally:
    config, loss_fn = run.config, classification(temperature=1.0)
    tally = _Tally(start=time.monotonic())
    network.train()
    phase = f"epoch {len(run.history) + 1}/{config.epochs}"
    for images, labels in track(batches, lambda: tally.line(phase), run.steps_per_epoch):
        images, labels = images.to(config.device), labels.to(config.device)
        for group in run.optimizer.param_groups:
            group["lr"] = config.rate((run.step + 0.5) / run.steps)
        for callback in callbacks:
            callback.before_step(run)
        run.optimizer.zero_grad()
        with _precision(config):
            output = network(images)
            loss = loss_fn(output, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainError(
                f"the loss became {value} in step {run.step + 1} of {run.steps}; lower lr ({config.lr:g})"
            )
        loss.backward()
        left_out = [callback.after_backward(run) for callback in callbacks]
        if not any(left_out):
            if config.clip is not None:
                nn.utils.clip_grad_norm_(run.model.parameters(), config.clip)
            run.optimizer.step()
        run.step += 1
        for callback in callbacks:
            callback.after_step(run)
        tally.add(value, _right(output, labels), len(labels))
    return tally.of_all_processes(config.device)


def _precision(config: TrainConfig) -> AbstractContextManager[Any]:
    device = torch.device(config.device).type
    return torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16")


def evaluate(model: nn.Module, data: ImageData, batch_size: int = 256, device: str = "cpu") -> float:
    """Share of the test images that `model` classifies correctly; its mode is left as it is."""
    training, right, seen = model.training, 0, 0
    model.eval().to(device)
    with torch.no_grad():
        for images, labels in track(loader(data.test, batch_size, shuffle=False, seed=0), "test"):
            right += _right(model(images.to(device)), labels.to(device))
            seen += len(labels)
    model.train(training)
    return right / seen


def _right(output: Any, labels: Tensor) -> int:
    return int((find_logits(output)[0].argmax(1) == labels).sum())
