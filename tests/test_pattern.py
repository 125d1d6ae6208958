"""N of every M: where groups lie, what is kept of each, and that it stays so to the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import export_onnx, find_weights, prune
from fxprune.capture import capture
from fxprune.checkpoint import load, save
from fxprune.errors import FxpruneError, MaskError, TopologyError, VerificationError, WeightError
from fxprune.pattern import Pattern
from fxprune.saliency import Saliency
from fxprune.stages import PruneJob
from fxprune.topology import make
from fxprune.zoo import ModelSpec


class Custom(nn.Module):
    """A weight that a function of the user's multiplies."""

    def __init__(self, forward: Any, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x, self.weight)


def packed(x: Tensor, weight: Tensor) -> Tensor:
    q, k, v = weight.chunk(3)
    return F.linear(x, q) + F.linear(x, k) + F.linear(x, v)


OPERANDS = {
    "linear": (nn.Linear(8, 4), (2, 8), 1),
    "conv": (nn.Conv2d(8, 4, 3), (2, 8, 5, 5), 1),
    "grouped conv": (nn.Conv1d(8, 4, 3, groups=2), (2, 8, 5), 1),
    "transposed conv": (nn.ConvTranspose2d(8, 4, 3), (2, 8, 5, 5), 0),
    "transposed conv in groups": (nn.ConvTranspose2d(8, 4, 3, groups=2), (2, 8, 5, 5), None),
    "matmul on the right": (Custom(lambda x, w: x @ w, 8, 4), (2, 8), 0),
    "matmul on the left": (Custom(lambda x, w: w @ x, 4, 8), (2, 8, 3), 1),
    "transposed": (Custom(lambda x, w: x @ w.t(), 4, 8), (2, 8), 1),
    "permuted and cast": (Custom(lambda x, w: x @ w.permute(1, 0).contiguous().float(), 4, 8), (2, 8), 1),
    "addmm": (Custom(lambda x, w: torch.addmm(x[0, :4], x, w), 8, 4), (2, 8), 0),
    "einsum": (Custom(lambda x, w: torch.einsum("bi,hio->bho", x, w), 2, 8, 4), (2, 8), 1),
    "einsum over two": (Custom(lambda x, w: torch.einsum("bhi,hio->bo", x, w), 2, 8, 4), (2, 2, 8), None),
    "packed": (Custom(packed, 12, 8), (2, 8), 1),
    "both ways": (Custom(lambda x, w: x @ w @ w.t(), 8, 8), (2, 8), None),
    "joined dimensions": (Custom(lambda x, w: F.linear(x, w.flatten(1)), 4, 2, 4), (2, 8), None),
    "gathered": (Custom(lambda x, w: F.linear(x, w[:, torch.arange(7, -1, -1)]), 4, 8), (2, 8), None),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), (2, 8), 1),
    "lstm": (nn.LSTM(8, 4), (3, 2, 8), 1),
}


@pytest.mark.parametrize("name", OPERANDS)
def test_the_dimension_that_products_sum_over(name: str) -> None:
    module, shape, dim = OPERANDS[name]
    weights = find_weights(capture(module, torch.randn(shape)))
    assert {weight.input_dim for weight in weights} == {dim}


def test_the_best_of_each_group_are_kept() -> None:
    (weight,) = find_weights(capture(nn.Linear(8, 2), torch.randn(2, 8)))
    weights = find_weights(capture(nn.Linear(8, 2), torch.randn(2, 8)))
    values = torch.tensor([[1.0, -2, 3, -4, 0, 0, 0, 0], [4, 4, 4, 5, -1, -3, -2, -4]])
    mask = Pattern(2, 4).cut(Saliency({"weight": values}), weights)["weight"]
    assert mask.int().tolist() == [[1, 0, 1, 0, 1, 1, 0, 0], [1, 0, 0, 1, 1, 0, 1, 0]]
    assert Pattern(2, 4).holds(weight, mask.float())
    mask[0, 1] = True
    assert not Pattern(2, 4).holds(weight, mask.float())
    assert Pattern(3, 4).holds(weight, mask.float())


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_every_group_of_a_network(pattern: str) -> None:
    data = [(torch.randn(4, 3, 32, 32), torch.randint(10, (4,)))]
    model = timm.create_model("test_resnet", num_classes=10)
    pruned = prune(model, data=data, pattern=pattern)
    found = Pattern.parse(pattern)
    assert pruned.record is not None
    assert pruned.record.pattern == pattern
    assert pruned.record.sparsity == pruned.masks.sparsity == 1 - found.kept / found.of
    for weight in pruned.weights:
        along = pruned.masks[weight.name].movedim(1, -1).reshape(-1, found.of)
        assert (along.sum(1) == found.kept).all()
    stem = next(name for name, reason in pruned.weights.skipped.items() if "cannot take" in reason)
    assert pruned.weights.skipped[stem] == f"cannot take {pattern}: 3 inputs are no multiple of {found.of}"


