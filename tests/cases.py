"""Small modules that tests share, and what `find_weights` has to find in each."""

from __future__ import annotations

import copy
import functools
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils import _pytree as pytree

from fxprune import CapturedModel, Masks, PrunedModel, Weights, capture, find_weights

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """An expected prunable weight."""

    shape: tuple[int, ...]
    macs: int
    operators: tuple[str, ...]
    derived: bool = False
    parameters: tuple[str, ...] | None = None  # default: the weight's own name


@dataclass(frozen=True)
class Case:
    """A module, what to call it with, and what can be pruned in it."""

    build: Callable[[], nn.Module]
    call: Callable[[int], Call]
    weights: dict[str, Found]
    skipped: dict[str, str] = field(default_factory=dict)  # name -> a part of the reason

    def make(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.build()

    def inputs(self, batch: int = 3, seed: int = 0) -> Call:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.call(batch)

    def batch(self, size: int = 4, seed: int = 0) -> tuple[Any, Tensor]:
        """Inputs as a scoring batch holds them, and targets."""
        args, kwargs = self.inputs(size, seed)
        with torch.random.fork_rng():
            logits = leaves(self.make().train()(*args, **kwargs))[0]
        inputs: Any = args if len(args) > 1 else args[0]
        if kwargs:
            inputs = {"x": args[0], **kwargs}
        return inputs, (torch.arange(size) + seed) % logits.shape[1]


def leaves(output: Any) -> list[Tensor]:
    """The tensors of an output, whatever holds them."""
    return pytree.tree_leaves(vars(output) if is_dataclass(output) else output)


def shaped(*sizes: int) -> Callable[[int], Call]:
    """One positional input of normal numbers."""
    return lambda batch: ((torch.randn(batch, *sizes),), {})


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class Mlp(nn.Module):
    """Without batch statistics and without anything random; smooth, so that its Hessian is full."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 7)
        self.fc2 = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


class TiedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.table(tokens))).mean(1))


def _weight_norm() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 4))


def _legacy_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch calls it deprecated; models still use it
        normed = nn.utils.weight_norm(nn.Linear(6, 5))
    return nn.Sequential(normed, nn.Tanh(), nn.Linear(5, 4))


def _spectral_norm() -> nn.Module:
    return nn.Sequential(spectral_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 4))


class StandardisedConv(nn.Conv2d):
    """As timm's ScaledStdConv2d: batch_norm standardises the weight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=self.gain.view(-1),
            training=True,
            momentum=0.0,
            eps=1e-6,
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = StandardisedConv(2, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.conv(x)).mean((2, 3)))


class ScaledLinear(nn.Module):
    """Equalised learning rate: a weight derived element by element."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6))
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(F.linear(x, self.weight * 0.25)))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.attn(x, x, x, need_weights=False)[0].mean(1))


class CrossAttention(nn.Module):
    """The in_proj of one attention is split between query and memory; the other has three of them."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.MultiheadAttention(8, 2, batch_first=True)
        self.split = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
        self.memory = nn.Linear(6, 8)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        wide = self.memory(memory)
        x = self.packed(x, wide, wide, need_weights=False)[0]
        return self.split(x, memory, memory, need_weights=False)[0].mean(1)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1)
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding="same", groups=6, bias=False)
        self.up_grouped = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.conv1d = nn.Conv1d(4, 5, 3, padding=1)
        self.conv3d = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.up(x))
        x = torch.tanh(self.grouped(x))
        x = torch.tanh(self.up_grouped(self.depthwise(x)))
        volume = self.conv3d(x.unsqueeze(1)).mean(1)
        return self.conv1d(volume.flatten(2)).mean(2)


class OwnProducts(nn.Module):
    """Parameters of its own in matmul, in einsum and on the left of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.randn(6, 5) / 2)
        self.heads = nn.Parameter(torch.randn(2, 5, 3) / 2)
        self.left = nn.Parameter(torch.randn(4, 2) / 2)
        self.shift = nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x @ self.right + self.shift)
        x = torch.tanh(torch.einsum("bi,hio->bho", x, self.heads))
        return (self.left @ x).mean(2)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.rnn = kind(4, 3, batch_first=True)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(6, 2) / 2)
        self.b = nn.Parameter(torch.randn(2, 7) / 2)
        self.fc = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(x @ (self.a @ self.b)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 5)
        self.right = nn.Linear(3, 5, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.left(x)) + self.right(y)


class KeywordInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor, *, gate: Tensor, power: int = 1) -> Tensor:
        return torch.tanh(self.fc(x)) * gate**power


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.out = nn.Linear(6, 3)
        self.box = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = torch.tanh(self.body(x))
        return {"logits": self.out(x), "boxes": [self.box(x)]}


@dataclass
class Prediction:
    logits: Tensor
    features: Tensor


class DataclassOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Prediction:
        features = torch.tanh(self.body(x))
        return Prediction(self.out(features), features)


Outputs = namedtuple("Outputs", ["logits", "aux"])


class AuxiliaryHead(nn.Module):
    """As GoogLeNet: a second head that is there while training only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.out = nn.Linear(6, 3)
        self.aux = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        x = torch.tanh(self.body(x))
        return Outputs(self.out(x), self.aux(x)) if self.training else self.out(x)


