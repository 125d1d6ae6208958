"""The networks of the papers in `model_zoo/networks`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune.zoo import ModelSpec, build

FOLDER = Path(__file__).parent.parent / "model_zoo/networks"
LAYERS = (nn.Conv2d, nn.Linear)


def network(name: str, channels: int = 3, **kwargs: float) -> nn.Module:
    return build(ModelSpec(f"{FOLDER / name}", (channels, 32, 32), 10, {"in_channels": channels, **kwargs}))[0]


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [m.weight for m in module.modules() if isinstance(m, LAYERS)]


@pytest.mark.parametrize(
    ("name", "layers", "parameters"),
    [  # layers: with the shortcuts of the two narrowing blocks; parameters: weights of these layers
        ("resnet.py:resnet20", 20 + 2, 270_896),
        ("resnet.py:resnet32", 32 + 2, 1_855_584),
        ("vgg.py:vgg11", 8 + 1, 9_222_848),
        ("vgg.py:vgg16", 13 + 1, 14_715_584),
        ("vgg.py:vgg19", 16 + 1, 20_024_000),
    ],
)
def test_sizes_are_those_of_the_papers(name: str, layers: int, parameters: int) -> None:
    found = weights(network(name))
    assert len(found) == layers
    assert sum(weight.numel() for weight in found) == parameters
    assert all(weight.shape[2:] == (3, 3) for weight in found[:-1] if weight.shape[2:] != (1, 1))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet.py:resnet20", {"width": 4}),
        ("resnet.py:resnet32", {"width": 4}),
        ("vgg.py:vgg19", {"scale": 1 / 16}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_of_any_channels_give_ten_logits(name: str, kwargs: dict[str, float], channels: int) -> None:
    module = network(name, channels, **kwargs)
    logits = module(torch.randn(4, channels, 32, 32))
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in weights(module))


def test_the_last_pooling_of_vgg_is_an_average_of_two_by_two() -> None:
    module = network("vgg.py:vgg19", scale=1 / 16).eval()
    x = torch.randn(2, 3, 32, 32)
    features = module.features(x)
    assert features.shape == (2, 32, 2, 2)
    torch.testing.assert_close(module(x), module.head(features.mean((2, 3))))


@pytest.mark.parametrize(("name", "kwargs"), [("resnet.py:resnet20", {}), ("vgg.py:vgg19", {"scale": 0.25})])
def test_weights_start_as_he_et_al_draw_them(name: str, kwargs: dict[str, float]) -> None:
    torch.manual_seed(0)
    for weight in weights(network(name, **kwargs)):
        deviation = (2 / weight[0].numel()) ** 0.5
        assert weight.std().item() == pytest.approx(deviation, rel=0.2)


def test_a_depth_that_no_resnet_has() -> None:
    with pytest.raises(Exception, match="expected 6 n \\+ 2, such as 20 or 32, got 21"):
        network("resnet.py:ResNet", depth=21)
