from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cases import CASES, DropPath, Hard, captured_case, leaves
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import capture, find_weights, hessian
from fxprune.errors import DataError
from fxprune.loss import classification
from fxprune.scoring import Scoring, prepare

LOSS = classification(temperature=1.0)


def scoring_of(module: nn.Module, *inputs: Tensor, live: bool = True, seed: int = 0) -> Scoring:
    captured = capture(module, inputs)
    return prepare(captured, find_weights(captured), None, LOSS, live=live, seed=seed)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_scoring_leaves_the_captured_model_as_it_was(name: str, live: bool) -> None:
    captured, weights = captured_case(name)
    captured.host.eval()
    before = copy.deepcopy(captured.host.state_dict())
    programs = dict(captured.regions[""]._fxprune)
    flags = {n: (id(p), p.requires_grad, p._version) for n, p in captured.host.named_parameters()}
    rng = torch.get_rng_state()
    scoring = prepare(captured, weights, [CASES[name].batch()], LOSS, live=live)
    for _, loss, _ in scoring.passes():
        torch.autograd.grad(loss, list(scoring.operands.values()), allow_unused=True)
    after = captured.host.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert {n: (id(p), p.requires_grad, p._version) for n, p in captured.host.named_parameters()} == flags
    assert all(p.grad is None for p in captured.host.parameters())
    assert not captured.host.training
    assert all(captured.regions[""]._fxprune[mode] is programs[mode] for mode in programs)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("name", CASES)
def test_operands_are_the_leaves_of_what_the_model_computes(name: str) -> None:
    captured, weights = captured_case(name)
    scoring = prepare(captured, weights, None, LOSS, live=False)
    assert {n: tuple(o.shape) for n, o in scoring.operands.items()} == {w.name: w.shape for w in weights}
    assert all(o.is_leaf and o.requires_grad for o in scoring.operands.values())
    trained = {n for n, p in scoring.model.named_parameters() if p.requires_grad}
    assert trained == set(scoring.leaves.values())
    output = leaves(scoring.forward(CASES[name].batch()[0]))[0]
    grads = torch.autograd.grad(output.square().sum(), list(scoring.operands.values()), allow_unused=True)
    unused = [n for n, g in zip(scoring.operands, grads, strict=True) if g is None]
    assert unused in ([], ["box.weight"], ["aux.weight"])


@pytest.mark.parametrize("name", ["mlp", "tied_linear", "standardised", "spectral_norm", "lstm"])
def test_it_computes_what_the_model_computes(name: str) -> None:
    captured, weights = captured_case(name)
    scoring = prepare(captured, weights, None, LOSS, live=False)
    x, _ = CASES[name].batch()
    torch.testing.assert_close(scoring.forward(x), CASES[name].make().train()(x))


def test_masks_remove_weights() -> None:
    captured, weights = captured_case("mlp")
    scoring = prepare(captured, weights, None, LOSS)
    x = torch.randn(3, 6)
    masked = replace(scoring, masks={"fc2.weight": torch.zeros(4, 7, dtype=torch.bool)})
    assert torch.equal(masked.forward(x), captured.host.get_parameter("fc2.bias").expand(3, -1))
    assert torch.equal(scoring.forward(x), captured.host(x))


# random operators


class Functional(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.function = nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.fc(x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x[:, None], x[:, None], x[:, None], need_weights=False)[0]


class DroppingLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 4, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x[:, None])[0]


def maps(drop: nn.Module) -> Functional:
    model = Functional(lambda x: drop(x.view(-1, 2, 3, 1)))
    model.drop = drop
    return model


RANDOM: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)),
    "dropout_in_place": lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5, inplace=True)),
    "dropout2d": lambda: maps(nn.Dropout2d(0.5)),
    "alpha_dropout": lambda: nn.Sequential(nn.Linear(6, 6), nn.AlphaDropout(0.5)),
    "feature_alpha_dropout": lambda: maps(nn.FeatureAlphaDropout(0.5)),
    "rrelu": lambda: nn.Sequential(nn.Linear(6, 6), nn.RReLU()),
    "attention": Attention,
    "lstm": DroppingLstm,
    "drop_path": DropPath,
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_operators_give_their_expectation(name: str) -> None:
    module, x = RANDOM[name](), torch.randn(4, 6)
    scoring = scoring_of(module, x)
    torch.manual_seed(1)
    first = scoring.forward(x)
    torch.manual_seed(2)
    assert torch.equal(scoring.forward(x), first)
    torch.testing.assert_close(first, module.eval()(x))
    torch.manual_seed(1)
    one = module.train()(x)
    torch.manual_seed(2)
    assert not torch.equal(module(x), one)  # it is random


# second derivatives


