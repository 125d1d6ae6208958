"""`fit`: one flat loop of stochastic gradient descent, for the command line and the recipes.

A pruned model needs no loop of its own: any loop that trains the original trains it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fxprune.batches import loader
from fxprune.data import ImageData
from fxprune.errors import TrainError
from fxprune.loss import classification, find_logits
from fxprune.progress import track

logger = logging.getLogger(__name__)


Decay = Literal["cosine", "step", "constant"]


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `fit`.

    Attributes:
        epochs: passes over the training images.
        lr: peak learning rate; 0.1 is usual for residual networks with batch normalisation.
        momentum: Nesterov momentum.
        weight_decay: on weights with at least two dimensions; scales and biases are left alone.
        batch_size: images a step.
        schedule: ``"cosine"`` to zero, ``"step"`` divides by ten after a half and three quarters of the
            steps (the GraSP paper), ``"constant"``.
        warmup: share of the steps over which the rate rises linearly from zero.
        clip: largest norm of a gradient; None does not clip.
        seed: of the order of the images, of dropout and of augmentation.
        device: where to train.
    """

    epochs: int = 10
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    schedule: Decay = "cosine"
    warmup: float = 0.05
    clip: float | None = 5.0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, wanted, holds in (
            ("epochs", "a positive integer", lambda v: _is(int)(v) and v >= 1),
            ("batch_size", "a positive integer", lambda v: _is(int)(v) and v >= 1),
            ("seed", "an integer", _is(int)),
            ("lr", "a number of at least 0", lambda v: _is(Real)(v) and 0 <= v < math.inf),
            ("weight_decay", "a number of at least 0", lambda v: _is(Real)(v) and 0 <= v < math.inf),
            ("momentum", "a number in [0, 1)", lambda v: _is(Real)(v) and 0 <= v < 1),
            ("warmup", "a share in [0, 1]", lambda v: _is(Real)(v) and 0 <= v <= 1),
            ("clip", "a positive number or None", lambda v: v is None or (_is(Real)(v) and 0 < v < math.inf)),
            ("schedule", "cosine, step or constant", lambda v: v in get_args(Decay)),
            ("device", "the name of a device, such as cpu or cuda", _is(str)),
        ):
            value = getattr(self, name)
            if not holds(value):
                raise TrainError(f"{name}: expected {wanted}, got {value!r}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """From the settings of a recipe.

        Raises:
            TrainError: there is no setting of such a name, or its value is out of range.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise TrainError(f"unknown training setting {name!r}; there are {', '.join(sorted(known))}")
        return cls(**values)

    def rate(self, progress: float) -> float:
        """Learning rate after a share of all steps."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        if self.schedule == "cosine":
            done = (progress - self.warmup) / max(1 - self.warmup, 1e-9)
            return self.lr * (1 + math.cos(math.pi * min(done, 1.0))) / 2
        if self.schedule == "step":
            return self.lr * (0.1 if progress >= 0.5 else 1) * (0.1 if progress >= 0.75 else 1)
        return self.lr


@dataclass(frozen=True)
class Epoch:
    """What came of one pass: mean training loss, accuracies in [0, 1], seconds."""

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As a plain dict."""
        return asdict(self)


def fit(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> list[Epoch]:
    """Train `model` in place by SGD on cross-entropy, and test it after each epoch.

    Args:
        model: takes images, returns logits; dense or pruned.
        data: images to train and to test on.
        config: settings.
        on_epoch: called with the result of each epoch, to print it or to save the model.

    Raises:
        TrainError: the loss is not finite.
    """
    torch.manual_seed(config.seed)
    try:
        model.to(config.device)
    except RuntimeError as error:  # an unknown name, or a device that is not there
        reason = str(error).partition("\n")[0]
        raise TrainError(f"device: expected one that is here, got {config.device!r}: {reason}") from error
    # a last batch that is not full, of one image at worst, would spoil the statistics of normalisations
    whole = len(data.train) >= config.batch_size
    batches = loader(data.train, config.batch_size, shuffle=True, seed=config.seed, drop_last=whole)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    loss_fn = classification(temperature=1.0)
    steps, step, history = config.epochs * len(batches), 0, []
    for epoch in range(config.epochs):
        start, losses, right, seen = time.monotonic(), 0.0, 0, 0
        model.train()
        for images, labels in track(batches, f"epoch {epoch + 1}/{config.epochs}"):
            images, labels = images.to(config.device), labels.to(config.device)
            for group in optimizer.param_groups:
                group["lr"] = config.rate((step + 0.5) / steps)
            optimizer.zero_grad()
            output = model(images)
            loss = loss_fn(output, labels)
            if not torch.isfinite(loss):
                value = float(loss.detach())
                raise TrainError(
                    f"the loss became {value} in step {step + 1} of {steps}; lower lr ({config.lr:g})"
                )
            loss.backward()
            if config.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            step, seen = step + 1, seen + len(labels)
            losses += float(loss.detach()) * len(labels)
            right += _right(output, labels)
        accuracy = evaluate(model, data, config.batch_size, config.device)
        history.append(Epoch(epoch + 1, losses / seen, right / seen, accuracy, time.monotonic() - start))
        on_epoch(history[-1])
    return history


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
