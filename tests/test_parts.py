"""Models that cannot be exported whole are captured in parts."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from fxprune import (
    CapturedModel,
    PrunedModel,
    capture,
    export_onnx,
    find_weights,
    load,
    prune,
    prune_channels,
    report,
    save,
)
from fxprune.errors import CaptureError
from fxprune.onnx.choices import rows_found
from fxprune.onnx.verify import verify_onnx
from fxprune.regions import MODES, Mode, Region
from fxprune.scoring import Scoring


class Backbone(nn.Sequential):
    out_channels = 8

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Hardsigmoid()
        )


class Depthwise(nn.Sequential):
    """One convolution to a channel, and a number of groups for a normalisation."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 12, 3, stride=4, padding=1),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
            nn.GroupNorm(6, 12),
            nn.Conv2d(12, 8, 1),
        )


def detector(backbone: type[nn.Module] = Backbone) -> nn.Module:
    """torchvision's Faster R-CNN around a small backbone."""
    torch.manual_seed(0)
    return FasterRCNN(
        backbone(),
        num_classes=3,
        min_size=32,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)),
        rpn_pre_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_train=20,
        rpn_post_nms_top_n_test=20,
        box_batch_size_per_image=8,
    )


def images(*sizes: tuple[int, int], seed: int = 0) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[2.0, 3.0, 18.0, 20.0], [5.0, 5.0, 14.0, 25.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in sizes]
    return [torch.rand(3, *size, generator=generator) for size in sizes], targets


EXAMPLE = images((32, 40), (36, 30))


