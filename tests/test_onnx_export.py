"""What `export_onnx` writes, for each kind of weight, input and output."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_cases import CASES, Case, pruned_case, run
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.errors import FxpruneError
from fxprune.onnx.read import Constants, read_model
from fxprune.onnx.verify import Verification


def tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file by name, weights as they are decoded."""
    constants = Constants(read_model(path))
    names = [*constants.dense, *(n.name for n in constants.model.graph.node if n.domain == "fxprune")]
    return {name: value for name in names if (value := constants.get(name)) is not None}


@dataclass
class Exported:
    case: Case
    pruned: fxprune.PrunedModel
    path: Path
    result: Verification

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    @property
    def stored(self) -> dict[str, np.ndarray]:
        return tensors(self.path)


@pytest.fixture(scope="module", params=CASES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    case = CASES[request.param]
    pruned = pruned_case(case)
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    return Exported(case, pruned, path, fxprune.export_onnx(pruned, path))


@pytest.fixture(scope="module")
def small() -> fxprune.PrunedModel:
    return pruned_case(CASES["conv net"])


def leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


# --- what is in the file


def test_verified(exported: Exported) -> None:
    assert exported.result.passed
    names = [check.name for check in exported.result.checks]
    assert names[:7] == [
        "format", "source", "zero pattern", "weights", "duplicates", "outputs", "outputs unoptimised"
    ]  # fmt: skip
    assert names[7:] in ([], ["top-1"])
    assert exported.result.bytes == exported.path.stat().st_size
    assert exported.result.difference < 1e-5


@pytest.mark.parametrize("batch", [1, 7])
def test_the_file_computes_what_the_model_does_at_other_batch_sizes(exported: Exported, batch: int) -> None:
    torch.manual_seed(batch)
    inputs = exported.case.inputs(batch)
    with torch.no_grad():
        wanted = leaves(copy.deepcopy(exported.pruned).eval()(*inputs))
    found = run(exported.path, inputs)
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


def test_inputs_and_outputs_have_names_and_a_dynamic_batch(exported: Exported) -> None:
    graph = exported.model.graph
    names = ["image", "extra"] if exported.case is CASES["two inputs"] else None
    assert [entry.name for entry in graph.output] == exported.case.outputs
    assert names is None or [entry.name for entry in graph.input] == names
    for entry in (*graph.input, *graph.output):
        first = entry.type.tensor_type.shape.dim[0]
        assert first.dim_param
        assert not first.HasField("dim_value")


def test_zeros_in_the_file_are_those_of_the_masks(exported: Exported) -> None:
    stored, masks = exported.stored, exported.pruned.masks
    assert list(masks) == exported.case.weights
    assert masks.kept == sum(np.count_nonzero(stored[name]) for name in masks)
    for name, mask in masks.items():
        np.testing.assert_array_equal(stored[name] != 0, mask.numpy())
        np.testing.assert_array_equal(stored[name], exported.pruned.effective_weight(name).numpy())


def test_no_mask_and_no_computed_weight_is_in_the_file(exported: Exported) -> None:
    stored = exported.stored
    assert not [name for name in stored if "mask" in name or "parametrizations" in name]
    assert not [name for name, value in stored.items() if value.dtype == np.bool_ and value.size > 1]
    # a weight is stored once, and goes into its products as it is or in another layout
    masked = set(exported.case.weights)
    users = {node.op_type for node in exported.model.graph.node if masked & set(node.input)}
    assert "Mul" not in users
    assert "Where" not in users


def test_metadata_tells_what_was_pruned(exported: Exported) -> None:
    (entry,) = [entry for entry in exported.model.metadata_props if entry.key == "fxprune"]
    facts = json.loads(entry.value)
    masks = exported.pruned.masks
    assert facts["version"] == fxprune.__version__
    assert (facts["kept"], facts["prunable"]) == (masks.kept, masks.numel)
    assert facts["sparsity"] == pytest.approx(0.7, abs=0.02)


def test_further_metadata(small: fxprune.PrunedModel, tmp_path: Path) -> None:
    fxprune.export_onnx(small, tmp_path / "net.onnx", metadata={"licence": "MIT"})
    props = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert props["licence"] == "MIT"
    assert set(props) == {"licence", "fxprune", "fxprune_verification"}


@pytest.mark.parametrize("opset", [18, 21])
def test_opset(small: fxprune.PrunedModel, tmp_path: Path, opset: int) -> None:
    fxprune.export_onnx(small, tmp_path / "net.onnx", opset=opset, encoding="gaps")
    model = onnx.load(tmp_path / "net.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset), ("fxprune", 1)]
    for function in model.functions:
        assert [(entry.domain, entry.version) for entry in function.opset_import] == [("", opset)]


def test_a_model_of_fixed_batch_is_exported_for_that_batch(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.reshape(3, 6))

    torch.manual_seed(0)
    pruned = fxprune.prune(Fixed(), (torch.randn(3, 6),), sparsity=0.5, criterion="magnitude")
    result = fxprune.export_onnx(pruned, tmp_path / "net.onnx")
    assert "batch sizes 3," in {check.name: check.detail for check in result.checks}["outputs"]
    assert run(tmp_path / "net.onnx", (torch.randn(3, 6),))[0].shape == (3, 4)


def test_trained_statistics_and_weights_are_what_is_written(tmp_path: Path) -> None:
    pruned = pruned_case(CASES["conv net"])
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        pruned.train()(torch.randn(4, 3, 6, 6) + 2).square().mean().backward()
        optimizer.step()
    fxprune.export_onnx(pruned, tmp_path / "net.onnx")
    stored = tensors(tmp_path / "net.onnx")
    for name in ("1.running_mean", "1.running_var", "1.weight", "6.bias"):
        np.testing.assert_array_equal(stored[name], pruned.state_dict()[name].numpy())
    for name, mask in pruned.masks.items():
        np.testing.assert_array_equal(stored[name] != 0, mask.numpy())


def test_half_precision(small: fxprune.PrunedModel, tmp_path: Path) -> None:
    pruned = copy.deepcopy(small).half()
    assert fxprune.export_onnx(pruned, tmp_path / "net.onnx", tolerance=1e-2).passed
    (found,) = run(tmp_path / "net.onnx", (torch.randn(2, 3, 6, 6, dtype=torch.float16),))
    assert found.dtype == np.float16


def test_double_precision_that_the_runtime_cannot_convolve(small: fxprune.PrunedModel, tmp_path: Path) -> None:
    with pytest.raises(FxpruneError, match="ONNX Runtime cannot run the file"):
        fxprune.export_onnx(copy.deepcopy(small).double(), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_precision_without_numpy_type_is_no_traceback(small: fxprune.PrunedModel, tmp_path: Path) -> None:
    try:
        fxprune.export_onnx(copy.deepcopy(small).bfloat16(), tmp_path / "net.onnx", tolerance=0.1)
    except FxpruneError:
        assert list(tmp_path.iterdir()) == []


# --- outputs that are special


class Returns(nn.Module):
    def __init__(self, output: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.output = nn.Linear(6, 4), output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.linear, x)


RETURNS: dict[str, Callable[[Any, Tensor], Any]] = {
    "its input": lambda linear, x: (linear(x), x),
    "one tensor twice": lambda linear, x: [linear(x)] * 2,
    "its weight": lambda linear, x: (linear(x), linear.weight),
    "names that collide": lambda linear, x: {"a": {"b": linear(x)}, "a_b": linear(x) * 2},
    "the name of its input": lambda linear, x: {"x": linear(x)},
    "minus infinity": lambda linear, x: linear(x).masked_fill(linear(x) < 0, -torch.inf),
    "no tensor first": lambda linear, x: (None, 3, linear(x), linear(x) > 0),
    "a scalar": lambda linear, x: linear(x).sum(),
    "zeros": lambda linear, x: linear(x) * 0,
}


@pytest.mark.parametrize("what", RETURNS)
def test_a_model_that_returns(what: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(3, 6),)
    pruned = fxprune.prune(Returns(RETURNS[what]), inputs, sparsity=0.5, criterion="magnitude")
    assert fxprune.export_onnx(pruned, tmp_path / "net.onnx").passed
    with torch.no_grad():
        wanted = leaves(pruned.eval()(*inputs))
    found = run(tmp_path / "net.onnx", inputs)
    assert [got.shape for got in found] == [tuple(want.shape) for want in wanted]
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


# --- what the export leaves alone


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(tmp_path: Path, training: bool) -> None:
    pruned = pruned_case(CASES["conv net"]).train(training)
    for parameter in pruned.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = {name: (id(t), t.clone()) for name, t in pruned.state_dict(keep_vars=True).items()}
    graphs = [str(program.graph) for program in pruned.captured.regions[""]._fxprune.values()]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    fxprune.export_onnx(pruned, tmp_path / "net.onnx")
    after = pruned.state_dict(keep_vars=True)
    assert list(after) == list(state)
    assert all(id(after[name]) == i and torch.equal(after[name], t) for name, (i, t) in state.items())
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in pruned.parameters())
    assert all(module.training is training for module in pruned.modules())
    assert graphs == [str(program.graph) for program in pruned.captured.regions[""]._fxprune.values()]
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_nothing_is_printed(small: fxprune.PrunedModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fxprune.export_onnx(small, tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")


def test_an_existing_file_is_replaced(small: fxprune.PrunedModel, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("old")
    fxprune.export_onnx(small, str(path))
    assert len(onnx.load(path).graph.node) > 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_weight_whose_parameter_is_read_elsewhere_too(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight / self.weight.norm()) + self.weight.sum()

    pruned = fxprune.prune(Both(), torch.randn(2, 6), sparsity=0.5, criterion="random")
    assert fxprune.export_onnx(pruned, tmp_path / "net.onnx").passed
