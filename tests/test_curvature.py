from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASES, LowRank, ScaledLinear, captured_case, leaves, pruned_case
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize, remove_weight_norm
from torch.utils import _pytree as pytree

from fxprune import capture, find_weights, hessian
from fxprune.criteria import get
from fxprune.curvature import gradient, gradient_norm
from fxprune.errors import DataError, ScoreError
from fxprune.hessian import hessian_gradient_product
from fxprune.loss import classification
from fxprune.scoring import Scoring, prepare

TEMPERATURE = 2.0


# An eager module in which every operand is a parameter of its own, and the parameter of each weight.

Plain = tuple[nn.Module, dict[str, str]]


def as_it_is(module: nn.Module) -> Plain:
    for submodule in module.modules():
        if isinstance(submodule, nn.Dropout):
            submodule.p = 0.0
        if isinstance(submodule, nn.MultiheadAttention):
            submodule.dropout = 0.0
    return module, {}


def without_parametrization(module: nn.Module) -> Plain:
    parametrize.remove_parametrizations(module[0], "weight")
    return module, {}


def without_legacy_norm(module: nn.Module) -> Plain:
    remove_weight_norm(module[0])
    return module, {"0.weight_v": "0.weight"}


def with_plain_conv(module: nn.Module) -> Plain:
    old = module.conv
    flat = old.weight.flatten(1)
    standard = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    new = nn.Conv2d(2, 4, 3, padding=1).double()
    new.weight = nn.Parameter((standard.view_as(old.weight) * old.gain).detach())
    new.bias = old.bias
    module.conv = new
    return module, {}


class Product(nn.Module):
    def __init__(self, weight: Tensor, fc: nn.Linear) -> None:
        super().__init__()
        self.product, self.fc = nn.Parameter(weight.detach()), fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(x @ self.product))


def with_plain_product(module: nn.Module) -> Plain:
    if isinstance(module, LowRank):
        return Product(module.a @ module.b, module.fc), {"b": "product"}
    assert isinstance(module, ScaledLinear)
    plain = nn.Sequential(nn.Linear(6, 5, bias=False).double(), nn.Tanh(), module.fc)
    plain[0].weight = nn.Parameter(module.weight.detach() * 0.25)
    return plain, {"weight": "0.weight", "fc.weight": "2.weight"}


def in_eval(module: nn.Module) -> Plain:
    return module.eval(), {}


PLAIN: dict[str, Callable[[nn.Module], Plain]] = {
    **dict.fromkeys(
        "conv_net mlp tied_linear tied_embedding self_attention cross_attention convolutions own_products lstm "
        "gru two_inputs hard zero_scale no_grad_block dict_output".split(),
        as_it_is,
    ),
    "weight_norm": without_parametrization,
    "spectral_norm": without_parametrization,
    "legacy_weight_norm": without_legacy_norm,
    "standardised": with_plain_conv,
    "scaled_linear": with_plain_product,
    "low_rank": with_plain_product,
    "drop_path": in_eval,
}


def doubled(inputs: Any) -> Any:
    if isinstance(inputs, tuple):
        return tuple(doubled(leaf) for leaf in inputs)
    return inputs.double() if inputs.is_floating_point() else inputs


