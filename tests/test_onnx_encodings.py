"""Encodings: what is decoded is what was stored, in each runtime, and takes the bytes that were counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import nn

import fxprune
from fxprune.errors import ExportError
from fxprune.onnx.encode import Storage, encode_weights
from fxprune.onnx.encodings import ENCODINGS, SparseWeight
from fxprune.onnx.read import Constants
from fxprune.onnx.verify import verify_onnx

Array = NDArray[Any]


def at(size: int, *positions: int) -> Array:
    """A line of zeros but for some positions."""
    array = np.zeros(size, np.float32)
    array[list(positions)] = np.arange(1, len(positions) + 1)
    return array


def random(shape: tuple[int, ...], density: float, dtype: Any = np.float32) -> Array:
    generator = np.random.default_rng(0)
    array = generator.standard_normal(shape).astype(dtype)
    array[generator.random(shape) >= density] = 0
    return array


PATTERNS = {
    "one element": at(1, 0),
    "one zero": at(1),
    "first": at(1000, 0),
    "last": at(1000, 999),
    "first and last": at(1000, 0, 999),
    "all zero": at(37),
    "all there": np.arange(1, 30, dtype=np.float32).reshape(1, 29),
    "an odd number": at(100, 3, 4, 50),
    "steps about 16": at(200, 14, 29, 45, 62, 78, 95, 127, 160),
    "the first step is 15": at(40, 15, 16, 32),
    "the first step is 16": at(40, 16),
    "steps about 255": at(2000, 254, 509, 765, 1022, 1532, 1999),
    "steps about 65535": at(400_000, 65_534, 131_069, 196_605, 262_142, 393_212),
    "long, and rarely": at(1_000_000, *range(300), 999_999),
    "a convolution": random((8, 4, 3, 3), 0.2),
    "four in five": random((40, 50), 0.2),
    "nine in ten": random((40, 50), 0.1),
    "almost all": random((40, 50), 0.01),
    "few removed": random((40, 50), 0.9),
    "half precision": random((30, 30), 0.2, np.float16),
    "double precision": random((30, 30), 0.2, np.float64),
}


def model_of(array: Array, opset: int = 18) -> ModelProto:
    """A model that returns its weight."""
    element = helper.np_dtype_to_tensor_dtype(array.dtype)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["weight"], ["read"])],
        "graph",
        [],
        [helper.make_tensor_value_info("read", element, array.shape)],
        [numpy_helper.from_array(array, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: ModelProto, *, optimised: bool = True, dump: Path | None = None) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {})[0]


def stored_bytes(model: ModelProto) -> int:
    sparse = [part for tensor in model.graph.sparse_initializer for part in (tensor.values, tensor.indices)]
    return sum(len(tensor.raw_data) for tensor in [*model.graph.initializer, *sparse])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_decoded_is_what_was_stored(pattern: str, encoding: str) -> None:
    array = PATTERNS[pattern]
    model = model_of(array)
    storage = encode_weights(model, ["weight"], encoding)
    assert storage.nonzero == np.count_nonzero(array)
    if encoding != "coo":  # whose shapes onnx does not infer
        onnx.checker.check_model(model, full_check=True)
    for found in (run(model), run(model, optimised=False), Constants(model).get("weight")):
        assert found is not None
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "pattern", ["four in five", "all zero", "double precision", "half precision", "all there"]
)
def test_values_in_float16(pattern: str, encoding: str) -> None:
    array = PATTERNS[pattern]
    model = model_of(array)
    encode_weights(model, ["weight"], encoding, "fp16")
    wanted = array.astype(np.float16).astype(array.dtype)
    for found in (run(model), run(model, optimised=False)):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, wanted)
    types = {tensor.data_type for tensor in model.graph.initializer if tensor.name.endswith("values")}
    assert types <= {onnx.TensorProto.FLOAT16}


class GatherElements(OpRun):
    """The reference evaluator's own goes through `numpy.choose`, which takes 64 elements at most."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
        return (np.take_along_axis(data, indices, axis),)


def inlined(model: ModelProto) -> ModelProto:
    """The evaluator takes functions, but inside of them no operator other than its own."""
    return onnx.inliner.inline_local_functions(model) if model.functions else model


@pytest.mark.parametrize("encoding", ["dense", "bitmask", "gaps", "auto"])
@pytest.mark.parametrize(
    "pattern", ["steps about 16", "steps about 255", "four in five", "all zero", "few removed"]
)
def test_the_reference_evaluator_decodes_the_same(pattern: str, encoding: str) -> None:
    array = PATTERNS[pattern]
    model = model_of(array)
    encode_weights(model, ["weight"], encoding)
    (found,) = ReferenceEvaluator(inlined(model), new_ops=[GatherElements]).run(None, {})
    np.testing.assert_array_equal(found, array)


