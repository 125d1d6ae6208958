"""What `export_onnx` writes, for each kind of weight, input and output; and what it does when it cannot."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.errors import ExportError, FxpruneError, VerificationError
from fxprune.onnx import export, external
from fxprune.onnx.read import Constants, read_model
from fxprune.onnx.verify import Verification, verify_onnx

# --- networks with few weights, each with something of its own


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 8, 1, groups=2),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens)
        tokens = tokens + self.attention(x, x, x, need_weights=False)[0]
        return tokens + self.mlp(tokens)


class Windows(nn.Module):
    """Attention within windows, which stand beside the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, 3, 5, 3, 2, 4).permute(3, 0, 4, 1, 2, 5).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.permute(0, 2, 3, 1, 4).reshape(-1, 15, 8))


class FoldedHeads(nn.Module):
    """Attention of heads that are part of the batch, with a mask for each."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, batch * 2, tokens, -1).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=q @ q.transpose(1, 2))
        return self.out(y.view(batch, 2, tokens, -1).transpose(1, 2).reshape(batch, tokens, -1))


class TwoImages(nn.Module):
    """Two inputs go through a layer as one batch, as the images of an optical flow do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.one(torch.cat([x, x.flip(1)])).chunk(2)
        return self.two(first.relu() * second)


class Scaled(nn.Module):
    """A convolution and a normalisation without shifts: an exporter makes zeros for both, in two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Conv2d(3, 300, 1, bias=False), nn.Parameter(torch.rand(300))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.group_norm(self.first(x), 1, self.scale)


class TiedText(nn.Module):
    """Integer tokens in; the table of the embedding is the weight of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(tokens))))


class TiedLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


class Volumes(nn.Module):
    """Convolutions of one and three dimensions, and transposed ones of two."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(1, 4, 3, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.line = nn.Conv1d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.volume(x).flatten(1, 2))
        return self.line(x.flatten(2))


class OwnParameters(nn.Module):
    """Parameters that no layer owns, on either side of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.right, self.left = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(5, 3))
        self.mixed = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bsc,cd->bsd", torch.relu(self.left @ (x @ self.right)), self.mixed)


