from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, captured_case, leaves, pruned_case, random_masks

from fxprune import Masks, PrunedModel
from fxprune.errors import MaskError
from fxprune.rewrite import check_masks, fold, insert_masks, operand_value


@pytest.mark.parametrize("name", CASES)
def test_each_graph_reads_each_mask_once_and_the_operand_only_through_it(name: str) -> None:
    captured, weights = captured_case(name)
    region = insert_masks(captured, weights, random_masks(weights)).regions[""]
    for mode, program in region._fxprune.items():
        for weight in weights:
            reads = [node for node in program.graph.nodes if node.target == f"{weight.name}_mask"]
            assert len(reads) == (mode in weight.sites)
            for read in reads:
                (product,) = read.users
                site = product.args[0]
                assert site.name == weight.sites[mode]
                assert list(site.users) == [product]
                assert product.meta["shape"] == weight.shape


def test_inserting_masks_leaves_the_captured_model_as_it_is() -> None:
    captured, weights = captured_case("conv_net")
    keys, graphs = list(captured.host.state_dict()), dict(captured.regions[""]._fxprune)
    insert_masks(captured, weights, random_masks(weights))
    assert list(captured.host.state_dict()) == keys
    assert all(captured.regions[""]._fxprune[mode] is graphs[mode] for mode in graphs)


def test_masks_are_copied() -> None:
    captured, weights = captured_case("mlp")
    masks = random_masks(weights)
    region = insert_masks(captured, weights, masks).regions[""]
    masks["fc1.weight"].zero_()
    assert region.get_buffer("fc1.weight_mask").any()


def test_masks_that_do_not_fit() -> None:
    _, weights = captured_case("mlp")
    one = torch.ones(7, 6, dtype=torch.bool)
    with pytest.raises(MaskError, match=r"one mask for each of 2 weights, got 1; see \['fc2\.weight'\]"):
        check_masks(weights, {"fc1.weight": one})
    with pytest.raises(MaskError, match=r"'fc2\.weight': expected shape \(4, 7\), got \(7, 6\)"):
        check_masks(weights, {"fc1.weight": one, "fc2.weight": one})


def test_masks_twice() -> None:
    captured, weights = captured_case("mlp")
    once = insert_masks(captured, weights, random_masks(weights))
    with pytest.raises(MaskError, match=r"already has 'fc1\.weight_mask'; a model can be pruned once"):
        insert_masks(once, weights, random_masks(weights))


@pytest.mark.parametrize("name", CASES)
def test_folded_graphs_equal_the_pruned_model(name: str) -> None:
    pruned = pruned_case(name).eval()
    folded = fold(pruned.captured, pruned.weights)
    args, kwargs = CASES[name].inputs(5, seed=1)
    flat = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, torch.Tensor)]
    with torch.no_grad():
        outputs, expected = folded(*flat), leaves(pruned(*args, **kwargs))
    for own, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(own, other)
    state = folded.state_dict()
    for weight in pruned.weights:
        if "eval" in weight.sites:
            assert torch.equal(state[weight.name], pruned.effective_weight(weight.name))
    assert not any("mask" in key for key in state)


def test_folding_leaves_the_model_as_it_is() -> None:
    pruned = pruned_case("conv_net")
    before = copy.deepcopy(pruned.state_dict())
    folded = fold(pruned.captured, pruned.weights)
    with torch.no_grad():
        folded.state_dict()["conv1.weight"].zero_()
    assert all(torch.equal(value, before[key]) for key, value in pruned.state_dict().items())


def test_computing_an_operand_changes_no_buffer() -> None:
    captured, weights = captured_case("spectral_norm")
    region = captured.regions[""]
    before = {name: buffer.clone() for name, buffer in region.named_buffers()}
    value = operand_value(region, region._fxprune["train"], weights["0.weight"].sites["train"])
    assert value.shape == (5, 6)
    assert all(torch.equal(buffer, before[name]) for name, buffer in region.named_buffers())


def test_a_mask_of_a_tied_weight_acts_on_all_its_uses() -> None:
    captured, weights = captured_case("tied_linear")
    masks = random_masks(weights, density=1.0)
    masks["first.weight"].zero_()
    pruned = PrunedModel(captured, weights, Masks(dict(masks)))
    x = torch.randn(3, 6)
    second = pruned.get_parameter("second.bias").tanh()
    head = pruned.get_parameter("head.weight") @ second + pruned.get_parameter("head.bias")
    torch.testing.assert_close(pruned(x), head.expand(3, -1))