class Block(nn.Module):
    """A residual branch that ends in a normalisation of scale zero."""

    def __init__(self, channels: int, scale: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        nn.init.constant_(self.bn2.weight, scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ZeroScale(nn.Module):
    def __init__(self, scale: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.block = Block(4, scale)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(F.relu(self.stem(x))).mean((2, 3)))


class Hard(nn.Module):
    """Activations without a second derivative in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 7)
        self.fc2 = nn.Linear(7, 7)
        self.fc3 = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.hardsigmoid(self.fc2(F.hardswish(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth as timm writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        branch = torch.tanh(self.branch(x))
        if self.training:
            branch = branch * x.new_empty((x.shape[0], 1)).bernoulli_(0.7).div_(0.7)
        return self.fc(x + branch)


class NoGradBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = torch.sigmoid(self.gate(x))
        return self.fc(x * gate)


class LooseTensor(nn.Module):
    """A tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.mean = torch.arange(6.0) / 6

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x - self.mean)


class Uncapturable(nn.Module):
    """Depends on data, and has no submodule that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x if x.sum() > 0 else -x, self.weight)


def _linear(shape: tuple[int, int], name: str = "linear") -> Found:
    return Found(shape, shape[0] * shape[1], (name,))


BIAS = "bias of linear"
ATTENTION_TOKENS = 5

CASES: dict[str, Case] = {
    "conv_net": Case(
        ConvNet,
        shaped(1, 8, 8),
        {
            "conv1.weight": Found((4, 1, 3, 3), 4 * 9 * 64, ("conv2d",)),
            "conv2.weight": Found((6, 4, 3, 3), 6 * 4 * 9 * 16, ("conv2d",)),
            "fc.weight": _linear((5, 6)),
        },
        {
            "conv1.bias": "bias of conv2d",
            "bn1.weight": "scale of batch_norm",
            "bn1.bias": "shift of batch_norm",
            "bn2.weight": "scale of batch_norm",
            "bn2.bias": "shift of batch_norm",
            "fc.bias": BIAS,
        },
    ),
    "mlp": Case(
        Mlp,
        shaped(6),
        {"fc1.weight": _linear((7, 6)), "fc2.weight": _linear((4, 7))},
        {"fc1.bias": BIAS, "fc2.bias": BIAS},
    ),
    "tied_linear": Case(
        TiedLinear,
        shaped(6),
        {"first.weight": Found((6, 6), 72, ("linear", "linear")), "head.weight": _linear((4, 6))},
        {"first.bias": BIAS, "second.bias": BIAS, "head.bias": BIAS},
    ),
    "tied_embedding": Case(
        TiedEmbedding,
        lambda batch: ((torch.randint(11, (batch, 5)),), {}),
        {"mix.weight": Found((6, 6), 5 * 36, ("linear",)), "table.weight": Found((11, 6), 66, ("linear",))},
        {"mix.bias": BIAS},
    ),
    "weight_norm": Case(
        _weight_norm,
        shaped(6),
        {
            "0.weight": Found(
                (5, 6),
                30,
                ("linear",),
                derived=True,
                parameters=(
                    "0.parametrizations.weight.original1",
                    "0.parametrizations.weight.original0",
                ),
            ),
            "2.weight": _linear((4, 5)),
        },
        {"0.bias": BIAS, "2.bias": BIAS},
    ),
    "legacy_weight_norm": Case(
        _legacy_weight_norm,
        shaped(6),
        {
            "0.weight_v": Found((5, 6), 30, ("linear",), derived=True, parameters=("0.weight_v", "0.weight_g")),
            "2.weight": _linear((4, 5)),
        },
        {"0.bias": BIAS, "2.bias": BIAS},
    ),
    "spectral_norm": Case(
        _spectral_norm,
        shaped(6),
        {
            "0.weight": Found(
                (5, 6), 30, ("linear",), derived=True, parameters=("0.parametrizations.weight.original",)
            ),
            "2.weight": _linear((4, 5)),
        },
        {"0.bias": BIAS, "2.bias": BIAS},
    ),
    "standardised": Case(
        Standardised,
        shaped(2, 6, 6),
        {
            "conv.weight": Found(
                (4, 2, 3, 3),
                4 * 2 * 9 * 36,
                ("conv2d",),
                derived=True,
                parameters=("conv.weight", "conv.gain"),
            ),
            "fc.weight": _linear((3, 4)),
        },
        {"conv.bias": "bias of conv2d", "fc.bias": BIAS},
    ),
    "scaled_linear": Case(
        ScaledLinear,
        shaped(6),
        {"weight": Found((5, 6), 30, ("linear",), derived=True), "fc.weight": _linear((4, 5))},
        {"fc.bias": BIAS},
    ),
    "self_attention": Case(
        SelfAttention,
        shaped(ATTENTION_TOKENS, 8),
        {
            "attn.in_proj_weight": Found((24, 8), 24 * 8 * ATTENTION_TOKENS, ("linear",)),
            "attn.out_proj.weight": Found((8, 8), 64 * ATTENTION_TOKENS, ("linear",)),
            "fc.weight": _linear((4, 8)),
        },
        {"attn.in_proj_bias": BIAS, "attn.out_proj.bias": BIAS, "fc.bias": BIAS},
    ),
    "cross_attention": Case(
        CrossAttention,
        lambda batch: ((torch.randn(batch, 3, 8), torch.randn(batch, 4, 6)), {}),
        {
            "memory.weight": Found((8, 6), 48 * 4, ("linear",)),
            "packed.in_proj_weight": Found((24, 8), 64 * 3 + 128 * 4, ("linear", "linear")),
            "packed.out_proj.weight": Found((8, 8), 64 * 3, ("linear",)),
            "split.q_proj_weight": Found((8, 8), 64 * 3, ("linear",)),
            "split.k_proj_weight": Found((8, 6), 48 * 4, ("linear",)),
            "split.v_proj_weight": Found((8, 6), 48 * 4, ("linear",)),
            "split.out_proj.weight": Found((8, 8), 64 * 3, ("linear",)),
        },
        {
            "memory.bias": BIAS,
            "packed.in_proj_bias": BIAS,
            "packed.out_proj.bias": BIAS,
            "split.in_proj_bias": BIAS,
            "split.out_proj.bias": BIAS,
        },
    ),
    "convolutions": Case(
        Convolutions,
        shaped(2, 4, 4),
        {
            "up.weight": Found((2, 4, 3, 3), 2 * 16 * 4 * 9, ("conv_transpose2d",)),
            "grouped.weight": Found((6, 2, 3, 3), 6 * 64 * 2 * 9, ("conv2d",)),
            "depthwise.weight": Found((6, 1, 3, 3), 6 * 64 * 9, ("conv2d",)),
            "up_grouped.weight": Found((6, 2, 2, 2), 6 * 64 * 2 * 4, ("conv_transpose2d",)),
            "conv3d.weight": Found((2, 1, 3, 3, 3), 2 * 4 * 256 * 27, ("conv3d",)),
            "conv1d.weight": Found((5, 4, 3), 5 * 256 * 4 * 3, ("conv1d",)),
        },
        {
            "up.bias": "bias of conv_transpose2d",
            "grouped.bias": "bias of conv2d",
            "up_grouped.bias": "bias of conv_transpose2d",
            "conv1d.bias": "bias of conv1d",
            "conv3d.bias": "bias of conv3d",
        },
    ),
    "own_products": Case(
        OwnProducts,
        shaped(6),
        {
            "right": Found((6, 5), 30, ("matmul",)),
            "heads": Found((2, 5, 3), 30, ("einsum",)),
            "left": Found((4, 2), 4 * 2 * 3, ("matmul",)),
        },
        {"shift": "added to activations"},
    ),
    "lstm": Case(
        lambda: Recurrent(nn.LSTM),
        shaped(5, 4),
        {
            "rnn.weight_ih_l0": Found((12, 4), 5 * 48, ("lstm",)),
            "rnn.weight_hh_l0": Found((12, 3), 5 * 36, ("lstm",)),
            "fc.weight": _linear((4, 3)),
        },
        {"rnn.bias_ih_l0": "bias of lstm", "rnn.bias_hh_l0": "bias of lstm", "fc.bias": BIAS},
    ),
    "gru": Case(
        lambda: Recurrent(nn.GRU),
        shaped(5, 4),
        {
            "rnn.weight_ih_l0": Found((9, 4), 5 * 36, ("gru",)),
            "rnn.weight_hh_l0": Found((9, 3), 5 * 27, ("gru",)),
            "fc.weight": _linear((4, 3)),
        },
        {"rnn.bias_ih_l0": "bias of gru", "rnn.bias_hh_l0": "bias of gru", "fc.bias": BIAS},
    ),
    "low_rank": Case(
        LowRank,
        shaped(6),
        {
            "b": Found((6, 7), 42, ("matmul",), derived=True, parameters=("b", "a")),
            "fc.weight": _linear((4, 7)),
        },
        {"fc.bias": BIAS},
    ),
    "two_inputs": Case(
        TwoInputs,
        lambda batch: ((torch.randn(batch, 4), torch.randn(batch, 3)), {}),
        {"left.weight": _linear((5, 4)), "right.weight": _linear((5, 3))},
        {"left.bias": BIAS},
    ),
    "keyword_inputs": Case(
        KeywordInputs,
        lambda batch: ((torch.randn(batch, 4),), {"gate": torch.rand(batch, 5)}),
        {"fc.weight": _linear((5, 4))},
        {"fc.bias": BIAS},
    ),
    "dict_output": Case(
        DictOutput,
        shaped(4),
        {"body.weight": _linear((6, 4)), "out.weight": _linear((3, 6)), "box.weight": _linear((4, 6))},
        {"body.bias": BIAS, "out.bias": BIAS, "box.bias": BIAS},
    ),
    "dataclass_output": Case(
        DataclassOutput,
        shaped(4),
        {"body.weight": _linear((6, 4)), "out.weight": _linear((3, 6))},
        {"body.bias": BIAS, "out.bias": BIAS},
    ),
    "auxiliary_head": Case(
        AuxiliaryHead,
        shaped(4),
        {
            "body.weight": _linear((6, 4)),
            "out.weight": _linear((3, 6)),
            "aux.weight": Found((3, 6), 0, ("linear",)),
        },
        {"body.bias": BIAS, "out.bias": BIAS, "aux.bias": BIAS},
    ),
    "zero_scale": Case(
        ZeroScale,
        shaped(1, 8, 8),
        {
            "stem.weight": Found((4, 1, 3, 3), 4 * 9 * 64, ("conv2d",)),
            "block.conv1.weight": Found((4, 4, 3, 3), 16 * 9 * 64, ("conv2d",)),
            "block.conv2.weight": Found((4, 4, 3, 3), 16 * 9 * 64, ("conv2d",)),
            "fc.weight": _linear((5, 4)),
        },
        {
            "block.bn1.weight": "scale of batch_norm",
            "block.bn1.bias": "shift of batch_norm",
            "block.bn2.weight": "scale of batch_norm",
            "block.bn2.bias": "shift of batch_norm",
            "fc.bias": BIAS,
        },
    ),
    "hard": Case(
        Hard,
        shaped(6),
        {"fc1.weight": _linear((7, 6)), "fc2.weight": _linear((7, 7)), "fc3.weight": _linear((4, 7))},
        {"fc1.bias": BIAS, "fc2.bias": BIAS, "fc3.bias": BIAS},
    ),
    "drop_path": Case(
        DropPath,
        shaped(6),
        {"branch.weight": _linear((6, 6)), "fc.weight": _linear((4, 6))},
        {"branch.bias": BIAS, "fc.bias": BIAS},
    ),
    "no_grad_block": Case(
        NoGradBlock,
        shaped(6),
        {"fc.weight": _linear((4, 6))},
        {"gate.weight": "captured as one", "gate.bias": "captured as one", "fc.bias": BIAS},
    ),
    "loose_tensor": Case(LooseTensor, shaped(6), {"fc.weight": _linear((4, 6))}, {"fc.bias": BIAS}),
}


@functools.cache
def _captured(name: str) -> tuple[CapturedModel, Weights]:
    case = CASES[name]
    args, kwargs = case.inputs()
    captured = capture(case.make(), args, kwargs)
    return captured, find_weights(captured)


def captured_case(name: str) -> tuple[CapturedModel, Weights]:
    """A case, captured (once a session) and copied, with its weights."""
    captured, weights = _captured(name)
    return copy.deepcopy(captured), weights


def random_masks(weights: Weights, density: float = 0.5, seed: int = 0) -> Masks:
    """Masks that keep each element with probability `density`; all of them for 1."""
    generator = torch.Generator().manual_seed(seed)
    return Masks({w.name: torch.rand(w.shape, generator=generator) < density for w in weights})


def pruned_case(name: str, density: float = 0.5) -> PrunedModel:
    """A case with random masks."""
    captured, weights = captured_case(name)
    return PrunedModel(captured, weights, random_masks(weights, density))
