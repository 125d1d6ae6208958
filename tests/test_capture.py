from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, Case, ConvNet, LooseTensor, Uncapturable, captured_case, leaves, pruned_case
from torch import Tensor, nn

from fxprune import capture, prune
from fxprune.errors import CaptureError

EVERY_CASE = pytest.mark.parametrize("name", CASES)


def snapshot(module: nn.Module) -> list[Any]:
    """All that must not change: identities and contents of attributes, bits, versions, modes, generators."""
    found: list[Any] = [torch.get_rng_state().tolist()]
    for path, submodule in module.named_modules():
        found.append((path, id(submodule), submodule.training, sorted(submodule.__dict__)))
        for name, value in submodule.__dict__.items():
            found.append((path, name, id(value)))
            if isinstance(value, (dict, list, set)):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                found.extend((path, name, key, id(item)) for key, item in items)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        bits = tensor.detach().clone().numpy().tobytes()
        found.append((name, id(tensor), tensor._version, tensor.requires_grad, tensor.grad, bits))
    return found


def prepared(module: nn.Module) -> nn.Module:
    """With hooks, mixed modes and a frozen parameter, so that there is something to lose."""
    submodules = list(module.modules())
    module.register_forward_hook(lambda m, args, output: None)
    submodules[-1].register_forward_pre_hook(lambda m, args: None)
    submodules[-1].register_full_backward_hook(lambda m, grads_in, grads_out: None)
    module.register_state_dict_post_hook(lambda *args: None)
    module.train()
    submodules[-1].eval()
    next(module.parameters()).requires_grad_(False)
    return module


# 1. the module handed in is untouched


@EVERY_CASE
def test_capture_leaves_the_module_untouched(name: str) -> None:
    case = CASES[name]
    module = prepared(case.make())
    args, kwargs = case.inputs()
    before = snapshot(module)
    capture(module, args, kwargs)
    assert snapshot(module) == before


@EVERY_CASE
def test_prune_leaves_the_module_untouched(name: str) -> None:
    case = CASES[name]
    module = prepared(case.make())
    batch = case.batch()
    before = snapshot(module)
    prune(module, data=[batch], sparsity=0.5)
    assert snapshot(module) == before


def test_a_failed_capture_leaves_the_module_untouched() -> None:
    module, x = prepared(Uncapturable()), torch.randn(2, 6)
    before = snapshot(module)
    with pytest.raises(CaptureError):
        capture(module, (x,))
    assert snapshot(module) == before


