from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune.errors import ModelSpecError
from fxprune.zoo import ModelSpec, build, list_models, parse_shape, runs_user_code

NET = """
from __future__ import annotations
from dataclasses import dataclass, fields
from torch import nn
from blocks import block

@dataclass
class Sizes:
    width: int = 4

def make_net(num_classes: int = 3, width: int = 4) -> nn.Module:
    from late import mark  # imported while the factory runs
    assert mark and fields(Sizes)
    return nn.Sequential(block(Sizes(width).width), nn.Flatten(), nn.LazyLinear(num_classes))

def no_classes(width: int = 4) -> nn.Module:
    return block(width)

def any_arguments(**kwargs) -> nn.Module:
    return nn.Linear(4, kwargs["num_classes"])

def failing() -> nn.Module:
    raise RuntimeError("the moon is wrong")

def returns_list() -> list:
    return []

constant = 3
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "blocks.py").write_text("from torch import nn\ndef block(width): return nn.Conv2d(3, width, 3)\n")
    (tmp_path / "late.py").write_text("mark = True\n")
    return tmp_path / "net.py"


def outputs(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.randn(2, *shape))


@pytest.mark.parametrize(
    ("spec", "shape", "classes"),
    [
        (ModelSpec("timm:mobilenetv3_small_050"), (3, 224, 224), 1000),
        (ModelSpec("timm:mobilenetv3_small_050.lamb_in1k", None, 7), (3, 224, 224), 7),
        (ModelSpec("timm:resnet10t", (1, 32, 32), 10), (1, 32, 32), 10),
        (ModelSpec("timm:vit_tiny_patch16_224", (1, 64, 32), 10), (1, 64, 32), 10),
        (ModelSpec("timm:vit_tiny_patch16_224", None, 10, {"depth": 1}), (3, 224, 224), 10),
        (ModelSpec("torchvision:squeezenet1_1", (3, 64, 64), 10), (3, 64, 64), 10),
        (ModelSpec("torchvision:vit_b_32", (3, 64, 64), 10), (3, 64, 64), 10),
        (ModelSpec("torchvision:mnasnet0_5"), (3, 224, 224), 1000),
        (ModelSpec("torchvision:inception_v3", None, 5), (3, 299, 299), 5),
        (ModelSpec("torchvision:mc3_18", None, 5), (3, 16, 112, 112), 5),
    ],
    ids=str,
)
def test_library_models_take_the_shape_and_classes_asked_for(
    spec: ModelSpec, shape: tuple[int, ...], classes: int
) -> None:
    model, resolved = build(spec)
    assert resolved == shape
    assert model.training
    assert outputs(model, resolved).shape == (2, classes)


def test_a_vision_transformer_is_built_for_its_default_shape() -> None:
    with torch.device("meta"):  # 632 million weights, whose default size is not the constructor's
        model, shape = build(ModelSpec("torchvision:vit_h_14"))
    assert shape == (3, 518, 518)
    assert model.image_size == 518


def test_weights_are_drawn_from_the_global_generator() -> None:
    def first_weight(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return next(build(ModelSpec("torchvision:googlenet"))[0].parameters()).detach()

    assert torch.equal(first_weight(0), first_weight(0))
    assert not torch.equal(first_weight(0), first_weight(1))
    assert first_weight(0).std() > 0


def test_a_backbone_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    model, shape = build(ModelSpec("torchvision:lraspp_mobilenet_v3_large", None, 4))
    assert outputs_of_segmentation(model, shape).shape == (2, 4, *shape[1:])


def outputs_of_segmentation(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.randn(2, *shape))["out"]


def test_a_factory_in_a_file_is_called_with_what_it_takes(net: Path) -> None:
    model, shape = build(ModelSpec(f"{net}:make_net", (3, 8, 8), 7, {"width": 5}))
    assert shape == (3, 8, 8)
    assert outputs(model, shape).shape == (2, 7)
    assert model[0].out_channels == 5
    assert build(ModelSpec(f"{net}:any_arguments", (4,), 6))[0].out_features == 6
    assert build(ModelSpec(f"{net}:no_classes", (3, 8, 8), 7))[0].out_channels == 4


def test_a_file_leaves_nothing_behind(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = list(sys.path)
    build(ModelSpec(f"{net}:make_net", (3, 8, 8)))
    assert sys.path == path
    assert not sys.dont_write_bytecode
    assert "blocks" not in sys.modules
    assert sorted(p.name for p in net.parent.iterdir()) == ["blocks.py", "late.py", "net.py"]


def test_files_in_two_folders_each_get_their_own_siblings(net: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "net.py").write_text(NET)
    (other / "late.py").write_text("mark = True\n")
    (other / "blocks.py").write_text("from torch import nn\ndef block(width): return nn.Conv2d(3, 2 * width, 3)\n")
    widths = [build(ModelSpec(f"{f}:no_classes", (3, 8, 8)))[0].out_channels for f in (net, other / "net.py", net)]
    assert widths == [4, 8, 4]


def test_a_package_in_use_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fxprune_test_app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "part.py").write_text("from torch.nn import Flatten\n")
    (tmp_path / "net.py").write_text("from fxprune_test_app.part import Flatten as make\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("fxprune_test_app")
    build(ModelSpec(f"{tmp_path}/net.py:make", (3,)))
    assert "fxprune_test_app.part" in sys.modules


def test_a_factory_in_a_module_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "fxprune_test_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text("from torch import nn\nclass Net(nn.Linear):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    model, _ = build(ModelSpec("fxprune_test_package.nets:Net", (3,), None, {"in_features": 3, "out_features": 2}))
    assert model.out_features == 2
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18", "did you mean timm:resnet18 or torchvision:resnet18"),
        ("rsnet18", "torchvision:resnet18"),
        ("timm:resnt18", "did you mean timm:resnet18"),
        ("torchvision:vit_b_61", "did you mean torchvision:vit_b_16"),
        ("timm:hf-hub:someone/model", "expected the name of a model in timm"),
        ("timm:resnet18.no_such_tag", "no_such_tag"),
        ("tim:resnet18", "did you mean timm:resnet18"),
        ("no_such_package_here.nets:make", "there is no module 'no_such_package_here.nets'"),
        ("nets/vgg:make", "there is no module 'nets/vgg'"),
        ("net.py", "write net.py:FACTORY"),
        ("missing/net.py:make", "expected a Python file at missing/net.py"),
    ],
)
def test_unknown_names_are_explained(name: str, said: str) -> None:
    with pytest.raises(ModelSpecError, match=r"expected|cannot") as caught:
        build(ModelSpec(name, (3, 32, 32)))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("absent", "there are: Sizes, any_arguments, failing, make_net, no_classes, returns_list"),
        ("constant", "got a int"),
        ("failing", "RuntimeError: the moon is wrong"),
        ("returns_list", "to return a torch.nn.Module, got list"),
    ],
)
def test_factories_that_fail_are_explained(net: Path, attribute: str, said: str) -> None:
    with pytest.raises(ModelSpecError) as caught:
        build(ModelSpec(f"{net}:{attribute}", (3, 8, 8)))
    assert said in str(caught.value)


def test_a_factory_needs_an_input_shape(net: Path) -> None:
    with pytest.raises(ModelSpecError, match="--input 3x32x32"):
        build(ModelSpec(f"{net}:make_net"))


@pytest.mark.parametrize("code", ["import no_such_module_anywhere", "1 +", "raise SystemExit('usage')"])
def test_a_file_that_cannot_be_imported_is_explained(tmp_path: Path, code: str) -> None:
    (tmp_path / "broken.py").write_text(code)
    before = set(sys.modules)
    with pytest.raises(ModelSpecError, match=r"cannot import .*broken\.py, got (Module|Syntax|SystemExit)"):
        build(ModelSpec(f"{tmp_path}/broken.py:make", (3,)))
    assert not [name for name in set(sys.modules) - before if "broken" in name]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (ModelSpec("timm:resnet10t", kwargs={"blok": 1}), "unexpected keyword argument 'blok'"),
        (ModelSpec("torchvision:alexnet", kwargs={"blok": 1}), "unexpected keyword argument 'blok'"),
        (ModelSpec("torchvision:raft_small", None, 3), "unexpected keyword argument 'num_classes'"),
        (ModelSpec("timm:resnet10t", (3, 32)), "its default is 3x176x176"),
        (ModelSpec("torchvision:alexnet", (1, 64, 64)), "expected 3 channels"),
        (ModelSpec("torchvision:vit_b_32", (3, 64, 32)), "expected a square image"),
        (ModelSpec("torchvision:vit_b_32", (3, 65, 65)), "indivisible by patch size"),
        (ModelSpec("torchvision:maxvit_t", (3, 64, 64)), "not divisible by partition size"),
        (ModelSpec("torchvision:mvit_v2_s", (3, 8, 64, 64)), "expected 3x16x224x224"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_explained(spec: ModelSpec, said: str) -> None:
    with pytest.raises(ModelSpecError) as caught:
        build(spec)
    assert said in str(caught.value)


def test_which_specs_run_code_of_the_user(net: Path) -> None:
    spec = ModelSpec(f"{net}:make_net", (3, 8, 8))
    assert runs_user_code(spec)
    assert runs_user_code(ModelSpec("package.module:make", (3,)))
    assert not runs_user_code(ModelSpec("timm:resnet18"))
    assert not runs_user_code(ModelSpec("torchvision:resnet18"))


def test_models_are_listed_by_glob() -> None:
    assert list_models("resnet18") == ["timm:resnet18", "torchvision:resnet18"]
    assert list_models("torchvision:vit_b_*") == ["torchvision:vit_b_16", "torchvision:vit_b_32"]
    assert list_models("no such model") == []
    assert len(list_models()) > 1000


def test_shapes_are_read() -> None:
    assert parse_shape("3x32x32") == (3, 32, 32)
    assert parse_shape(" 784 ") == (784,)
    for wrong in ("", "3x", "3x0x2", "3x-1", "3,32,32", "axb", "3x2.5"):
        with pytest.raises(ModelSpecError, match="3x32x32"):
            parse_shape(wrong)


def test_specs_survive_json() -> None:
    spec = ModelSpec("timm:resnet18", (1, 32, 32), 10, {"drop_rate": 0.5, "block_args": {"a": None}})
    again = ModelSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert hash(again) == hash(spec)
    assert ModelSpec.from_json({"name": "timm:resnet18"}) == ModelSpec("timm:resnet18")
    with pytest.raises(ModelSpecError, match="that JSON can hold"):
        ModelSpec("timm:resnet18", kwargs={"act_layer": nn.ReLU}).to_json()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "expected a JSON object"),
        ({}, "expected a model's name"),
        ({"name": "a:b", "shape": [3]}, "at most its input_shape"),
        ({"name": 3}, "as a string, got 3"),
        ({"name": "a:b", "input_shape": "3x3"}, "expected an input shape of positive integers, got '3x3'"),
        ({"name": "a:b", "input_shape": [3, 0]}, "got [3, 0]"),
        ({"name": "a:b", "num_classes": "10"}, "expected a positive number of classes, got '10'"),
        ({"name": "a:b", "num_classes": True}, "expected a positive number of classes"),
        ({"name": "a:b", "kwargs": [1]}, "expected constructor arguments by name"),
        ({"name": "a:b", "kwargs": {"num_classes": 3}}, "as a field of its own"),
        (
            {"name": "timm:resnet18", "kwargs": {"pretrained": True}},
            "random weights, got the argument 'pretrained'",
        ),
        (
            {"name": "timm:resnet18", "kwargs": {"checkpoint_path": "x.pth"}},
            "got the argument 'checkpoint_path'",
        ),
        (
            {"name": "timm:vit_tiny_patch16_224", "kwargs": {"img_size": 64}},
            "as input_shape, got the argument",
        ),
        ({"name": "torchvision:resnet18", "kwargs": {"weights": "DEFAULT"}}, "got the argument 'weights'"),
    ],
)
def test_wrong_json_is_explained(values: object, said: str) -> None:
    with pytest.raises(ModelSpecError) as caught:
        ModelSpec.from_json(values)  # type: ignore[arg-type]
    assert said in str(caught.value)
