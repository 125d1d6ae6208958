"""The layers that random networks are made of: torch's, and some that people write by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm


def layer_of(kind: str, options: dict[str, Any], net: nn.Module) -> nn.Module:
    """The layer of a step; `net` has those of the steps before."""
    if kind == "reuse":
        return net.get_submodule(options["of"])
    if kind == "transposed":
        return Transposed(net.get_submodule(options["of"]))
    if kind == "tied":
        return _tied(net.get_submodule(options["of"]))
    options = dict(options)
    derived = options.pop("derived", None)
    layer = LAYERS[kind](**options)
    return derive(layer, derived) if derived else layer


def _tied(other: nn.Module) -> nn.Module:
    """Another layer of the same sizes with the same weight; of an embedding, the head."""
    layer: nn.Module
    if isinstance(other, nn.Embedding):
        layer = nn.Linear(other.embedding_dim, other.num_embeddings)
    elif isinstance(other, nn.Linear):
        layer = nn.Linear(other.in_features, other.out_features)
    else:
        assert isinstance(other, (nn.Conv1d, nn.Conv2d))
        layer = type(other)(
            other.in_channels,
            other.out_channels,
            other.kernel_size,  # type: ignore[arg-type]
            other.stride,  # type: ignore[arg-type]
            other.padding,  # type: ignore[arg-type]
            other.dilation,  # type: ignore[arg-type]
            other.groups,
        )
    layer.weight = other.weight
    return layer


# --- weights that are computed


def derive(layer: nn.Module, how: str) -> nn.Module:
    """The layer with a weight that is computed from its parameters."""
    if how == "weight_norm":
        return weight_norm(layer)
    if how == "spectral_norm":
        return spectral_norm(layer)
    if how == "orthogonal":
        return orthogonal(layer)
    rule = {"standardised": Standardise, "scaled": Scale, "batch_standardised": BatchStandardise}[how]
    parametrize.register_parametrization(layer, "weight", rule(layer.weight))  # type: ignore[arg-type]
    return layer


class Standardise(nn.Module):
    """Weight standardisation (Qiao et al., 2019), with a gain that is learnt."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(len(weight), *(1 for _ in weight.shape[1:])))

    def forward(self, weight: Tensor) -> Tensor:
        dims = tuple(range(1, weight.dim()))
        weight = weight - weight.mean(dims, keepdim=True)
        return self.gain * weight * (weight.square().mean(dims, keepdim=True) + 1e-5).rsqrt()


class BatchStandardise(nn.Module):
    """The same by the operator of batch normalisation, as timm writes it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(len(weight)))

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.reshape(1, len(weight), -1)
        return F.batch_norm(rows, None, None, self.gain, training=True, momentum=0.0, eps=1e-5).reshape_as(weight)


class Scale(nn.Module):
    """An equalised learning rate."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.factor = 1 / math.sqrt(max(1, weight[0].numel()))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


