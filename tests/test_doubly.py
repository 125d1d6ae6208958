"""Each operator of `fxprune.doubly` against torch's own, in value and in both derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from fxprune import doubly
from fxprune.scoring import out_of_place

aten = torch.ops.aten

Operator = Callable[..., Tensor]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def derivatives(function: Operator, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Value, gradients, and the gradient of a function of the gradients."""
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    y = function(*inputs)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    first = torch.autograd.grad((y * weights + y.square() / 2).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(torch.stack([(g.square() / 2 + g).sum() for g in first]).sum(), inputs)
    return [t.detach() for t in (y, *first, *second)]


SCALE, SHIFT = torch.linspace(0.5, 1.5, 6, dtype=torch.float64), torch.linspace(-1, 1, 6, dtype=torch.float64)
CLOSED = torch.tensor([0.0, 1.0, 0.0, 0.5, 1e-3, 0.0], dtype=torch.float64)
FLAGS = torch.tensor([[True, False, True, True], [True] * 4, [False] * 4])

PAIRS: dict[str, tuple[Operator, Operator, tuple[tuple[int, ...], ...]]] = {
    "conv1d": (
        lambda x, w: doubly.convolution(x, w, None, [2], [1]),
        lambda x, w: aten.conv1d(x, w, None, [2], [1]),
        ((3, 4, 9), (5, 4, 3)),
    ),
    "conv2d in groups": (
        lambda x, w: doubly.convolution(x, w, None, [2, 1], [1, 0], [1, 2], 2),
        lambda x, w: aten.conv2d(x, w, None, [2, 1], [1, 0], [1, 2], 2),
        ((3, 6, 7, 7), (4, 3, 3, 3)),
    ),
    "conv2d, same padding": (
        lambda x, w: doubly.convolution(x, w, None, [1], "same"),
        lambda x, w: aten.conv2d(x, w, None, [1], "same"),
        ((2, 3, 5, 5), (4, 3, 3, 3)),
    ),
    "conv3d": (
        lambda x, w: doubly.convolution(x, w, None, [1], [1]),
        lambda x, w: aten.conv3d(x, w, None, [1], [1]),
        ((2, 2, 4, 4, 4), (3, 2, 3, 3, 3)),
    ),
    "batch_norm": (
        lambda x: doubly.batch_norm(x, SCALE, SHIFT, None, None, True, 0.1, 1e-2),
        lambda x: aten.batch_norm(x, SCALE, SHIFT, None, None, True, 0.1, 1e-2, False),
        ((4, 6, 5, 5),),
    ),
    "batch_norm with a scale of zero": (
        lambda x: doubly.batch_norm(x, CLOSED, SHIFT, None, None, True, 0.1, 1e-2),
        lambda x: aten.batch_norm(x, CLOSED, SHIFT, None, None, True, 0.1, 1e-2, False),
        ((4, 6, 5, 5),),
    ),
    "batch_norm without scale": (
        lambda x: doubly.batch_norm(x, None, None, None, None, True, 0.1, 1e-2),
        lambda x: aten.batch_norm(x, None, None, None, None, True, 0.1, 1e-2, False),
        ((8, 6),),
    ),
    "layer_norm": (
        lambda x: doubly.layer_norm(x, [6], SCALE, SHIFT, 1e-2),
        lambda x: aten.layer_norm(x, [6], SCALE, SHIFT, 1e-2, False),
        ((4, 5, 6),),
    ),
    "layer_norm over two dimensions": (
        lambda x: doubly.layer_norm(x, [5, 6], None, None, 1e-2),
        lambda x: aten.layer_norm(x, [5, 6], None, None, 1e-2, False),
        ((4, 5, 6),),
    ),
    "relu": (doubly.relu, aten.relu, ((4, 7),)),
    "gelu": (doubly.gelu, aten.gelu, ((4, 7),)),
    "tanh gelu": (
        lambda x: doubly.gelu(x, approximate="tanh"),
        lambda x: aten.gelu(x, approximate="tanh"),
        ((4, 7),),
    ),
    "softmax": (lambda x: doubly.softmax(x, 1), lambda x: aten.softmax(x, 1), ((3, 5, 4),)),
    "log_softmax": (lambda x: doubly.log_softmax(x, -1), lambda x: aten.log_softmax(x, -1), ((3, 5),)),
    "attention": (
        lambda q, k, v: doubly.attention(q, k, v, scale=0.3),
        lambda q, k, v: aten.scaled_dot_product_attention(q, k, v, scale=0.3),
        ((2, 3, 4), (2, 5, 4), (2, 5, 6)),
    ),
    "causal attention": (
        lambda q, k, v: doubly.attention(q, k, v, None, 0.0, True),
        lambda q, k, v: aten.scaled_dot_product_attention(q, k, v, None, 0.0, True),
        ((2, 5, 4), (2, 5, 4), (2, 5, 4)),
    ),
    "attention with a bias": (
        lambda q, k, v: doubly.attention(q, k, v, FLAGS[:2].double()),
        lambda q, k, v: aten.scaled_dot_product_attention(q, k, v, FLAGS[:2].double()),
        ((3, 2, 4), (3, 4, 4), (3, 4, 4)),
    ),
    "attention of groups": (
        lambda q, k, v: doubly.attention(q, k, v, enable_gqa=True),
        lambda q, k, v: aten.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        ((2, 4, 3, 4), (2, 2, 5, 4), (2, 2, 5, 4)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_value_and_both_derivatives_are_torchs(name: str) -> None:
    own, native, shapes = PAIRS[name]
    inputs = tuple(normal(*shape) for shape in shapes)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = derivatives(native, inputs)
    for found, wanted in zip(derivatives(own, inputs), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_attention_that_sees_nothing_is_zero_with_derivatives() -> None:
    inputs = (normal(2, 3, 4), normal(2, 4, 4), normal(2, 4, 4))
    found = derivatives(lambda q, k, v: doubly.attention(q, k, v, FLAGS), inputs)
    assert all(t.isfinite().all() for t in found)
    assert not found[0][:, 2].any()
    expected = aten.scaled_dot_product_attention(*inputs, FLAGS)
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-11)


def graph_of(build: Callable[[fx.Graph, fx.Node], fx.Node]) -> fx.Graph:
    graph = fx.Graph()
    graph.output(build(graph, graph.placeholder("x")))
    return graph


def test_later_readers_of_a_tensor_changed_in_place_read_the_result() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        y = graph.call_function(aten.mul.Tensor, (x, 2))
        changed = graph.call_function(aten.relu_.default, (y,))
        return graph.call_function(aten.add.Tensor, (y, changed))

    graph, x = graph_of(build), torch.tensor([-1.0, 3.0])
    expected = fx.GraphModule({}, graph)(x.clone())
    out_of_place(graph)
    assert not any("_" in str(node.target).rpartition(".")[0][-1:] for node in graph.nodes)
    torch.testing.assert_close(fx.GraphModule({}, graph)(x), expected)


def test_a_change_that_another_view_sees_stays() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        y = graph.call_function(aten.mul.Tensor, (x, 2))
        view = graph.call_function(aten.view.default, (y, [2]))
        graph.call_function(aten.relu_.default, (y,))
        return view

    graph, x = graph_of(build), torch.tensor([-1.0, 3.0])
    out_of_place(graph)
    torch.testing.assert_close(fx.GraphModule({}, graph)(x), torch.tensor([0.0, 6.0]))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("scaled", [False, True])
def test_statistics_of_large_batches_are_exact_to_the_last_digits(
    memory_format: torch.memory_format, scaled: bool
) -> None:
    """Where they are not, numbers near zero change their sign, and ReLUs pass what they should stop."""
    x = (torch.randn(100, 16, 32, 32) + 0.3).contiguous(memory_format=memory_format)
    scale, shift = (torch.rand(16) + 0.5, torch.randn(16)) if scaled else (None, None)
    exact = doubly.batch_norm(*_double(x, scale, shift), None, None, True, 0.1, 1e-5)
    found = doubly.batch_norm(x, scale, shift, None, None, True, 0.1, 1e-5)
    assert found.is_contiguous(memory_format=memory_format)
    assert float((found - exact).abs().max()) < 2e-6
    assert int(((found > 0) != (exact > 0)).sum()) <= 2


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_long_convolutions_round_no_more_than_those_of_other_images(memory_format: torch.memory_format) -> None:
    """For the same reason."""
    x = torch.randn(8, 256, 8, 8).relu().contiguous(memory_format=memory_format)
    weight = torch.randn(256, 256, 3, 3) / 48
    exact = torch.conv2d(x.double(), weight.double(), padding=1)
    found = doubly.convolution(x, weight, padding=(1,))
    assert found.is_contiguous(memory_format=torch.channels_last)
    plain = torch.conv2d(x.contiguous(), weight, padding=1)
    assert float((found - exact).square().mean()) < 1.5 * float((plain - exact).square().mean())


def _double(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.double() for tensor in tensors]