class Equal(nn.Module):
    """Two layers of equal values that are not tied: an exporter may merge them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.second.load_state_dict(self.first.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.extra = nn.Linear(6, 4), nn.Linear(2, 4)

    def forward(self, image: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.image(image) + self.extra(extra)
        return hidden, hidden.argmax(1)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = torch.relu(self.body(x))
        return {"logits": self.head(hidden), "features": {"last": hidden}, "scale": 3, "mask": None}


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x.transpose(0, 1))[0].transpose(0, 1)


def normal(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: (torch.randn(batch, *shape),)


def two(batch: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, 6), torch.randn(batch, 2)


def tokens(batch: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, (batch, 4)),)


class Case(NamedTuple):
    factory: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    outputs: list[str]
    weights: list[str]


CASES = {
    "conv net": Case(conv_net, normal(3, 6, 6), ["output"], ["0.weight", "3.weight", "4.weight", "6.weight"]),
    "attention": Case(
        Attention,
        normal(5, 8),
        ["output"],
        ["attention.in_proj_weight", "attention.out_proj.weight", "mlp.0.weight", "mlp.2.weight"],
    ),
    "windows": Case(Windows, normal(15, 8), ["output"], ["qkv.weight", "out.weight"]),
    "folded heads": Case(FoldedHeads, normal(5, 8), ["output"], ["qkv.weight", "out.weight"]),
    "two images": Case(TwoImages, normal(6), ["output"], ["one.weight", "two.weight"]),
    "scaled": Case(Scaled, normal(3, 4, 4), ["output"], ["first.weight"]),
    "tied text": Case(TiedText, tokens, ["output"], ["body.weight", "embedding.weight"]),
    "tied layers": Case(TiedLayers, normal(6), ["output"], ["first.weight"]),
    "weight norm": Case(weight_norm, normal(6), ["output"], ["0.weight", "2.weight"]),
    "recurrent": Case(  # lstm: two layers, both directions
        Recurrent,
        normal(7, 4),
        ["output"],
        [
            *(f"lstm.weight_{w}_l{n}{r}" for n in (0, 1) for r in ("", "_reverse") for w in ("ih", "hh")),
            "head.weight",
        ],
    ),
    "gated": Case(Gated, normal(7, 4), ["output"], ["gru.weight_ih_l0", "gru.weight_hh_l0"]),
    "volumes": Case(Volumes, normal(1, 2, 4, 4), ["output"], ["volume.weight", "up.weight", "line.weight"]),
    "own parameters": Case(OwnParameters, normal(3, 6), ["output"], ["right", "left", "mixed"]),
    "equal": Case(Equal, normal(6), ["output"], ["first.weight", "second.weight"]),
    "two inputs": Case(TwoInputs, two, ["output_0", "output_1"], ["image.weight", "extra.weight"]),
    "named": Case(Named, normal(6), ["logits", "features_last"], ["body.weight", "head.weight"]),
}


def pruned_case(case: Case, sparsity: float = 0.7) -> fxprune.PrunedModel:
    torch.manual_seed(0)
    return fxprune.prune(case.factory(), case.inputs(3), sparsity=sparsity, criterion="magnitude")


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


def run(path: Path, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, {n: v.numpy() for n, v in zip(names, inputs, strict=True)})


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
    names = ["image", "extra"] if exported.case.factory is TwoInputs else None
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


# --- faults: nothing false stands under the final name, and what stood there stays


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def change(model: onnx.ModelProto, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = initializer(model, name)
    tensor.CopyFrom(numpy_helper.from_array(how(numpy_helper.to_array(tensor).copy()), name))


def bypass(model: onnx.ModelProto, operator: str) -> None:
    node = next(node for node in model.graph.node if node.op_type == operator)
    for user in model.graph.node:
        inputs = [node.input[0] if name == node.output[0] else name for name in user.input]
        del user.input[:]
        user.input.extend(inputs)
    model.graph.node.remove(node)


def flip(model: onnx.ModelProto) -> None:
    def negate_first_kept(value: np.ndarray) -> np.ndarray:
        flat = value.reshape(-1)
        flat[np.flatnonzero(flat)[0]] *= -1
        return value

    change(model, "3.weight", negate_first_kept)


def fill(model: onnx.ModelProto) -> None:
    def fill_first_zero(value: np.ndarray) -> np.ndarray:
        flat = value.reshape(-1)
        flat[np.flatnonzero(flat == 0)[0]] = 1e-30
        return value

    change(model, "3.weight", fill_first_zero)


def rename(model: onnx.ModelProto) -> None:
    initializer(model, "6.weight").name = "other"
    for node in model.graph.node:
        inputs = ["other" if name == "6.weight" else name for name in node.input]
        del node.input[:]
        node.input.extend(inputs)


def fix_batch(model: onnx.ModelProto) -> None:
    node = [node for node in model.graph.node if node.op_type == "Reshape"][-1]
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 128]), "two"))
    node.input[1] = "two"


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[-1].domain = "elsewhere"
    model.opset_import.add(domain="elsewhere", version=1)


FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "a weight flipped": (flip, "weights: ; differ in 3.weight"),
    "a zero filled": (fill, "zero pattern: .*filled in 3.weight"),
    "a weight renamed": (rename, "zero pattern: .*missing in 6.weight"),
    "a bias changed": (lambda model: change(model, "6.bias", lambda bias: bias + 1), "outputs: "),
    "statistics changed": (lambda m: change(m, "1.running_var", lambda v: v * 4), "outputs: "),
    "an activation dropped": (lambda model: bypass(model, "Relu"), "outputs: "),
    "the last node dropped": (lambda model: model.graph.node.pop(), "format: "),
    "an operator that no runtime has": (foreign_operator, "outputs: |run"),
    "a batch size fixed": (fix_batch, "outputs: |run"),
}


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[[onnx.ModelProto], object]) -> None:
    write = export._to_onnx

    def broken(*args: Any) -> onnx.ModelProto:
        model = write(*args)
        fault(model)
        return model

    monkeypatch.setattr(export, "_to_onnx", broken)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("existing", [False, True])
def test_a_file_with_a_fault_never_gets_the_final_name(
    small: fxprune.PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, existing: bool
) -> None:
    path = tmp_path / "net.onnx"
    if existing:
        path.write_bytes(b"the file before")
    break_it, complaint = FAULTS[fault]
    plant(monkeypatch, break_it)
    with pytest.raises(VerificationError, match=complaint):
        fxprune.export_onnx(small, path)
    assert list(tmp_path.iterdir()) == ([path] if existing else [])
    assert not existing or path.read_bytes() == b"the file before"


class Truncated:
    """A model whose serialisation ends early, as on a full disk that says nothing."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self.model.SerializeToString()[:-100]


