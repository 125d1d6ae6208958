from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import checkpoint
from fxprune.checkpoint import MANIFEST, annotate, read_manifest, require_free
from fxprune.errors import CheckpointError, FxpruneError
from fxprune.zoo import ModelSpec, build

# --- modules


def batch_norm_net(width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 4, 3)
    )


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("again", self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))) * self.scale + self.again


class MixedPrecision(nn.Module):
    """Its statistics are kept in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("total", torch.full((), 1 / 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.total.add_(x.double().mean())
        return self.linear(x) + self.total.float()


class NotSaved(nn.Module):
    """A buffer outside the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("positions", torch.arange(6.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.positions)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Linear(8, 6))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch norm": (batch_norm_net, (1, 4, 4)),
    "tied": (Tied, (6,)),
    "mixed precision": (MixedPrecision, (6,)),
    "a buffer not saved": (NotSaved, (6,)),
    "attention": (Attention, (5, 6)),
    "derived": (weight_norm, (6,)),
}


def pruned_net(module: nn.Module, *shape: int, steps: int = 2) -> fxprune.PrunedModel:
    """Pruned, and trained for some steps so that no tensor has its first value."""
    torch.manual_seed(0)
    pruned = fxprune.prune(module, (torch.randn(3, *shape),), sparsity=0.6, criterion="magnitude")
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1, momentum=0.9)
    pruned.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (pruned(torch.randn(4, *shape)) - 1).square().mean().backward()
        optimizer.step()
    return pruned


@pytest.fixture
def pruned() -> fxprune.PrunedModel:
    return pruned_net(batch_norm_net(), 1, 4, 4)


@pytest.fixture
def saved(pruned: fxprune.PrunedModel, tmp_path: Path) -> Path:
    fxprune.save(pruned, tmp_path / "out", input_shape=(1, 4, 4))
    return tmp_path / "out"


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def evaluated(model: nn.Module, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.no_grad():
        return model.eval()(torch.randn(5, *shape, generator=torch.Generator().manual_seed(1)).to(dtype))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- there and back


@pytest.mark.parametrize("case", MODULES)
def test_a_module_handed_over(case: str, tmp_path: Path) -> None:
    factory, shape = MODULES[case]
    pruned = pruned_net(factory(), *shape)
    fxprune.save(pruned, tmp_path / "out", input_shape=shape, notes={"epoch": 3})
    torch.manual_seed(5)
    module = factory()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    loaded = fxprune.load(tmp_path / "out", module)
    assert same_state(loaded, pruned)
    assert loaded.record == pruned.record
    assert [weight.name for weight in loaded.weights] == [weight.name for weight in pruned.weights]
    assert dict(loaded.weights.skipped) == dict(pruned.weights.skipped)
    assert torch.equal(evaluated(loaded, *shape), evaluated(pruned, *shape))
    assert str(fxprune.report(loaded)) == str(fxprune.report(pruned))
    # the module is what the model is built from, not what becomes of it
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())

    # it goes on training as the one that was saved, and stays sparse
    for model in (pruned, loaded):
        torch.manual_seed(6)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        optimizer.zero_grad()
        model.train()(torch.randn(4, *shape)).square().mean().backward()
        optimizer.step()
    assert same_state(loaded, pruned)
    for name, mask in loaded.masks.items():
        assert not loaded.effective_weight(name)[~mask].any()


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    pruned = pruned_net(Tied(), 6)
    fxprune.save(pruned, tmp_path / "out", input_shape=(6,))
    from safetensors.torch import load_file

    (weights,) = (tmp_path / "out").glob("*.safetensors")
    stored = load_file(weights)
    assert len([name for name in stored if name in ("first.weight", "second.weight")]) == 1
    loaded = fxprune.load(tmp_path / "out", Tied())
    assert loaded.get_parameter("first.weight") is loaded.get_parameter("second.weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision(pruned: fxprune.PrunedModel, tmp_path: Path, dtype: torch.dtype) -> None:
    pruned.to(dtype)
    fxprune.save(pruned, tmp_path / "out", input_shape=(1, 4, 4))
    loaded = fxprune.load(tmp_path / "out", batch_norm_net())
    assert same_state(loaded, pruned)
    assert next(loaded.parameters()).dtype == dtype
    assert torch.equal(evaluated(loaded, 1, 4, 4, dtype=dtype), evaluated(pruned, 1, 4, 4, dtype=dtype))


@pytest.mark.parametrize("name", ["timm:test_efficientnet", "timm:test_vit", "torchvision:squeezenet1_1"])
def test_a_spec_is_enough_to_rebuild_a_model(name: str, tmp_path: Path) -> None:
    spec = ModelSpec(name, input_shape=(3, 32, 32), num_classes=4)
    torch.manual_seed(0)
    module, shape = build(spec)
    pruned = fxprune.prune(module, (torch.randn(2, *shape),), sparsity=0.9, criterion="random", seed=3)
    fxprune.save(pruned, tmp_path / "out", model=spec, input_shape=shape, notes={"data": "digits"})
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.model, manifest.input_shape, manifest.notes) == (spec, shape, {"data": "digits"})
    assert manifest.record == pruned.record

    loaded = fxprune.load(tmp_path / "out")
    assert same_state(loaded, pruned)
    assert torch.equal(evaluated(loaded, *shape), evaluated(pruned, *shape))
    again = fxprune.load(tmp_path / "out", spec)
    assert same_state(again, pruned)


