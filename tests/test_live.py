from __future__ import annotations

import logging

import pytest
import torch
from cases import CASES, ZeroScale, captured_case
from torch import Tensor, nn

from fxprune import capture, find_weights
from fxprune.live import revive
from fxprune.loss import classification
from fxprune.scoring import Scoring, prepare

LOSS = classification()


def scoring_of(module: nn.Module, x: Tensor, *, live: bool = True, seed: int = 0) -> Scoring:
    captured = capture(module, (x,))
    return prepare(captured, find_weights(captured), None, LOSS, live=live, seed=seed)


class Branch(nn.Module):
    """A branch behind a factor."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.factor = nn.Parameter(factor)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.factor * torch.tanh(self.branch(x)))


def test_a_normalisation_of_scale_zero_is_opened(caplog: pytest.LogCaptureFixture) -> None:
    module = ZeroScale()
    with caplog.at_level(logging.INFO, "fxprune"):
        scoring = scoring_of(module, torch.randn(2, 1, 8, 8))
    assert [change.name for change in scoring.changes] == ["block.bn2.weight"]
    assert "counted as one" in scoring.changes[0].change
    assert torch.equal(scoring.model.get_parameter("block.bn2.weight"), torch.ones(4))
    assert not module.block.bn2.weight.any()
    assert "live point: 1 tensors" in caplog.text


def test_live_false_changes_nothing() -> None:
    scoring = scoring_of(ZeroScale(), torch.randn(2, 1, 8, 8), live=False)
    assert scoring.changes == ()
    assert not scoring.model.get_parameter("block.bn2.weight").any()


@pytest.mark.parametrize(
    ("factor", "opened"),
    [
        (torch.zeros(()), True),
        (torch.zeros(1), True),
        (torch.full((6,), 1e-5), True),
        (torch.full((1, 6), -1e-5), True),
        (torch.tensor([0.0, 0, 0, 0, 0, 0.02]), False),
        (torch.full((6,), 0.1), False),
    ],
)
def test_scales_of_branches(factor: Tensor, opened: bool) -> None:
    scoring = scoring_of(Branch(factor), torch.randn(2, 6))
    assert [change.name for change in scoring.changes] == ["factor"] * opened
    expected = torch.ones_like(factor) if opened else factor
    assert torch.equal(scoring.model.get_parameter("factor"), expected)


def test_a_position_table_of_zeros_is_no_scale() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.table, self.shift = nn.Linear(6, 4), nn.Parameter(torch.zeros(5, 6)), nn.LayerNorm(6)
            self.shift.weight.data.fill_(1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.shift(x + self.table)).mean(1)

    assert scoring_of(Positions(), torch.randn(2, 5, 6)).changes == ()


def test_weights_of_zeros_are_drawn_afresh() -> None:
    module = CASES["mlp"].make()
    nn.init.zeros_(module.fc2.weight)
    x = torch.randn(2, 6)
    scoring = scoring_of(module, x, seed=3)
    assert [change.name for change in scoring.changes] == ["fc2.weight"]
    assert scoring.operands["fc2.weight"].all()
    assert not module.fc2.weight.any()
    again, other = scoring_of(module, x, seed=3), scoring_of(module, x, seed=4)
    assert torch.equal(again.operands["fc2.weight"], scoring.operands["fc2.weight"])
    assert not torch.equal(other.operands["fc2.weight"], scoring.operands["fc2.weight"])


def test_the_drawn_weights_have_the_variance_of_he() -> None:
    ((_, drawn),) = revive({"w": torch.zeros(64, 32, 3, 3), "kept": torch.ones(2, 2)}, seed=0)
    assert drawn.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)


def test_the_pruned_model_keeps_its_own_initialisation() -> None:
    captured, weights = captured_case("zero_scale")
    prepare(captured, weights, None, LOSS)
    assert not captured.host.get_parameter("block.bn2.weight").any()