def test_a_truncated_file_never_gets_the_final_name(
    small: fxprune.PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"the file before")
    write = export._to_onnx
    monkeypatch.setattr(export, "_to_onnx", lambda *args: Truncated(write(*args)))
    with pytest.raises(ExportError, match=r"cannot be read|does not do"):
        fxprune.export_onnx(small, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"the file before"


def test_a_full_disk_leaves_what_was_there(
    small: fxprune.PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    path = tmp_path / "net.onnx"
    path.write_bytes(b"the file before")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ExportError, match=r"cannot write .*No space left on device; free some space"):
        fxprune.export_onnx(small, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"the file before"


def test_an_exporter_that_gives_up_is_quoted(
    small: fxprune.PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no function for aten.moon\nand a long tale")

    monkeypatch.setattr(torch.onnx, "export", give_up)
    with pytest.raises(ExportError, match=r"cannot write this graph as ONNX: .*no function for aten.moon$"):
        fxprune.export_onnx(small, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_beyond_two_gigabytes_has_its_tensors_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "LIMIT", 1000)
    path = tmp_path / "net.onnx"
    torch.manual_seed(0)
    pruned = fxprune.prune(nn.Linear(40, 50), torch.randn(2, 40), sparsity=0.5, criterion="magnitude")
    result = fxprune.export_onnx(pruned, path)
    (data,) = set(tmp_path.iterdir()) - {path}
    assert data.name.startswith("net.onnx.")
    assert result.passed
    assert result.bytes == path.stat().st_size + data.stat().st_size
    assert data.stat().st_mode == path.stat().st_mode
    with torch.no_grad():
        wanted = pruned.eval()(torch.ones(3, 40)).numpy()
    np.testing.assert_allclose(run(path, (torch.ones(3, 40),))[0], wanted, rtol=1e-5, atol=1e-6)

    # other weights: the file of the former ones goes once the new file stands
    with torch.no_grad():
        pruned.get_parameter("weight").mul_(2)
    fxprune.export_onnx(pruned, path)
    (other,) = set(tmp_path.iterdir()) - {path}
    assert other != data

    # a file that fails leaves the one that stands, and its tensors, alone
    before = path.read_bytes(), other.read_bytes()
    plant(monkeypatch, lambda model: change(model, "bias", lambda bias: bias + 1))
    for parameter in ("weight", "bias"):
        with torch.no_grad():
            pruned.get_parameter(parameter).mul_(2)
    with pytest.raises(VerificationError, match="outputs: "):
        fxprune.export_onnx(pruned, path)
    assert set(tmp_path.iterdir()) == {path, other}
    assert (path.read_bytes(), other.read_bytes()) == before

    # small enough again
    monkeypatch.undo()
    fxprune.export_onnx(pruned, path)
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_are_gone_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "LIMIT", 1000)
    pruned = fxprune.prune(nn.Linear(40, 50), torch.randn(2, 40), sparsity=0.5, criterion="magnitude")
    fxprune.export_onnx(pruned, tmp_path / "net.onnx")
    (data,) = set(tmp_path.iterdir()) - {tmp_path / "net.onnx"}
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(ExportError, match="expected an ONNX file, got one that cannot be read"):
        verify_onnx(tmp_path / "net.onnx", pruned)


@pytest.mark.parametrize("opset", [17, 0, -1, 99])
def test_opsets_that_cannot_be_written(small: fxprune.PrunedModel, tmp_path: Path, opset: int) -> None:
    with pytest.raises(ExportError, match=f"opset: expected .*got {opset}"):
        fxprune.export_onnx(small, tmp_path / "net.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_path_for_a_file(small: fxprune.PrunedModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected a path for a file, got a folder"):
        fxprune.export_onnx(small, tmp_path)


def test_a_path_below_a_file_cannot_be_written(small: fxprune.PrunedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportError, match=r"cannot write .*net.onnx.*choose another path"):
        fxprune.export_onnx(small, tmp_path / "file" / "net.onnx")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(small: fxprune.PrunedModel, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ExportError, match=r"cannot write .*Permission denied"):
            fxprune.export_onnx(small, tmp_path / "net.onnx")
    finally:
        tmp_path.chmod(0o700)


def test_a_weight_whose_parameter_is_read_elsewhere_too(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight / self.weight.norm()) + self.weight.sum()

    pruned = fxprune.prune(Both(), torch.randn(2, 6), sparsity=0.5, criterion="random")
    assert fxprune.export_onnx(pruned, tmp_path / "net.onnx").passed
