from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import CASES, KeywordInputs, ZeroScale, captured_case, leaves
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fxprune import PrunedModel, prune
from fxprune.analysis.connectivity import cut_off
from fxprune.errors import CaptureError, DataError, MaskError, ScoreError, WeightError
from fxprune.loss import classification
from fxprune.masks import kept_count
from fxprune.scoring import Scoring, prepare


def same_masks(one: PrunedModel, other: PrunedModel) -> bool:
    return list(one.masks) == list(other.masks) and all(
        torch.equal(one.masks[n], other.masks[n]) for n in one.masks
    )


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_pruned_to_the_exact_count(name: str) -> None:
    module = CASES[name].make().eval()
    inputs, targets = CASES[name].batch(6)
    pruned = prune(module, data=[(inputs, targets)], sparsity=0.6)
    numel = sum(weight.numel for weight in pruned.weights)
    assert pruned.masks.kept == kept_count(numel, 0.6)
    assert not pruned.masks.empty
    assert pruned.record.cut_off == ()
    assert pruned.record.criterion == "grasp"
    assert not pruned.training
    args, kwargs = CASES[name].inputs(5)
    assert all(torch.isfinite(leaf).all() for leaf in leaves(pruned(*args, **kwargs)))


# 4. the same masks again


class Wide(nn.Sequential):
    """Without batch statistics."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 16, 40), nn.ReLU(), nn.Linear(40, 10)),
        )


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 10


@pytest.mark.parametrize(
    ("name", "criterion"),
    [("conv_net", "grasp"), ("self_attention", "grasp"), ("drop_path", "snip"), ("zero_scale", "random")],
)
def test_the_same_again_is_the_same_bit_for_bit(name: str, criterion: str) -> None:
    batches = [CASES[name].batch(4, seed=i) for i in (0, 1)]
    runs = []
    for draws in (0, 17):
        torch.manual_seed(draws)  # the state of the generators does not matter
        runs.append(prune(CASES[name].make(), data=batches, sparsity=0.7, criterion=criterion, seed=3))
    assert same_masks(*runs)
    assert runs[0].record == runs[1].record


def test_another_seed_draws_other_masks() -> None:
    module, x = CASES["mlp"].make(), torch.randn(2, 6)
    one, other = (prune(module, x, sparsity=0.5, criterion="random", seed=seed) for seed in (0, 1))
    assert not same_masks(one, other)


@pytest.mark.parametrize("sizes", [(10, 10, 10, 10), (7, 33), (1,) * 40], ids=str)
def test_other_chunks_keep_the_same(sizes: tuple[int, ...]) -> None:
    module = Wide()
    x, y = images(40)
    chunks = list(zip(x.split(sizes), y.split(sizes), strict=True))
    one = prune(module, data=[(x, y)], sparsity=0.8)
    other = prune(module, data=chunks, sparsity=0.8)
    both = sum(int((one.masks[n] & other.masks[n]).sum()) for n in one.masks)
    assert both >= 0.999 * one.masks.kept


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """None for graphs that wait, so that the data is gone through twice."""
    monkeypatch.setattr("fxprune.memory.free", lambda device: 0)


def shuffling(generator: torch.Generator | None = None) -> DataLoader[Any]:
    x, y = images(30)
    return DataLoader(TensorDataset(x, y % 5), batch_size=7, shuffle=True, generator=generator)


def test_a_shuffling_loader_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    module = CASES["conv_net"].make()
    one = prune(module, data=shuffling(), sparsity=0.7)
    torch.manual_seed(17)
    assert same_masks(prune(module, data=shuffling(), sparsity=0.7), one)
    assert not same_masks(prune(module, data=shuffling(), sparsity=0.7, seed=1), one)  # it did shuffle
    monkeypatch.setattr("fxprune.memory.free", lambda device: 0)  # now in two passes
    assert same_masks(prune(module, data=shuffling(), sparsity=0.7), one)


def test_a_shuffling_loader_draws_nothing_from_the_generator_of_torch() -> None:
    module, loader, state = CASES["conv_net"].make(), shuffling(), torch.get_rng_state()
    prune(module, data=loader, sparsity=0.7)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loader_with_a_generator_of_its_own_is_as_it_was() -> None:
    generator = torch.Generator().manual_seed(5)
    loader, state = shuffling(generator), generator.get_state()
    prune(CASES["conv_net"].make(), data=loader, sparsity=0.7)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.usefixtures("no_memory")
def test_a_loader_with_a_generator_of_its_own_gives_the_same_batches_twice() -> None:
    generator = torch.Generator().manual_seed(5)
    pruned = prune(CASES["conv_net"].make(), data=shuffling(generator), sparsity=0.7)
    assert pruned.masks.kept == kept_count(282, 0.7)


def test_a_generator_is_kept() -> None:
    batches = [CASES["conv_net"].batch(4, seed=i) for i in range(3)]
    module = CASES["conv_net"].make()
    once = prune(module, data=(batch for batch in batches), sparsity=0.7)
    assert same_masks(once, prune(module, data=batches, sparsity=0.7))


class Noisy(Dataset[Any]):
    """Augmented with numbers of a generator that nobody seeds again."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= 8:
            raise IndexError
        return torch.randn(6, generator=self.generator), index % 4