def test_generators_of_python_and_numpy_are_untouched() -> None:
    class Draws(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (0.5 + random.random() + np.random.rand())

    module, before = Draws(6, 4), (random.getstate(), np.random.get_state()[1].tolist())
    before_numpy = np.random.get_state()[2]
    capture(module, (torch.randn(2, 6),))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert np.random.get_state()[2] == before_numpy


def test_what_forward_notes_in_python_is_undone() -> None:
    class Notes(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 4)
            self.calls, self.seen, self.last = 0, list[Tensor](), dict[str, Tensor]()

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen.append(x)
            self.last["x"] = x
            return super().forward(x)

    module = Notes()
    capture(module, (torch.randn(2, 6),))
    assert (module.calls, module.seen, module.last) == (0, [], {})


def test_hook_handles_still_work_after_a_capture() -> None:
    module, called = nn.Linear(6, 4), list[int]()
    handle = module.register_forward_hook(lambda m, args, output: called.append(1))
    capture(module, (torch.randn(2, 6),))
    called.clear()
    handle.remove()
    module(torch.randn(2, 6))
    assert called == []


def test_the_captured_model_owns_its_state() -> None:
    module = ConvNet()
    captured = capture(module, (torch.randn(2, 1, 8, 8),))
    state = captured.host.state_dict()
    with torch.no_grad():
        for tensor in state.values():
            tensor.zero_()
    assert module.conv1.weight.all()
    assert {t.data_ptr() for t in state.values()}.isdisjoint(t.data_ptr() for t in module.state_dict().values())


# 2. masks of ones: the same as eager


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@EVERY_CASE
def test_masks_of_ones_change_nothing(name: str, mode: bool, batch: int) -> None:
    case = CASES[name]
    eager, pruned = case.make().train(mode), pruned_case(name, density=1.0).train(mode)
    for step in range(2):  # twice, so that changed buffers are read again
        args, kwargs = case.inputs(batch, seed=step + 5)
        torch.manual_seed(step)
        expected = eager(*args, **kwargs)
        torch.manual_seed(step)
        output = pruned(*args, **kwargs)
        assert type(output) is type(expected)
        pairs = list(zip(leaves(output), leaves(expected), strict=True))
        assert all(torch.equal(own, other) for own, other in pairs)
        for result in (expected, output):
            sum(leaf.square().sum() for leaf in leaves(result)).backward()
    own, other = pruned.state_dict(), eager.state_dict()
    assert [key for key in own if not key.endswith("_mask")] == list(other)
    assert all(torch.equal(own[key], other[key]) for key in other)
    own_grads = {key: p.grad for key, p in pruned.named_parameters()}
    for key, parameter in eager.named_parameters():
        if parameter.grad is None:
            assert own_grads[key] is None
        else:
            assert torch.equal(own_grads[key], parameter.grad)


def test_training_updates_batch_statistics() -> None:
    pruned = pruned_case("conv_net", density=1.0).train()
    before = pruned.get_buffer("bn1.running_mean").clone()
    pruned(torch.randn(4, 1, 8, 8))
    assert not torch.equal(pruned.get_buffer("bn1.running_mean"), before)
    assert pruned.get_buffer("bn1.num_batches_tracked") == 1


def test_parameters_keep_requires_grad() -> None:
    module = ConvNet()
    module.conv1.weight.requires_grad_(False)
    captured = capture(module, (torch.randn(2, 1, 8, 8),))
    grads = {name: p.requires_grad for name, p in captured.host.named_parameters()}
    assert grads == {name: p.requires_grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
def test_the_captured_model_is_in_the_mode_of_the_module(training: bool) -> None:
    captured = capture(ConvNet().train(training), (torch.randn(2, 1, 8, 8),))
    assert all(m.training is training for m in captured.host.modules())


def test_hooks_are_part_of_what_is_captured() -> None:
    module = nn.Linear(6, 4)
    module.register_forward_hook(lambda m, args, output: output * 2)
    captured = capture(module, (torch.randn(2, 6),))
    x = torch.randn(3, 6)
    torch.testing.assert_close(captured.host(x), module(x))


def test_frozen_statistics_of_a_train_method_stay_frozen() -> None:
    class Frozen(ConvNet):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self.bn1.eval()
            return self

    captured = capture(Frozen(), (torch.randn(2, 1, 8, 8),))
    captured.host.train()
    captured.host(torch.randn(3, 1, 8, 8))
    assert captured.host.get_buffer("bn1.num_batches_tracked") == 0
    assert captured.host.get_buffer("bn2.num_batches_tracked") == 1


def test_a_batch_of_one_is_captured_with_a_free_batch_size() -> None:
    captured = capture(ConvNet().eval(), (torch.randn(1, 1, 8, 8),))
    assert [len(captured.host(torch.randn(n, 1, 8, 8))) for n in (1, 2, 5)] == [1, 2, 5]


def test_a_model_that_fixes_its_batch_size_is_captured_with_it(caplog: pytest.LogCaptureFixture) -> None:
    class Fixed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(3, 6))

    module = Fixed(6, 4)
    captured = capture(module, (torch.randn(3, 6),))
    assert "fixed at 3" in caplog.text
    x = torch.randn(3, 6)
    assert torch.equal(captured.host(x), module(x))
    with pytest.raises(CaptureError, match="captured for shape 3x6"):
        captured.host(torch.randn(4, 6))


def test_tied_parameters_stay_tied() -> None:
    captured, _ = captured_case("tied_linear")
    names = dict(captured.host.named_parameters(remove_duplicate=False))
    assert names["first.weight"] is names["second.weight"]


def test_alias_shares_parameters_and_owns_buffers() -> None:
    captured, _ = captured_case("conv_net")
    alias = captured.alias()
    own, other = dict(captured.host.named_parameters()), dict(alias.host.named_parameters())
    assert all(own[n] is not other[n] and own[n].data_ptr() == other[n].data_ptr() for n in own)
    buffers, others = dict(captured.host.named_buffers()), dict(alias.host.named_buffers())
    assert all(buffers[n].data_ptr() != others[n].data_ptr() for n in buffers)


def test_a_tensor_that_is_no_buffer_moves_with_the_model() -> None:
    captured = capture(LooseTensor(), (torch.randn(2, 6),))
    assert "mean" not in captured.host.state_dict()
    assert captured.host.double()(torch.randn(3, 6).double()).dtype == torch.float64


# what forward may take


class Called(nn.Module):
    """A linear layer behind a `forward` of some signature."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)


def _forwards() -> dict[str, tuple[type[nn.Module], tuple[Any, ...], dict[str, Any]]]:
    x, y = torch.randn(3, 6), torch.randn(3, 6)

    class Skipped(Called):
        def forward(self, x: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
            return self.fc(x if b is None else x + b)

    class Nested(Called):
        def forward(self, inputs: Any) -> Tensor:
            return self.fc(inputs[0]["a"] + inputs[1])

    class Constants(Called):
        def forward(self, x: Tensor, how: str, factor: float, flag: bool) -> Tensor:
            return self.fc(x if how == "a" else -x) * factor + flag

    class Variadic(Called):
        def forward(self, *inputs: Tensor) -> Tensor:
            return self.fc(inputs[0] + inputs[1])

    class VariadicKeywords(Called):
        def forward(self, x: Tensor, **others: Tensor) -> Tensor:
            return self.fc(x + others["y"])

    class Wrapper(Called):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return self.fc(args[0] + kwargs["y"])

    return {
        "optional_skipped": (Skipped, (x,), {"b": y}),
        "optional_left_out": (Skipped, (x,), {}),
        "none": (Skipped, (x, None, y), {}),
        "nested": (Nested, ([{"a": x}, y],), {}),
        "constants": (Constants, (x, "a", 0.5, True), {}),
        "variadic": (Variadic, (x, y), {}),
        "variadic_keywords": (VariadicKeywords, (x,), {"y": y}),
        "wrapper": (Wrapper, (x,), {"y": y}),
    }


@pytest.mark.parametrize("kind", _forwards())
def test_signatures_of_forward(kind: str) -> None:
    build, args, kwargs = _forwards()[kind]
    module = build()
    captured = capture(module, args, kwargs)
    assert torch.equal(captured.host(*args, **kwargs), module(*args, **kwargs))


@pytest.mark.parametrize(
    "names",
    [("weights", "masks", "record", "captured"), ("host", "mul", "self", "x"), ("global", "class", "a-b")],
    ids=["pruned_model", "graph", "keywords"],
)
def test_names_of_submodules_may_be_anything(names: tuple[str, ...]) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in names:
                self.add_module(name, nn.Linear(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            for name in names:
                x = self._modules[name](x)
            return x

    module, x = Chain(), torch.randn(3, 6)
    pruned = prune(module, x, sparsity=0, criterion="random")
    assert torch.equal(pruned(x), module(x))
    assert [key for key in pruned.state_dict() if not key.endswith("_mask")] == list(module.state_dict())


# errors


def test_an_uncapturable_model_says_why() -> None:
    with pytest.raises(CaptureError, match=r"Uncapturable in train mode: .*data-dependent"):
        capture(Uncapturable(), (torch.randn(2, 6),))


def test_no_module() -> None:
    with pytest.raises(CaptureError, match=r"expected a torch\.nn\.Module to capture, got <function"):
        capture(lambda x: x, (torch.randn(2, 6),))  # type: ignore[arg-type]


def test_a_lazy_module() -> None:
    with pytest.raises(CaptureError, match=r"'0\.weight' of a lazy module has no shape yet"):
        capture(nn.Sequential(nn.LazyLinear(4)), (torch.randn(2, 6),))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "inputs do not fit forward"),
        ((torch.randn(2, 6),) * 2, "inputs do not fit forward"),
        ((5,), "no tensor with a batch dimension"),
        ((torch.randn(0, 6),), "empty batch"),
    ],
)
def test_example_inputs_that_do_not_fit(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(nn.Linear(6, 4), args)


def _case_of_constants() -> Case:
    return CASES["keyword_inputs"]


def test_constant_inputs_are_part_of_the_capture() -> None:
    module = _case_of_constants().make()
    (x,), kwargs = _case_of_constants().inputs()
    captured = capture(module, (x,), {**kwargs, "power": 2})
    assert torch.equal(captured.host(x, **kwargs, power=2), module(x, **kwargs, power=2))
    with pytest.raises(CaptureError, match="'power': the graph was captured for 2, got 3"):
        captured.host(x, **kwargs, power=3)
