from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from cases import CASES, captured_case
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fxprune import capture, criteria, find_weights, prune
from fxprune.criteria import registry
from fxprune.curvature import gradient_norm
from fxprune.errors import FxpruneError, ScoreError
from fxprune.loss import classification
from fxprune.scoring import Scoring, prepare

LOSS = classification()


def scored(name: str, seed: int = 0) -> tuple[Scoring, Mapping[str, Tensor]]:
    captured, weights = captured_case("conv_net")
    scoring = prepare(
        captured, weights, [CASES["conv_net"].batch(6)], LOSS, mode=criteria.get(name).mode, seed=seed
    )
    return scoring, criteria.get(name).score(scoring)


@pytest.mark.parametrize("name", criteria.names())
def test_every_criterion_scores_every_weight_and_repeats(name: str) -> None:
    scoring, first = scored(name)
    _, second = scored(name)
    assert list(first) == list(scoring.operands)
    for weight, operand in scoring.operands.items():
        assert first[weight].shape == operand.shape
        assert not first[weight].requires_grad
        assert torch.equal(first[weight], second[weight])


def test_snip() -> None:
    scoring, found = scored("snip")
    ((count, loss, _),) = scoring.passes()
    grads = torch.autograd.grad(loss / count, list(scoring.operands.values()))
    for (name, operand), grad in zip(scoring.operands.items(), grads, strict=True):
        torch.testing.assert_close(found[name], (operand.detach() * grad).abs())


def test_obd_differentiates_every_sample() -> None:
    captured, weights = captured_case("conv_net")
    x, y = CASES["conv_net"].batch(5)
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    found = criteria.get("obd").score(prepare(captured, weights, batches, LOSS, live=False, mode="eval"))
    module = CASES["conv_net"].make().eval()
    for name, score in found.items():
        parameter = module.get_parameter(name)
        grads = [torch.autograd.grad(LOSS(module(x[i : i + 1]), y[i : i + 1]), parameter)[0] for i in range(5)]
        expected = parameter.detach().square() * torch.stack(grads).square().mean(0) / 2
        torch.testing.assert_close(score, expected)


def test_synflow_conserves_its_flow_from_layer_to_layer() -> None:
    module = nn.Sequential(*(nn.Linear(6, 6, bias=False), nn.ReLU()) * 3, nn.Linear(6, 4, bias=False))
    captured = capture(module, (torch.randn(2, 6),))
    scoring = prepare(captured, find_weights(captured), None, LOSS, mode="eval")
    found = criteria.get("synflow").score(scoring)
    sums = torch.stack([score.sum() for score in found.values()])
    assert all((score >= 0).all() for score in found.values())
    torch.testing.assert_close(sums * torch.tensor([1 / 3, 1.0]), sums[1].expand(2))
    assert torch.equal(scoring.operands["0.weight"], module[0].weight)


def test_magnitude() -> None:
    scoring, found = scored("magnitude")
    assert all(torch.equal(found[n], operand.detach().abs()) for n, operand in scoring.operands.items())


def test_magnitude_and_random_see_the_weights_as_they_are() -> None:
    assert not criteria.get("magnitude").live
    assert not criteria.get("random").live
    assert criteria.get("grasp").live


def test_random_follows_the_seed() -> None:
    one, other = scored("random", seed=1)[1], scored("random", seed=2)[1]
    assert not any(torch.equal(one[n], other[n]) for n in one)
    values = torch.cat([v.flatten() for v in one.values()])
    assert 0 <= values.min() < 0.05
    assert 0.95 < values.max() < 1


def test_names_are_sorted() -> None:
    assert criteria.names() == sorted(criteria.names())
    assert {"grasp", "magnitude", "random"} <= set(criteria.names())


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ScoreError, match=r"unknown criterion 'grap'; did you mean 'grasp'\?"):
        criteria.get("grap")
    with pytest.raises(ScoreError, match=r"unknown criterion 'xyz'; there are grasp"):
        criteria.get("xyz")


