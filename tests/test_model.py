from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, captured_case, leaves, pruned_case, random_masks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from fxprune import Masks, PrunedModel, capture, find_weights, prune
from fxprune.errors import FxpruneError, MaskError, WeightError
from fxprune.model import PruneRecord

EVERY_CASE = pytest.mark.parametrize("name", CASES)
EXPRESSIBLE = [name for name, case in CASES.items() if not any(w.derived for w in case.weights.values())]
EXPRESSIBLE += ["scaled_linear"]  # derived, but element by element


def cast(tree: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, tree)


# 5. what is pruned stays zero


OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
}


def steps(model: nn.Module, name: str, optimiser: torch.optim.Optimizer, count: int = 3) -> None:
    for step in range(count):
        args, kwargs = CASES[name].inputs(4, seed=step)
        optimiser.zero_grad()
        sum((leaf - 1).square().sum() for leaf in leaves(model(*args, **kwargs))).backward()
        optimiser.step()


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@EVERY_CASE
def test_pruned_operands_stay_zero(name: str, optimiser: str) -> None:
    model = pruned_case(name, density=1.0).train()
    optimise = OPTIMISERS[optimiser](model.parameters())
    steps(model, name, optimise)  # so that momentum wants to move what is pruned next
    masks = random_masks(model.weights)
    model.set_masks(masks)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    steps(model, name, optimise)
    for weight in model.weights:
        value = model.effective_weight(weight.name)
        assert not value[~masks[weight.name]].any()
        if weight.name != "aux.weight":
            assert value[masks[weight.name]].any()
        if not weight.derived:
            assert not torch.equal(model.state_dict()[weight.name], before[weight.name])
    assert all(torch.equal(model.masks[n], masks[n]) for n in masks)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", [n for n in EXPRESSIBLE if n != "scaled_linear"])
def test_what_stands_at_pruned_places_does_not_matter(name: str, mode: bool) -> None:
    model = pruned_case(name).train(mode)
    args, kwargs = CASES[name].inputs()
    torch.manual_seed(1)
    expected = leaves(copy.deepcopy(model)(*args, **kwargs))
    with torch.no_grad():
        for weight in model.weights:
            model.get_parameter(weight.name)[~model.masks[weight.name]] = 1000.0
    torch.manual_seed(1)
    output = leaves(model(*args, **kwargs))
    assert all(torch.equal(own, other) for own, other in zip(output, expected, strict=True))


@EVERY_CASE
def test_pruned_places_get_no_gradient(name: str) -> None:
    model = pruned_case(name).train()
    args, kwargs = CASES[name].inputs()
    sum(leaf.square().sum() for leaf in leaves(model(*args, **kwargs))).backward()
    for weight in model.weights:
        if not weight.derived:
            assert not model.get_parameter(weight.name).grad[~model.masks[weight.name]].any()


def test_effective_weight() -> None:
    model = pruned_case("mlp")
    mask = model.masks["fc1.weight"]
    assert torch.equal(model.effective_weight("fc1.weight"), model.get_parameter("fc1.weight") * mask)
    model = pruned_case("scaled_linear")
    expected = model.get_parameter("weight") * 0.25 * model.masks["weight"]
    assert torch.equal(model.effective_weight("weight"), expected)
    with pytest.raises(WeightError, match="no prunable weight 'zz'"):
        model.effective_weight("zz")


# state dict


@EVERY_CASE
def test_state_dict_has_the_original_keys_and_masks(name: str) -> None:
    model, original = pruned_case(name), CASES[name].make()
    keys = list(model.state_dict())
    assert [key for key in keys if not key.endswith("_mask")] == list(original.state_dict())
    assert [key for key in sorted(keys) if key.endswith("_mask")] == sorted(
        f"{weight.name}_mask" for weight in model.weights
    )
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in original.named_parameters()]


@pytest.mark.parametrize("assign", [False, True])
@EVERY_CASE
def test_a_vanilla_state_dict_loads_and_leaves_the_masks(name: str, assign: bool) -> None:
    model, original = pruned_case(name).eval(), CASES[name].make(seed=1)
    masks = {key: mask.clone() for key, mask in model.masks.items()}
    state = original.state_dict()
    keys = list(state)
    model.load_state_dict(state, assign=assign)
    assert list(state) == keys
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in keys)
    assert all(torch.equal(model.masks[n], masks[n]) for n in masks)
    captured, weights = captured_case(name)
    captured.host.load_state_dict(original.state_dict())
    fresh = PrunedModel(captured, weights, masks).eval()
    args, kwargs = CASES[name].inputs()
    pairs = zip(leaves(model(*args, **kwargs)), leaves(fresh(*args, **kwargs)), strict=True)
    assert all(torch.equal(own, other) for own, other in pairs)


def test_its_own_state_dict_loads_with_the_masks() -> None:
    model, other = pruned_case("conv_net"), pruned_case("conv_net", density=0.2)
    steps(other, "conv_net", torch.optim.SGD(other.parameters(), lr=0.1))
    model.load_state_dict(other.state_dict())
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(model.eval()(x), other.eval()(x))
    assert model.masks.kept == other.masks.kept


