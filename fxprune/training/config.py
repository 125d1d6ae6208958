"""Settings of a training run, and what each epoch of it comes to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, Literal, get_args

from fxprune.errors import TrainError

Decay = Literal["cosine", "step", "constant"]
Precision = Literal["float32", "bf16"]


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `fxprune.training.fit`.

    Attributes:
        epochs: passes over the training images.
        lr: peak learning rate; 0.1 is usual for residual networks with batch normalisation.
        momentum: of SGD.
        nesterov: whether momentum is Nesterov's; the papers' is not.
        weight_decay: on weights with at least two dimensions; scales and biases are left alone.
        decay_all: on these, too, as plain SGD has it.
        batch_size: images a step, of all processes together.
        schedule: ``"cosine"`` to zero, ``"step"`` divides by ten after a half and three quarters of the
            steps (the GraSP paper), ``"constant"``.
        warmup: share of the steps over which the rate rises linearly from zero.
        clip: largest norm of a gradient; None or infinity (``inf`` in a recipe) do not clip.
        seed: of the order of the images, of dropout and of augmentation.
        device: where to train.
        precision: ``"bf16"`` computes products in bfloat16, under autocast, and keeps parameters in float32; it
            needs no scaling of the loss, as float16 would.
    """

    epochs: int = 10
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = False
    batch_size: int = 128
    schedule: Decay = "cosine"
    warmup: float = 0.05
    clip: float | None = 5.0
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name, wanted, holds in (
            ("epochs", "a positive integer", lambda v: _is(int)(v) and v >= 1),
            ("batch_size", "a positive integer below 2^31", lambda v: _is(int)(v) and 1 <= v < 2**31),
            ("seed", "an integer", _is(int)),
            ("lr", "a number of at least 0", lambda v: _is(Real)(v) and 0 <= v < math.inf),
            ("weight_decay", "a number of at least 0", lambda v: _is(Real)(v) and 0 <= v < math.inf),
            ("momentum", "a number in [0, 1)", lambda v: _is(Real)(v) and 0 <= v < 1),
            ("warmup", "a share in [0, 1]", lambda v: _is(Real)(v) and 0 <= v <= 1),
            ("nesterov", "true or false", lambda v: isinstance(v, bool)),
            ("decay_all", "true or false", lambda v: isinstance(v, bool)),
            ("clip", "a positive number or None", lambda v: v is None or (_is(Real)(v) and v > 0)),
            ("schedule", "cosine, step or constant", lambda v: v in get_args(Decay)),
            ("precision", "float32 or bf16", lambda v: v in get_args(Precision)),
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

    def to_json(self) -> dict[str, Any]:
        """As a plain dict."""
        return asdict(self)

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
