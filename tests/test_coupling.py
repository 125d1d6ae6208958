"""What has to be cut together, and that a cut changes nothing but sizes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, captured_case
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import capture, proof
from fxprune.coupling import Coupling, couple, rules
from fxprune.coupling.reshaping import stretches
from fxprune.errors import ShrinkError
from fxprune.proof import masked, proven
from fxprune.regions import CapturedModel
from fxprune.shrink import shrink


class Net(nn.Module):
    """Layers, and a function of them and of the input."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **layers: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, nn.Parameter(layer) if isinstance(layer, Tensor) else layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


@dataclass(frozen=True)
class Example:
    """A network, the shape of a sample, and how many units there are along some dimensions of its tensors."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    units: dict[tuple[str, int], int]
    reasons: dict[tuple[str, int], str]


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def pooled(net: Any, x: Tensor) -> Tensor:
    return net.head(x.mean((2, 3)))


def _heads(net: Any, x: Tensor) -> Tensor:
    """Three heads of four channels, q, k and v from one product."""
    batch, tokens, _ = x.shape
    q, k, v = net.qkv(x).reshape(batch, tokens, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v)
    return net.out(y.transpose(1, 2).reshape(batch, tokens, 12))


def _products(net: Any, x: Tensor) -> Tensor:
    """The same with the products written out, and heads folded into the batch."""
    batch, tokens, _ = x.shape
    q, k, v = (
        layer(x).view(batch, tokens, 3, 4).transpose(1, 2).reshape(batch * 3, tokens, 4)
        for layer in (net.q, net.k, net.v)
    )
    y = torch.bmm((q @ k.transpose(1, 2)).softmax(-1), v)
    return net.out(y.view(batch, 3, tokens, 4).transpose(1, 2).flatten(2))


def _folded(net: Any, x: Tensor) -> Tensor:
    """Heads folded into the batch with q, k and v apart, by a size that is computed and one that is inferred."""
    batch, tokens, _ = x.shape
    qkv = net.qkv(x).reshape(batch, tokens, 3, 3, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, batch * 3, tokens, -1).unbind(0)
    v = v[:, :, None][:, :, 0]
    y = F.scaled_dot_product_attention(q, k, v).view(batch, 3, tokens, -1)
    return net.out(y.transpose(1, 2).reshape(batch, tokens, -1))


def _inferred(net: Any, x: Tensor) -> Tensor:
    batch, tokens, _ = x.shape
    qkv = net.qkv(x).reshape(batch, tokens, 3, 3, 4).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, -1, tokens, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v).view(-1, 3, tokens, 4)
    return net.out(y.transpose(1, 2).reshape(batch, tokens, 12))


def _grouped_query(net: Any, x: Tensor) -> Tensor:
    batch, tokens, _ = x.shape
    q = net.q(x).view(batch, tokens, 4, 3).transpose(1, 2)
    k, v = (layer(x).view(batch, tokens, 2, 3).transpose(1, 2) for layer in (net.k, net.v))
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return net.out(y.transpose(1, 2).reshape(batch, tokens, 12))


def _shuffled(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y = y.view(-1, 2, 6, 8, 8).transpose(1, 2).reshape(-1, 12, 8, 8)
    return pooled(net, net.b(y).relu())


def _gated(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).relu()
    gate = net.up(net.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
    return pooled(net, y * gate)


def _pooled_heads(net: Any, x: Tensor) -> Tensor:
    """Two heads: their first token is set aside, a convolution goes over the others, and there is a shortcut."""
    batch, tokens, _ = x.shape
    q, k, v = net.qkv(x).reshape(batch, tokens, 3, 2, 4).transpose(1, 3).unbind(2)
    first, rest = torch.tensor_split(q, (1,), 2)
    rest = net.pool(rest.transpose(2, 3).reshape(batch * 2, 4, tokens - 1)).reshape(batch, 2, 4, -1)
    q = torch.cat([first, rest.transpose(2, 3)], 2)
    y = (q @ k.transpose(2, 3)).softmax(-1) @ v
    y[:, :, 1:] += q[:, :, 1:]
    return net.out(y.transpose(1, 2).reshape(batch, -1, 8))


def _without_key_bias(net: Any, x: Tensor) -> Tensor:
    bias = net.qkv.bias.clone()
    bias[4:8].zero_()
    q, k, v = F.linear(x, net.qkv.weight, bias).chunk(3, -1)
    return net.out(q * k + v)


def _tokens(net: Any, x: Tensor) -> Tensor:
    """A class token, places, and a branch with a scale of its own."""
    y = torch.cat([net.token.expand(x.shape[0], -1, -1), net.a(x).flatten(2).transpose(1, 2)], 1) + net.places
    y = y + net.scale * net.c(F.gelu(net.b(net.norm(y))))
    return net.head(net.last(y)[:, 0])


def _reductions(net: Any, x: Tensor) -> Tensor:
    """All that zeros can be counted in, and what does not change with their number."""
    y = net.norm(net.a(x))
    found = [y.mean(1, keepdim=True), y.amax(1, keepdim=True), y.amin(1, keepdim=True), y.var(1, keepdim=True)]
    found += [y.std((1, 2), keepdim=True), y.sum(1, keepdim=True), y.norm(dim=1, keepdim=True), y.mean()]
    return pooled(net, y * sum(each.sigmoid() for each in found))


def _centred(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y = y - y.mean(1, keepdim=True)
    return pooled(net, y * (y.square().mean(1, keepdim=True) + 1e-6).rsqrt())


def _written(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y[:, :, 1:] += 1.0
    return pooled(net, y * y.mean(1, keepdim=True))


def _responding(net: Any, x: Tensor) -> Tensor:
    """Global response normalisation, as ConvNeXt V2 has it."""
    y = F.gelu(net.a(x))
    size = y.norm(dim=1, keepdim=True)
    return net.head(
        (y + torch.addcmul(net.shift, net.scale, y * (size / (size.mean(-1, keepdim=True) + 1e-6)))).mean(1)
    )


EXAMPLES = {
    "chain": Example(
        lambda: Net(
            lambda net, x: pooled(net, net.b(net.norm(net.a(x)).relu())),
            a=conv(3, 8),
            norm=nn.BatchNorm2d(8),
            b=conv(8, 6),
            head=nn.Linear(6, 5),
        ),
        (3, 8, 8),
        {
            ("a.weight", 0): 8,
            ("norm.running_var", 0): 8,
            ("b.weight", 1): 8,
            ("b.bias", 0): 6,
            ("head.weight", 1): 6,
        },
        {("a.weight", 1): "an input", ("head.weight", 0): "output", ("a.weight", 2): "kernel"},
    ),
    "residual": Example(
        lambda: Net(
            lambda net, x: pooled(net, (y := net.a(x)) + net.c(net.b(y).relu())),
            a=conv(3, 8),
            b=conv(8, 6),
            c=conv(6, 8),
            head=nn.Linear(8, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 8, ("c.weight", 0): 8, ("b.weight", 0): 6},
        {},
    ),
    "concatenation": Example(
        lambda: Net(
            lambda net, x: pooled(net, torch.cat([net.a(x), net.b(x)], 1)[:, 1:]),
            a=conv(3, 4),
            b=conv(3, 6),
            head=nn.Linear(9, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 4, ("b.weight", 0): 6, ("head.weight", 1): 9},
        {},
    ),
    "pieces": Example(
        lambda: Net(
            lambda net, x: pooled(net, (y := net.a(x).chunk(2, 1))[0] * y[1]),
            a=conv(3, 8),
            head=nn.Linear(4, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 4, ("head.weight", 1): 4},
        {},
    ),
    "gated linear unit": Example(
        lambda: Net(lambda net, x: net.b(F.glu(net.a(x))), a=nn.Linear(6, 8), b=nn.Linear(4, 3)),
        (6,),
        {("a.weight", 0): 4, ("b.weight", 1): 4},
        {},
    ),
    "depthwise": Example(
        lambda: Net(
            lambda net, x: pooled(net, net.b(net.a(x))),
            a=conv(3, 6),
            b=conv(6, 12, groups=6),
            head=nn.Linear(12, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 6, ("b.weight", 0): 6, ("head.weight", 1): 6},
        {("b.weight", 1): "one of it"},
    ),
    "many groups": Example(
        lambda: Net(
            lambda net, x: pooled(net, net.b(net.a(x))),
            a=conv(3, 8),
            b=conv(8, 8, groups=4),
            head=nn.Linear(8, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 4, ("head.weight", 1): 4},
        {("b.weight", 1): "whole groups"},
    ),
    "few groups": Example(
        lambda: Net(
            lambda net, x: pooled(net, net.b(net.a(x))),
            a=conv(3, 12),
            b=conv(12, 6, groups=2),
            head=nn.Linear(6, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 6, ("b.weight", 1): 6, ("b.weight", 0): 3},
        {},
    ),
    "channel shuffle": Example(
        lambda: Net(_shuffled, a=conv(3, 12), b=conv(12, 4), head=nn.Linear(4, 5)),
        (3, 8, 8),
        {("a.weight", 0): 6, ("b.weight", 1): 6},
        {},
    ),
    "gate": Example(
        lambda: Net(_gated, a=conv(3, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), head=nn.Linear(8, 5)),
        (3, 8, 8),
        {("a.weight", 0): 8, ("up.weight", 0): 8, ("down.weight", 0): 4},
        {},
    ),
    "flattened": Example(
        lambda: Net(lambda net, x: net.head(net.a(x).flatten(1)), a=conv(3, 4), head=nn.Linear(256, 5)),
        (3, 8, 8),
        {("a.weight", 0): 4, ("head.weight", 1): 4},
        {},
    ),
    "heads": Example(
        lambda: Net(_heads, qkv=nn.Linear(7, 36), out=nn.Linear(12, 7)),
        (5, 7),
        {("qkv.weight", 0): 3, ("qkv.bias", 0): 3, ("out.weight", 1): 3},
        {("out.weight", 0): "output"},
    ),
    "heads in the batch": Example(
        lambda: Net(_products, q=nn.Linear(7, 12), k=nn.Linear(7, 12), v=nn.Linear(7, 12), out=nn.Linear(12, 7)),
        (5, 7),
        {("q.weight", 0): 3, ("v.weight", 0): 3, ("out.weight", 1): 3},
        {},
    ),
    "heads in the batch by a computed size": Example(
        lambda: Net(_folded, qkv=nn.Linear(7, 36), out=nn.Linear(12, 7)),
        (5, 7),
        {("qkv.weight", 0): 3, ("qkv.bias", 0): 3, ("out.weight", 1): 3},
        {},
    ),
    "heads in the batch by an inferred size": Example(
        lambda: Net(_inferred, qkv=nn.Linear(7, 36), out=nn.Linear(12, 7)),
        (5, 7),
        {("qkv.weight", 0): 3, ("out.weight", 1): 3},
        {},
    ),
    "heads with a token set aside": Example(
        lambda: Net(
            _pooled_heads,
            qkv=nn.Linear(8, 24),
            pool=nn.Conv1d(4, 4, 3, padding=1, groups=4),
            out=nn.Linear(8, 8),
        ),
        (5, 8),
        {("qkv.weight", 0): 2, ("out.weight", 1): 2},
        {("pool.weight", 0): "it meets sizes that stay"},
    ),
    "part of a bias set to zero": Example(
        lambda: Net(_without_key_bias, qkv=nn.Linear(6, 12), out=nn.Linear(4, 3)),
        (6,),
        {("qkv.weight", 0): 4, ("qkv.bias", 0): 4, ("out.weight", 1): 4},
        {},
    ),
    "grouped queries": Example(
        lambda: Net(
            _grouped_query, q=nn.Linear(7, 12), k=nn.Linear(7, 6), v=nn.Linear(7, 6), out=nn.Linear(12, 7)
        ),
        (5, 7),
        {("q.weight", 0): 2, ("k.weight", 0): 2, ("out.weight", 1): 2},
        {},
    ),
    "recurrent, two layers in both directions": Example(
        lambda: Net(
            lambda net, x: net.c(net.b(net.a(x))[0]),
            a=nn.Linear(5, 6),
            b=nn.LSTM(6, 4, 2, bidirectional=True, batch_first=True),
            c=nn.Linear(8, 3),
        ),
        (7, 5),
        {("a.weight", 0): 6, ("b.weight_ih_l0", 0): 4, ("b.weight_hh_l1_reverse", 1): 4, ("c.weight", 1): 4},
        {},
    ),
    "recurrent, with states of the model's own": Example(
        lambda: Net(
            lambda net, x: net.b(x, net.state.expand(1, 7, 4))[0],
            b=nn.GRU(5, 4),
            state=torch.randn(4),
        ),
        (7, 5),
        {("b.weight_hh_l0", 1): 0},
        {("b.weight_hh_l0", 1): "gru (gru) has no rule"},
    ),
    "channels that become steps of a recurrent layer": Example(
        lambda: Net(
            lambda net, x: net.c(net.b(net.a(x).unsqueeze(-1))[1][0]),
            a=nn.Linear(3, 6),
            b=nn.GRU(1, 4, batch_first=True),
            c=nn.Linear(4, 2),
        ),
        (3,),
        {},
        {("a.weight", 0): "takes one after the other"},
    ),
    "gated recurrent": Example(
        lambda: Net(lambda net, x: net.c(net.b(x)[0]), b=nn.GRU(5, 4), c=nn.Linear(4, 3)),
        (7, 5),
        {("b.weight_ih_l0", 0): 4, ("c.weight", 1): 4},
        {("b.weight_ih_l0", 1): "an input"},
    ),
    "places of each channel": Example(
        lambda: Net(
            lambda net, x: net.head(net.mix(net.a(x).flatten(2)).relu().mean(2)),
            a=conv(3, 8),
            mix=nn.Linear(64, 64),
            head=nn.Linear(8, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 8, ("mix.weight", 0): 0},
        {("mix.weight", 0): "mean"},
    ),
    "layer norm": Example(
        lambda: Net(
            lambda net, x: net.c(net.b(net.norm(net.a(x))).relu()),
            a=nn.Linear(6, 8),
            norm=nn.LayerNorm(8),
            b=nn.Linear(8, 4),
            c=nn.Linear(4, 3),
        ),
        (6,),
        {("a.weight", 0): 8, ("norm.weight", 0): 8, ("norm.bias", 0): 8, ("b.weight", 0): 4},
        {},
    ),
    "layer norm of tokens": Example(
        lambda: Net(
            _tokens,
            a=conv(3, 8),
            token=torch.randn(1, 1, 8),
            places=torch.randn(1, 65, 8),
            norm=nn.LayerNorm(8),
            scale=torch.rand(8),
            b=nn.Linear(8, 6),
            c=nn.Linear(6, 8),
            last=nn.LayerNorm(8, elementwise_affine=False),
            head=nn.Linear(8, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 8, ("token", 2): 8, ("places", 2): 8, ("scale", 0): 8, ("b.weight", 0): 6},
        {},
    ),
    "layer norm of channels and places": Example(
        lambda: Net(
            lambda net, x: pooled(net, net.norm(net.a(x))),
            a=conv(3, 8),
            norm=nn.LayerNorm((8, 8, 8)),
            head=nn.Linear(8, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 8, ("norm.weight", 0): 8},
        {("norm.weight", 1): "it meets sizes that stay"},
    ),
    "root mean square norm": Example(
        lambda: Net(
            lambda net, x: net.b(net.norm(net.a(x).relu())),
            a=nn.Linear(6, 8),
            norm=nn.RMSNorm(8),
            b=nn.Linear(8, 4),
        ),
        (6,),
        {("a.weight", 0): 8, ("norm.weight", 0): 8},
        {},
    ),
    "layer norm of what is not zero": Example(
        lambda: Net(
            lambda net, x: net.b(net.norm(net.a(x).sigmoid())),
            a=nn.Linear(6, 8),
            norm=nn.LayerNorm(8),
            b=nn.Linear(8, 4),
        ),
        (6,),
        {("a.weight", 0): 0, ("norm.weight", 0): 0},
        {("a.weight", 0): "layer_norm (layer_norm) normalises over it"},
    ),
    "group norm": Example(
        lambda: Net(
            lambda net, x: pooled(net, net.norm(net.a(x))),
            a=conv(3, 8),
            norm=nn.GroupNorm(4, 8),
            head=nn.Linear(8, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 4, ("norm.weight", 0): 4, ("head.weight", 1): 4},
        {},
    ),
    "slopes": Example(
        lambda: Net(
            lambda net, x: pooled(net, net.act(net.a(x))), a=conv(3, 8), act=nn.PReLU(8), head=nn.Linear(8, 5)
        ),
        (3, 8, 8),
        {("a.weight", 0): 8, ("act.weight", 0): 8},
        {},
    ),
    "softmax over channels": Example(
        lambda: Net(lambda net, x: pooled(net, net.a(x).softmax(1)), a=conv(3, 8), head=nn.Linear(8, 5)),
        (3, 8, 8),
        {("a.weight", 0): 0, ("head.weight", 1): 0},
        {("a.weight", 0): "softmax", ("head.weight", 1): "softmax"},
    ),
    "mean over channels": Example(
        lambda: Net(lambda net, x: net.head(net.a(x).mean(1).flatten(1)), a=conv(3, 8), head=nn.Linear(64, 5)),
        (3, 8, 8),
        {("a.weight", 0): 8},
        {},
    ),
    "reductions over channels": Example(
        lambda: Net(_reductions, a=conv(3, 8), norm=nn.BatchNorm2d(8), head=nn.Linear(8, 5)),
        (3, 8, 8),
        {("a.weight", 0): 8, ("norm.weight", 0): 8},
        {},
    ),
    "mean over channels less another": Example(
        lambda: Net(_centred, a=conv(3, 8), head=nn.Linear(8, 5)),
        (3, 8, 8),
        {("a.weight", 0): 0},  # the variance is of what is not zero where channels go
        {("a.weight", 0): "mean (mean_1) is taken over it"},
    ),
    "mean over channels that are written into": Example(
        lambda: Net(_written, a=conv(3, 8), head=nn.Linear(8, 5)),
        (3, 8, 8),
        {("a.weight", 0): 0},
        {("a.weight", 0): "mean (mean) is taken over it"},
    ),
    "global response": Example(
        lambda: Net(
            _responding,
            a=nn.Linear(6, 8),
            scale=torch.randn(8),
            shift=torch.randn(8),
            head=nn.Linear(8, 5),
        ),
        (7, 6),
        {("a.weight", 0): 8, ("scale", 0): 8},
        {},
    ),
    "pixel shuffle": Example(
        lambda: Net(lambda net, x: pooled(net, F.pixel_shuffle(net.a(x), 2)), a=conv(3, 12), head=nn.Linear(3, 5)),
        (3, 8, 8),
        {("a.weight", 0): 3, ("head.weight", 1): 3},
        {},
    ),
    "transposed": Example(
        lambda: Net(
            lambda net, x: pooled(net, net.b(net.a(x))),
            a=conv(3, 8),
            b=nn.ConvTranspose2d(8, 6, 2, stride=2),
            head=nn.Linear(6, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 8, ("b.weight", 0): 8, ("b.weight", 1): 6, ("b.bias", 0): 6},
        {},
    ),
    "one operator without a rule": Example(
        lambda: Net(
            lambda net, x: pooled(net, torch.sort(net.b(net.a(x)), 1)[0]),
            a=conv(3, 8),
            b=conv(8, 6),
            head=nn.Linear(6, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 8, ("b.weight", 0): 0},
        {("b.weight", 0): "sort (sort) has no rule"},
    ),
    "maximum of two": Example(
        lambda: Net(
            lambda net, x: pooled(net, torch.maximum(net.a(x), net.b(x)).squeeze()),
            a=conv(3, 8),
            b=conv(3, 8),
            head=nn.Linear(8, 5),
        ),
        (3, 8, 8),
        {("a.weight", 0): 0},  # a squeeze without dimensions might take away what is left of them
        {("a.weight", 0): "squeeze"},
    ),
}


def built(example: Example) -> CapturedModel:
    torch.manual_seed(0)
    net = example.build()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.1)  # scales and shifts that are not one and zero
    return capture(net, (torch.randn(2, *example.shape),))


def half(coupling: Coupling, seed: int = 0) -> list[int]:
    """Some units, half of those that are alike."""
    alike: dict[Any, list[int]] = {}
    for number, unit in coupling.units().items():
        alike.setdefault(tuple((each.tensor, each.dim) for each in unit.slices), []).append(number)
    draw = random.Random(seed)
    return [number for numbers in alike.values() for number in draw.sample(numbers, len(numbers) // 2)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_units_and_reasons(name: str) -> None:
    example = EXAMPLES[name]
    captured = built(example)
    coupling = couple(captured)
    for (tensor, dim), count in example.units.items():
        roots = coupling.roots(tensor, dim)
        assert len(np.unique(roots[roots != 0])) == count, (tensor, dim)
        assert bool((roots == 0).any()) == (count == 0), (tensor, dim)
    for (tensor, dim), reason in example.reasons.items():
        assert reason in coupling.frozen(tensor, dim), (tensor, dim)
    cut = half(coupling)
    assert cut or set(example.units.values()) == {0}
    shrunk = shrink(captured, coupling, cut)
    proven(captured, shrunk, coupling, cut)
    sizes = dict(shrunk.host.named_parameters())
    for tensor, dim in example.units:
        if tensor in sizes:
            assert sizes[tensor].shape[dim] == np.isin(coupling.roots(tensor, dim), cut, invert=True).sum()


@pytest.mark.parametrize("name", CASES)
def test_half_of_any_model_goes(name: str) -> None:
    captured, _ = captured_case(name)
    coupling = couple(captured)
    cut = half(coupling)
    proven(captured, shrink(captured, coupling, cut), coupling, cut)


def test_a_wrong_rule_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules._RULES, "softmax", rules._same)
    captured = built(EXAMPLES["softmax over channels"])
    coupling = couple(captured)
    cut = half(coupling)
    with pytest.raises(ShrinkError, match="differs from the masked one"):
        proven(captured, shrink(captured, coupling, cut), coupling, cut)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([2.0, -4.0], [2.0, -3.0], 0.25),
        ([1.0, math.inf], [1.0, math.inf], 0.0),
        ([1.0, math.nan], [1.0, math.nan], math.inf),
        ([1.0, 2.0], [1.0, math.inf], math.inf),
        ([1.0, 2.0], [1.0], math.inf),
        ([], [], 0.0),
    ],
)
def test_differences(old: list[float], new: list[float], expected: float) -> None:
    assert proof._difference([torch.tensor(old), 3], [torch.tensor(new), 3]) == expected
    assert proof._difference([torch.tensor(old)], []) == math.inf


def test_the_model_is_left_as_it_was() -> None:
    captured = built(EXAMPLES["chain"])
    before = {name: tensor.clone() for name, tensor in captured.host.state_dict().items()}
    codes = [str(program.graph) for program in captured.regions[""]._fxprune.values()]
    coupling = couple(captured)
    cut = half(coupling)
    shrunk = shrink(captured, coupling, cut)
    masked(captured, coupling, cut)
    with torch.no_grad():
        for parameter in shrunk.host.parameters():
            parameter.zero_()
    after = captured.host.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert [str(program.graph) for program in captured.regions[""]._fxprune.values()] == codes


def test_a_shrunk_model_trains() -> None:
    captured = built(EXAMPLES["residual"])
    coupling = couple(captured)
    model = shrink(captured, coupling, half(coupling)).host.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, labels = torch.randn(20, 3, 8, 8), torch.arange(20) % 5
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05


def test_what_cannot_be_cut() -> None:
    captured = built(EXAMPLES["chain"])
    coupling = couple(captured)
    units = coupling.units()
    with pytest.raises(ShrinkError, match="expected units of the model, got"):
        shrink(captured, coupling, [max(units) + 1])
    first = [number for number, unit in units.items() if unit.slices[0].tensor == "a.weight"]
    with pytest.raises(ShrinkError, match=r"a.weight: expected to keep some of dimension 0, got cuts of all 8"):
        shrink(captured, coupling, first)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((2, 12, 5), (2, 3, 4, 5), [(0, 1, 0, 1), (1, 2, 1, 3), (2, 3, 3, 4)]),
        ((2, 3, 4), (6, 4), [(0, 2, 0, 1), (2, 3, 1, 2)]),
        ((2, 1, 3), (2, 3, 1), [(0, 1, 0, 1), (1, 3, 1, 2), (3, 3, 2, 3)]),
        ((4, 6), (2, 12), [(0, 2, 0, 2)]),
        ((), (1,), [(0, 0, 0, 1)]),
    ],
)
def test_stretches(old: tuple[int, ...], new: tuple[int, ...], expected: list[tuple[int, ...]]) -> None:
    found = [(a.start, a.stop, b.start, b.stop) for a, b in stretches(old, new)]
    assert found == expected