def test_a_state_dict_with_some_of_the_masks_is_refused() -> None:
    model = pruned_case("mlp")
    state = model.state_dict()
    del state["fc1.weight_mask"]
    with pytest.raises(RuntimeError, match=r"Missing key.*fc1\.weight_mask"):
        model.load_state_dict(state)


def test_inside_another_module() -> None:
    model = pruned_case("conv_net")
    outer = nn.Sequential(model, nn.Linear(5, 2)).eval()
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(outer(x), outer[1](model(x)))
    assert not model.captured.host.training
    assert outer.double()(x.double()).dtype == torch.float64
    vanilla = nn.Sequential(CASES["conv_net"].make(seed=3), nn.Linear(5, 2))
    outer.load_state_dict(vanilla.state_dict())
    assert torch.equal(model.get_parameter("fc.weight"), vanilla[0].fc.weight.double())


# dense state dict


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_dense_state_dict_is_the_same_network_for_the_original_class(name: str) -> None:
    model, original = pruned_case(name).eval(), CASES[name].make(seed=1).eval()
    original.load_state_dict(model.dense_state_dict())
    args, kwargs = CASES[name].inputs(5)
    for own, other in zip(leaves(model(*args, **kwargs)), leaves(original(*args, **kwargs)), strict=True):
        torch.testing.assert_close(own, other)