def test_a_pattern_stays_through_training_checkpoint_and_file(tmp_path: Path) -> None:
    spec = ModelSpec("timm:test_vit", (3, 160, 160), 10)
    model = timm.create_model("test_vit", num_classes=10)
    data = [(torch.randn(2, 3, 160, 160), torch.randint(10, (2,)))]
    pruned = prune(model, data=data, pattern="2:4", criterion="snip")
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    F.cross_entropy(pruned(data[0][0]), data[0][1]).backward()
    optimizer.step()
    save(pruned, tmp_path / "net", model=spec, input_shape=(3, 160, 160))
    again = load(tmp_path / "net").eval()
    result = export_onnx(again, tmp_path / "model.onnx")
    (check,) = [check for check in result.checks if check.name == "pattern"]
    assert check.passed
    assert check.detail == f"2:4 along the inputs of {len(pruned.weights)} weights"


def test_a_file_without_the_pattern_is_not_kept(tmp_path: Path) -> None:
    pruned = prune(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
        torch.randn(2, 8),
        pattern="2:4",
        criterion="magnitude",
    )
    pruned.set_masks({name: torch.ones_like(mask) for name, mask in pruned.masks.items()})
    with pytest.raises(
        VerificationError, match=r"pattern: 2:4 along the inputs of 2 weights; broken in 0\.weight"
    ):
        export_onnx(pruned.eval(), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_masks_with_a_pattern_do_not_move() -> None:
    pruned = prune(nn.Linear(8, 4), torch.randn(2, 8), pattern="2:4", criterion="magnitude")
    with pytest.raises(TopologyError, match="got a pattern of 2:4"):
        make("set").begin(SimpleNamespace(model=pruned))  # type: ignore[arg-type]


def test_inverted_saliencies_keep_the_pattern() -> None:
    net, x = nn.Linear(8, 4), torch.randn(2, 8)
    kept, rest = (
        prune(net, x, pattern="2:4", criterion="magnitude", sanity=sanity).masks["weight"]
        for sanity in (None, "invert")
    )
    assert torch.equal(kept, ~rest)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pattern": "2:4", "sparsity": 0.5}, MaskError, "got sparsity 0.5 and pattern 2:4"),
        ({}, MaskError, "got sparsity None and pattern None"),
        ({"pattern": "4:4"}, MaskError, "keeps some of M elements and not all, such as 2:4, got 4:4"),
        ({"pattern": "0:4"}, MaskError, "got 0:4"),
        ({"pattern": "2/4"}, MaskError, "expected N:M, such as 2:4, got '2/4'"),
        ({"pattern": "2:4", "rounds": 3}, MaskError, "expected one round, got 3"),
        ({"pattern": "2:4", "sanity": "shuffle"}, MaskError, "shuffled masks do not keep it"),
        ({"pattern": "2:4", "include": "1.*"}, WeightError, "7 inputs are no multiple of 4, such as 1.weight"),
        ({"pattern": "3:16"}, WeightError, "2 of 2 weights cannot take 3:16"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], error: type[FxpruneError], message: str) -> None:
    net = nn.Sequential(nn.Linear(8, 7), nn.Linear(7, 4))
    with pytest.raises(error, match=message):
        prune(net, torch.randn(2, 8), criterion="magnitude", **options)


def test_a_job_has_a_sparsity_a_budget_or_a_pattern() -> None:
    job = PruneJob(ModelSpec("timm:test_vit"), None, granularity="2:4", criterion="magnitude")
    assert (job.pattern, job.wide, job.goal) == ("2:4", False, "a pattern of 2:4")
    for changes in ({"sparsity": 0.9}, {"budget": "macs=0.5"}, {"granularity": "rows"}, {"rounds": 2}):
        with pytest.raises(MaskError, match="expected"):
            replace(job, **changes)  # type: ignore[arg-type]