@pytest.mark.usefixtures("no_memory")
def test_data_that_changes_between_passes_is_refused() -> None:
    with pytest.raises(DataError, match="first pass again"):
        prune(CASES["mlp"].make(), data=DataLoader(Noisy(), batch_size=4), sparsity=0.5)


class Shrinking:
    def __init__(self) -> None:
        self.sizes: Iterator[int] = itertools.count(9, -1)

    def __iter__(self) -> Iterator[Any]:
        size = next(self.sizes)
        return iter([CASES["mlp"].batch(size), CASES["mlp"].batch(4)])


@pytest.mark.usefixtures("no_memory")
def test_data_that_shrinks_between_passes_is_refused() -> None:
    with pytest.raises(DataError, match="first pass again"):
        prune(CASES["mlp"].make(), data=Shrinking(), sparsity=0.5)


# 10. no empty layer, no output cut off


@pytest.mark.parametrize("criterion", ["grasp", "snip"])
def test_a_closed_branch_is_emptied_by_the_paper_and_not_by_default(criterion: str) -> None:
    module, batch = ZeroScale(), (images(12)[0], torch.arange(12) % 5)
    plain = prune(module, data=[batch], sparsity=0.9, criterion=criterion, live=False, floor=0)
    assert plain.masks.empty == ("block.conv1.weight", "block.conv2.weight")
    assert plain.record.zero_share > 0.4
    assert (plain.record.live, plain.record.changes, plain.record.floored) == (False, (), ())
    default = prune(module, data=[batch], sparsity=0.9, criterion=criterion)
    assert default.masks.empty == ()
    assert default.masks.kept == plain.masks.kept
    assert default.record.live
    assert [change.name for change in default.record.changes] == ["block.bn2.weight"]
    assert default.record.zero_share < 0.1


def test_the_floor_alone_keeps_layers_too_and_says_so() -> None:
    batch = (images(12)[0], torch.arange(12) % 5)
    pruned = prune(ZeroScale(), data=[batch], sparsity=0.9, live=False)
    assert pruned.masks.empty == ()
    assert pruned.record.floored == ("block.conv1.weight", "block.conv2.weight")


class Chain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 64))


def apart(scoring: Scoring) -> dict[str, Tensor]:
    """The first layer writes to the first half of the hidden units and the second reads the other half."""
    first, second, last = scoring.operands.values()
    score = [torch.zeros_like(first), torch.zeros_like(second), torch.full_like(last, 9.0)]
    score[0][:8] = 3.0
    score[1][:, 8:] = 2.0
    return dict(zip(scoring.operands, score, strict=True))