def test_dense_state_dict_is_a_copy() -> None:
    model = pruned_case("mlp")
    for tensor in model.dense_state_dict().values():
        tensor.fill_(7.0)
    assert not any((tensor == 7).any() for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", [name for name in CASES if name not in EXPRESSIBLE])
def test_masks_of_computed_weights_have_no_dense_state_dict(name: str) -> None:
    model = pruned_case(name)
    (derived,) = [weight for weight in model.weights if weight.derived]
    with pytest.raises(WeightError, match=rf"1 of 2 weights are computed .*: {derived.name}; export the model"):
        model.dense_state_dict()
    state = model.dense_state_dict(skip_derived=True)
    for parameter in derived.parameters:
        assert torch.equal(state[parameter], model.get_parameter(parameter))
    for weight in model.weights:
        if not weight.derived:
            assert torch.equal(state[weight.name], model.effective_weight(weight.name))


def test_a_parameter_under_two_masks_has_a_dense_state_dict_of_both_or_none() -> None:
    """One use of the parameter as it is, one of it scaled: two operands, two masks."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(F.linear(x, self.weight)) + F.linear(x, self.weight * 0.25)

    module, x = Twice(), torch.randn(3, 6)
    model = prune(module, x, sparsity=0.5, criterion="random")
    assert len(model.weights) == 2
    try:
        module.load_state_dict(model.dense_state_dict())
    except WeightError:
        return
    torch.testing.assert_close(module(x), model(x))


# copies, dtypes, wrappers


@EVERY_CASE
def test_copies_are_independent(name: str) -> None:
    model = pruned_case(name).eval()
    args, kwargs = CASES[name].inputs()
    expected = leaves(model(*args, **kwargs))
    other = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(leaves(other(*args, **kwargs)), expected, strict=True))
    with torch.no_grad():
        for tensor in [*other.parameters(), *other.buffers()]:
            tensor.zero_()
    other.train()
    assert not model.training
    assert not model.captured.host.training
    assert all(torch.equal(a, b) for a, b in zip(leaves(model(*args, **kwargs)), expected, strict=True))
    other.load_state_dict(CASES[name].make(seed=2).state_dict())  # its hook is its own
    assert all(torch.equal(a, b) for a, b in zip(leaves(model(*args, **kwargs)), expected, strict=True))


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@EVERY_CASE
def test_dtypes(name: str, dtype: torch.dtype, mode: bool) -> None:
    model = pruned_case(name).train(mode)
    args, kwargs = CASES[name].inputs()
    torch.manual_seed(0)
    expected = leaves(copy.deepcopy(model)(*args, **kwargs))
    model.to(dtype)
    torch.manual_seed(0)
    outputs = leaves(model(*cast(args, dtype), **cast(kwargs, dtype)))
    assert all(mask.dtype == torch.bool for mask in model.masks.values())
    for own, other in zip(outputs, expected, strict=True):
        assert own.dtype == dtype
        random_bits = mode and name in ("conv_net", "self_attention", "drop_path")  # drawn per dtype
        if not random_bits:
            tolerance = 1e-4 if dtype is torch.float64 else 0.1
            torch.testing.assert_close(own.float(), other, rtol=tolerance, atol=tolerance)


def test_half_and_back() -> None:
    model = pruned_case("conv_net").half().float().eval()
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(model(x), pruned_case("conv_net").eval()(x), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["conv_net", "self_attention", "dict_output"])
def test_compiles_without_a_graph_break(name: str, mode: bool) -> None:
    torch._dynamo.reset()
    model = pruned_case(name).train(mode)
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    for batch in (3, 5):
        args, kwargs = CASES[name].inputs(batch)
        torch.manual_seed(0)
        expected = leaves(model(*args, **kwargs))
        torch.manual_seed(0)
        output = leaves(compiled(*args, **kwargs))
        assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))


def test_distributed_data_parallel(tmp_path: Path) -> None:
    model = pruned_case("conv_net").train()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    try:
        parallel = DistributedDataParallel(model)
        steps(parallel, "conv_net", torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9))
    finally:
        torch.distributed.destroy_process_group()
    for weight in model.weights:
        assert not model.effective_weight(weight.name)[~model.masks[weight.name]].any()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_functional_call() -> None:
    model = pruned_case("mlp")
    zeros = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    assert not torch.func.functional_call(model, zeros, torch.randn(2, 6)).any()
    assert model(torch.randn(2, 6)).all()


def test_modes() -> None:
    model = pruned_case("auxiliary_head")
    x = torch.randn(2, 4)
    assert type(model.train()(x)).__name__ == "Outputs"
    assert isinstance(model.eval()(x), Tensor)
    assert not model.training
    assert isinstance(PrunedModel.train(model, True)(x), tuple)


# masks


def test_set_masks_changes_them_in_place() -> None:
    model = pruned_case("mlp")
    own = dict(model.masks)
    changed = random_masks(model.weights, density=0.2, seed=5)
    model.set_masks(changed)
    assert all(model.masks[n] is own[n] and torch.equal(own[n], changed[n]) for n in own)
    changed["fc1.weight"].fill_(True)
    assert not model.masks["fc1.weight"].all()


def test_set_masks_that_do_not_fit() -> None:
    model = pruned_case("mlp")
    before = {name: mask.clone() for name, mask in model.masks.items()}
    good = {name: torch.ones_like(mask) for name, mask in model.masks.items()}
    for bad, message in (
        ({"fc1.weight": torch.ones(7, 6)}, r"expected dtype torch\.bool"),
        ({"fc1.weight": good["fc1.weight"]}, "one mask for each of 2"),
        ({**good, "fc2.weight": torch.ones(7, 4, dtype=torch.bool)}, r"expected shape \(4, 7\), got \(7, 4\)"),
        ({**good, "zz": torch.ones(1, dtype=torch.bool)}, "one mask for each of 2 weights, got 3"),
    ):
        with pytest.raises(MaskError, match=message):
            model.set_masks(bad)
    assert all(torch.equal(model.masks[n], before[n]) for n in before)


def test_a_model_is_pruned_once() -> None:
    model = pruned_case("mlp")
    with pytest.raises(FxpruneError, match="pruned once"):
        prune(model, torch.randn(2, 6), sparsity=0.5, criterion="random")


def test_masks_named_like_a_tensor_of_the_model() -> None:
    module = nn.Linear(6, 4)
    module.register_buffer("weight_mask", torch.ones(1))
    captured = capture(module, (torch.randn(2, 6),))
    weights = find_weights(captured)
    with pytest.raises(MaskError, match="already has 'weight_mask'"):
        PrunedModel(captured, weights, random_masks(weights))


def test_the_record_survives_json() -> None:
    module, batch = CASES["zero_scale"].make(), CASES["zero_scale"].batch(6)
    record = prune(module, data=[batch], sparsity=0.9, criterion="snip").record
    assert record.changes
    record = replace(record, floored=("a",), cut_off=(0, 2))
    assert PruneRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    with pytest.raises(TypeError):
        PruneRecord.from_json({**record.to_json(), "unknown": 1})


def test_all_masks_empty_gives_what_biases_give() -> None:
    captured, weights = captured_case("mlp")
    none = Masks({w.name: torch.zeros(w.shape, dtype=torch.bool) for w in weights})
    model = PrunedModel(captured, weights, none)
    assert torch.equal(model(torch.randn(2, 6)), model.get_parameter("fc2.bias").expand(2, -1))


def test_state_dicts_say_how_they_are_to_be_read() -> None:
    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
            assert metadata.get("version") == 2
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    module, x = Versioned(6, 4), torch.randn(3, 6)
    model = prune(module, x, sparsity=0.5, criterion="random")
    module.load_state_dict(model.dense_state_dict())
    assert torch.equal(module(x), model(x))


def test_one_name_is_enough_for_include_and_exclude() -> None:
    module, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)), torch.randn(3, 6)
    only = prune(module, x, sparsity=0.5, criterion="random", include="1.*")
    others = prune(module, x, sparsity=0.5, criterion="random", exclude="1.*")
    assert [[weight.name for weight in model.weights] for model in (only, others)] == [["1.weight"], ["0.weight"]]


def test_a_parameter_used_as_it_is_and_computed_has_the_same_masks_in_both_modes() -> None:
    class Order(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            plain, scaled = self.weight, self.weight / self.weight.norm()
            first, second = (plain, scaled) if self.training else (scaled, plain)
            return F.linear(x, first).tanh() + F.linear(x, second).sin()

    weights = find_weights(capture(Order(), (torch.randn(2, 6),)))
    plain, scaled = sorted(weights, key=lambda weight: weight.derived)
    assert set(plain.sites.values()) == {"weight"}
    assert all(site.startswith("div") for site in scaled.sites.values())