@pytest.mark.parametrize("function", [F.hardsigmoid, F.hardswish])
def test_rewritten_activations_equal_the_originals(function: Callable[[Tensor], Tensor]) -> None:
    module = Functional(function)
    points = torch.tensor([-5.0, -3.0, -2.9, -1.0, 0.0, 0.1, 2.9, 3.1, 7.0])
    x = torch.zeros(9, 6)
    nn.init.zeros_(module.fc.weight)
    nn.init.ones_(module.fc.bias)
    scoring = scoring_of(module, torch.zeros(2, 6), live=False)
    with torch.no_grad():
        scoring.operands["fc.weight"].copy_(torch.eye(6))
        module.fc.weight.copy_(torch.eye(6))
    x += (points - 1)[:, None]
    own, other = scoring.forward(x), module(x)
    torch.testing.assert_close(own, other)
    (grad,) = torch.autograd.grad(own.square().sum(), scoring.operands["fc.weight"], create_graph=True)
    (expected,) = torch.autograd.grad(other.square().sum(), module.fc.weight)
    torch.testing.assert_close(grad, expected)
    (second,) = torch.autograd.grad(grad.square().sum(), scoring.operands["fc.weight"])
    assert second.any()


def test_hard_activations_have_a_hessian() -> None:
    x = torch.randn(4, 6)
    scoring = scoring_of(Hard(), x)
    operands = list(scoring.operands.values())
    grads = torch.autograd.grad(scoring.forward(x).square().sum(), operands, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in grads), operands)
    assert all(s.any() for s in second)


# passes


def test_passes_need_data() -> None:
    captured, weights = captured_case("mlp")
    for batches, message in ((None, "needs data"), ([], "got none")):
        with pytest.raises(DataError, match=message):
            list(prepare(captured, weights, batches, LOSS).passes())


def test_passes_give_sums_over_samples() -> None:
    captured, weights = captured_case("mlp")
    batches = [CASES["mlp"].batch(size, seed=size) for size in (2, 5)]
    scoring = prepare(captured, weights, batches, LOSS)
    for (samples, loss, _), (x, y) in zip(scoring.passes(), batches, strict=True):
        assert samples == len(y)
        torch.testing.assert_close(loss, F.cross_entropy(captured.host(x), y, reduction="sum"))


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "dict"])
def test_forms_of_inputs(kind: str) -> None:
    captured, weights = captured_case("two_inputs" if kind in ("tuple", "list") else "mlp")
    x, y = torch.randn(3, 4), torch.randn(3, 3)
    one = torch.randn(3, 6)
    inputs = {"tensor": one, "tuple": (x, y), "list": [x, y], "dict": {"x": one}}[kind]
    ((samples, loss, _),) = prepare(captured, weights, [(inputs, torch.arange(3))], LOSS).passes()
    assert samples == 3
    assert loss.requires_grad


def test_classes_that_the_model_lacks() -> None:
    captured, weights = captured_case("mlp")
    scoring = prepare(captured, weights, [(torch.randn(2, 6), torch.tensor([0, 4]))], LOSS)
    with pytest.raises(DataError, match="classes 0 to 3, since the model has 4 outputs, got 4"):
        list(scoring.passes())


class Noisy(nn.Module):
    """Draws what no expectation replaces, and has no batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.second(x * (1 + torch.rand_like(x)) if self.training else x)


def test_random_numbers_do_not_depend_on_how_many_graphs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = capture(Noisy(), (torch.randn(2, 6),))
    batches = [(torch.randn(8, 6), torch.arange(8) % 4) for _ in range(3)]
    scoring = prepare(captured, find_weights(captured), batches, classification())
    found = []
    for kept in (0, 1, 3):
        monkeypatch.setattr(hessian._Waiting, "wants", _keeping(kept))
        found.append(hessian.hessian_gradient_product(replace(scoring, memory=1 << 40)))
    for name, values in found[0].items():
        assert torch.equal(found[1][name], values)
        assert torch.equal(found[2][name], values)


def _keeping(count: int) -> Callable[[hessian._Waiting, int], bool]:
    def wants(self: hessian._Waiting, samples: int) -> bool:
        self.fits = True
        return len(self.gradients) < count

    return wants


def test_the_norm_of_a_vector_of_zeros_has_a_second_derivative() -> None:
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.head = nn.Linear(6, 5, bias=False), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.normalize(self.linear(x), dim=-1))

    model = Cosine()
    captured = capture(model, (torch.randn(2, 6),))
    x = torch.randn(4, 6)
    scoring = prepare(captured, find_weights(captured), [(x, torch.arange(4))], classification())
    torch.testing.assert_close(scoring.forward(x), model(x))
    x[0] = 0
    scoring = replace(scoring, batches=[(x, torch.arange(4))])
    assert all(p.isfinite().all() and p.any() for p in hessian.hessian_gradient_product(scoring).values())


def test_what_the_model_cannot_take_is_no_traceback() -> None:
    captured, weights = captured_case("mlp")
    x, y = CASES["mlp"].batch(4)
    scoring = prepare(captured, weights, [(x.double(), y)], classification())
    with pytest.raises(DataError, match="cannot take this batch"):
        list(scoring.passes())
