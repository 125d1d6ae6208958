from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, captured_case, pruned_case
from torch import nn

from fxprune import capture
from fxprune.errors import CaptureError
from fxprune.program import Program, copy_graph


def program(name: str, mode: str = "eval") -> Program:
    captured, _ = captured_case(name)
    return captured.regions[""]._fxprune[mode]


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("mlp", "train", ["output"]),
        ("dict_output", "eval", ["logits", "boxes_0"]),
        ("dataclass_output", "eval", ["logits", "features"]),
        ("auxiliary_head", "train", ["logits", "aux"]),
        ("auxiliary_head", "eval", ["output"]),
    ],
)
def test_output_names(name: str, mode: str, expected: list[str]) -> None:
    assert program(name, mode).output_names == expected


@pytest.mark.parametrize("name", CASES)
def test_sample_inputs_run(name: str) -> None:
    captured, _ = captured_case(name)
    for mode, one in captured.regions[""]._fxprune.items():
        inputs = one.sample_inputs(5, seed=1)
        outputs = one.function(captured.host, *inputs)
        assert {len(out) for out in outputs} == {5}, mode
        again = one.sample_inputs(5, seed=1)
        assert all(torch.equal(a, b) for a, b in zip(inputs, again, strict=True))


def test_recorded_sizes() -> None:
    one = program("conv_net")
    (x,) = [node for node in one.graph.nodes if node.op == "placeholder"]
    assert (x.meta["shape"], x.meta["dynamic"], x.meta["dtype"]) == ((3, 1, 8, 8), (0,), torch.float32)
    weight = next(node for node in one.graph.nodes if node.target == "conv1.weight")
    assert (weight.meta["shape"], weight.meta["dynamic"]) == ((4, 1, 3, 3), ())
    assert one.batch == 3
    assert one.dynamic_batch


def test_copies_of_a_graph_are_independent_and_keep_names() -> None:
    one = program("conv_net")
    names = [node.name for node in one.graph.nodes]
    copied = copy_graph(one.graph)
    assert [node.name for node in copied.nodes] == names
    next(iter(copied.nodes)).meta["shape"] = "changed"
    assert next(iter(one.graph.nodes)).meta["shape"] != "changed"


def test_rewritten_leaves_the_program_as_it_was() -> None:
    one = program("mlp")
    before = str(one.graph)

    def drop_tanh(graph: torch.fx.Graph) -> None:
        node = next(n for n in graph.nodes if n.target is torch.ops.aten.tanh.default)
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)

    other = one.rewritten(drop_tanh)
    assert str(one.graph) == before
    assert "tanh" not in str(other.graph)


def test_copies_of_a_model_share_their_programs() -> None:
    pruned = pruned_case("mlp")
    own, other = (m.captured.regions[""]._fxprune for m in (pruned, copy.deepcopy(pruned)))
    assert all(own[mode] is other[mode] for mode in own)


def test_dtypes_written_into_the_graph_follow_the_model() -> None:
    class Positions(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.linspace(0, 1, 6, dtype=x.dtype, device=x.device))

    module = Positions(6, 4)
    captured = capture(module, (torch.randn(2, 6),))
    x = torch.randn(3, 6).double()
    assert torch.equal(captured.host.double()(x), module.double()(x))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.randn(2, 1, 9, 9),), r"'x': the graph was captured for shape \*x1x8x8 .*got 2x1x9x9"),
        ((torch.randn(2, 8),), r"captured for shape \*x1x8x8 .*got 2x8"),
        ((None,), "'x': expected a tensor, got NoneType"),
        (([torch.randn(2, 1, 8, 8)],), "expected the captured structure"),
        ((), "inputs do not fit forward"),
    ],
)
def test_inputs_that_the_graph_was_not_captured_for(inputs: tuple[object, ...], message: str) -> None:
    captured, _ = captured_case("conv_net")
    with pytest.raises(CaptureError, match=message):
        captured.host(*inputs)


def test_arguments_may_be_named_or_not() -> None:
    captured, _ = captured_case("two_inputs")
    (x, y), _ = CASES["two_inputs"].inputs()
    assert torch.equal(captured.host(x, y), captured.host(y=y, x=x))
