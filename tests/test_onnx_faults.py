"""When `export_onnx` cannot: nothing false stands under the final name, and what stood there stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_cases import CASES, pruned_case, run
from torch import nn

import fxprune
from fxprune.errors import ExportError, VerificationError
from fxprune.onnx import export, external
from fxprune.onnx.verify import verify_onnx


@pytest.fixture(scope="module")
def small() -> fxprune.PrunedModel:
    return pruned_case(CASES["conv net"])


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