OPTIONS = [option for name in ("dense", "coo", "bitmask", "gaps") for option in ENCODINGS[name]]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: type(option).__name__)
@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name not in ("all zero", "one zero")])
def test_bytes_are_those_that_were_counted(option: Any, pattern: str) -> None:
    array = PATTERNS[pattern]
    weight = SparseWeight.of("weight", array, array.dtype)
    encoded = option.encode(weight)
    parts = [*encoded.tensors, *(part for tensor in encoded.sparse for part in (tensor.values, tensor.indices))]
    assert option.payload(weight) == sum(len(part.raw_data) for part in parts)


def encoded_size(arrays: dict[str, Array], encoding: str) -> tuple[int, Storage, ModelProto]:
    model = model_of(np.zeros(1, np.float32))
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    storage = encode_weights(model, list(arrays), encoding)
    return model.ByteSize(), storage, model


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("side", [5, 40, 300])
def test_auto_is_the_smallest(density: float, side: int) -> None:
    arrays = {f"layer{i}.weight": random((side, side + i), density) for i in range(3)}
    sizes = {encoding: encoded_size(arrays, encoding)[0] for encoding in ("auto", "dense", "bitmask", "gaps")}
    assert sizes["auto"] <= min(sizes.values()) + 16


def test_auto_chooses_for_each_weight() -> None:
    arrays = {
        "dense": random((300, 300), 0.99),
        "half": random((300, 300), 0.5),
        "sparse": random((300, 300), 0.1),
        "sparser": random((300, 300), 0.02),
        "sparsest": random((2000, 1000), 0.0002),
        "tiny": random((3, 2), 0.1),
    }
    _, storage, model = encoded_size(arrays, "auto")
    assert storage.encodings == {"bitmask": 1, "dense": 2, "gaps": 3}
    used = {node.name: node.op_type for node in model.graph.node if node.domain == "fxprune"}
    assert used == {"half": "Bitmask", "sparse": "PackedGaps", "sparser": "Gaps", "sparsest": "Gaps"}
    assert sorted(function.name for function in model.functions) == ["Bitmask", "Gaps", "PackedGaps"]
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["sparser/steps"] == onnx.TensorProto.UINT8
    assert types["sparsest/steps"] == onnx.TensorProto.UINT16


def test_a_decoder_that_saves_less_than_it_takes_is_left_out() -> None:
    _, storage, model = encoded_size({"a": random((9, 9), 0.2)}, "auto")
    assert storage.encodings == {"dense": 1}
    assert not model.functions
    assert [entry.domain for entry in model.opset_import] == [""]


def test_random_masks_come_close_to_the_entropy_bound() -> None:
    from fxprune.onnx.sizes import entropy_bound

    for density, most in ((0.2, 1.03), (0.1, 1.05), (0.02, 1.04)):
        array = random((1000, 1000), density)
        size, _, _ = encoded_size({"weight": array}, "auto")
        assert size <= most * entropy_bound([(array.size, np.count_nonzero(array))])


# --- numbers that cannot be stored as they are


def test_denormals_are_flushed_and_counted() -> None:
    tiny = np.finfo(np.float32).tiny
    array = np.array([tiny, -tiny, tiny / 2, -tiny / 4, 1e-45, 0, -0.0, 1], np.float32)
    for encoding in ENCODINGS:
        model = model_of(array)
        storage = encode_weights(model, ["weight"], encoding)
        assert (storage.nonzero, storage.flushed) == (3, 3)
        np.testing.assert_array_equal(Constants(model).get("weight"), [tiny, -tiny, 0, 0, 0, 0, 0, 1])


def test_small_values_are_flushed_in_float16() -> None:
    array = np.array([1, 6.2e-5, 6e-5, 1e-8, 0], np.float32)
    model = model_of(array)
    storage = encode_weights(model, ["weight"], "gaps", "fp16")
    assert (storage.nonzero, storage.flushed) == (2, 2)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_values_too_large_for_float16_are_refused(encoding: str) -> None:
    array = np.array([1, 0, 65520.0], np.float32)
    with pytest.raises(ExportError, match=r"'weight' has 1 values beyond 65504, .* such as 65520; export it with"):
        encode_weights(model_of(array), ["weight"], encoding, "fp16")
    encode_weights(model_of(np.array([65504.0], np.float32)), ["weight"], encoding, "fp16")


def test_what_is_no_number_is_kept_for_verification_to_find() -> None:
    array = np.array([np.nan, np.inf, 0, 1], np.float32)
    for encoding in ENCODINGS:
        model = model_of(array)
        encode_weights(model, ["weight"], encoding, "fp16")
        np.testing.assert_array_equal(Constants(model).get("weight"), array)


# --- weights that cannot be stored so


@pytest.mark.parametrize("encoding", ["coo", "bitmask", "gaps"])
@pytest.mark.parametrize("array", [np.float32(3).reshape(()), np.zeros((0, 3), np.float32)])
def test_weights_that_an_encoding_cannot_take(array: Array, encoding: str) -> None:
    with pytest.raises(
        ExportError, match=rf"'weight' of shape .* cannot be stored as {encoding}, .*'auto' or 'dense'"
    ):
        encode_weights(model_of(array), ["weight"], encoding)
    for able in ("auto", "dense"):
        model = model_of(array)
        assert encode_weights(model, ["weight"], able).encodings == {"dense": 1}
        np.testing.assert_array_equal(run(model), array)