def test_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_criteria", dict(registry._criteria))

    @criteria.register("mine", live=False)
    def mine(scoring: Scoring) -> dict[str, Tensor]:
        return {name: -operand.detach().abs() for name, operand in scoring.operands.items()}

    assert "mine" in criteria.names()
    assert criteria.get("mine").score is mine
    with pytest.raises(ScoreError, match="'mine' is registered already"):
        criteria.register("mine")(mine)
    module = CASES["mlp"].make()
    pruned = prune(module, torch.randn(2, 6), sparsity=0.5, criterion="mine")
    for name, mask in pruned.masks.items():  # keeps the smallest
        weight = module.get_parameter(name).abs()
        assert weight[mask].max() < weight[~mask].max()
    assert pruned.record.criterion == "mine"
    assert not pruned.record.live


def test_a_function_is_a_criterion() -> None:
    def first_rows(scoring: Scoring) -> dict[str, Tensor]:
        return {name: -torch.arange(float(len(o)))[:, None].expand_as(o) for name, o in scoring.operands.items()}

    pruned = prune(
        CASES["mlp"].make(), torch.randn(2, 6), sparsity=0.5, criterion=first_rows, floor=0, ranking="layer"
    )
    assert pruned.record.criterion == "first_rows"
    assert pruned.masks["fc2.weight"].tolist() == [[True] * 7] * 2 + [[False] * 7] * 2


@pytest.mark.parametrize(
    "result",
    [
        {"fc1.weight": torch.rand(7, 6)},
        {"fc1.weight": torch.rand(7, 6), "fc2.weight": torch.rand(4, 7), "fc3.weight": torch.rand(2)},
        {"fc1.weight": torch.rand(7, 6), "fc2.weight": torch.rand(7, 4)},
        {"fc1.weight": torch.rand(7, 1), "fc2.weight": torch.rand(4, 7)},
        {"fc1.weight": 1.0, "fc2.weight": 2.0},
        {"fc1.weight": torch.rand(7, 6), "fc2.weight": torch.full((4, 7), float("nan"))},
        {},
        None,
    ],
    ids=["one_missing", "one_too_many", "transposed", "broadcastable", "no_tensors", "nan", "empty", "none"],
)
def test_a_criterion_that_returns_something_else(result: Any) -> None:
    with pytest.raises(FxpruneError):
        prune(CASES["mlp"].make(), torch.randn(2, 6), sparsity=0.5, criterion=lambda scoring: result)


# What the score means: the kept network's gradient flow, measured on images that it did not see.


class FourLayers(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """100 images to score on, ten a class, and 200 others."""
    images, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
    images = (images.float().view(-1, 1, 8, 8) / 8) - 1
    chosen = torch.cat([(labels == c).nonzero()[:10, 0] for c in range(10)])
    others = torch.cat([(labels == c).nonzero()[10:30, 0] for c in range(10)])
    return (images[chosen], labels[chosen]), (images[others], labels[others])


def reversed_grasp(scoring: Scoring) -> dict[str, Tensor]:
    return {name: -score for name, score in criteria.get("grasp").score(scoring).items()}


@pytest.mark.parametrize("sparsity", [0.9, 0.95])
def test_grasp_keeps_the_gradient_flow(sparsity: float) -> None:
    score_on, measure_on = digits()
    flow = {"grasp": 0.0, "reversed": 0.0}
    for seed in range(3):
        torch.manual_seed(seed)
        model = FourLayers()
        for name, criterion in (("grasp", "grasp"), ("reversed", reversed_grasp)):
            pruned = prune(model, data=[score_on], sparsity=sparsity, criterion=criterion)
            scoring = prepare(pruned.captured, pruned.weights, [measure_on], LOSS)
            flow[name] += gradient_norm(scoring)
    assert flow["grasp"] > 2 * flow["reversed"]


def test_random_masks_do_not_follow_the_weights_that_the_same_seed_drew() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 10))
    pruned = prune(model, torch.zeros(2, 50), sparsity=0.5, criterion="random", seed=0, floor=0)
    pairs = torch.stack([model[0].weight.detach().flatten(), pruned.masks["0.weight"].flatten().float()])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.1
