"""`verify_onnx` on files that are right, and on files that are wrong in one place each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import fxprune
from fxprune.errors import ExportError, VerificationError
from fxprune.onnx import outputs
from fxprune.onnx.verify import BATCHES, Check, Verification, verify_onnx

OUTPUTS = ("outputs", "outputs unoptimised")


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3), nn.Tanh()
    )


def pruned_net(module: nn.Module, *shape: int) -> fxprune.PrunedModel:
    return fxprune.prune(module, (torch.randn(3, *shape),), sparsity=0.5, criterion="magnitude")


@pytest.fixture(scope="module")
def pruned() -> fxprune.PrunedModel:
    torch.manual_seed(0)
    return pruned_net(small_net(), 2, 4, 4)


@pytest.fixture(scope="module")
def whole(pruned: fxprune.PrunedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    fxprune.export_onnx(pruned, path, encoding="dense")  # whose weights a test can change
    return path


def failed(result: Verification) -> list[str]:
    return [check.name for check in result.checks if not check.passed]


def test_a_right_file_passes(pruned: fxprune.PrunedModel, whole: Path) -> None:
    result = verify_onnx(whole, pruned)
    assert result.passed
    result.require()
    assert [check.name for check in result.checks] == [
        "format", "source", "zero pattern", "weights", "duplicates", *OUTPUTS, "top-1"
    ]  # fmt: skip
    assert result.bytes == whole.stat().st_size
    assert 0 <= result.difference < 1e-6
    kept = pruned.masks.kept
    assert f"{kept} non-zero of {kept} kept" in result.checks[2].detail
    assert json.loads(json.dumps(result.to_json()))["passed"] is True
    assert len(BATCHES) >= 2


def test_batch_sizes_are_those_asked_for(pruned: fxprune.PrunedModel, whole: Path) -> None:
    assert "at batch sizes 3, 9," in verify_onnx(whole, pruned, batches=(9, 3, 3)).checks[5].detail


def test_the_tolerance_decides(pruned: fxprune.PrunedModel, whole: Path) -> None:
    result = verify_onnx(whole, pruned, tolerance=1e-30)
    assert failed(result) == [*OUTPUTS]
    with pytest.raises(VerificationError, match=r"outputs: largest relative difference .* tolerance"):
        result.require()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(pruned: fxprune.PrunedModel, whole: Path, training: bool) -> None:
    state = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    generator = torch.get_rng_state()
    pruned.train(training)
    assert verify_onnx(whole, pruned).passed
    assert pruned.training is training
    assert all(torch.equal(state[name], tensor) for name, tensor in pruned.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())


def test_a_model_that_was_trained_on_differs_from_its_file(whole: Path) -> None:
    torch.manual_seed(0)
    pruned = pruned_net(small_net(), 2, 4, 4)
    assert verify_onnx(whole, pruned).passed
    with torch.no_grad():
        pruned.get_parameter("4.weight").mul_(1.001)
    assert failed(verify_onnx(whole, pruned)) == ["source", "weights", *OUTPUTS]


def test_other_masks_differ_from_the_file(whole: Path) -> None:
    torch.manual_seed(0)
    pruned = pruned_net(small_net(), 2, 4, 4)
    pruned.set_masks({name: ~mask for name, mask in pruned.masks.items()})
    assert failed(verify_onnx(whole, pruned)) == ["source", "zero pattern", *OUTPUTS]


# --- files that are wrong in one place


def node(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == operator][-1]


def stored(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def put(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    stored(model, name).CopyFrom(numpy_helper.from_array(value, name))


def changed_element(pick: Callable[[np.ndarray], np.ndarray], value: float) -> Callable[..., None]:
    def change(model: onnx.ModelProto) -> None:
        array = numpy_helper.to_array(stored(model, "0.weight")).copy()
        array.reshape(-1)[np.flatnonzero(pick(array))[-1]] = value
        put(model, "0.weight", array)

    return change


def add_one_to_each(model: onnx.ModelProto) -> None:
    put(model, "4.bias", numpy_helper.to_array(stored(model, "4.bias")) + 1)


def transpose(model: onnx.ModelProto) -> None:
    put(model, "4.weight", numpy_helper.to_array(stored(model, "4.weight")).T.copy())


def drop_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.remove(stored(model, "0.weight"))


def other_operator(model: onnx.ModelProto) -> None:
    node(model, "Tanh").op_type = "Sigmoid"


def unknown_operator(model: onnx.ModelProto) -> None:
    node(model, "Tanh").domain = "elsewhere"
    model.opset_import.add(domain="elsewhere", version=1)


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 16]), "two"))
    node(model, "Reshape").input[1] = "two"


def statistics_of_the_batch(model: onnx.ModelProto) -> None:
    """Like a file of the training graph: each batch is normalised by itself."""
    batch_norm = node(model, "BatchNormalization")
    batch_norm.op_type = "InstanceNormalization"
    del batch_norm.input[3:]
    kept = [attribute for attribute in batch_norm.attribute if attribute.name == "epsilon"]
    del batch_norm.attribute[:]
    batch_norm.attribute.extend(kept)


def further_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("further", TensorProto.FLOAT, [1]))


def further_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", [model.graph.output[0].name], ["further"]))
    model.graph.output.append(helper.make_tensor_value_info("further", TensorProto.FLOAT, ["batch", 3]))


def not_a_number(model: onnx.ModelProto) -> None:
    put(model, "4.bias", np.full(3, np.nan, np.float32))


FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], None], list[str]]] = {
    "a zero filled": (changed_element(lambda a: a == 0, 1e-30), ["zero pattern"]),
    "a zero filled visibly": (changed_element(lambda a: a == 0, 5.0), ["zero pattern", *OUTPUTS]),
    "a zero that is no number": (changed_element(lambda a: a == 0, np.nan), ["zero pattern", *OUTPUTS]),
    "a kept weight changed": (changed_element(lambda a: a != 0, 5.0), ["weights", *OUTPUTS]),
    "a kept weight lost": (changed_element(lambda a: a != 0, 0.0), ["weights", *OUTPUTS]),
    "a bias changed": (add_one_to_each, [*OUTPUTS]),
    "a bias that is no number": (not_a_number, [*OUTPUTS]),
    "another operator": (other_operator, [*OUTPUTS]),
    "statistics of the batch": (statistics_of_the_batch, [*OUTPUTS]),
    "an operator that no runtime has": (unknown_operator, [*OUTPUTS]),
    "a batch size fixed": (fixed_batch, [*OUTPUTS]),
    "one input more": (further_input, [*OUTPUTS]),
    "one output more": (further_output, [*OUTPUTS]),
    "the last node lost": (lambda model: model.graph.node.pop(), ["format"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(pruned: fxprune.PrunedModel, whole: Path, tmp_path: Path, fault: str) -> None:
    break_it, wanted = FAULTS[fault]
    model = onnx.load(whole)
    break_it(model)
    onnx.save(model, tmp_path / "net.onnx")
    result = verify_onnx(tmp_path / "net.onnx", pruned)
    assert failed(result) == wanted
    assert not result.passed
    assert json.loads(json.dumps(result.to_json()))["passed"] is False
    with pytest.raises(VerificationError, match=f"is not kept: {wanted[0]}: "):
        result.require()


@pytest.mark.parametrize("encoding", ["dense", "gaps"])
def test_a_tied_weight_that_is_stored_twice(tmp_path: Path, encoding: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)))

    pruned = pruned_net(Tied(), 24)
    path = tmp_path / "net.onnx"
    fxprune.export_onnx(pruned, path, encoding=encoding)
    model = onnx.load(path)
    users = [n for n in model.graph.node if "first.weight" in n.input]
    copy = numpy_helper.from_array(pruned.effective_weight("first.weight").numpy(), "again")
    model.graph.initializer.append(copy)
    if len(users) == 1:  # one transposition that both products use
        model.graph.node.append(helper.make_node("Identity", ["again"], ["unused"]))
    else:
        users[-1].input[list(users[-1].input).index("first.weight")] = "again"
    onnx.save(model, path)
    assert failed(verify_onnx(path, pruned)) == ["duplicates"]


def test_other_best_classes_are_told_apart_from_ties() -> None:
    want = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.999_99], [0.2, 0.1, 0.0]], np.float32)
    tied, wrong = want.copy(), want.copy()
    tied[1] = [0.0, 0.999_99, 1.0]
    wrong[0] = [0.0, 1.0, 0.5]
    share, check = outputs._agreement([([want], [tied])], 1e-4, "images")
    assert (share, check.passed) == (2 / 3, True)
    assert check.detail == "the same class for 2 of 3 images, 1 by a hair"
    share, check = outputs._agreement([([want], [wrong])], 1e-4, "images")
    assert (share, check.passed) == (2 / 3, False)


@pytest.mark.parametrize("break_it", [transpose, drop_weight])
def test_a_weight_of_another_shape_or_none(
    pruned: fxprune.PrunedModel, whole: Path, tmp_path: Path, break_it: Callable[[onnx.ModelProto], None]
) -> None:
    model = onnx.load(whole)
    break_it(model)
    onnx.save(model, tmp_path / "net.onnx")
    assert {"format", "zero pattern"} <= set(failed(verify_onnx(tmp_path / "net.onnx", pruned)))


def test_the_file_of_another_model_fails(whole: Path) -> None:
    other = pruned_net(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), 5)
    result = verify_onnx(whole, other)
    assert failed(result) == ["source", "zero pattern", *OUTPUTS]
    assert "missing in 0.weight" in result.checks[2].detail or "filled" in result.checks[2].detail


@pytest.mark.parametrize("content", [b"no protobuf", None, "half"])
def test_what_is_no_onnx_file(
    pruned: fxprune.PrunedModel, whole: Path, tmp_path: Path, content: bytes | str | None
) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        data = whole.read_bytes()
        path.write_bytes(data[: len(data) // 2] if isinstance(content, str) else content)
    with pytest.raises(ExportError, match="expected an ONNX file"):
        verify_onnx(path, pruned)


def test_an_empty_file_fails(pruned: fxprune.PrunedModel, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    assert {"format", "zero pattern"} <= set(failed(verify_onnx(tmp_path / "net.onnx", pruned)))


def test_a_fault_that_shows_in_batches_only(pruned: fxprune.PrunedModel, whole: Path, tmp_path: Path) -> None:
    model = onnx.load(whole)
    # the mean over the batch instead of each sample: no difference for a batch of one
    tanh = node(model, "Tanh")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    mean = helper.make_node("ReduceMean", [tanh.input[0], "axes"], ["mean"], keepdims=0)
    expand = helper.make_node("Expand", ["mean", "shape"], ["wrong"])
    shape = helper.make_node("Shape", [tanh.input[0]], ["shape"])
    for added in (mean, shape, expand):
        model.graph.node.insert(len(model.graph.node) - 1, added)
    node(model, "Tanh").input[0] = "wrong"
    onnx.save(model, tmp_path / "net.onnx")
    assert failed(verify_onnx(tmp_path / "net.onnx", pruned, batches=(1,))) == []
    assert failed(verify_onnx(tmp_path / "net.onnx", pruned)) == [*OUTPUTS]


def test_require_names_each_failed_check_and_no_other() -> None:
    checks = (Check("format", True, "fine"), Check("weights", False, "differ"), Check("outputs", False, "far"))
    with pytest.raises(VerificationError) as caught:
        Verification(checks, 10, 0.5).require()
    assert str(caught.value).endswith("weights: differ; outputs: far")
    assert "fine" not in str(caught.value)