def test_only_some_weights_have_masks(tmp_path: Path) -> None:
    pruned = fxprune.prune(
        batch_norm_net(), (torch.randn(2, 1, 4, 4),), sparsity=0.5, criterion="magnitude", exclude=["4.*"]
    )
    fxprune.save(pruned, tmp_path / "out", input_shape=(1, 4, 4))
    loaded = fxprune.load(tmp_path / "out", batch_norm_net())
    assert [weight.name for weight in loaded.weights] == ["0.weight"]
    assert loaded.weights.skipped["4.weight"] == "excluded by '4.*'"
    assert same_state(loaded, pruned)


def test_example_inputs_where_the_shape_does_not_say(tmp_path: Path) -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.table(tokens))

    tokens = torch.randint(0, 11, (3, 5))
    pruned = fxprune.prune(Text(), (tokens,), sparsity=0.5, criterion="magnitude")
    fxprune.save(pruned, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"records no input shape; give example_inputs=\(x,\)"):
        fxprune.load(tmp_path / "out", Text())
    loaded = fxprune.load(tmp_path / "out", Text(), (tokens,))
    assert torch.equal(loaded.eval()(tokens), pruned.eval()(tokens))


def test_a_model_called_with_keywords(tmp_path: Path) -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, *, x: Tensor) -> Tensor:
            return self.linear(x)

    inputs = {"x": torch.randn(3, 6)}
    pruned = fxprune.prune(Keywords(), example_kwargs=inputs, sparsity=0.5, criterion="magnitude")
    fxprune.save(pruned, tmp_path / "out")
    loaded = fxprune.load(tmp_path / "out", Keywords(), example_kwargs=inputs)
    assert torch.equal(loaded.eval()(**inputs), pruned.eval()(**inputs))


def test_saving_leaves_the_model_as_it_was(pruned: fxprune.PrunedModel, tmp_path: Path) -> None:
    state = {name: (id(t), t.clone()) for name, t in pruned.state_dict(keep_vars=True).items()}
    fxprune.save(pruned, tmp_path / "out")
    after = pruned.state_dict(keep_vars=True)
    assert pruned.training
    assert all(id(after[name]) == i and torch.equal(after[name], t) for name, (i, t) in state.items())


# --- one checkpoint a folder


def test_overwriting_keeps_one_file_of_weights(pruned: fxprune.PrunedModel, saved: Path) -> None:
    first = names(saved)
    assert len(first) == 2
    assert MANIFEST in first
    with torch.no_grad():
        pruned.get_parameter("4.bias").add_(1)
    fxprune.save(pruned, saved, input_shape=(1, 4, 4))
    assert len(names(saved)) == 2
    assert names(saved) != first
    assert same_state(fxprune.load(saved, batch_norm_net()), pruned)