class Transposed(nn.Module):
    """A product with the transposed weight of another layer, as in an autoencoder."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.weight = other.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t())  # type: ignore[operator]


# --- attention and recurrent layers


class SelfAttention(nn.Module):
    """torch's, with options of its call."""

    def __init__(self, *, need_weights: bool, causal: bool, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(batch_first=True, **options)
        self.need_weights, self.causal = need_weights, causal

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.causal else None
        result, weights = self.attention(x, x, x, need_weights=self.need_weights, attn_mask=mask)
        return result + weights.mean((1, 2), keepdim=True) if self.need_weights else result


class CrossAttention(nn.Module):
    """torch's, on a memory of another width."""

    def __init__(self, embed_dim: int, num_heads: int, memory_dim: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            embed_dim, num_heads, kdim=memory_dim, vdim=memory_dim, batch_first=True
        )

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.attention(x, memory, memory, need_weights=False)[0]


class OwnAttention(nn.Module):
    """Written by hand: one projection to queries, keys and values of several heads."""

    def __init__(self, dim: int, heads: int, inner: int, *, fused: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.fused, self.causal = heads, fused, causal
        self.qkv = nn.Linear(dim, 3 * heads * inner, bias=False)
        self.out = nn.Linear(heads * inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            if self.causal:
                scores = scores.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -torch.inf)
            mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class GroupedQuery(nn.Module):
    """Several queries share a key and a value."""

    def __init__(self, dim: int, groups: int, heads: int, inner: int) -> None:
        super().__init__()
        self.groups, self.heads, self.inner = groups, heads, inner
        self.q = nn.Linear(dim, groups * heads * inner)
        self.kv = nn.Linear(dim, 2 * groups * inner)
        self.out = nn.Linear(groups * heads * inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.groups * self.heads, self.inner).transpose(1, 2)
        k, v = self.kv(x).chunk(2, dim=-1)
        k, v = (
            each.view(batch, tokens, self.groups, self.inner).transpose(1, 2).repeat_interleave(self.heads, 1)
            for each in (k, v)
        )
        mixed = torch.softmax(q @ k.mT / self.inner**0.5, -1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    """A recurrent layer: all of its outputs, or its last state."""

    def __init__(self, layer: type[nn.RNNBase], *, last: bool, **options: Any) -> None:
        super().__init__()
        self.layer, self.last = layer(batch_first=True, **options), last

    def forward(self, x: Tensor) -> Tensor:
        outputs, state = self.layer(x)
        if not self.last:
            return outputs
        return (state[0] if isinstance(state, tuple) else state)[-1]


# --- parameters of no layer


def _drawn(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(sizes) / math.sqrt(max(sizes)))


class Times(nn.Module):
    """A product with a parameter on the right."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.weight = _drawn(dim, out)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class TimesTransposed(nn.Module):
    """With one that is transposed."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.weight = _drawn(out, dim)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight.transpose(0, 1))


class FunctionalLinear(TimesTransposed):
    """By the function of a linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class LeftTimes(nn.Module):
    """With one on the left."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.weight = _drawn(out, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x


class Einsum(nn.Module):
    """Over the first dimension."""

    def __init__(self, rank: int, dim: int, out: int) -> None:
        super().__init__()
        self.weight = _drawn(dim, out)
        rest = "xyz"[: rank - 1]
        self.equation = f"bi{rest},io->bo{rest}"

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(self.equation, x, self.weight)


class Heads(nn.Module):
    """Several products at once, joined behind."""

    def __init__(self, dim: int, out: int, heads: int) -> None:
        super().__init__()
        self.weight = _drawn(heads, dim, out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,hio->...ho", x, self.weight).flatten(-2)


class LowRank(nn.Module):
    """A product of two parameters for a weight."""

    def __init__(self, dim: int, out: int, rank: int) -> None:
        super().__init__()
        self.a, self.b = _drawn(dim, rank), _drawn(rank, out)
        self.mask: Tensor | None = None  # of what is computed, for whom compares

    def forward(self, x: Tensor) -> Tensor:
        weight = self.a @ self.b
        return x @ (weight if self.mask is None else weight * self.mask)


class Shift(nn.Module):
    """Something is added: a table of positions."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.table = _drawn(*shape)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Rescale(Shift):
    """A scale for each element."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table


class Token(nn.Module):
    """A token in front of the others; a vector is taken for one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = _drawn(1, 1, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.dim() == 3 else x.reshape(x.shape[0], -1, x.shape[-1])
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)


class Addmm(nn.Module):
    """Product and sum in one."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.weight, self.shift = _drawn(dim, out), _drawn(out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.shift, x, self.weight)


class Packed(nn.Module):
    """Two weights in one parameter, each read through a slice."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = _drawn(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        dim = self.weight.shape[1]
        return F.linear(torch.tanh(F.linear(x, self.weight[:dim])), self.weight[dim:])


class Bilinear(nn.Module):
    """Of a value with itself."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.layer = nn.Bilinear(dim, dim, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, torch.tanh(x))


class OwnConv(nn.Module):
    """A convolution whose kernel is a matrix in another shape."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.weight = _drawn(out, channels * 9)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.view(-1, x.shape[1], 3, 3), padding=1)


# --- Python that looks at sizes or at the mode


class BySize(nn.Module):
    """One of two functions, by a size that is fixed."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if x.shape[-1] > self.limit else x.square()


class ByBatch(BySize):
    """By the number of samples."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if x.shape[0] > self.limit else x.square()


class TrainingOnly(nn.Module):
    """A layer that is used while training only."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.extra = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.extra(x) if self.training else x


class ByMode(nn.Module):
    """A layer for each mode."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.learns, self.deploys = nn.Linear(dim, 4), nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.learns(x) if self.training else self.deploys(x)


class NoGradient(nn.Module):
    """A gate that gradients do not reach."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = torch.sigmoid(self.layer(x))
        return x * gate


# --- functions


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*values, **self.options)


class DropPath(nn.Module):
    """Whole samples are dropped, while training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = x.new_empty((x.shape[0], *(1 for _ in x.shape[1:]))).bernoulli_(0.7)
        return x * keep / 0.7


class Noise(nn.Module):
    """Noise is added, while training."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


def _image(x: Tensor, height: int) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, -1)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _slice(x: Tensor, dim: int, start: int, end: int) -> Tensor:
    return x[(slice(None),) * dim + (slice(start, end),)]


def _halves(x: Tensor, dim: int) -> Tensor:
    one, other = x.chunk(2, dim)
    return one * torch.tanh(other)


def _swap_halves(x: Tensor, dim: int) -> Tensor:
    half = x.shape[dim] // 2
    one, other = x.split([half, x.shape[dim] - half], dim)
    return torch.cat([other, one], dim)


def _channel_shuffle(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _unflatten(x: Tensor, dim: int, parts: int) -> Tensor:
    return x.unflatten(dim, (parts, -1))


def _spread(x: Tensor) -> Tensor:
    return x[:, :, None, None] if x.dim() == 2 else x.unsqueeze(-1)


def _repeat(x: Tensor, dim: int, times: int) -> Tensor:
    return x.repeat_interleave(times, dim)


def _glu_by_hand(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean(-1, keepdim=True))


def _function(function: Callable[..., Tensor], **fixed: Any) -> Callable[..., nn.Module]:
    return partial(Apply, function, **fixed)


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "linear": nn.Linear,
    "embedding": nn.Embedding,
    "batch_norm1d": nn.BatchNorm1d,
    "batch_norm2d": nn.BatchNorm2d,
    "instance_norm1d": nn.InstanceNorm1d,
    "instance_norm2d": nn.InstanceNorm2d,
    "layer_norm": nn.LayerNorm,
    "group_norm": nn.GroupNorm,
    "rms_norm": nn.RMSNorm,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": nn.Hardtanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "mish": nn.Mish,
    "relu6": nn.ReLU6,
    "rrelu": nn.RReLU,
    "relu_in_place": partial(nn.ReLU, inplace=True),
    "softmax": partial(nn.Softmax, dim=-1),
    "log_softmax": partial(nn.LogSoftmax, dim=-1),
    "prelu": nn.PReLU,
    "square": _function(torch.square),
    "glu_by_hand": _function(_glu_by_hand),
    "dropout": partial(nn.Dropout, 0.3),
    "channel_dropout": partial(nn.Dropout2d, 0.3),
    "alpha_dropout": partial(nn.AlphaDropout, 0.3),
    "drop_path": DropPath,
    "noise": Noise,
    "self_attention": SelfAttention,
    "cross_attention": CrossAttention,
    "own_attention": OwnAttention,
    "grouped_query": GroupedQuery,
    "similarity": _function(lambda one, other: one @ other.mT),
    "lstm": partial(Recurrent, nn.LSTM),
    "gru": partial(Recurrent, nn.GRU),
    "rnn": partial(Recurrent, nn.RNN),
    "max_pool1d": nn.MaxPool1d,
    "max_pool2d": nn.MaxPool2d,
    "avg_pool1d": nn.AvgPool1d,
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_pool1d": nn.AdaptiveAvgPool1d,
    "adaptive_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_max_pool1d": nn.AdaptiveMaxPool1d,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
    "mean": lambda dims, keepdim: Apply(torch.mean, dim=dims, keepdim=keepdim),
    "amax": lambda dims, keepdim: Apply(torch.amax, dim=dims, keepdim=keepdim),
    "add": _function(torch.add),
    "sub": _function(torch.sub),
    "mul": _function(torch.mul),
    "maximum": _function(torch.maximum),
    "gate": _function(lambda x, gate: x * torch.sigmoid(gate)),
    "cat": _function(lambda one, other, dim: torch.cat([one, other], dim)),
    "flatten": nn.Flatten,
    "tokens": _function(_tokens),
    "transpose": _function(lambda x: x.transpose(1, 2)),
    "permute": _function(lambda x: x.permute(0, 2, 3, 1)),
    "image": _function(_image),
    "slice": _function(_slice),
    "halves": _function(_halves),
    "swap_halves": _function(_swap_halves),
    "glu": partial(nn.GLU),
    "pad": lambda sides: Apply(F.pad, pad=sides),
    "pixel_shuffle": partial(nn.PixelShuffle, 2),
    "channel_shuffle": _function(_channel_shuffle),
    "roll": lambda dim: Apply(torch.roll, shifts=1, dims=dim),
    "flip": lambda dim: Apply(torch.flip, dims=(dim,)),
    "repeat": _function(_repeat),
    "interpolate": lambda mode: nn.Upsample(scale_factor=2, mode=mode),
    "spread": _function(_spread),
    "unflatten": _function(_unflatten),
    "times": Times,
    "times_transposed": TimesTransposed,
    "functional_linear": FunctionalLinear,
    "left_times": LeftTimes,
    "einsum": Einsum,
    "heads": Heads,
    "low_rank": LowRank,
    "shift": Shift,
    "scale": Rescale,
    "token": Token,
    "addmm": Addmm,
    "packed": Packed,
    "bilinear": Bilinear,
    "own_conv": OwnConv,
    "by_size": BySize,
    "by_batch": ByBatch,
    "training_only": TrainingOnly,
    "by_mode": ByMode,
    "no_gradient": NoGradient,
}