class Meets(nn.Module):
    """Its Python looks at values; `shared` has two names, `head` a method that is no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.head = Head(self.shared)
        self.gate = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x) if self.gate(x).sum() > 0 else self.shared(x)
        return self.head.twice(x)


class Head(nn.Module):
    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared, self.out = shared, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.shared(x).relu())

    def twice(self, x: Tensor) -> Tensor:
        return 2 * self.out(x)


def outputs(model: nn.Module, mode: Mode, inputs: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    model = copy.deepcopy(model).train(mode == "train")
    torch.manual_seed(1)
    result = pytree.tree_leaves(model(*copy.deepcopy(inputs)))
    return result, dict(model.named_buffers())


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    return capture(detector(), EXAMPLE)


@pytest.fixture(scope="module")
def pruned() -> PrunedModel:
    return prune(detector(), data=[(EXAMPLE, EXAMPLE[1])], sparsity=0.8)


def test_the_largest_parts_become_regions(captured: CapturedModel) -> None:
    assert list(captured.regions) == ["backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"]


def test_every_weight_is_found(captured: CapturedModel) -> None:
    weights = find_weights(captured)
    products = {f"{n}.weight" for n, m in detector().named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert {weight.name for weight in weights} == products
    assert not [reason for reason in weights.skipped.values() if "outside" in reason]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [((32, 40), (36, 30)), ((48, 32),), ((32, 32), (40, 64), (64, 33))])
def test_computes_what_the_original_does(captured: CapturedModel, mode: Mode, sizes: Any) -> None:
    inputs = images(*sizes, seed=1)
    expected, buffers = outputs(detector(), mode, inputs)
    found, own = outputs(captured.host, mode, inputs)
    assert expected
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(torch.equal(tensor, own[name]) for name, tensor in buffers.items())


def test_gradients_are_those_of_the_original(captured: CapturedModel) -> None:
    gradients = []
    for model in (detector(), copy.deepcopy(captured.host)):
        model.train()
        torch.manual_seed(1)
        loss = torch.stack(list(model(*copy.deepcopy(EXAMPLE)).values())).sum()
        gradients.append(
            dict(
                zip(
                    dict(model.named_parameters()),
                    torch.autograd.grad(loss, list(model.parameters())),
                    strict=True,
                )
            )
        )
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_state_keys_are_those_of_the_original(captured: CapturedModel) -> None:
    assert list(captured.host.state_dict()) == list(detector().state_dict())


def test_the_original_is_untouched() -> None:
    model = detector().eval()
    before = copy.deepcopy(model.state_dict())
    types = [type(module) for module in model.modules()]
    state = torch.get_rng_state()
    capture(model, EXAMPLE)
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(module) for module in model.modules()] == types
    assert not model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_part_entered_from_outside_is_not_a_region() -> None:
    torch.manual_seed(0)
    model, x = Meets(), torch.randn(5, 6)
    captured = capture(model, (x,))
    assert list(captured.regions) == ["shared", "head.out", "gate"]
    assert torch.equal(captured.host(x), model(x))
    assert captured.host.get_submodule("head.shared") is captured.host.get_submodule("shared")
    weights = [weight.name for weight in find_weights(captured)]
    assert weights == ["shared.weight", "head.out.weight", "gate.weight"]


def test_a_parameter_of_two_regions_is_not_pruned() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.c(self.b(x) if x.sum() > 0 else self.b(-x))

    captured = capture(Tied(), (torch.randn(3, 6),))
    weights = find_weights(captured)
    assert [weight.name for weight in weights] == ["c.weight"]
    for name in ("a.weight", "b.weight"):
        assert weights.skipped[name] == "shared by parts of the model that are captured apart"


def test_hooks_run_once_and_come_back() -> None:
    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)
            self.fc.register_forward_hook(lambda _module, _args, output: output + 1)
            self.fc.register_forward_pre_hook(lambda _module, args: (args[0] * 2,))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 0 else self.fc(-x)

    model, x = Host(), torch.randn(3, 6)
    host = capture(model, (x,)).host
    assert torch.equal(host(x), model(x))
    Region.release(host)
    assert type(host.fc) is nn.Linear
    assert torch.equal(host(x), model(x))


def test_a_host_keeps_methods_and_types() -> None:
    class Loss(nn.Linear):
        def loss(self, x: Tensor) -> Tensor:
            return x.square().mean()

    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = Loss(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            assert isinstance(self.fc, Loss)
            return self.fc.loss(y) if y.sum() > 0 else -self.fc.loss(y)

    x = torch.randn(3, 6)
    model = Host()
    captured = capture(model, (x,))
    assert list(captured.regions) == ["fc"]
    assert torch.equal(captured.host(x), model(x))


def test_what_no_graph_holds_is_left_and_named(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale if x.sum() > 0 else x - self.scale

    model = nn.Sequential(nn.Linear(6, 4), Picky())
    with caplog.at_level(logging.WARNING, "fxprune"):
        captured = capture(model, (torch.randn(2, 6),))
    assert list(captured.regions) == ["0"]
    assert "1 is not captured" in caplog.text
    assert find_weights(captured).skipped["1.scale"] == "outside every captured region"


def test_inputs_for_one_mode_only() -> None:
    with pytest.raises(CaptureError, match=r"in train mode it does not run on the example inputs: .*targets"):
        capture(detector(), (EXAMPLE[0],))


def test_pruning_is_exact_and_masks_hold(pruned: PrunedModel) -> None:
    masks = pruned.masks
    assert masks.numel - masks.kept == int(0.8 * masks.numel)
    assert not masks.empty
    assert pruned.record is not None
    assert pruned.record.cut_off == ()
    eager = detector()
    eager.load_state_dict(pruned.dense_state_dict())
    for mode in MODES:
        expected, _ = outputs(eager, mode, EXAMPLE)
        found, _ = outputs(pruned, mode, EXAMPLE)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("criterion", ["random", "magnitude", "snip", "synflow", "obd"])
def test_every_criterion(captured: CapturedModel, criterion: str) -> None:
    model = prune(captured, data=[(EXAMPLE, EXAMPLE[1])], sparsity=0.5, criterion=criterion, loss_fn=any_loss)
    assert model.masks.sparsity == pytest.approx(0.5, abs=1e-3)


def any_loss(output: Any, _: Any) -> Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.stack([leaf.sum() for leaf in leaves]).sum()


def test_without_data(captured: CapturedModel) -> None:
    model = prune(captured, sparsity=0.5, criterion="magnitude")
    assert model.masks.sparsity == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("dead", "places"), [("backbone.0.weight", (0,)), ("rpn.head.bbox_pred.weight", (2,)), (None, ())]
)
def test_a_region_that_is_cut_off_is_noticed(
    captured: CapturedModel, dead: str | None, places: tuple[int, ...]
) -> None:
    def score(scoring: Scoring) -> dict[str, Tensor]:
        return {
            name: torch.full_like(w, -1.0) if name == dead else w.abs() for name, w in scoring.operands.items()
        }

    model = prune(captured, sparsity=0.1, criterion=score, floor=0)
    assert model.record is not None
    assert model.masks.empty == (() if dead is None else (dead,))
    assert model.record.cut_off == places


def test_training_keeps_the_zeros(pruned: PrunedModel) -> None:
    model = copy.deepcopy(pruned).train()
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        optimiser.zero_grad()
        torch.stack(list(model(*copy.deepcopy(EXAMPLE)).values())).sum().backward()
        optimiser.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for name, mask in model.masks.items():
        assert not model.effective_weight(name)[~mask].any()


def test_export(pruned: PrunedModel, tmp_path: Path) -> None:
    before = copy.deepcopy(pruned.state_dict())
    result = export_onnx(pruned, tmp_path / "detector.onnx")
    assert result.passed
    assert {check.name for check in result.checks} >= {"zero pattern", "weights", "outputs", "outputs unoptimised"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state_dict().items())
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    assert [entry.shape for entry in session.get_inputs()] == [[3, 32, 40], [3, 36, 30]]


def test_channels_of_parts_are_cut_and_exported(tmp_path: Path) -> None:
    captured = capture(detector(Depthwise), EXAMPLE)
    cut = prune_channels(captured, criterion="magnitude", budget="params=0.5", ranking="layer")
    backbone = cut.captured.host.backbone
    groups = backbone[1].groups
    assert 0 < groups == len(backbone[1].weight) == 2 * backbone[2].num_groups < 12
    assert captured.host.backbone[1].groups == 12
    assert export_onnx(cut, tmp_path / "detector.onnx", encoding="dense").passed


def test_a_fault_in_an_exported_detector_is_found(pruned: PrunedModel, tmp_path: Path) -> None:
    path = tmp_path / "detector.onnx"
    export_onnx(pruned, path, encoding="dense")
    model = onnx.load(path)
    moved = np.array([0.0, 3.0, 0.0], dtype=np.float32)  # one class: what is added to all leaves them as they are
    other = next(t for t in model.graph.initializer if t.name == "roi_heads.box_predictor.cls_score.bias")
    other.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(other) + moved, other.name))
    onnx.save(model, path)
    failed = {check.name for check in verify_onnx(path, pruned).checks if not check.passed}
    assert failed == {"outputs", "outputs unoptimised"}


@pytest.mark.parametrize(
    ("got", "found"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], 2),
        ([[3.0, 4.0], [1.0, 2.0001]], 2),
        ([[3.0, 4.0], [1.0, 2.1]], 1),
        ([[3.0, 4.0]], 1),
        (np.zeros((0, 2)), 0),
    ],
)
def test_rows_are_found_wherever_they_are(got: Any, found: int) -> None:
    result = rows_found(np.array([[1.0, 2.0], [3.0, 4.0]]), np.asarray(got), 1e-4)
    assert (result.rows, result.found) == (2, found)
    assert result.difference.relative <= 1e-4


def test_report(pruned: PrunedModel, tmp_path: Path) -> None:
    path = tmp_path / "detector.onnx"
    export_onnx(pruned, path)
    found = report(pruned, path, latency=True, data=[(EXAMPLE, EXAMPLE[1])])
    assert found.totals["kept"] == pruned.masks.kept
    assert 0 < found.totals["effective"] <= found.totals["kept"]
    assert found.dense is not None
    assert found.dense.sparse_ms > 0
    assert found.gradient is not None
    assert not found.cut_off


def test_outputs_without_rows() -> None:
    nothing = np.zeros((0, 4))
    assert rows_found(nothing, nothing, 1e-4).share == 1
    assert rows_found(nothing, np.ones((3, 4)), 1e-4).share == 0
    assert rows_found(np.ones((3, 4)), nothing, 1e-4).share == 0


def test_save_and_load(pruned: PrunedModel, tmp_path: Any) -> None:
    save(pruned, tmp_path / "checkpoint")
    model = load(tmp_path / "checkpoint", detector(), EXAMPLE)
    for mode in MODES:
        expected, _ = outputs(pruned, mode, EXAMPLE)
        found, _ = outputs(model, mode, EXAMPLE)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