def test_saving_the_same_again_changes_nothing(pruned: fxprune.PrunedModel, saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    fxprune.save(pruned, saved, input_shape=(1, 4, 4))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_other_files_of_the_folder_are_left_alone(pruned: fxprune.PrunedModel, saved: Path) -> None:
    (saved / "net.onnx").write_text("a net")
    (saved / "weights.safetensors").write_text("somebody's")
    fxprune.save(pruned, saved)
    assert {"net.onnx", "weights.safetensors"} <= set(names(saved))


def test_notes_can_be_added(saved: Path) -> None:
    weights = read_manifest(saved).weights_file
    annotate(saved, epoch=1, data="digits")
    annotate(saved, epoch=2)
    assert read_manifest(saved).notes == {"epoch": 2, "data": "digits"}
    assert names(saved) == sorted([MANIFEST, weights])


@pytest.mark.parametrize("save", [fxprune.save, None])
def test_a_folder_of_something_else_is_refused(
    pruned: fxprune.PrunedModel, tmp_path: Path, save: Callable[..., None] | None
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds something else; choose another output"):
        fxprune.save(pruned, tmp_path) if save else require_free(tmp_path, force=True)
    assert names(tmp_path) == ["thesis.tex"]


def test_a_file_is_no_folder(pruned: fxprune.PrunedModel, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CheckpointError, match="expected a folder or nothing, got a file"):
        fxprune.save(pruned, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"cannot write|expected a folder"):
        fxprune.save(pruned, tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text() == "a file"


def test_a_checkpoint_is_overwritten_by_force_only(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="overwrite it with --force"):
        require_free(saved)
    require_free(saved, force=True)
    require_free(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    require_free(tmp_path / "empty")


# --- interruptions


def half_then_fail(error: BaseException) -> Callable[..., None]:
    def save_file(tensors: dict[str, Tensor], path: Path, metadata: Any = None) -> None:
        Path(path).write_bytes(b"half of the weights")
        raise error

    return save_file


def fail_at(count: int, error: BaseException) -> Callable[[Path, Path], Path]:
    """`Path.replace` that fails at the nth call."""
    calls, replace = [], Path.replace

    def failing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == count:
            raise error
        return replace(self, target)

    return failing


NO_SPACE = OSError(28, "No space left on device")
INTERRUPTIONS = {
    "while weights are written": (checkpoint, "save_file", half_then_fail),
    "before the weights have their name": (Path, "replace", lambda error: fail_at(1, error)),
    "before the manifest has its name": (Path, "replace", lambda error: fail_at(2, error)),
}


@pytest.mark.parametrize("when", INTERRUPTIONS)
@pytest.mark.parametrize("error", [NO_SPACE, KeyboardInterrupt()], ids=["disk full", "ctrl-c"])
def test_an_interrupted_save_leaves_the_old_checkpoint(
    saved: Path, pruned: fxprune.PrunedModel, monkeypatch: pytest.MonkeyPatch, when: str, error: BaseException
) -> None:
    old = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    with torch.no_grad():
        pruned.get_parameter("4.bias").add_(1)
    owner, name, failing = INTERRUPTIONS[when]
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(error))
        with pytest.raises(expected):
            fxprune.save(pruned, saved)
    loaded = fxprune.load(saved, batch_norm_net()).state_dict()
    assert all(torch.equal(old[name], loaded[name]) for name in old)

    fxprune.save(pruned, saved, input_shape=(1, 4, 4))
    assert len(names(saved)) == 2
    assert same_state(fxprune.load(saved, batch_norm_net()), pruned)


@pytest.mark.parametrize("when", INTERRUPTIONS)
def test_an_interrupted_first_save_can_be_repeated(
    pruned: fxprune.PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    owner, name, failing = INTERRUPTIONS[when]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(NO_SPACE))
        with pytest.raises(CheckpointError, match=r"No space left on device.*free some space"):
            fxprune.save(pruned, tmp_path / "out")
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        fxprune.load(tmp_path / "out", batch_norm_net())
    fxprune.save(pruned, tmp_path / "out")
    assert len(names(tmp_path / "out")) == 2


def test_notes_that_json_cannot_hold_are_refused_before_anything_is_written(
    pruned: fxprune.PrunedModel, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="notes"):
        fxprune.save(pruned, tmp_path / "out", notes={"loss": torch.ones(1)})
    fxprune.save(pruned, tmp_path / "out")


# --- damage


def test_truncated_weights(saved: Path) -> None:
    (weights,) = saved.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="digest is not the recorded one; the file was truncated"):
        fxprune.load(saved, batch_norm_net())


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\xff" * 100])
def test_weights_that_are_none_though_the_digest_fits(saved: Path, content: bytes) -> None:
    (weights,) = saved.glob("*.safetensors")
    weights.write_bytes(content)
    edit(saved, sha256=checkpoint._digest(weights))
    with pytest.raises(CheckpointError, match="expected the tensors of a checkpoint"):
        fxprune.load(saved, batch_norm_net())


def test_lost_weights(saved: Path) -> None:
    next(saved.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"expected the tensors of a checkpoint, got .*No such file"):
        fxprune.load(saved, batch_norm_net())


@pytest.mark.parametrize("folder", ["missing", ".", "file"])
def test_what_is_no_checkpoint(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(
        CheckpointError,
        match=r"expected a checkpoint of fxprune, got (a folder without|No such file|Not a directory)",
    ):
        fxprune.load(tmp_path / folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"text"',
        "{}",
        '{"format": "other 1"}',
        '{"format": ["a"]}',
        "\x00",
        "[" * 99999,
    ],
)
def test_a_manifest_that_is_none(saved: Path, text: str) -> None:
    (saved / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match="expected the manifest of a checkpoint"):
        fxprune.load(saved, batch_norm_net())


def test_a_manifest_in_another_encoding(saved: Path) -> None:
    (saved / MANIFEST).write_bytes(b"\xff\xfe{}")
    with pytest.raises(CheckpointError, match="expected the manifest of a checkpoint"):
        fxprune.load(saved, batch_norm_net())


@pytest.mark.parametrize(
    "key", ["model", "input_shape", "record", "weights", "skipped", "weights_file", "sha256", "training", "notes"]
)
def test_a_manifest_that_lacks_an_entry(saved: Path, key: str) -> None:
    values = json.loads((saved / MANIFEST).read_text())
    del values[key]
    (saved / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"expected the manifest of a checkpoint, got KeyError: '{key}'"):
        fxprune.load(saved, batch_norm_net())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "timm:resnet18"),
        ("model", {"name": 3}),
        ("model", {"name": "timm:resnet18", "pretrained": True}),
        ("input_shape", 5),
        ("input_shape", "abc"),
        ("input_shape", [1, "x"]),
        ("input_shape", [1, -4, 4]),
        ("record", {}),
        ("record", "grasp"),
        ("record", {"criterion": "grasp", "surprise": 1}),
        ("weights", None),
        ("weights", 3),
        ("weights", []),
        ("weights", "0.weight"),
        ("weights", ["0.weight", "9.weight"]),
        ("weights", ["0.weight"]),
        ("skipped", []),
        ("skipped", None),
        ("notes", 3),
        ("sha256", None),
        ("sha256", "0" * 64),
        ("weights_file", None),
        ("weights_file", 3),
        ("weights_file", ""),
        ("weights_file", ".."),
        ("weights_file", "a\0b"),
        ("weights_file", MANIFEST),
        ("format", 1),
    ],
)
def test_an_edited_manifest_is_a_clear_error(saved: Path, key: str, value: object) -> None:
    edit(saved, **{key: value})
    with pytest.raises(CheckpointError, match=re.escape(str(saved))):
        fxprune.load(saved, batch_norm_net())


