"""Networks with few weights, each with something of its own that an ONNX file has to hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import fxprune


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


def run(path: Path, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, {n: v.numpy() for n, v in zip(names, inputs, strict=True)})