def test_more_elements_than_int32_counts() -> None:
    weight = SparseWeight(
        "weight", (2**16, 2**15), np.dtype(np.float32), np.arange(3), np.ones(3, np.float32), flushed=0
    )
    assert [option.payload(weight) is None for option in OPTIONS] == [False, *[True] * (len(OPTIONS) - 1)]


@pytest.mark.parametrize(("encoding", "values"), [("zip", "fp32"), ("auto", "int8"), ("", "fp32")])
def test_unknown_choices(encoding: str, values: Any) -> None:
    with pytest.raises(ExportError, match=r"(encoding|values): expected one of .*, got '(zip|int8|)'"):
        encode_weights(model_of(at(3, 1)), ["weight"], encoding, values)


def test_a_name_that_is_taken() -> None:
    model = model_of(random((40, 50), 0.1))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "weight/values"))
    with pytest.raises(ExportError, match="already has a tensor named 'weight/values'"):
        encode_weights(model, ["weight"], "gaps")


# --- whole networks


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.down = nn.Conv2d(32, 48, 3, stride=2)
        self.head = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.down(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def pruned() -> fxprune.PrunedModel:
    torch.manual_seed(0)
    return fxprune.prune(Net(), torch.randn(2, 3, 8, 8), sparsity=0.9, criterion="magnitude")


@pytest.fixture(scope="module")
def files(pruned: fxprune.PrunedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    paths = {name: folder / f"{name}.onnx" for name in (*ENCODINGS, "inline", "half")}
    for name in ENCODINGS:
        fxprune.export_onnx(pruned, paths[name], encoding=name)
    fxprune.export_onnx(pruned, paths["inline"], encoding="gaps", inline=True)
    fxprune.export_onnx(pruned, paths["half"], values="fp16")
    return paths


NAMES = (*ENCODINGS, "inline", "half")


@pytest.mark.parametrize("name", NAMES)
def test_the_optimised_graph_is_that_of_the_dense_file(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    graphs = []
    for file in (files["dense"], files[name]):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        graphs.append([node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node])
    assert graphs[0] == graphs[1]


def test_a_readable_graph_has_one_node_more_a_weight(files: dict[str, Path]) -> None:
    dense, gaps, inline = (onnx.load(files[name]) for name in ("dense", "gaps", "inline"))
    assert len(gaps.graph.node) == len(dense.graph.node) + 3
    assert len(inline.graph.node) > len(gaps.graph.node) + 20
    assert {function.domain for function in gaps.functions} == {"fxprune"}
    assert not inline.functions
    assert {node.domain for node in inline.graph.node} == {""}
    assert [entry.domain for entry in inline.opset_import] == [""]


@pytest.mark.parametrize("name", NAMES)
def test_files_pass_again(files: dict[str, Path], pruned: fxprune.PrunedModel, name: str) -> None:
    result = verify_onnx(files[name], pruned)
    assert result.passed
    assert result.nonzero == pruned.masks.kept
    assert result.difference < 1e-5
    assert result.unoptimised < 1e-5
    assert (result.rounding > 1e-6) is (name == "half")
    assert result.agreement == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "coo"])
def test_the_reference_evaluator_computes_the_same(
    files: dict[str, Path], pruned: fxprune.PrunedModel, name: str
) -> None:
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = pruned.eval()(images).numpy()
    (found,) = ReferenceEvaluator(inlined(onnx.load(files[name])), new_ops=[GatherElements]).run(
        None, {"x": images.numpy()}
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3 if name == "half" else 1e-5)


@pytest.mark.parametrize("options", [{"encoding": "zip"}, {"values": "fp8"}])
def test_nothing_is_overwritten_by_a_choice_that_does_not_exist(
    pruned: fxprune.PrunedModel, tmp_path: Path, options: dict[str, Any]
) -> None:
    (tmp_path / "net.onnx").write_text("before")
    with pytest.raises(ExportError, match="expected one of"):
        fxprune.export_onnx(pruned, tmp_path / "net.onnx", **options)
    assert (tmp_path / "net.onnx").read_text() == "before"


@pytest.mark.slow
@pytest.mark.parametrize("values", ["fp32", "fp16"])
def test_openvino_computes_the_same(tmp_path: Path, values: Any) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install fxprune[openvino]")
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    pruned = fxprune.prune(model, torch.randn(2, 3, 64, 64), sparsity=0.9, criterion="magnitude")
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        wanted = pruned.eval()(images).numpy()
    for encoding in ("auto", "bitmask"):
        path = tmp_path / f"{encoding}.onnx"
        fxprune.export_onnx(pruned, path, encoding=encoding, values=values, inline=True)
        compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled([images.numpy()])[0]
        assert np.abs(found - wanted).max() <= (1e-2 if values == "fp16" else 1e-4) * np.abs(wanted).max()
