"""Paths counted on marks against brute force: remove one weight, and see whether an output changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import CASES, captured_case, leaves, pruned_case, random_masks
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.analysis.effective import effective
from fxprune.model import PrunedModel


def pruned_net(module: nn.Module, *inputs: Tensor) -> PrunedModel:
    """A module of positive parameters, all of them kept."""
    captured = fxprune.capture(module, inputs)
    weights = fxprune.find_weights(captured)
    pruned = PrunedModel(captured, weights, random_masks(weights, 1.0)).eval()
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.copy_(0.1 + 0.4 * torch.rand(parameter.shape))
    return pruned


def changing_weights(pruned: PrunedModel, *inputs: Tensor) -> dict[str, Tensor]:
    """By brute force: the kept weights without which two inputs' outputs differ by something else."""
    pruned.double()
    first = tuple(leaf.double() if leaf.is_floating_point() else leaf for leaf in inputs)
    # what tells the two apart has a path from the input; where both share a constant, it drops out
    second = tuple(leaf * 1.5 + 0.25 if leaf.is_floating_point() else leaf.roll(1, -1) for leaf in first)

    def seen() -> Tensor:
        with torch.no_grad():
            one, two = pruned(*first), pruned(*second)
        return torch.cat([(a - b).flatten() for a, b in zip(leaves(one), leaves(two), strict=True)])

    whole, found = seen(), {}
    for name, mask in pruned.masks.items():
        found[name] = torch.zeros_like(mask)
        for place in mask.nonzero():
            mask[tuple(place)] = False
            found[name][tuple(place)] = bool(((seen() - whole).abs() > 1e-12 * whole.abs().max()).any())
            mask[tuple(place)] = True
    pruned.float()
    return found


def module_of(forward: Callable[..., Tensor], **children: nn.Module) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in children.items():
                self.add_module(name, child)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    return Net()