@pytest.mark.parametrize("key", ["criterion", "sparsity", "zero_share", "floored", "cut_off", "changes", "seed"])
@pytest.mark.parametrize("value", ["x", {"a": 1}, None])
def test_an_edited_record_is_a_clear_error_or_can_be_reported(saved: Path, key: str, value: object) -> None:
    record = json.loads((saved / MANIFEST).read_text())["record"]
    edit(saved, record={**record, key: value})
    try:
        loaded = fxprune.load(saved, batch_norm_net())
    except CheckpointError:
        return
    assert str(fxprune.report(loaded))


@pytest.mark.parametrize("name", ["{outside}", "../secret.safetensors", "below/secret.safetensors"])
def test_weights_outside_the_folder_are_not_read(saved: Path, tmp_path: Path, name: str) -> None:
    (weights,) = saved.glob("*.safetensors")
    (saved / "below").mkdir()
    for place in (tmp_path, saved / "below"):
        (place / "secret.safetensors").write_bytes(weights.read_bytes())
    edit(saved, weights_file=name.format(outside=tmp_path / "secret.safetensors"))
    with pytest.raises(CheckpointError, match="weights_file must name a file of the folder"):
        fxprune.load(saved, batch_norm_net())


@pytest.mark.parametrize(
    "other",
    [lambda: batch_norm_net(width=5), lambda: nn.Sequential(nn.Conv2d(1, 4, 3))],
    ids=["wider", "shorter"],
)
def test_another_model_does_not_fit(saved: Path, other: Callable[[], nn.Module]) -> None:
    with pytest.raises(CheckpointError, match="was it saved from another model"):
        fxprune.load(saved, other())


