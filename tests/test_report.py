"""Numbers of the report against numbers counted by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import fxprune
from fxprune.errors import ExportError
from fxprune.onnx.sizes import entropy_bound, gzip_bytes, zstd_bytes
from fxprune.report import CompressionReport
from fxprune.report.file import by_encoding

WEIGHTS = ("0.weight", "4.weight")


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def pruned_net(module: nn.Module, *shape: int, batch: int = 3) -> fxprune.PrunedModel:
    torch.manual_seed(0)
    return fxprune.prune(module, (torch.randn(batch, *shape),), sparsity=0.5, criterion="magnitude")


def keep_first(pruned: fxprune.PrunedModel, **counts: int) -> None:
    """Keep so many elements of each weight, named without ``.weight``."""
    masks = {}
    for weight in pruned.weights:
        mask = torch.zeros(weight.numel, dtype=torch.bool)
        mask[: counts[weight.name.removesuffix(".weight")]] = True
        masks[weight.name] = mask.view(weight.shape)
    pruned.set_masks(masks)


@pytest.fixture
def pruned() -> fxprune.PrunedModel:
    pruned = pruned_net(tiny(), 1, 4, 4)
    keep_first(pruned, **{"0": 5, "4": 6})
    return pruned


def test_rows_counted_by_hand(pruned: fxprune.PrunedModel) -> None:
    conv, linear = fxprune.report(pruned).rows
    assert (conv.name, conv.shape, conv.operators) == ("0.weight", (2, 1, 3, 3), ("conv2d",))
    assert (conv.numel, conv.kept) == (18, 5)
    assert (conv.macs, conv.nonzero_macs) == (18 * 4, 5 * 4)  # each element is used at 2 x 2 places
    assert conv.sparsity == pytest.approx(13 / 18)
    assert (linear.name, linear.shape, linear.operators) == ("4.weight", (3, 8), ("linear",))
    assert (linear.numel, linear.kept) == (24, 6)
    assert (linear.macs, linear.nonzero_macs) == (24, 6)
    assert (conv.effective, conv.effective_sparsity) == (5, conv.sparsity)
    assert (linear.effective, linear.effective_sparsity) == (4, 20 / 24)  # two read a channel without input
    assert conv.deployed
    assert not conv.derived


def test_totals_counted_by_hand(pruned: fxprune.PrunedModel) -> None:
    report = fxprune.report(pruned)
    parameters = 18 + 2 + 2 + 2 + 24 + 3
    assert report.totals == {
        "prunable": 42,
        "kept": 11,
        "sparsity": pytest.approx(31 / 42),
        "effective": 9,  # two of the last weight read the second channel, which has no input
        "effective_sparsity": pytest.approx(33 / 42),
        "parameters": parameters,
        "sparsity_of_all": pytest.approx(31 / parameters),
        "macs": 96,
        "nonzero_macs": 26,
    }
    running_statistics, batches_tracked = 4 * 4, 8
    assert report.dense_bytes == 4 * parameters + running_statistics + batches_tracked
    assert report.file is None
    assert report.record == pruned.record


def test_bytes_are_those_of_the_original_model_alone() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    module = Constant()
    report = fxprune.report(pruned_net(module, 6))
    assert report.dense_bytes == sum(t.numel() * t.element_size() for t in module.state_dict().values())


def test_bytes_follow_the_dtype_and_count_shared_tensors_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    pruned = pruned_net(Tied(), 6)
    report = fxprune.report(pruned)
    (row,) = report.rows
    assert (report.parameters, row.numel, row.kept, row.macs, row.nonzero_macs) == (36, 36, 18, 72, 36)
    assert row.operators == ("linear", "linear")
    assert report.dense_bytes == 4 * 36
    assert fxprune.report(pruned.half()).dense_bytes == 2 * 36


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5), 25 * 6 * 2 * 9),
        (nn.Conv2d(4, 4, 3, groups=4, stride=2), (4, 5, 5), 4 * 4 * 9),
        (nn.Conv1d(2, 3, 3), (2, 6), 4 * 3 * 2 * 3),
        (nn.Conv3d(1, 2, 2), (1, 3, 3, 3), 8 * 2 * 8),
        (nn.ConvTranspose2d(3, 2, 2, stride=2), (3, 4, 4), 16 * 3 * 2 * 4),
        (nn.Linear(4, 5), (7, 4), 7 * 4 * 5),
    ],
    ids=["grouped", "depthwise", "1d", "3d", "transposed", "linear of a sequence"],
)
@pytest.mark.parametrize("batch", [2, 5])
def test_macs_of_one_sample(module: nn.Module, shape: tuple[int, ...], macs: int, batch: int) -> None:
    (row,) = fxprune.report(pruned_net(module, *shape, batch=batch)).rows
    assert row.macs == macs
    assert row.nonzero_macs == macs // 2 == macs * row.kept // row.numel


def test_skipped_parameters_have_their_reasons(pruned: fxprune.PrunedModel) -> None:
    report = fxprune.report(pruned)
    assert set(report.skipped) == {"0.bias", "1.weight", "1.bias", "4.bias"}
    assert report.skipped["1.weight"] == "scale of batch_norm"
    assert {*report.skipped, *(row.name for row in report.rows)} == set(dict(pruned.named_parameters()))


def test_size_of_the_file(pruned: fxprune.PrunedModel, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    fxprune.export_onnx(pruned, path)
    report = fxprune.report(pruned, str(path))
    assert report.file.bytes == path.stat().st_size
    assert f"{path.stat().st_size:,} in the ONNX file" in str(report)


def test_bytes_of_a_dense_file_by_hand(pruned: fxprune.PrunedModel, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    fxprune.export_onnx(pruned, path, encoding="dense")
    file = fxprune.report(pruned, path).file
    assert file is not None
    stored = sum(tensor.ByteSize() for tensor in onnx.load(path).graph.initializer if tensor.name in WEIGHTS)
    assert file.by_encoding == {"dense": stored, "other": file.bytes - stored}
    assert stored >= 42 * 4
    assert file.gzip == gzip_bytes(path)
    assert file.zstd == zstd_bytes(path)
    rest = 228 - 42 * 4
    assert file.entropy_bound == math.ceil(entropy_bound([(18, 5), (24, 6)], rest=rest))


def test_values_that_the_file_lacks_are_counted(pruned: fxprune.PrunedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        pruned.get_parameter("0.weight").flatten()[:2] = 1e-40  # below float32's smallest normal number
    fxprune.export_onnx(pruned, tmp_path / "net.onnx")
    report = fxprune.report(pruned, tmp_path / "net.onnx")
    assert report.file is not None
    assert report.file.flushed == 2
    assert "flushed: 2 kept values" in str(report)


def test_bytes_by_encoding_follow_decoders_back_to_what_they_read() -> None:
    payload = numpy_helper.from_array(np.zeros(10, np.uint8), "gaps")
    values = numpy_helper.from_array(np.zeros(3, np.float32), "values")
    dense = numpy_helper.from_array(np.zeros((2, 2), np.float32), "dense")
    coordinates = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "coordinates"),
        numpy_helper.from_array(np.ones(1, np.int64)),
        [4],
    )
    half = numpy_helper.from_array(np.zeros((2, 2), np.float16), "half/values")
    nodes = [
        helper.make_node("Cast", ["half/values"], ["half"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["gaps"], ["wide"], to=TensorProto.INT64),
        helper.make_node("DecodeGaps", ["wide", "values"], ["encoded"], domain="fxprune"),
    ]
    graph = helper.make_graph(nodes, "g", [], [], [payload, values, dense, half], sparse_initializer=[coordinates])
    assert by_encoding(graph, ["encoded", "dense", "coordinates", "half", "nosuch"]) == {
        "DecodeGaps": payload.ByteSize() + values.ByteSize(),
        "coo": coordinates.ByteSize(),
        "dense": dense.ByteSize() + half.ByteSize(),
    }


def test_latency_is_measured_beside_the_network_without_masks(pruned: fxprune.PrunedModel, tmp_path: Path) -> None:
    path, dense = tmp_path / "net.onnx", tmp_path / "dense.onnx"
    fxprune.export_onnx(pruned, path)
    masks = {name: mask.clone() for name, mask in pruned.masks.items()}
    report = fxprune.report(pruned, path, latency=True)
    assert report.dense is not None
    assert report.dense.runs >= 5
    assert report.dense.dense_ms > 0 < report.dense.sparse_ms
    assert report.dense.ratio == report.dense.sparse_ms / report.dense.dense_ms
    assert f"ratio {report.dense.ratio:.2f} (ONNX Runtime {onnxruntime.__version__}" in " ".join(
        str(report).split()
    )
    assert all(torch.equal(mask, pruned.masks[name]) for name, mask in masks.items())
    pruned.set_masks({name: torch.ones_like(mask) for name, mask in masks.items()})
    fxprune.export_onnx(pruned, dense, encoding="dense")
    assert report.dense.bytes == pytest.approx(dense.stat().st_size, abs=64)  # but for digits in the metadata
    with pytest.raises(ExportError, match="export the model first"):
        fxprune.report(pruned, latency=True)


def test_gradient_norms_by_hand() -> None:
    linear = nn.Linear(3, 2, bias=False)
    pruned = pruned_net(linear, 3)
    pruned.set_masks({"weight": torch.tensor([[True, False, True], [False, False, True]])})
    x, targets = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])

    def squared(mask: Tensor) -> float:
        weight = (linear.weight.detach() * mask).requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(x @ weight.T, targets), weight)
        return float((gradient * mask).square().sum())

    mask = pruned.masks["weight"].clone()
    report = fxprune.report(pruned, data=[(x, targets)])
    assert report.gradient is not None
    assert report.gradient.before == pytest.approx(squared(torch.ones(2, 3)))
    assert report.gradient.after == pytest.approx(squared(mask))
    assert torch.equal(pruned.masks["weight"], mask)


def test_histogram_counts_every_kept_weight_once(pruned: fxprune.PrunedModel) -> None:
    with torch.no_grad():
        pruned.get_parameter("0.weight").fill_(0.5)
        pruned.get_parameter("4.weight").fill_(-2.0)
    histogram = fxprune.report(pruned).histogram
    assert (histogram.edges[0], histogram.edges[-1], len(histogram.edges)) == (-2, 2, len(histogram.counts) + 1)
    found = {i: count for i, count in enumerate(histogram.counts) if count}
    place = next(i for i, edge in enumerate(histogram.edges[1:]) if edge > 0.5)
    assert found == {0: 6, place: 5}


def test_weights_that_are_cut_off_are_named(pruned: fxprune.PrunedModel) -> None:
    keep_first(pruned, **{"0": 0, "4": 6})
    report = fxprune.report(pruned)
    assert report.cut_off == {"4.weight": "nothing from the input reaches it"}
    assert report.totals["effective"] == 0
    text = " ".join(str(report).split())
    assert "WARNING: 1 weights are cut off: 4.weight (nothing from the input reaches it)" in text


def test_a_file_of_something_else_is_refused(pruned: fxprune.PrunedModel, tmp_path: Path) -> None:
    for content in (None, b"12345"):
        if content:
            (tmp_path / "net.onnx").write_bytes(content)
        with pytest.raises(ExportError, match="expected an ONNX file that fxprune exported"):
            fxprune.report(pruned, tmp_path / "net.onnx")
    other = fxprune.prune(nn.Linear(6, 6), torch.randn(2, 6), sparsity=0.5, criterion="random")
    fxprune.export_onnx(other, tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="expected the file of this model"):
        fxprune.report(pruned, tmp_path / "net.onnx")


def test_derived_weights_and_those_only_trained_are_marked() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
            self.extra = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            return x + self.extra(x) if self.training else x

    report = fxprune.report(pruned_net(Auxiliary(), 6))
    assert [(row.name, row.derived, row.deployed, row.macs) for row in report.rows] == [
        ("body.weight", True, True, 36),
        ("extra.weight", False, False, 0),
    ]
    text = str(report)
    assert "body.weight (derived)" in text
    assert "extra.weight (training only)" in text


# --- how it reads


def test_the_text_has_the_numbers(pruned: fxprune.PrunedModel) -> None:
    text = str(fxprune.report(pruned))
    conv = next(line for line in text.splitlines() if "0.weight" in line)
    for number in ("2x1x3x3", "18", "5", "72.22%", "72", "20"):
        assert number in conv.replace("│", " ").split()
    assert "11 of 42 prunable kept, sparsity 73.81%" in text
    assert "60.78% of all 51 parameters removed" in text
    assert "MACs a sample: 96 dense, 26 with a non-zero weight" in text
    assert "bytes: 228 of dense parameters and buffers" in text
    assert "not pruned: 4 parameters: 2 as bias" not in text.replace("bias of conv2d", "")
    assert "masks: magnitude" in text
    assert "WARNING" not in text
    assert "\x1b" not in text  # no colours where nobody sees them


def test_warnings(pruned: fxprune.PrunedModel) -> None:
    keep_first(pruned, **{"0": 0, "4": 6})
    report = fxprune.report(pruned)
    assert "WARNING: nothing is left of 1 weights: 0.weight" in str(report)
    assert report.record is not None
    cut = replace(report, record=replace(report.record, cut_off=(0, 2)))
    assert "WARNING: outputs (0, 2) no longer depend on the input" in str(cut)


def test_what_the_live_point_and_the_floor_did_is_told(pruned: fxprune.PrunedModel) -> None:
    from fxprune.live import LiveChange

    report = fxprune.report(pruned)
    assert report.record is not None
    changes = (LiveChange("1.weight", "scale of at most 0 counted as one"),)
    told = replace(report.record, changes=changes, floored=("4.weight",), floor_used=0.1, zero_share=0.25)
    text = " ".join(str(replace(report, record=told)).split())
    assert "tensors changed while scoring: 1: 1.weight (scale of at most 0 counted as one)" in text
    assert "floor: 0.1 of the density kept more of 1 weights than their ranking: 4.weight" in text
    assert "25.00% of the saliencies are exactly zero" in text


def test_a_model_without_a_record_is_reported_as_well(pruned: fxprune.PrunedModel) -> None:
    report = replace(fxprune.report(pruned), record=None)
    assert "masks:" not in str(report)
    assert json.loads(json.dumps(report.to_json()))["record"] is None


@pytest.mark.parametrize("name", ["[bold]", "[/]", "w[0]", "a" * 90])
def test_any_name_can_be_read(name: str) -> None:
    module = nn.Sequential()
    module.add_module(name, nn.Linear(6, 6))
    report = fxprune.report(pruned_net(module, 6))
    text = "".join(line.split("│")[1].strip() for line in str(report).splitlines() if "│" in line)
    assert f"{name}.weight" in text


def test_json_has_everything(pruned: fxprune.PrunedModel) -> None:
    report = fxprune.report(pruned)
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert values["totals"] == report.totals
    assert [row["kept"] for row in values["rows"]] == [5, 6]
    assert values["rows"][0]["sparsity"] == pytest.approx(13 / 18)
    assert values["rows"][0]["shape"] == [2, 1, 3, 3]
    assert values["skipped"] == report.skipped
    assert values["dense_bytes"] == 228
    assert values["record"]["criterion"] == "magnitude"
    assert set(values) == set(CompressionReport.__dataclass_fields__) | {"totals"}


def test_the_report_changes_nothing(pruned: fxprune.PrunedModel) -> None:
    state = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    str(fxprune.report(pruned.train()))
    assert pruned.training
    assert all(torch.equal(state[name], tensor) for name, tensor in pruned.state_dict().items())
