from __future__ import annotations

import pytest
import torch
from cases import CASES, captured_case
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fxprune import Weights, capture, find_weights, prune
from fxprune.errors import WeightError

# 7. every parameter is accounted for


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_is_prunable_or_skipped(name: str) -> None:
    case, (_, weights) = CASES[name], captured_case(name)
    found = {w.name: (w.shape, w.macs, w.operators, w.derived, w.parameters) for w in weights}
    assert found == {
        name: (w.shape, w.macs, w.operators, w.derived, w.parameters or (name,))
        for name, w in case.weights.items()
    }
    assert set(weights.skipped) == set(case.skipped)
    assert all(reason in weights.skipped[skipped] for skipped, reason in case.skipped.items())
    parts = [parameter for weight in weights for parameter in weight.parameters]
    assert sorted([*parts, *weights.skipped]) == sorted(n for n, _ in case.make().named_parameters())


FLOPS_OF_WEIGHTS_ONLY = (
    "conv_net mlp tied_linear tied_embedding weight_norm spectral_norm standardised scaled_linear convolutions "
    "own_products two_inputs keyword_inputs dict_output dataclass_output auxiliary_head zero_scale hard "
    "drop_path"
).split()


@pytest.mark.parametrize("name", FLOPS_OF_WEIGHTS_ONLY)
def test_macs_are_half_of_the_flops_that_torch_counts(name: str) -> None:
    _, weights = captured_case(name)
    args, kwargs = CASES[name].inputs(5)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        CASES[name].make().eval()(*args, **kwargs)
    assert counter.get_total_flops() == 2 * 5 * sum(weight.macs for weight in weights)


def test_macs_do_not_depend_on_the_captured_batch() -> None:
    class Fixed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(3, 6))

    for module, batch in ((nn.Linear(6, 4), 7), (Fixed(6, 4), 3)):
        (weight,) = find_weights(capture(module, (torch.randn(batch, 6),)))
        assert weight.macs == 24


def linear_with(**attributes: object) -> type[nn.Module]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)
            for name, value in attributes.items():
                setattr(self, name, value)

    return Model


def found_in(module: nn.Module, *inputs: Tensor) -> Weights:
    return find_weights(capture(module, inputs or (torch.randn(3, 6),)))


def test_a_parameter_used_in_evaluation_only_says_so() -> None:
    class Model(linear_with(out=nn.Linear(4, 4, bias=False))):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if self.training else self.out(self.fc(x))

    assert "evaluation" in found_in(Model()).skipped["out.weight"]


def test_reasons_of_what_is_skipped() -> None:
    class Model(linear_with(unused=nn.Linear(2, 2, bias=False))):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 6)
            self.token = nn.Parameter(torch.zeros(1, 6))
            self.scale = nn.Parameter(torch.ones(6))
            self.norm = nn.LayerNorm(6)
            self.vector = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([x + self.table.weight.sum(0), self.token.expand(len(x), -1)])
            x = self.norm(x * self.scale + self.table(torch.arange(6)).sum(0))
            return self.fc(x) @ self.vector

    skipped = found_in(Model()).skipped
    assert skipped["unused.weight"] == "not used by the model's forward"
    assert skipped["token"].startswith("joined to activations")
    assert skipped["scale"] == "scales activations element by element"
    assert skipped["norm.weight"] == "scale of layer_norm"
    assert "vector" in skipped
    assert "which is no product" not in skipped["vector"]  # matmul is one; a vector is just not pruned


def test_views_slices_and_casts_are_followed_to_the_parameter() -> None:
    class Model(linear_with(weight=nn.Parameter(torch.randn(2, 2, 6)))):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            flat = self.weight.view(4, 6).to(x.dtype)
            return self.fc(x) + F.linear(x, torch.cat(flat.split(2)).detach()) + x @ self.weight[0].T.repeat(1, 2)

    weights = found_in(Model())
    assert not weights["fc.weight"].derived


def test_slices_of_one_parameter_are_one_weight() -> None:
    class Model(linear_with(weight=nn.Parameter(torch.randn(8, 6)))):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + F.linear(x, self.weight[:4]) * F.linear(x, self.weight[4:])

    weight = found_in(Model())["weight"]
    assert (weight.shape, weight.derived, weight.macs) == ((8, 6), False, 48)
    assert weight.operators == ("linear", "linear")


def test_layers_of_recurrent_networks() -> None:
    lstm = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True, proj_size=2)
    weights = found_in(lstm, torch.randn(2, 5, 3))
    expected = [name for name, _ in lstm.named_parameters() if "weight" in name]
    assert [weight.name for weight in weights] == expected
    assert all(weight.macs == 5 * weight.numel for weight in weights)


def test_an_activation_of_a_constant_is_no_weight() -> None:
    """A learned query, projected: the projection is the weight, not its result."""

    class Model(linear_with(query=nn.Parameter(torch.randn(1, 6)))):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.query) @ self.fc(x).T

    weights = found_in(Model())
    assert [weight.name for weight in weights] == ["fc.weight"]


def test_a_model_without_weights() -> None:
    with pytest.raises(WeightError, match=r"no prunable weight.*0\.weight.*scale of layer_norm"):
        found_in(nn.Sequential(nn.LayerNorm(6)))


# include and exclude


def names(weights: Weights) -> list[str]:
    return [weight.name for weight in weights]


def test_select() -> None:
    _, weights = captured_case("conv_net")
    assert weights.select() == weights
    assert names(weights.select(include=["conv*"])) == ["conv1.weight", "conv2.weight"]
    assert names(weights.select(exclude=["fc*", "conv1.*"])) == ["conv2.weight"]
    chosen = weights.select(include=["conv?.weight"], exclude=["*2*"])
    assert names(chosen) == ["conv1.weight"]
    assert chosen.skipped["conv2.weight"] == "excluded by '*2*'"
    assert chosen.skipped["fc.weight"] == "not among the included"
    assert set(chosen.skipped) | {"conv1.weight"} == set(weights.skipped) | set(names(weights))
    assert chosen.numel == 36


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (["nope*"], [], r"'nope\*' matches no prunable weight; there are conv1\.weight"),
        ([], ["nope*"], r"'nope\*' matches no prunable weight"),
        (["fc.bias"], [], r"matches only what is skipped: fc\.bias \(bias of linear\)"),
        (["fc*"], ["fc*"], "leave no weight to prune"),
    ],
)
def test_select_that_fits_nothing(include: list[str], exclude: list[str], message: str) -> None:
    _, weights = captured_case("conv_net")
    with pytest.raises(WeightError, match=message):
        weights.select(include, exclude)


def test_unknown_weight() -> None:
    _, weights = captured_case("mlp")
    with pytest.raises(WeightError, match=r"no prunable weight 'fc3'; there are fc1\.weight, fc2\.weight"):
        weights["fc3"]


def test_excluded_weights_stay_dense() -> None:
    module = CASES["mlp"].make()
    pruned = prune(module, torch.randn(2, 6), sparsity=0.5, criterion="random", exclude=["fc2*"])
    assert list(pruned.masks) == ["fc1.weight"]
    assert pruned.masks.kept == 21
    assert "fc2.weight_mask" not in pruned.state_dict()