def conv(a: int, b: int, k: int = 3, **options: object) -> nn.Module:
    return nn.Conv2d(a, b, k, padding=k // 2, **options)


@dataclass(frozen=True)
class Net:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    density: float = 0.3


# With positive numbers everywhere a ReLU is the identity, so that a constant from a bias drops out of differences.
# Where gates and attention multiply activations, the nets have no biases, for the same reason.
NETS = {
    "perceptron": Net(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (5,)
    ),
    "deep": Net(
        lambda: nn.Sequential(*[m for _ in range(7) for m in (nn.Linear(4, 4, bias=False), nn.ReLU())]), (4,), 0.45
    ),
    "convolutions": Net(
        lambda: nn.Sequential(
            conv(2, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), conv(3, 3), nn.Flatten(), nn.Linear(12, 2)
        ),
        (2, 4, 4),
        0.15,
    ),
    "grouped": Net(
        lambda: nn.Sequential(
            conv(4, 4, groups=2),
            nn.ReLU(),
            conv(4, 4, groups=4),
            nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        ),
        (4, 3, 3),
        0.15,
    ),
    "transposed": Net(
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2), nn.ReLU(), nn.Conv2d(3, 2, 2, stride=2)),
        (2, 2, 2),
        0.25,
    ),
    "kernel over padding": Net(
        lambda: nn.Sequential(conv(2, 2, 5), nn.ReLU(), nn.Conv2d(2, 2, 1)), (2, 2, 2), 0.7
    ),
    "one-dimensional": Net(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)), (2, 4)
    ),
    "residual": Net(
        lambda: module_of(
            lambda s, x: s.c(F.relu(x + s.b(F.relu(s.a(x))))),
            a=nn.Linear(5, 5),
            b=nn.Linear(5, 5),
            c=nn.Linear(5, 3),
        ),
        (5,),
    ),
    "concatenated": Net(
        lambda: module_of(
            lambda s, x: s.c(torch.cat([s.a(x), s.b(x)[:, 1:]], 1)),
            a=nn.Linear(4, 3),
            b=nn.Linear(4, 3),
            c=nn.Linear(5, 3),
        ),
        (4,),
    ),
    "shuffled": Net(
        lambda: module_of(
            lambda s, x: s.b(F.channel_shuffle(s.a(x), 2)), a=conv(2, 4, 1), b=conv(4, 4, 1, groups=2)
        ),
        (2, 2, 2),
        0.5,
    ),
    "squeeze and excite": Net(
        lambda: module_of(
            lambda s, x: s.d(
                (y := s.a(x)) * torch.sigmoid(s.c(F.relu(s.b(y.mean((2, 3), keepdim=True)))))
            ).flatten(1),
            a=conv(2, 4, 1, bias=False),
            b=conv(4, 3, 1, bias=False),
            c=conv(3, 4, 1, bias=False),
            d=conv(4, 2, 1, bias=False),
        ),
        (2, 2, 2),
        0.4,
    ),
    "gated": Net(
        lambda: module_of(
            lambda s, x: s.c(s.a(x) * s.b(x)),
            a=nn.Linear(4, 5, bias=False),
            b=nn.Linear(4, 5, bias=False),
            c=nn.Linear(5, 3, bias=False),
        ),
        (4,),
        0.3,
    ),
    "attention": Net(
        lambda: module_of(
            lambda s, x: s.o(s.a(x, x, x, need_weights=False)[0]),
            a=nn.MultiheadAttention(4, 2, bias=False, batch_first=True),
            o=nn.Linear(4, 2, bias=False),
        ),
        (3, 4),
        0.3,
    ),
    "layer norm": Net(
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)
        ),
        (4,),
        0.25,
    ),
    "group norm": Net(lambda: nn.Sequential(conv(2, 4, 1), nn.GroupNorm(2, 4), conv(4, 2, 1)), (2, 2, 2), 0.3),
    "lstm": Net(
        lambda: module_of(
            lambda s, x: s.f(s.r(x)[0][:, -1]),
            r=nn.LSTM(3, 3, num_layers=2, bias=False, batch_first=True),
            f=nn.Linear(3, 2),
        ),
        (3, 3),
        0.4,
    ),
    "bidirectional lstm": Net(
        lambda: module_of(
            lambda s, x: s.f(s.r(x)[0][:, -1]),
            r=nn.LSTM(3, 2, bidirectional=True, bias=False, batch_first=True),
            f=nn.Linear(4, 2),
        ),
        (3, 3),
        0.45,
    ),
    "gru": Net(
        lambda: module_of(
            lambda s, x: s.f(s.r(x)[0][:, -1]),
            r=nn.GRU(3, 3, num_layers=2, bias=False, batch_first=True),
            f=nn.Linear(3, 2),
        ),
        (3, 3),
        0.4,
    ),
    "rnn": Net(
        lambda: module_of(
            lambda s, x: s.f(s.r(x)[0][:, -1]),
            r=nn.RNN(3, 3, nonlinearity="relu", bias=False, batch_first=True),
            f=nn.Linear(3, 2),
        ),
        (3, 3),
        0.45,
    ),
}


NETS["written into a part"] = Net(
    lambda: module_of(_written, a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 4, bias=False), c=nn.Linear(4, 2)),
    (4,),
)