def test_the_floor_rises_where_an_output_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fxprune"):
        pruned = prune(Chain(), torch.randn(4, 8), sparsity=0.2, criterion=apart)
    assert pruned.record.floor == 0.05
    assert pruned.record.floor_used == pytest.approx(0.8)
    assert set(pruned.record.floored) == {"0.weight", "1.weight"}
    assert pruned.record.cut_off == ()
    assert pruned.masks.kept == kept_count(1408, 0.2)
    x = torch.randn(2, 8)
    assert not torch.equal(*pruned(x))
    assert "floor raised from 0.05 to 0.8" in caplog.text


def test_without_a_floor_a_cut_off_output_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fxprune"):
        pruned = prune(Chain(), torch.randn(4, 8), sparsity=0.2, criterion=apart, floor=0)
    assert pruned.record.cut_off == (0,)
    x = torch.randn(2, 8)
    torch.testing.assert_close(*pruned(x))
    assert "does not depend on its input" in caplog.text


@pytest.mark.parametrize(("removed", "expected"), [("out", (0,)), ("box", (1,)), ("body", (0, 1)), ("", ())])
def test_which_outputs_are_cut_off(removed: str, expected: tuple[int, ...]) -> None:
    captured, weights = captured_case("dict_output")
    scoring = prepare(captured, weights, None, classification())
    masks = {w.name: torch.full(w.shape, not removed or removed not in w.name) for w in weights}
    assert cut_off(scoring, masks, torch.randn(4, 4)) == expected


def test_one_way_that_is_left_is_enough() -> None:
    captured, weights = captured_case("zero_scale")
    scoring = prepare(captured, weights, None, classification())
    masks = {w.name: torch.ones(w.shape, dtype=torch.bool) for w in weights}
    x = torch.randn(3, 1, 8, 8)
    masks["block.conv1.weight"].zero_()
    assert cut_off(scoring, masks, x) == ()  # around the branch
    masks["stem.weight"].zero_()
    assert cut_off(scoring, masks, x) == (0,)


