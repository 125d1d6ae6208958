from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import data
from fxprune.data import ImageData
from fxprune.errors import DataError, TrainError
from fxprune.training import EachEpoch, Epoch, TrainConfig, evaluate, fit

SHAPE = (1, 8, 8)
QUICK = TrainConfig(epochs=1, lr=0.05, batch_size=32)


class Subset:
    """The first samples of an image set."""

    def __init__(self, samples: Any, size: int) -> None:
        self.samples, self.targets = samples, samples.targets[:size]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.samples[index]


def small(digits: ImageData, train: int = 64, test: int = 32) -> ImageData:
    return replace(digits, train=Subset(digits.train, train), test=Subset(digits.test, test))


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return data.load("digits", SHAPE)


def scored(digits: ImageData, sparsity: float = 0.9, model: nn.Module | None = None) -> fxprune.PrunedModel:
    batches = fxprune.score_batches(digits.score, classes=10, per_class=2)
    return fxprune.prune(model or conv_net(), data=batches, sparsity=sparsity)


def test_a_pruned_net_learns_digits_and_stays_sparse(digits: ImageData) -> None:
    pruned = scored(digits)
    before = {name: mask.clone() for name, mask in pruned.masks.items()}
    seen: list[Epoch] = []
    history = fit(pruned, digits, replace(QUICK, epochs=6), [EachEpoch(seen.append)])
    losses = [epoch.loss for epoch in history]
    assert losses[-1] < losses[0] / 3
    assert history[-1].test_accuracy > 0.9
    assert history[-1].train_accuracy > 0.9
    assert history == seen
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4, 5, 6]
    for name, mask in pruned.masks.items():
        assert torch.equal(mask, before[name])
        assert not pruned.effective_weight(name)[~mask].any()
    # the last accuracy is that of the model as it is left, with the removed weights at zero for good
    dense = conv_net()
    dense.load_state_dict(pruned.dense_state_dict())
    assert evaluate(dense, digits) == history[-1].test_accuracy
    assert pruned.masks.kept == sum(int(torch.count_nonzero(dense.state_dict()[name])) for name in before)


def test_a_dense_net_learns_in_the_same_loop(digits: ImageData) -> None:
    (epoch,) = fit(conv_net(), digits, QUICK)
    assert epoch.test_accuracy > 0.8
    assert epoch.seconds > 0
    assert json.loads(json.dumps(epoch.to_json()))["test_accuracy"] == epoch.test_accuracy


def test_the_seed_fixes_the_result(digits: ImageData) -> None:
    def trained(seed: int) -> tuple[float, dict[str, Tensor]]:
        model = conv_net()
        (epoch,) = fit(model, small(digits), replace(QUICK, seed=seed))
        return epoch.loss, model.state_dict()

    (loss, state), (again, state_again), (other, _) = trained(0), trained(0), trained(1)
    assert loss == again
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    assert loss != other


def test_a_single_step_trains(digits: ImageData) -> None:
    model = conv_net()
    before = model[0].weight.clone()
    fit(model, small(digits, train=32), replace(QUICK, schedule="cosine"))
    assert not torch.equal(model[0].weight, before)


def test_a_last_batch_of_one_image_spoils_no_statistics(digits: ImageData) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
    pruned = scored(digits, 0.5, net)
    fit(pruned, small(digits, train=33), QUICK)
    assert all(bool(tensor.isfinite().all()) for tensor in pruned.state_dict().values())


class WithBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)) * 0.0


def test_weight_decay_leaves_biases_alone(digits: ImageData) -> None:
    model = WithBias()  # its gradients are zero: only the decay moves a parameter
    weight, bias = model.linear.weight.detach().clone(), model.linear.bias.detach().clone()
    fit(model, small(digits), replace(QUICK, weight_decay=0.1))
    assert model.linear.weight.norm() < weight.norm()
    assert torch.equal(model.linear.bias, bias)