def _written(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y[:, 1:] += net.b(x)[:, 1:]
    y[:, 0] = net.b(x)[:, 0]
    return net.c(y)


@pytest.mark.parametrize("name", NETS)
def test_against_removing_weights_one_by_one(name: str) -> None:
    net = NETS[name]
    x = 0.5 + torch.rand(2, *net.shape)
    pruned = pruned_net(net.build(), x)
    kept = on_a_path = 0
    for seed in range(4):
        pruned.set_masks(random_masks(pruned.weights, net.density, seed))
        found, wanted = effective(pruned).masks, changing_weights(pruned, x)
        kept, on_a_path = kept + pruned.masks.kept, on_a_path + found.kept
        for weight, mask in wanted.items():
            assert torch.equal(found[weight], mask), (seed, weight, (found[weight] ^ mask).nonzero())
    assert 0.1 * kept < on_a_path < 0.95 * kept, "the case shows nothing"


# --- what removing weights one by one does not show


def masked(pruned: PrunedModel, **counts: Tensor) -> PrunedModel:
    """All weights kept but those given, named with ``_`` for ``.`` and without ``.weight``."""
    masks = {name: torch.ones_like(mask) for name, mask in pruned.masks.items()}
    for key, mask in counts.items():
        name = f"{key.replace('_', '.')}.weight"
        masks[name] = mask.bool().view(masks[name].shape)
    pruned.set_masks(masks)
    return pruned


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_lost_where_nothing_is_removed(name: str) -> None:
    captured, weights = captured_case(name)
    found = effective(PrunedModel(captured, weights, random_masks(weights, 1.0)))
    deployed = {weight.name for weight in weights if "eval" in weight.sites}
    for weight, mask in found.masks.items():
        assert bool(mask.all()) == (weight in deployed), weight
    assert set(found.cut_off) == {weight.name for weight in weights} - deployed


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_on_a_path_changes_nothing(name: str) -> None:
    """All of it removed at once, the outputs still differ by as much from one input to another."""
    pruned = pruned_case(name, 0.4)
    with torch.no_grad():
        for key, parameter in pruned.named_parameters():
            if "bias" in key:
                parameter.zero_()  # what a constant does further on is not a path's
    found = effective(pruned)
    args, kwargs = CASES[name].inputs(4)
    with torch.no_grad():
        before = leaves(pruned.eval()(*args, **kwargs))
        pruned.set_masks(found.masks)
        after = leaves(pruned(*args, **kwargs))
    for one, two in zip(before, after, strict=True):
        torch.testing.assert_close(one - one[:1], two - two[:1], rtol=1e-4, atol=1e-5)


def test_no_depth_makes_a_path_vanish_or_overflow() -> None:
    layers = 60  # some 16 ** 60 paths of products 1e-6 ** 60: beyond float32 and beyond float64
    deep = nn.Sequential(*[layer for _ in range(layers) for layer in (nn.Linear(32, 32, bias=False), nn.ReLU())])
    pruned = pruned_net(deep, torch.randn(2, 32))
    pruned.set_masks(random_masks(pruned.weights, 0.5))
    dead = pruned.masks["0.weight"]
    dead[3] = False  # a channel that the next layer reads in vain
    pruned.set_masks({**pruned.masks, "0.weight": dead})
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.fill_(1e-6)
    found, kept = effective(pruned).masks, pruned.masks
    for name in kept:
        wanted = kept[name].clone()
        if name == "2.weight":
            wanted[:, 3] = False
        assert torch.equal(found[name], wanted), name


def test_a_weight_of_value_zero_counts_as_kept() -> None:
    pruned = pruned_net(nn.Linear(3, 2), torch.randn(2, 3))
    with torch.no_grad():
        pruned.get_parameter("weight").zero_()
    assert effective(pruned).masks.kept == 6


def test_a_dead_channel_with_a_bias_is_no_path() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    pruned = masked(pruned_net(net, torch.randn(2, 2)), **{"0": torch.tensor([1, 1, 0, 0])})
    assert effective(pruned).masks["2.weight"].tolist() == [[True, False], [True, False]]


def test_a_constant_that_scales_activations_is_no_path() -> None:
    net = module_of(
        lambda s, x: s.a(x) * s.gate(F.relu(s.hidden(x))),
        a=nn.Linear(2, 1),
        hidden=nn.Linear(2, 2),
        gate=nn.Linear(2, 1),
    )
    pruned = masked(pruned_net(net, torch.randn(2, 2)), hidden=torch.tensor([1, 1, 0, 0]))
    assert effective(pruned).masks["gate.weight"].tolist() == [[True, False]]


def test_maxima_depend_on_whole_windows() -> None:
    net = nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Flatten(), nn.Linear(9, 1))
    pool = pruned_net(net, torch.randn(2, 1, 4, 4))
    assert effective(pool).masks.kept == 9
    # four channels of 2 x 2, of which the pool's only window sees all: each kernel counts
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 1))
    pruned = masked(pruned_net(net, torch.randn(2, 1, 2, 2)), **{"3": torch.tensor([1, 0, 1, 0])})
    assert effective(pruned).masks["0.weight"].flatten().tolist() == [True, False, True, False]