def brute_force(name: str, batches: list[Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradient and Hessian-gradient product from an explicit Hessian, without any code of fxprune."""
    module, renamed = PLAIN[name](CASES[name].make().double().train())
    parameters = {weight: module.get_parameter(renamed.get(weight, weight)) for weight in CASES[name].weights}
    shapes = [p.shape for p in parameters.values()]
    point = torch.cat([p.detach().flatten() for p in parameters.values()])

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([shape.numel() for shape in shapes])
        replaced = {
            renamed.get(weight, weight): piece.view(shape)
            for weight, piece, shape in zip(parameters, pieces, shapes, strict=True)
        }
        total = torch.zeros((), dtype=torch.float64)
        for inputs, target in batches:
            args = inputs if isinstance(inputs, tuple) else (inputs,)
            output = torch.func.functional_call(module, replaced, args)
            logits = output["logits"] if isinstance(output, dict) else leaves(output)[0]
            total = total + F.cross_entropy(logits / TEMPERATURE, target, reduction="sum")
        return total / sum(len(target) for _, target in batches)

    def split(flat: Tensor) -> dict[str, Tensor]:
        pieces = flat.split([shape.numel() for shape in shapes])
        return {n: p.view(s) for n, p, s in zip(parameters, pieces, shapes, strict=True)}

    with sdpa_kernel(SDPBackend.MATH):
        if name == "hard":  # torch has no second derivative of these: differences, exact but on kinks
            step = 1e-6
            g = torch.func.grad(loss)(point)
            columns = [
                (torch.func.grad(loss)(point + step * e) - torch.func.grad(loss)(point - step * e)) / (2 * step)
                for e in torch.eye(len(point), dtype=torch.float64)
            ]
            hessian = torch.stack(columns)
        else:
            leaf = point.clone().requires_grad_()
            (g,) = torch.autograd.grad(loss(leaf), leaf)
            hessian = torch.autograd.functional.hessian(loss, point)
    return split(g), split(hessian @ g)


def scoring_of(name: str, batches: list[Any], **options: Any) -> Scoring:
    module = CASES[name].make().double().train()
    inputs = batches[0][0]
    captured = capture(module, inputs if isinstance(inputs, tuple) else (inputs,))
    loss_fn = classification(TEMPERATURE)
    return prepare(captured, find_weights(captured), batches, loss_fn, live=False, **options)


TWO_BATCHES = ["conv_net", "mlp", "tied_linear", "standardised", "low_rank", "self_attention"]


@pytest.mark.parametrize(
    ("name", "sizes"), [*((name, (4,)) for name in PLAIN), *((name, (3, 5)) for name in TWO_BATCHES)]
)
def test_grasp_is_exact(name: str, sizes: tuple[int, ...]) -> None:
    batches = []
    for size in sizes:
        inputs, target = CASES[name].batch(size, seed=size)
        batches.append((doubled(inputs), target))
    expected_gradient, expected_product = brute_force(name, batches)
    scoring = scoring_of(name, batches)
    tolerance = {"rtol": 1e-4, "atol": 1e-7} if name == "hard" else {"rtol": 1e-7, "atol": 1e-12}
    own_gradient, own_product = gradient(scoring), hessian_gradient_product(scoring)
    saliency = get("grasp").score(scoring)
    assert any(product.any() for product in own_product.values())
    for weight, operand in scoring.operands.items():
        torch.testing.assert_close(own_gradient[weight], expected_gradient[weight], **tolerance)
        torch.testing.assert_close(own_product[weight], expected_product[weight], **tolerance)
        expected = operand.detach() * expected_product[weight]
        torch.testing.assert_close(saliency[weight], expected, **tolerance)


def test_gradient_norm() -> None:
    batches = [CASES["mlp"].batch(4)]
    scoring = scoring_of("mlp", [(x.double(), y) for x, y in batches])
    expected = sum(float(g.square().sum()) for g in gradient(scoring).values())
    assert gradient_norm(scoring) == pytest.approx(expected)
    assert expected > 0


def test_gradients_of_a_masked_model_are_those_of_what_is_kept() -> None:
    pruned = pruned_case("conv_net")
    batch = CASES["conv_net"].batch(6)
    scoring = prepare(pruned.captured, pruned.weights, [batch], classification())
    for name, grad in gradient(scoring).items():
        assert not grad[~pruned.masks[name]].any()
        assert grad[pruned.masks[name]].any()


@pytest.mark.parametrize("name", ["conv_net", "self_attention", "lstm", "standardised"])
def test_graphs_that_wait_and_graphs_that_are_built_again_give_the_same_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured, weights = captured_case(name)
    batches = [CASES[name].batch(4, seed=seed) for seed in range(3)]
    scoring = prepare(captured, weights, batches, classification())
    kept = hessian_gradient_product(replace(scoring, memory=1 << 40))
    monkeypatch.setattr(hessian._Waiting, "offer", lambda self, gradient: None)
    again = hessian_gradient_product(replace(scoring, memory=1 << 40))
    # torch differentiates a recurrent layer by another kernel when the gradient is to have a graph
    tolerance = 1e-6 * max(float(values.abs().max()) for values in kept.values()) if name == "lstm" else 0.0
    assert all(torch.allclose(kept[n], again[n], rtol=0, atol=tolerance) for n in kept)


@pytest.mark.parametrize("name", sorted(CASES))
def test_derivatives_along_the_gradient_give_the_same_product(name: str, caplog: pytest.LogCaptureFixture) -> None:
    captured, weights = captured_case(name)
    captured.host.double()
    samples = [CASES[name].batch(4, seed=seed) for seed in range(2)]
    batches = [(pytree.tree_map(_double, inputs), targets) for inputs, targets in samples]
    scoring = prepare(captured, weights, batches, classification())
    with torch.random.fork_rng():
        kept, lean = (hessian_gradient_product(replace(scoring, memory=m)) for m in (1 << 40, 0))
    scale = max(float(values.abs().max()) for values in kept.values())
    assert all(torch.allclose(kept[n], lean[n], rtol=1e-8, atol=1e-10 * scale) for n in kept)
    assert "no derivatives along the gradient" not in caplog.text


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def test_chunks_of_one_batch_are_one_batch() -> None:
    x, y = CASES["mlp"].batch(12)
    whole = scoring_of("mlp", [(x.double(), y)])
    chunks = scoring_of("mlp", [(x[i : i + 5].double(), y[i : i + 5]) for i in (0, 5, 10)])
    one, other = hessian_gradient_product(whole), hessian_gradient_product(chunks)
    assert all(torch.allclose(one[n], other[n], rtol=1e-9, atol=1e-14) for n in one)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_is_no_excuse_for_zeros(context: Callable[[], Any]) -> None:
    captured, weights = captured_case("mlp")
    batch = CASES["mlp"].batch()
    with context():
        try:
            scores = get("grasp").score(prepare(captured, weights, [batch], classification()))
        except ScoreError:
            return
    assert any(score.any() for score in scores.values())


class Changing:
    """Other batches each time."""

    def __init__(self, *passes: list[Any]) -> None:
        self.passes = list(passes)

    def __iter__(self) -> Any:
        return iter(self.passes.pop(0))


def test_data_of_other_sizes_on_the_second_pass() -> None:
    captured, weights = captured_case("mlp")
    first, other = [CASES["mlp"].batch(3), CASES["mlp"].batch(4)], [CASES["mlp"].batch(4)] * 2
    for second in (other, first[:1], first * 2):
        scoring = prepare(captured, weights, Changing(first, second), classification())
        scoring = replace(scoring, memory=0)  # nothing waits: a second pass
        with pytest.raises(DataError, match="batches of the first pass again"):
            hessian_gradient_product(scoring)


def test_other_data_of_the_same_sizes_on_the_second_pass() -> None:
    captured, weights = captured_case("mlp")
    passes = ([CASES["mlp"].batch(4, seed=2 * i), CASES["mlp"].batch(4, seed=2 * i + 1)] for i in (0, 1))
    scoring = replace(prepare(captured, weights, Changing(*passes), classification()), memory=0)
    with pytest.raises(DataError, match="first pass again"):
        hessian_gradient_product(scoring)


@pytest.mark.parametrize("parameter", ["fc1.weight", "fc2.weight", "fc1.bias"])
@pytest.mark.parametrize("batches", [1, 2])
def test_nan_names_a_weight(parameter: str, batches: int) -> None:
    captured, weights = copy.deepcopy(captured_case("mlp"))
    with torch.no_grad():
        captured.host.get_parameter(parameter).flatten()[0] = float("nan")
    scoring = prepare(captured, weights, [CASES["mlp"].batch()] * batches, classification())
    with pytest.raises(ScoreError, match=r"of 'fc[12]\.weight': expected finite numbers"):
        hessian_gradient_product(scoring)


@pytest.mark.parametrize("memory", [1 << 40, 0])
def test_nan_in_one_batch_names_it(memory: int) -> None:
    captured, weights = captured_case("mlp")
    batches = [CASES["mlp"].batch(seed=seed) for seed in range(3)]
    batches[1][0][0] = float("nan")
    scoring = replace(prepare(captured, weights, batches, classification()), memory=memory)
    with pytest.raises(ScoreError, match=r"gradient on batch 1 of 'fc[12]\.weight': expected finite numbers"):
        hessian_gradient_product(scoring)
