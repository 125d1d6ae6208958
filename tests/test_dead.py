"""Channels that masks have left dead go, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.capture import capture
from fxprune.dead import cut_dead
from fxprune.errors import CheckpointError, ShrinkError
from fxprune.model import PrunedModel
from fxprune.rewrite import drop_masks
from fxprune.stages import PruneJob, prune_stage, shrink_stage
from fxprune.zoo import ModelSpec


class Net(nn.Module):
    """Two convolutions, the first with zero padding and no bias, and a linear layer."""

    def __init__(self, padding: int = 1, *, bias: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 6, 3, padding=padding, bias=bias)
        self.norm2 = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.one(x)))
        return self.head(F.relu(self.norm2(self.two(x))).mean((2, 3)))


def masked(net: nn.Module, **zeros: tuple[int, list[int]]) -> PrunedModel:
    """With indices of a dimension masked, by the name of a layer."""
    pruned = fxprune.prune(net, torch.randn(2, 3, 8, 8), sparsity=0.0, criterion="magnitude")
    masks = {name: torch.ones_like(mask) for name, mask in pruned.masks.items()}
    for name, (dim, indices) in zeros.items():
        masks[f"{name}.weight"].index_fill_(dim, torch.tensor(indices), value=False)
    pruned.set_masks(masks)
    return pruned


def widths(pruned: PrunedModel) -> list[tuple[int, ...]]:
    return [weight.shape[:2] for weight in pruned.weights]


def same(before: nn.Module, after: nn.Module, *shape: int) -> None:
    x = torch.randn(shape)
    for training in (True, False):
        with torch.no_grad():
            one, two = (model.train(training)(x) for model in (before, after))
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_filters_that_are_gone_leave_zero_and_go() -> None:
    pruned = masked(Net(), one=(0, [2, 5]))
    thin = cut_dead(pruned)
    assert widths(thin) == [(6, 3), (6, 6), (4, 6)]
    same(pruned, thin, 3, 3, 8, 8)
    assert thin.record is not None
    assert thin.record.whole is not None
    assert thin.record.whole.shapes["two.weight"] == (6, 8, 3, 3)


def test_channels_that_nothing_reads_go() -> None:
    pruned = masked(Net(), two=(1, [0, 7]), head=(1, [3]))
    thin = cut_dead(pruned)
    assert widths(thin) == [(6, 3), (5, 6), (4, 5)]
    same(pruned, thin, 3, 3, 8, 8)


def test_what_is_half_used_stays() -> None:
    pruned = masked(Net(), one=(0, [2]))
    masks = {name: mask.clone() for name, mask in pruned.masks.items()}
    masks["one.weight"][2, 0, 0, 0] = True
    pruned.set_masks(masks)
    assert widths(cut_dead(pruned)) == widths(pruned)


@pytest.mark.parametrize(
    ("net", "first", "second"),
    [
        (Net(padding=1), 8, 6),  # the border reads zeros: what norm1 adds stays
        (Net(padding=0), 7, 6),  # becomes part of norm2's running mean
        (Net(padding=0, bias=True), 7, 6),  # of the bias
        (Net(padding=0, norm=False), 8, 6),  # there is neither
        (Net(padding=1, bias=True, norm=False), 8, 6),
    ],
)
def test_constants_are_folded_where_that_is_exact(net: Net, first: int, second: int) -> None:
    with torch.no_grad():
        net.norm1.bias[4] = 0.7
    pruned = masked(net, one=(0, [4]))
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    thin = cut_dead(pruned)
    assert widths(thin)[:2] == [(first, 3), (second, first)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state_dict().items())
    same(pruned, thin, 3, 3, 8, 8)


def test_a_constant_that_reaches_the_last_bias() -> None:
    net = Net()
    with torch.no_grad():
        net.norm2.bias[1] = 0.7
    pruned = masked(net, two=(0, [1]))
    thin = cut_dead(pruned)
    assert widths(thin) == [(8, 3), (5, 8), (4, 5)]
    torch.testing.assert_close(thin.get_parameter("head.bias"), net.head.bias + 0.7 * net.head.weight[:, 1])
    same(pruned, thin, 3, 3, 8, 8)


def test_a_constant_that_modes_disagree_on_stays() -> None:
    net = Net(padding=0)
    net.norm1.running_mean[4] = -0.5  # type: ignore[index]
    pruned = masked(net, one=(0, [4]))
    assert widths(cut_dead(pruned)) == widths(pruned)


def test_one_of_each_dimension_is_left() -> None:
    pruned = masked(Net(), one=(0, list(range(8))))
    thin = cut_dead(pruned)
    assert thin.weights["one.weight"].shape[0] == 1
    same(pruned, thin, 3, 3, 8, 8)


def test_a_model_without_dead_channels_is_the_same() -> None:
    pruned = masked(Net())
    thin = cut_dead(pruned)
    assert thin.record == pruned.record
    assert thin.state_dict().keys() == pruned.state_dict().keys()


def _through(net: nn.Module, x: Tensor) -> Tensor:
    return F.relu(x + net.mid(x))


def _within(net: nn.Module, x: Tensor) -> Tensor:
    """The sum is written into a part of what a layer gives."""
    y = net.mid(x)
    y[:, :, 1:] += x[:, :, 1:]
    return F.relu(y)


def _normed(net: nn.Module, x: Tensor) -> Tensor:
    return F.relu(x + net.norm(net.mid(x)))


class Shortcut(nn.Module):
    """A layer between two others, with a shortcut around it: it reads the channels that it adds to."""

    def __init__(self, mid: nn.Module, around: Callable[[nn.Module, Tensor], Tensor] = _through) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.mid = mid
        self.norm = nn.BatchNorm2d(8)
        self.around = around
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.around(self, self.first(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("net", "width"),
    [
        (Shortcut(nn.Conv2d(8, 8, 1)), 7),  # the bias takes the constant
        (Shortcut(nn.Conv2d(8, 8, 1), _within), 7),
        (Shortcut(nn.Conv2d(8, 8, 1, bias=False), _normed), 7),  # the running mean does
        (Shortcut(nn.Conv2d(8, 8, 1, bias=False)), 8),  # nothing can
        (Shortcut(nn.Conv2d(8, 8, 3, padding=1)), 8),  # the border reads zeros
        (Shortcut(nn.Conv2d(8, 8, 3, padding=1, groups=8)), 7),  # no other channel reads it
    ],
)
def test_a_shortcut_goes_around_what_reads_a_constant(net: Shortcut, width: int) -> None:
    torch.manual_seed(0)
    pruned = masked(net, first=(0, [2]), mid=(0, [2]))
    thin = cut_dead(pruned)
    assert thin.weights["first.weight"].shape[0] == width
    same(pruned, thin, 3, 3, 8, 8)


def test_heads_in_the_batch_with_a_shortcut() -> None:
    """What a dead head adds to tokens that a shortcut goes around: labels are of the captured batch."""
    torch.manual_seed(0)
    pruned = masked(Heads(), v=(0, [4, 5, 6, 7]), q=(0, [4, 5, 6, 7]), k=(0, [4, 5, 6, 7]))
    thin = cut_dead(pruned)
    assert thin.weights["v.weight"].shape[0] == 8
    same(pruned, thin, 3, 3, 8, 8)


class Heads(nn.Module):
    """Three heads of four channels, folded into the batch; their values go around the product too."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(64, 12) for _ in range(3))
        self.out = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x.flatten(2)).view(x.shape[0], 3, 3, 4).transpose(1, 2).reshape(-1, 3, 4)
            for layer in (self.q, self.k, self.v)
        )
        y = torch.bmm((q @ k.transpose(1, 2)).softmax(-1), v) + v
        return self.out(y.view(x.shape[0], 3, 3, 4).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("name", "sparsity"), [("test_resnet", 0.97), ("test_vit", 0.97), ("test_efficientnet", 0.9)]
)
def test_extreme_sparsity(name: str, sparsity: float) -> None:
    model = timm.create_model(name, num_classes=10)
    shape = (2, *model.pretrained_cfg["input_size"])
    pruned = fxprune.prune(model, torch.randn(shape), sparsity=sparsity, criterion="magnitude", floor=0)
    thin = cut_dead(pruned)
    assert thin.masks.numel < pruned.masks.numel
    assert thin.masks.kept <= pruned.masks.kept
    same(pruned, thin, *shape)


