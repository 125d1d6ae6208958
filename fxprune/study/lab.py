"""`Lab`: one network on one data set, captured once; every experiment starts from its seed's initialisation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from fxprune import data as data_sets
from fxprune import zoo
from fxprune.batches import score_batches
from fxprune.capture import capture
from fxprune.channels import Budget
from fxprune.curvature import gradient_norm
from fxprune.data import ImageData
from fxprune.devices import find_device
from fxprune.loss import classification
from fxprune.model import PrunedModel
from fxprune.pipeline import prune, prune_channels
from fxprune.rewrite import drop_masks
from fxprune.scoring import prepare
from fxprune.seeds import derived
from fxprune.study.setting import Setting
from fxprune.training import Callback, Run, TrainConfig, evaluate, fit
from fxprune.weights import find_weights

Initialisation = Literal["own", "kaiming", "xavier", "normal"]
INITIALISATIONS: tuple[Initialisation, ...] = get_args(Initialisation)

_DEVIATION = 0.1  # of "normal", whatever the size of the layer
_MEASURED = 10  # images of each class on which the gradient is measured, none of them scored on or trained on


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
        accuracy: on all test images, in [0, 1], after the last epoch.
        losses: mean training loss of each epoch.
        gradients: squared gradient norm over the kept weights, at the start and after each epoch.
    """

    accuracy: float
    losses: tuple[float, ...]
    gradients: tuple[float, ...]


class Lab:
    """One network on one data set.

    Args:
        setting: says which.
        network: its name in the setting.
    """

    def __init__(self, setting: Setting, network: str) -> None:
        self.setting, self.network = setting, setting.network(network)
        spec, shape = self.network.model, self.network.model.input_shape or ()
        self.images = data_sets.load(setting.data, shape, limit=setting.limit)
        self._spec = replace(spec, num_classes=self.images.num_classes)
        # where it stays: pruned models share its memory, which a move of theirs would end
        self.device = find_device(self.network.train.device)
        self.captured = capture(self._build(0).to(self.device), (torch.zeros(2, *shape, device=self.device),))
        self.weights = find_weights(self.captured)

    def _build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return zoo.build(self._spec)[0]

    def start(self, seed: int, initialisation: Initialisation = "own") -> None:
        """Put the captured network at an initialisation; pruned models of it share its memory."""
        module = self._build(seed)
        if initialisation != "own":
            torch.manual_seed(derived(seed, f"initialisation {initialisation}"))
            for layer in module.modules():
                if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
                    _draw(layer.weight, initialisation)
        self.captured.host.load_state_dict(module.state_dict())

    def dense(self) -> PrunedModel:
        """The network with masks that keep everything."""
        return PrunedModel.dense(self.captured)

    def prune(
        self, criterion: str, sparsity: float, seed: int, *, per_class: int | None = None, **options: Any
    ) -> PrunedModel:
        """Prune the network where it stands, by the criterion to the letter: no floor, no live point."""
        settings = {
            "live": False,
            "floor": 0.0,
            "seed": seed,
            **options,
            **self._score(criterion, seed, per_class),
        }
        return prune(self.captured, criterion=criterion, sparsity=sparsity, **settings)

    def thin(self, criterion: str, share: float, seed: int, **options: Any) -> PrunedModel:
        """Cut channels of the network where it stands, until a share of its multiply-adds is left."""
        settings = {"live": False, "seed": seed, **options, **self._score(criterion, seed)}
        return prune_channels(self.captured, criterion=criterion, budget=Budget("macs", share), **settings)

    def _score(self, criterion: str, seed: int, per_class: int | None = None) -> dict[str, Any]:
        """The score images of a criterion, and the temperature of its loss."""
        found: dict[str, Any] = {}
        if criterion not in ("random", "magnitude", "synflow"):
            count, classes = per_class or self.setting.per_class, self.images.num_classes
            found["data"] = score_batches(self.images.score, classes=classes, per_class=count, seed=seed)
        if criterion != "grasp":  # that has its own; a Fisher matrix is of the loss that was trained with
            found["temperature"] = 1.0
        return found

    def train(self, model: PrunedModel, seed: int, callbacks: Sequence[Callback] = (), **changes: Any) -> Trained:
        """Train a model as the setting says, but for changes of `TrainConfig`."""
        config = replace(self.config(seed), **changes)
        watch = _Watch(self, model)
        history = fit(model, self._brief, config, [*callbacks, watch])
        accuracy = evaluate(model, self.images, device=config.device)
        return Trained(accuracy, tuple(epoch.loss for epoch in history), tuple(watch.norms))

    def config(self, seed: int) -> TrainConfig:
        """How the network trains under a seed."""
        return replace(self.network.train, seed=derived(seed, "training") % 2**31, device=str(self.device))

    @functools.cached_property
    def _brief(self) -> ImageData:
        """The data with few test images, for what is tested after each epoch."""
        limit = self.setting.test_limit
        if limit is None or limit >= len(self.images.test):
            return self.images
        return replace(self.images, test=Subset(self.images.test, range(limit)))  # type: ignore[arg-type]

    @functools.cached_property
    def measured(self) -> tuple[Tensor, Tensor]:
        """Test images, as many of each class, to measure gradients on."""
        classes = self.images.num_classes
        ((images, labels),) = score_batches(self.images.test, classes=classes, per_class=_MEASURED)
        return images, labels


class _Watch(Callback):
    """Measures the squared gradient norm over the kept weights, at the start and after each epoch.

    On test images in one batch with batch statistics. The graph that is measured shares the memory of the
    model's parameters, so that it is made once: the lab's, or that of a model with fewer channels.
    """

    name = "watch"

    def __init__(self, lab: Lab, model: PrunedModel) -> None:
        self._model = model
        captured, weights = lab.captured, lab.weights
        if model.record is not None and model.record.removed:
            captured = drop_masks(model.captured, model.weights)
            weights = find_weights(captured)
        self._scoring = prepare(captured, weights, [lab.measured], classification(1.0), live=False)
        self.norms: list[float] = []

    def begin(self, run: Run) -> None:
        read = {operand.data_ptr() for operand in self._scoring.operands.values()}
        assert read <= {parameter.data_ptr() for parameter in run.model.parameters()}, "the model was moved"
        self.after_epoch(run)

    def after_epoch(self, run: Run) -> None:  # noqa: ARG002
        self.norms.append(gradient_norm(replace(self._scoring, masks=self._model.masks)))


def _draw(weight: Tensor, initialisation: Initialisation) -> None:
    if initialisation == "kaiming":
        nn.init.kaiming_normal_(weight)
    elif initialisation == "xavier":
        nn.init.xavier_normal_(weight)
    else:
        nn.init.normal_(weight, 0.0, _DEVIATION)