@pytest.mark.parametrize("other", [nn.Flatten, Tied])
def test_a_module_that_cannot_be_pruned_so_is_no_traceback(saved: Path, other: type[nn.Module]) -> None:
    with pytest.raises(FxpruneError):
        fxprune.load(saved, other())


def test_another_model_of_the_same_weights_does_not_fit(tmp_path: Path) -> None:
    fxprune.save(pruned_net(nn.Sequential(nn.Linear(6, 6)), 6), tmp_path / "out", input_shape=(6,))
    with pytest.raises(CheckpointError, match=r"does not fit the model: missing \[.*1.weight"):
        fxprune.load(tmp_path / "out", nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)))


def test_a_module_without_a_spec_has_to_be_given_again(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="saved from a module without a spec; give that module again"):
        fxprune.load(saved)


# --- nothing of a checkpoint is executed

NET = """
from pathlib import Path
from torch import nn
Path(__file__).with_name("marker").touch()
def make_net():
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "net.py").write_text(NET)
    return tmp_path / "code" / "net.py"


def test_a_users_file_runs_only_when_it_is_named_again(net: Path, tmp_path: Path) -> None:
    marker = net.with_name("marker")
    spec = ModelSpec(f"{net}:make_net", input_shape=(6,))
    module, shape = build(spec)
    assert marker.exists()
    pruned = fxprune.prune(module, (torch.randn(2, *shape),), sparsity=0.5, criterion="magnitude")
    fxprune.save(pruned, tmp_path / "out", model=spec, input_shape=shape)

    marker.unlink()
    with pytest.raises(CheckpointError, match=r"net.py:make_net, your own code; name the model again"):
        fxprune.load(tmp_path / "out")
    assert not marker.exists()
    assert same_state(fxprune.load(tmp_path / "out", spec), pruned)
    assert marker.exists()

    marker.unlink()
    assert same_state(fxprune.load(tmp_path / "out", module), pruned)  # nor where the module is at hand
    assert not marker.exists()


@pytest.mark.parametrize("form", ["{path}:make_net", "net:make_net", "{path}", "timm:{path}:make_net", "TIMM:net"])
def test_an_edited_spec_runs_nothing(net: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.chdir(net.parent)
    monkeypatch.syspath_prepend(net.parent)
    model = {"name": form.format(path=net), "input_shape": [6], "num_classes": None, "kwargs": {}}
    edit(saved, model=model)
    with pytest.raises(FxpruneError):
        fxprune.load(saved)
    assert not net.with_name("marker").exists()


@pytest.mark.parametrize("argument", ["pretrained", "checkpoint_path", "pretrained_cfg"])
def test_an_edited_spec_opens_no_other_weights(saved: Path, argument: str) -> None:
    model = {"name": "timm:test_vit", "input_shape": None, "num_classes": 3, "kwargs": {argument: "/tmp/w.pth"}}
    edit(saved, model=model)
    with pytest.raises(FxpruneError, match=argument):
        fxprune.load(saved)


def test_nothing_is_pickled(pruned: fxprune.PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pickled")

    def is_pickle(data: bytes) -> bool:
        return data[:1] == b"\x80" or data[:2] == b"PK"

    fxprune.save(pruned, tmp_path / "plain", input_shape=(1, 4, 4))
    assert {path.suffix for path in (tmp_path / "plain").iterdir()} == {".json", ".safetensors"}
    assert not any(is_pickle(path.read_bytes()) for path in (tmp_path / "plain").iterdir())
    for module in (torch, pickle):
        for name in ("load", "save", "loads", "dump", "dumps", "Unpickler", "Pickler"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refuse)
    fxprune.save(pruned, tmp_path / "out", input_shape=(1, 4, 4))
    manifest = read_manifest(tmp_path / "out")
    state = checkpoint._read_tensors(tmp_path / "out" / manifest.weights_file, manifest.sha256)
    assert torch.equal(state["4.weight"], pruned.state_dict()["4.weight"])
    assert same_state(fxprune.load(tmp_path / "out", batch_norm_net()), pruned)