@pytest.mark.parametrize("clip", [None, 1e-6])
def test_clipping_bounds_the_step(digits: ImageData, clip: float | None) -> None:
    model = conv_net()
    before = model[0].weight.detach().clone()
    fit(model, small(digits), replace(QUICK, clip=clip, weight_decay=0.0))
    moved = float((model[0].weight.detach() - before).norm())
    assert (moved < 1e-4) == (clip is not None)


class NotANumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)) * math.nan


def test_a_loss_that_is_no_number_stops_training(digits: ImageData) -> None:
    model = NotANumber()
    before = model.linear.weight.detach().clone()
    with pytest.raises(TrainError, match=r"loss became nan in step 1 of 2; lower lr \(0.05\)"):
        fit(model, small(digits), QUICK)
    assert torch.equal(model.linear.weight, before)


def test_a_rate_that_is_too_high_is_named(digits: ImageData) -> None:
    with pytest.raises(TrainError, match=r"lower lr \(1e\+30\)"):
        fit(conv_net(), digits, replace(QUICK, lr=1e30, clip=None, warmup=0.0))


def test_labels_the_model_lacks_are_refused(digits: ImageData) -> None:
    with pytest.raises(DataError, match="classes 0 to 4"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), digits, QUICK)


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_keeps_the_mode_and_the_state(digits: ImageData, training: bool) -> None:
    model = conv_net().train(training)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accuracy = evaluate(model, small(digits), batch_size=7)
    assert 0 <= accuracy <= 1
    assert model.training is training
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_evaluate_counts_right_answers(digits: ImageData) -> None:
    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.full((len(x),), 3), 10).float()

    held_out = small(digits, test=100)
    assert evaluate(Always(), held_out, batch_size=30) == held_out.test.targets.count(3) / 100


@pytest.mark.parametrize(
    ("schedule", "progress", "rate"),
    [
        ("cosine", 0.05, 0.25),
        ("cosine", 0.1, 0.5),
        ("cosine", 0.2, 1.0),
        ("cosine", 0.6, 0.5),
        ("cosine", 0.4, (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 1.0, 0.0),
        ("step", 0.1, 0.5),
        ("step", 0.49, 1.0),
        ("step", 0.5, 0.1),
        ("step", 0.75, 0.01),
        ("constant", 0.1, 0.5),
        ("constant", 1.0, 1.0),
    ],
)
def test_schedules(schedule: Any, progress: float, rate: float) -> None:
    config = TrainConfig(lr=3.0, schedule=schedule, warmup=0.2)
    assert config.rate(progress) == pytest.approx(3.0 * rate, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_without_warmup_the_rate_starts_at_its_peak(schedule: Any) -> None:
    assert TrainConfig(lr=0.2, schedule=schedule, warmup=0.0).rate(0.0) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", True),
        ("batch_size", -1),
        ("batch_size", "8"),
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "fast"),
        ("momentum", -0.9),
        ("momentum", 1.0),
        ("weight_decay", None),
        ("warmup", -1),
        ("warmup", 1.5),
        ("schedule", "linear"),
        ("clip", -1.0),
        ("clip", 0.0),
        ("clip", "yes"),
        ("seed", "x"),
        ("device", 3),
    ],
)
def test_settings_are_checked(name: str, value: object) -> None:
    with pytest.raises(TrainError, match=f"^{name}: "):
        TrainConfig.from_dict({name: value})


def test_unknown_settings_are_named() -> None:
    with pytest.raises(TrainError, match=r"unknown training setting 'epoch'; there are .*epochs"):
        TrainConfig.from_dict({"epoch": 3})


def test_settings_of_a_recipe() -> None:
    assert TrainConfig.from_dict({"epochs": 3, "clip": None, "lr": 1}) == TrainConfig(epochs=3, clip=None, lr=1)


def test_a_device_that_does_not_exist_is_refused(digits: ImageData) -> None:
    with pytest.raises(TrainError, match="device"):
        fit(conv_net(), small(digits), replace(QUICK, device="gpu"))
