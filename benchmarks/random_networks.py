"""Random networks: each is described by steps, which can be pasted into a test, and built from its description.

`describe` draws a description from a source of random numbers: from `random.Random(seed)` in `soak.py`, and from
hypothesis in the tests (`networks`), which makes it smaller where a test fails. `build` gives the same module for
the same description, such as `Network(((3, 8, 8),), (Step("conv2d", (0,), {"in_channels": 3, ...}), ...), (4,))`.
Values are numbered, inputs first and then the results of the steps; a shape leaves out the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies
from random_layers import LAYERS, layer_of
from torch import Tensor, nn

Shape = tuple[int, ...]

VOCABULARY = 11
_BATCH = 11  # no other size: a layer that takes it for channels is refused
_LARGEST = 1024  # elements of a value, for one sample
_STEPS = 9


@dataclass(frozen=True)
class Step:
    """One layer and what it is called on.

    Attributes:
        kind: a name in `random_layers.LAYERS`; or ``"reuse"``, ``"tied"`` or ``"transposed"``, of the layer of an
            earlier step: that layer itself, another one with its weight, or a product with its weight transposed.
        inputs: numbers of values.
        options: what the layer is built with.
    """

    kind: str
    inputs: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A description of a module.

    Attributes:
        inputs: shape of each input.
        steps: in order.
        outputs: numbers of the values that are returned.
        auxiliary: numbers of those that are returned as well while training.
        form: what holds the outputs: ``"tensor"``, ``"tuple"`` or ``"dict"``.
        indices: numbers of the inputs that hold integers below `VOCABULARY`; others hold normal numbers.
    """

    inputs: tuple[Shape, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    auxiliary: tuple[int, ...] = ()
    form: str = "tensor"
    indices: tuple[int, ...] = ()

    def call(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs to call the module with."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randint(VOCABULARY, (batch, *shape), generator=generator)
            if number in self.indices
            else torch.randn((batch, *shape), generator=generator)
            for number, shape in enumerate(self.inputs)
        )

    def reads(self, number: int) -> set[int]:
        """The values that a value is computed from, itself included."""
        inputs = self.steps[number - len(self.inputs)].inputs if number >= len(self.inputs) else ()
        return {number}.union(*(self.reads(each) for each in inputs))


class Net(nn.Module):
    """The module of a description."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        for number, step in enumerate(network.steps, len(network.inputs)):
            self.add_module(f"step{number}", layer_of(step.kind, step.options, self))

    def forward(self, *inputs: Tensor) -> Any:
        network, values = self.network, list(inputs)
        for number, step in enumerate(network.steps, len(inputs)):
            values.append(self.get_submodule(f"step{number}")(*(values[each] for each in step.inputs)))
        found = [values[each] for each in network.outputs]
        if self.training:
            found += [values[each] for each in network.auxiliary]
        if network.form == "tensor" and len(found) == 1:
            return found[0]
        return (
            {f"out{place}": value for place, value in enumerate(found)} if network.form == "dict" else tuple(found)
        )


def build(network: Network, seed: int = 0) -> Net:
    """The module of a description, with parameters and buffers that depend on the seed alone.

    None of them is zero or one for being at its initialisation: shifts, scales and running statistics are drawn.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(network)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.dim() < 2:
                    parameter.add_(0.2 * torch.randn_like(parameter))
            for name, buffer in net.named_buffers():
                if name.endswith("running_mean"):
                    buffer.add_(0.2 * torch.randn_like(buffer))
                elif name.endswith("running_var"):
                    buffer.mul_(0.5 + torch.rand_like(buffer))
    return net


def networks() -> strategies.SearchStrategy[Network]:
    """Descriptions, for hypothesis."""
    return strategies.randoms(use_true_random=False).map(describe)


# --- drawing a description


def describe(random: random.Random) -> Network:
    """A description drawn from a source of random numbers; the same from the same numbers."""
    draft = _Draft(random)
    for _ in range(random.randint(1, _STEPS)):
        draft.grow()
    last = len(draft.shapes) - 1
    draft.add("linear", (last,), in_features=draft.shapes[last][-1], out_features=random.randint(2, 6))
    # a value that nothing reads is an output, or belongs to layers that the model does not use
    read = {each for step in draft.steps for each in step.inputs}
    loose = [each for each in range(len(draft.inputs), len(draft.shapes) - 1) if each not in read]
    others = tuple(each for each in loose if draft.chance(0.7))
    auxiliary = tuple(each for each in others if draft.chance(0.3))
    outputs = (len(draft.shapes) - 1, *(each for each in others if each not in auxiliary))
    form = random.choice(["tuple", "dict"]) if len(outputs) > 1 else random.choice(["tensor", "tuple", "dict"])
    return Network(tuple(draft.inputs), tuple(draft.steps), outputs, auxiliary, form, tuple(draft.indices))


class _Draft:
    """A network that grows.

    Attributes:
        random: where choices come from; the first of a list is the plainest.
        inputs: shapes of the inputs.
        indices: which inputs hold integers.
        steps: so far.
        shapes: of all values.
    """

    def __init__(self, random: random.Random) -> None:
        self.random = random
        self.inputs: list[Shape] = []
        self.indices: list[int] = []
        for number in range(random.choice([1, 1, 1, 2])):
            if self.chance(0.1):
                self.indices.append(number)
                self.inputs.append((random.randint(2, 6),))
            else:
                self.inputs.append(self._input_shape())
        self.steps: list[Step] = []
        self._layers = nn.Module()
        self.shapes: list[Shape] = list(self.inputs)
        for number in self.indices:
            self.add("embedding", (number,), num_embeddings=VOCABULARY, embedding_dim=random.choice([4, 6, 8]))

    def _input_shape(self) -> Shape:
        size = self.random.randint
        rank = self.random.choice([3, 3, 2, 1])
        return {
            1: (size(2, 8),),
            2: (size(2, 6), self.random.choice([4, 6, 8])),
            3: (size(1, 4), size(4, 8), size(4, 8)),
        }[rank]

    def grow(self) -> None:
        """Try kinds of steps until one fits what there is."""
        for _ in range(20):
            kind = self.random.choice(_KINDS)
            count = len(self.shapes)
            kind(self)
            if len(self.shapes) > count:
                return

    def chance(self, probability: float) -> bool:
        """True with a probability; hypothesis prefers False."""
        return self.random.randint(0, 99) >= 100 * (1 - probability)

    def value(self, *ranks: int) -> int:
        """The number of a value of one of these ranks, mostly of the last; -1 if there is none."""
        found = [each for each in self.floats() if len(self.shapes[each]) in ranks][::-1]
        if not found:
            return -1
        return self.random.choice(found) if self.chance(0.3) else found[0]

    def floats(self) -> list[int]:
        """The numbers of the values that are no indices."""
        return [each for each in range(len(self.shapes)) if each not in self.indices]

    def add(self, kind: str, inputs: Sequence[int], **options: Any) -> None:
        """Append a step, unless its result is too large or its layer does not take these shapes."""
        step = Step(kind, tuple(inputs), options)
        shape = None if min(inputs) < 0 else self._shape(step)
        if shape and 0 < torch.Size(shape).numel() <= _LARGEST:
            self.steps.append(step)
            self.shapes.append(shape)

    def _shape(self, step: Step) -> Shape | None:
        """The shape of a step's result: its layer is run."""
        values = [
            torch.zeros((_BATCH, *self.shapes[each]), dtype=torch.long if each in self.indices else torch.float32)
            for each in step.inputs
        ]
        try:
            with torch.random.fork_rng(), torch.no_grad():
                layer = layer_of(step.kind, step.options, self._layers)
                shape = tuple(layer(*values).shape[1:])
        except (RuntimeError, ValueError, AssertionError, IndexError):
            return None  # a kernel larger than its input, and the like
        self._layers.add_module(f"step{len(self.shapes)}", layer)
        return shape


def _divisor(draft: _Draft, *numbers: int) -> int:
    """A common divisor, mostly one."""
    found = [each for each in range(1, min(numbers) + 1) if not any(number % each for number in numbers)]
    return draft.random.choice(found) if draft.chance(0.3) else 1


def _convolution(draft: _Draft) -> None:
    number = draft.value(3, 2)
    if number < 0:
        return
    rank, channels = len(draft.shapes[number]) - 1, draft.shapes[number][0]
    pick, size = draft.random.choice, draft.random.randint
    depthwise = draft.chance(0.2)
    groups = channels if depthwise else _divisor(draft, channels)
    options = {
        "in_channels": channels,
        "out_channels": groups * (size(1, 2) if depthwise else size(1, max(1, 12 // groups))),
        "kernel_size": size(1, 3),
        "stride": pick([1, 1, 2]),
        "padding": pick([0, 1, 1, "same"]),
        "dilation": pick([1, 1, 1, 2]),
        "groups": groups,
        "bias": draft.chance(0.6),
        "derived": pick(_DERIVED) if draft.chance(0.3) else None,
    }
    if options["padding"] == "same":  # of an even kernel, torch warns
        options |= {"stride": 1, "kernel_size": options["kernel_size"] | 1}
    if options["padding"] == 1 and draft.chance(0.1):
        options["padding_mode"] = pick(["zeros", "reflect", "circular", "replicate"])
    draft.add(f"conv{rank}d", (number,), **options)


def _transposed(draft: _Draft) -> None:
    number = draft.value(3, 2)
    if number < 0:
        return
    rank, channels = len(draft.shapes[number]) - 1, draft.shapes[number][0]
    pick, size = draft.random.choice, draft.random.randint
    groups, stride = _divisor(draft, channels), pick([1, 2, 2])
    draft.add(
        f"conv_transpose{rank}d",
        (number,),
        in_channels=channels,
        out_channels=groups * size(1, max(1, 8 // groups)),
        kernel_size=size(1, 3),
        stride=stride,
        padding=pick([0, 1]),
        output_padding=pick([0, stride - 1]),
        groups=groups,
        bias=draft.chance(0.6),
        derived=pick(_DERIVED) if draft.chance(0.2) else None,
    )


def _linear(draft: _Draft) -> None:
    number = draft.value(1, 2, 3)
    draft.add(
        "linear",
        (number,),
        in_features=draft.shapes[number][-1],
        out_features=draft.random.randint(2, 12),
        bias=draft.chance(0.6),
        derived=draft.random.choice(_DERIVED) if draft.chance(0.3) else None,
    )


_DERIVED = ("weight_norm", "spectral_norm", "standardised", "scaled", "batch_standardised", "orthogonal")


def _norm(draft: _Draft) -> None:
    number = draft.value(3, 2, 1)
    shape = draft.shapes[number]
    affine = draft.chance(0.8)
    kind = draft.random.choice(["batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"])
    if kind == "batch_norm":
        statistics = draft.chance(0.9)
        dim = max(1, len(shape) - 1)
        draft.add(
            f"batch_norm{dim}d", (number,), num_features=shape[0], affine=affine, track_running_stats=statistics
        )
    elif kind == "group_norm":
        groups = _divisor(draft, shape[0])
        if shape == (groups,):
            return  # one value a group: nothing to normalise, and torch refuses a batch of one
        draft.add("group_norm", (number,), num_groups=groups, num_channels=shape[0], affine=affine)
    elif kind == "instance_norm" and len(shape) > 1:
        statistics = draft.chance(0.3)
        dim = len(shape) - 1
        draft.add(
            f"instance_norm{dim}d", (number,), num_features=shape[0], affine=affine, track_running_stats=statistics
        )
    else:
        kind = "layer_norm" if kind == "instance_norm" else kind
        over = shape[-draft.random.randint(1, len(shape)) :]
        draft.add(kind, (number,), normalized_shape=over, elementwise_affine=affine)


_ACTIVATIONS = (
    "relu gelu silu tanh sigmoid hardswish hardsigmoid leaky_relu elu softplus mish relu6 rrelu softmax "
    "log_softmax celu selu hardtanh softsign gelu_tanh glu_by_hand square"
).split()


def _activation(draft: _Draft) -> None:
    number = draft.value(3, 2, 1)
    last = draft.steps[-1].kind if draft.steps else ""
    if draft.chance(0.1) and last.startswith(("conv", "linear", "add", "sub", "cat")):
        # behind what does not need its own result for the gradient, or torch refuses
        draft.add("relu_in_place", (len(draft.shapes) - 1,))
    elif draft.chance(0.1):
        draft.add("prelu", (number,), num_parameters=draft.random.choice([1, draft.shapes[number][0]]))
    else:
        draft.add(draft.random.choice(_ACTIVATIONS), (number,))


def _chance(draft: _Draft) -> None:
    kind = draft.random.choice(["dropout", "channel_dropout", "drop_path", "noise", "alpha_dropout"])
    draft.add(kind, (draft.value(3) if kind == "channel_dropout" else draft.value(3, 2, 1),))


def _attention(draft: _Draft) -> None:
    number = draft.value(2)
    if number < 0:
        return
    dim = draft.shapes[number][1]
    heads = _divisor(draft, dim)
    kind = draft.random.choice(["self_attention", "own_attention", "grouped_query", "cross_attention"])
    if kind == "self_attention":
        draft.add(
            kind,
            (number,),
            embed_dim=dim,
            num_heads=heads,
            dropout=draft.random.choice([0.0, 0.2]),
            bias=draft.chance(0.7),
            add_bias_kv=draft.chance(0.1),
            need_weights=draft.chance(0.2),
            causal=draft.chance(0.2),
        )
    elif kind == "own_attention":
        inner = draft.random.choice([2, 3, 4])
        fused, causal = draft.chance(0.5), draft.chance(0.2)
        draft.add(kind, (number,), dim=dim, heads=heads, inner=inner, fused=fused, causal=causal)
    elif kind == "grouped_query":
        draft.add(kind, (number,), dim=dim, groups=draft.random.choice([1, 2]), heads=2, inner=2)
    else:
        memory = draft.value(2)
        draft.add(kind, (number, memory), embed_dim=dim, num_heads=heads, memory_dim=draft.shapes[memory][1])


def _pooling(draft: _Draft) -> None:
    number = draft.value(3, 2)
    if number < 0:
        return
    rank = len(draft.shapes[number]) - 1
    kind = draft.random.choice(["max_pool", "avg_pool", "adaptive_pool", "adaptive_max_pool", "mean", "amax"])
    if kind in ("mean", "amax"):
        dims = draft.random.choice([(-1,), (1,), tuple(range(1, rank + 2))[1:], (-2, -1)])
        draft.add(kind, (number,), dims=dims, keepdim=draft.chance(0.2))
    elif kind.startswith("adaptive"):
        # sizes that do not divide the input's are refused by torch's exporter
        draft.add(f"{kind}{rank}d", (number,), output_size=1)
    else:
        padding = draft.random.choice([0, 0, 1])
        draft.add(f"{kind}{rank}d", (number,), kernel_size=draft.random.choice([2, 3]), stride=2, padding=padding)


def _residual(draft: _Draft) -> None:
    """Two values of one shape, or of shapes that are broadcast to one."""
    pairs = [
        (one, other)
        for one in draft.floats()[::-1]
        for other in draft.floats()
        if other < one and _broadcast(draft.shapes[one], draft.shapes[other])
    ]
    if pairs:
        kind = draft.random.choice(["add", "add", "add", "mul", "gate", "sub", "maximum"])
        draft.add(kind, draft.random.choice(pairs))


def _broadcast(one: Shape, other: Shape) -> bool:
    return len(one) == len(other) and all(a == b or 1 in (a, b) for a, b in zip(one, other, strict=True))


def _concatenation(draft: _Draft) -> None:
    found = [
        (one, other, dim)
        for one in draft.floats()[::-1]
        for other in draft.floats()
        if other < one
        for dim in _joinable(draft.shapes[one], draft.shapes[other])
    ]
    if found:
        *pair, dim = draft.random.choice(found)
        draft.add("cat", pair, dim=dim + 1)


def _joinable(one: Shape, other: Shape) -> list[int]:
    """The dimensions along which values can be joined."""
    dims = range(len(one)) if len(one) == len(other) else ()
    return [dim for dim in dims if one[:dim] + one[dim + 1 :] == other[:dim] + other[dim + 1 :]]


def _shape_step(draft: _Draft) -> None:
    number = draft.value(3, 2, 1)
    shape = draft.shapes[number]
    pick = draft.random.choice
    dim = draft.random.randint(1, len(shape))
    size = shape[dim - 1]
    kind = pick(
        "flatten tokens transpose image slice halves swap_halves pad pixel_shuffle channel_shuffle roll flip "
        "interpolate spread unflatten permute glu repeat".split()
    )
    along = {"dim": dim}
    options: dict[str, dict[str, Any]] = {
        **dict.fromkeys(("halves", "swap_halves", "glu", "roll", "flip"), along),
        "image": {"height": pick([each for each in range(1, shape[0] + 1) if shape[0] % each == 0])},
        "slice": {"dim": dim, "start": pick([0, size // 2]), "end": pick([size, max(1, size - 1)])},
        "pad": {"sides": pick([(1, 0), (0, 1), (1, 1)])},
        "channel_shuffle": {"groups": pick([each for each in range(1, shape[0] + 1) if shape[0] % each == 0])},
        "repeat": {"dim": dim, "times": 2},
        "interpolate": {"mode": pick(["nearest", "bilinear"])},
        "unflatten": {"dim": dim, "parts": pick([each for each in range(1, size + 1) if size % each == 0])},
    }
    draft.add(kind, (number,), **options.get(kind, {}))


def _bare(draft: _Draft) -> None:
    """Parameters that belong to no layer."""
    number = draft.value(1, 2, 3)
    shape = draft.shapes[number]
    dim, out = shape[-1], draft.random.randint(2, 8)
    kind = draft.random.choice(
        "times times_transposed left_times einsum low_rank heads shift scale token addmm packed bilinear own_conv "
        "functional_linear".split()
    )
    product, table = {"dim": dim, "out": out}, {"shape": shape}
    options: dict[str, dict[str, Any]] = {
        **dict.fromkeys(("times", "times_transposed", "addmm", "functional_linear", "bilinear"), product),
        **dict.fromkeys(("shift", "scale"), table),
        "left_times": {"dim": shape[-2] if len(shape) > 1 else 0, "out": out},
        "einsum": {"rank": len(shape), "dim": shape[0], "out": out},
        "low_rank": {"dim": dim, "out": out, "rank": 2},
        "heads": {"dim": dim, "out": draft.random.choice([2, 3]), "heads": 2},
        "token": {"dim": dim},
        "packed": {"dim": dim},
        "own_conv": {"channels": shape[0], "out": out},
    }
    draft.add(kind, (number,), **options[kind])


def _recurrent(draft: _Draft) -> None:
    number = draft.value(2)
    if number < 0:
        return
    kind = draft.random.choice(["lstm", "gru", "rnn"])
    layers = draft.random.choice([1, 1, 2])
    draft.add(
        kind,
        (number,),
        input_size=draft.shapes[number][1],
        hidden_size=draft.random.randint(2, 5),
        num_layers=layers,
        bidirectional=draft.chance(0.3),
        bias=draft.chance(0.8),
        last=draft.chance(0.3),
        dropout=0.2 if layers > 1 and draft.chance(0.3) else 0.0,
    )


def _again(draft: _Draft) -> None:
    """The layer of an earlier step once more, or its weight."""
    kind = draft.random.choice(["reuse", "reuse", "tied", "tied", "transposed"])
    found = [
        (of, step)
        for of, step in enumerate(draft.steps, len(draft.inputs))
        if step.kind not in ("reuse", "tied", "transposed") and _allows(step, kind)
    ]
    if found:
        of, step = draft.random.choice(found[::-1])
        # of the same rank, since torch takes an input of one dimension less for a single sample
        ranks = (3, 2, 1) if step.kind == "embedding" else (len(draft.shapes[step.inputs[0]]),)
        draft.add(kind, (draft.value(*ranks),), of=f"step{of}")


def _allows(step: Step, kind: str) -> bool:
    """Whether the layer of a step can be used again in this way."""
    if kind == "reuse":
        return len(step.inputs) == 1 and step.kind not in ("embedding", "relu_in_place")
    able = ("linear",) if kind == "transposed" else ("linear", "conv1d", "conv2d", "embedding")
    return step.kind in able and not step.options.get("derived")


def _control(draft: _Draft) -> None:
    """Python that looks at sizes, or at the mode."""
    number = draft.value(3, 2, 1)
    shape = draft.shapes[number]
    kind = draft.random.choice(["by_size", "by_batch", "training_only", "by_mode", "no_gradient"])
    if kind == "by_size":
        draft.add(kind, (number,), limit=draft.random.randint(2, 6))
    elif (
        kind == "by_batch"
    ):  # not 1: torch.export assumes two samples or more, and leaves no trace of such a branch
        draft.add(kind, (number,), limit=draft.random.choice([2, 3, 4]))
    else:
        draft.add(kind, (number,), dim=shape[-1])


def _product(draft: _Draft) -> None:
    """A product of activations."""
    one, other = draft.value(2), draft.value(2)
    if one >= 0 and draft.shapes[one][1] == draft.shapes[other][1]:
        draft.add("similarity", (one, other))


_KINDS: tuple[Callable[[_Draft], None], ...] = (
    *[_linear] * 2,
    *[_convolution] * 5,
    *[_activation] * 3,
    *[_norm] * 3,
    *[_residual] * 3,
    _pooling,
    _chance,
    *[_concatenation] * 2,
    *[_shape_step] * 3,
    *[_transposed] * 1,
    *[_attention] * 2,
    *[_bare] * 2,
    *[_recurrent] * 1,
    *[_again] * 2,
    *[_control] * 1,
    _product,
)

assert set(_ACTIVATIONS) <= set(LAYERS)