def test_a_weight_used_twice_counts_if_either_use_does() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.b(self.a(x)))

    pruned = masked(
        pruned_net(Tied(), torch.randn(2, 2)), a=torch.tensor([1, 0, 0, 1]), b=torch.tensor([0, 0, 1, 0])
    )
    # a[0, 0] counts in the first use, a[1, 1] in the second
    assert effective(pruned).masks["a.weight"].tolist() == [[True, False], [False, True]]


def test_a_learned_query_is_a_source() -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.randn(1, 1, 4))
            self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.q(self.query).expand(len(x), -1, -1), self.k(x), x)

    pruned = pruned_net(Pool(), torch.randn(2, 3, 4))
    assert effective(pruned).masks.kept == 32


def test_a_table_that_a_weight_reads_is_a_source() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(6.0).view(2, 3) + 1)
            self.position, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.position(self.table))

    pruned = pruned_net(Positions(), torch.randn(3, 2, 4))
    assert effective(pruned).masks.kept == 20


def test_a_token_that_is_joined_is_a_source() -> None:
    class ClassAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 4))
            self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            return F.scaled_dot_product_attention(self.q(x[:, :1]), self.k(x), x)

    pruned = pruned_net(ClassAttention(), torch.randn(2, 3, 4))
    assert effective(pruned).masks.kept == 32


def test_a_row_that_is_looked_up_is_on_a_path() -> None:
    captured, weights = captured_case("tied_embedding")
    pruned = PrunedModel(captured, weights, random_masks(weights, 1.0))
    mix = torch.ones(6, 6)
    mix[0] = (
        0  # the table's first column is read in vain where it is the head, and feeds `mix` where it is looked up
    )
    found = effective(masked(pruned, mix=mix)).masks
    assert bool(found["table.weight"].all())
    mix[:, 0] = 0
    assert not bool(effective(masked(pruned, mix=mix)).masks["table.weight"][:, 0].any())


def test_an_operator_without_a_rule_keeps_everything_before_and_after_it() -> None:
    net = module_of(lambda s, x: s.b(torch.fft.rfft(s.a(x)).real), a=nn.Linear(4, 4), b=nn.Linear(3, 2))
    pruned = masked(pruned_net(net, torch.randn(2, 4)), a=torch.eye(4), b=torch.tensor([1, 1, 0, 0, 0, 0]))
    assert effective(pruned).masks.kept == pruned.masks.kept == 6


# --- layer by layer


def chain() -> PrunedModel:
    return pruned_net(
        nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(2, 3)
    )


def test_layers_that_are_cut_off_are_named() -> None:
    found = effective(masked(chain(), **{"2": torch.zeros(9)}))
    assert found.masks.kept == 0
    assert dict(found.cut_off) == {
        "0.weight": "nothing after it reaches an output",
        "4.weight": "nothing from the input reaches it",
    }


def test_masks_that_miss_each_other_are_named() -> None:
    first, second = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0]), torch.tensor([0, 1, 0, 0, 1, 0, 0, 1, 0])
    found = effective(masked(chain(), **{"0": first, "2": second}))
    assert set(found.cut_off) == {"0.weight", "2.weight", "4.weight"}
    assert set(found.cut_off.values()) == {"none of its kept elements lies on a path"}


def test_a_whole_branch_is_cut_off_and_the_shortcut_is_not() -> None:
    net = NETS["residual"].build()
    found = effective(masked(pruned_net(net, torch.randn(2, 5)), a=torch.zeros(25)))
    assert dict(found.cut_off) == {"b.weight": "nothing from the input reaches it"}
    assert bool(found.masks["c.weight"].all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_of_the_model_does_not_matter(dtype: torch.dtype) -> None:
    pruned = pruned_case("conv_net")
    wanted = effective(pruned).masks
    found = effective(pruned.to(dtype)).masks
    assert all(torch.equal(mask, found[name]) for name, mask in wanted.items())


def test_the_model_is_left_as_it_is() -> None:
    pruned = pruned_case("lstm").train()
    state = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    with torch.inference_mode():
        effective(pruned)
    assert pruned.training
    assert all(torch.equal(state[name], tensor) for name, tensor in pruned.state_dict().items())
    assert all(parameter.requires_grad for parameter in pruned.parameters())