def test_trained_saved_loaded_and_exported(tmp_path: Path) -> None:
    spec = ModelSpec("timm:test_resnet", (3, 64, 64), 10)
    model = timm.create_model("test_resnet", num_classes=10)
    x, y = torch.randn(4, 3, 64, 64), torch.randint(10, (4,))
    thin = cut_dead(fxprune.prune(model, x, sparsity=0.97, criterion="magnitude", floor=0))
    optimizer = torch.optim.SGD(thin.parameters(), lr=0.1)
    F.cross_entropy(thin(x), y).backward()
    optimizer.step()
    for weight in thin.weights:
        assert not thin.effective_weight(weight.name)[~thin.masks[weight.name]].any()
    fxprune.save(thin, tmp_path / "net", model=spec, input_shape=(3, 64, 64))
    again = fxprune.load(tmp_path / "net")
    same(thin, again, 2, 3, 64, 64)
    assert fxprune.export_onnx(again.eval(), tmp_path / "model.onnx").passed


def test_masks_come_off_as_they_went_on() -> None:
    pruned = masked(Net(), one=(0, [1]))
    plain = drop_masks(pruned.captured, pruned.weights)
    assert not any(name.endswith("_mask") for name in plain.host.state_dict())
    fresh = capture(Net(), torch.randn(2, 3, 8, 8))
    for mode in ("train", "eval"):
        one, two = (each.host._fxprune[mode].graph for each in (plain, fresh))  # type: ignore[union-attr, index]
        assert [node.name for node in one.nodes] == [node.name for node in two.nodes]


def test_what_cannot_be_cut() -> None:
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(2, 8)
    with pytest.raises(ShrinkError, match="got a pattern of 2:4"):
        cut_dead(fxprune.prune(net, x, pattern="2:4", criterion="magnitude"))
    with pytest.raises(ShrinkError, match="got a model whose channels were cut"):
        cut_dead(fxprune.prune_channels(net, x, budget="macs=0.5", criterion="magnitude"))


def test_from_checkpoint_to_checkpoint(tmp_path: Path) -> None:
    job = PruneJob(ModelSpec("timm:test_resnet", (3, 64, 64), 10), None, 0.97, "magnitude", floor=0.0)
    pruned = prune_stage(job, tmp_path / "net")
    thin = shrink_stage(tmp_path / "net", tmp_path / "thin")
    assert thin.masks.numel < pruned.masks.numel
    assert "channels: without the dead ones" in " ".join(
        str(fxprune.report(fxprune.load(tmp_path / "thin"))).split()
    )
    with pytest.raises(CheckpointError, match="holds a checkpoint"):
        shrink_stage(tmp_path / "net", tmp_path / "thin")
    with pytest.raises(CheckpointError, match="expected another folder"):
        shrink_stage(tmp_path / "net", tmp_path / "net", force=True)
    with pytest.raises(ShrinkError, match="whose channels were cut"):
        shrink_stage(tmp_path / "thin", tmp_path / "thinner")