def test_an_output_that_never_followed_the_input_is_not_cut_off() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.table = nn.Linear(6, 4), nn.Parameter(torch.randn(1, 4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(x), self.table.expand(x.shape[0], -1)

    pruned = prune(Constant(), torch.randn(3, 6), sparsity=0.5, criterion="random")
    assert pruned.record.cut_off == ()


def test_connectivity_changes_no_buffers() -> None:
    captured, weights = captured_case("conv_net")
    scoring = prepare(captured, weights, None, classification())
    masks = {w.name: torch.ones(w.shape, dtype=torch.bool) for w in weights}
    cut_off(scoring, masks, images(3)[0])
    assert captured.host.get_buffer("bn1.num_batches_tracked") == 0


# what else prune takes


def test_sparsity_zero_keeps_everything() -> None:
    module, x = CASES["conv_net"].make().eval(), images(3)[0]
    pruned = prune(module, data=[(x, torch.arange(3))], sparsity=0)
    assert all(mask.all() for mask in pruned.masks.values())
    assert torch.equal(pruned(x), module(x))


def test_rounds_are_cut_within_each_other() -> None:
    module, batch = CASES["conv_net"].make(), CASES["conv_net"].batch(6)
    pruned = prune(module, data=[batch], sparsity=0.8, rounds=3, criterion="snip")
    assert pruned.masks.kept == kept_count(282, 0.8)
    assert pruned.record.rounds == 3
    assert not same_masks(pruned, prune(module, data=[batch], sparsity=0.8, criterion="snip"))


def test_include_and_exclude() -> None:
    x = images(3)[0]
    pruned = prune(
        CASES["conv_net"].make(), x, sparsity=0.5, criterion="random", include=["conv*"], exclude=["*2*"]
    )
    assert list(pruned.masks) == ["conv1.weight"]
    assert pruned.masks.kept == 18
    with pytest.raises(WeightError, match="matches no prunable weight"):
        prune(CASES["conv_net"].make(), x, sparsity=0.5, criterion="random", include=["nope"])


def test_a_loss_of_ones_own() -> None:
    module, (x, y) = CASES["dict_output"].make(), CASES["dict_output"].batch(6)
    seen: list[Any] = []

    def loss(output: dict[str, Any], target: Tensor) -> Tensor:
        seen.append(output)
        return output["boxes"][0].square().mean()

    pruned = prune(module, data=[(x, y)], sparsity=0.5, criterion="snip", loss_fn=loss, floor=0)
    assert "boxes" in seen[0]
    assert "out.weight" in pruned.masks.empty  # the loss does not depend on it


def test_batches_of_one_sample() -> None:
    batches = [CASES["mlp"].batch(1, seed=i) for i in range(4)]
    assert prune(CASES["mlp"].make(), data=batches, sparsity=0.5).record.cut_off == ()


def test_constants_of_the_example_hold_for_the_data() -> None:
    """Batches hold tensors; a flag that the model is captured with has to come from example_kwargs."""
    x, gate = torch.randn(4, 4), torch.rand(4, 5)
    data = [({"x": x, "gate": gate}, torch.arange(4))]
    pruned = prune(KeywordInputs(), x, data, example_kwargs={"gate": gate, "power": 2}, sparsity=0.5)
    assert pruned.masks.kept == 10


def test_sparsity_is_checked_before_anything_is_captured() -> None:
    with pytest.raises(MaskError, match=r"write 0\.9 for 90%"):
        prune(CASES["mlp"].make(), torch.randn(2, 5), sparsity=90)


@pytest.mark.parametrize("parameter", ["conv1.weight", "bn1.bias"])
def test_nan_in_the_model_names_a_weight(parameter: str) -> None:
    module = CASES["conv_net"].make()
    with torch.no_grad():
        module.get_parameter(parameter).fill_(float("nan"))
    with pytest.raises(ScoreError, match=r"of '(conv\d|fc)\.weight': expected finite numbers"):
        prune(module, data=[CASES["conv_net"].batch()], sparsity=0.5)


X, Y = torch.randn(4, 6), torch.arange(4)
MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no_data": ({"example_inputs": X}, DataError, "needs data"),
    "nothing": ({}, CaptureError, "expected example_inputs or data, got neither"),
    "empty": ({"data": []}, DataError, "at least one batch"),
    "used_up": ({"data": iter([])}, DataError, "at least one batch"),
    "one_batch": ({"data": (X, Y)}, DataError, "put it in a list"),
    "no_targets": ({"data": [X]}, DataError, r"expected a batch \(inputs, targets\)"),
    "classes": ({"data": [(X, Y + 1)]}, DataError, "classes 0 to 3, since the model has 4 outputs, got 4"),
    "targets_of_another_batch": ({"data": [(X, Y[:3])]}, DataError, "targets"),
    "shape": (
        {"example_inputs": X, "data": [(torch.randn(4, 5), Y)]},
        CaptureError,
        r"captured for shape \*x6 .*got 4x5",
    ),
    "criterion": ({"data": [(X, Y)], "criterion": "graps"}, ScoreError, "did you mean 'grasp'"),
    "temperature": ({"data": [(X, Y)], "temperature": 0}, ScoreError, "temperature: expected a positive"),
    "ranking": ({"data": [(X, Y)], "ranking": "all"}, MaskError, "ranking: expected"),
    "floor": ({"data": [(X, Y)], "floor": 2}, MaskError, "floor: expected"),
    "text": ({"data": [(X, Y)], "sparsity": "90%"}, MaskError, "sparsity: expected"),
    "loss_per_sample": (
        {"data": [(X, Y)], "loss_fn": lambda output, target: output.sum(1)},
        ScoreError,
        "loss",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    options, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        prune(CASES["mlp"].make(), **{"sparsity": 0.5, **options})


def test_a_grad_mode_of_the_caller_does_not_matter() -> None:
    module, batch = CASES["mlp"].make(), CASES["mlp"].batch()
    with torch.no_grad():
        quiet = prune(module, data=[batch], sparsity=0.5)
    assert same_masks(quiet, prune(module, data=[batch], sparsity=0.5))
