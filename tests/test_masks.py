from __future__ import annotations

import itertools
import logging
import math
import random
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from fxprune.errors import MaskError, ScoreError
from fxprune.masks import Masks, Ranking, Schedule, cut, cut_alive, kept_count, schedule
from fxprune.saliency import Saliency


def exact_kept(numel: int, sparsity: str) -> int:
    return numel - math.floor(Fraction(sparsity) * numel)


@pytest.mark.parametrize("numel", [1, 2, 7, 100, 1000, 12345])
def test_kept_count_is_exact_in_decimals(numel: int) -> None:
    for hundredths in range(100):
        text = f"0.{hundredths:02d}"
        assert kept_count(numel, float(text)) == exact_kept(numel, text)
    for text in ("0.999", "0.9995", "0.001", "1e-9", "0.999999999"):
        assert kept_count(numel, float(text)) == exact_kept(numel, text)


def test_kept_count_where_binary_goes_wrong() -> None:
    assert 0.29 * 100 < 29  # the reason for the exact arithmetic
    assert kept_count(100, 0.29) == 71


def reference(saliency: dict[str, Tensor], count: int, floors: dict[str, int] | None = None) -> dict[str, Tensor]:
    """Sort in Python: highest first; of equals, the one that comes first."""
    entries = [
        (-float(value), place, name, index)
        for place, (name, values) in enumerate(saliency.items())
        for index, value in enumerate(values.flatten().tolist())
    ]
    kept: set[tuple[str, int]] = set()
    for name, least in (floors or {}).items():
        kept.update((n, i) for _, _, n, i in sorted(e for e in entries if e[2] == name)[:least])
    for _, _, name, index in sorted(entries, key=lambda e: (e[0], e[1], e[3])):
        if len(kept) < count:
            kept.add((name, index))
    return {
        name: torch.tensor([(name, i) in kept for i in range(values.numel())]).view(values.shape)
        for name, values in saliency.items()
    }


def drawn(seed: int, dtype: torch.dtype, kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (5, 3), "b": (2, 4, 3), "c": (11,), "d": (1, 1)}
    values = {}
    for name, shape in shapes.items():
        if kind == "ties":
            value = torch.randint(-2, 3, shape, generator=generator) / 4
        elif kind == "zeros":  # both zeros, and little else
            value = torch.randint(-1, 2, shape, generator=generator) * torch.tensor(0.0)
            value[..., 0] = torch.randint(-1, 2, value[..., 0].shape, generator=generator)
        elif kind == "same":
            value = torch.full(shape, -0.5)
        else:
            scale = 10.0 ** torch.randint(-4, 4, shape, generator=generator)
            value = torch.randn(shape, generator=generator) * scale
        values[name] = value.to(dtype)
    return values


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "same"])
def test_cut_equals_a_sort(kind: str, dtype: torch.dtype) -> None:
    for seed, sparsity in itertools.product(range(4), (0.0, 0.05, 0.29, 0.5, 0.77, 0.98)):
        saliency = drawn(seed, dtype, kind)
        masks = cut(Saliency(saliency), sparsity)
        count = kept_count(51, sparsity)
        expected = reference(saliency, count)
        assert masks.kept == count
        assert all(torch.equal(masks[name], expected[name]) for name in saliency)


@pytest.mark.parametrize("ranking", ["layer", "erk"])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "same"])
def test_cut_of_each_layer_equals_a_sort_of_it(kind: str, ranking: Ranking) -> None:
    for seed, sparsity in itertools.product(range(3), (0.0, 0.29, 0.5, 0.9)):
        saliency = drawn(seed, torch.float32, kind)
        masks = cut(Saliency(saliency), sparsity, ranking=ranking, floor=0.05)
        assert masks.kept == kept_count(51, sparsity)
        for name, values in saliency.items():
            count = int(masks[name].sum())
            assert count >= 1
            if ranking == "layer":
                assert abs(count - max(1, (1 - sparsity) * values.numel())) < 1.01
            expected = reference({name: values}, count)
            assert torch.equal(masks[name], expected[name])


def test_densities_of_an_erdos_renyi_kernel() -> None:
    saliency = Saliency({name: torch.rand(shape) for name, shape in (("a", (100, 50)), ("b", (200, 10, 3, 3)))})
    masks = cut(saliency, 0.9, ranking="erk")
    density = {name: int(mask.sum()) / mask.numel() for name, mask in masks.items()}
    assert density["a"] / density["b"] == pytest.approx((150 / 5000) / (216 / 18000), rel=0.01)
    assert masks.kept == 2300


def test_a_layer_of_an_erdos_renyi_kernel_is_at_most_dense() -> None:
    masks = cut(Saliency({"a": torch.rand(2, 2), "b": torch.rand(100, 100)}), 0.5, ranking="erk")
    assert masks["a"].all()
    assert masks.kept == 5002


@pytest.mark.parametrize("floor", [0.0, 0.3])
@pytest.mark.parametrize("ranking", ["global", "layer", "erk"])
def test_what_earlier_rounds_removed_stays_removed(ranking: Ranking, floor: float) -> None:
    for seed in range(4):
        earlier = cut(Saliency(drawn(seed, torch.float32, "normal")), 0.3)
        saliency = drawn(seed + 50, torch.float32, "ties")
        masks = cut(Saliency(saliency), 0.7, ranking=ranking, floor=floor, within=earlier)
        assert masks.kept == kept_count(51, 0.7)
        assert not any((masks[name] & ~earlier[name]).any() for name in masks)
        if ranking == "global" and not floor:
            lowest = {name: v.masked_fill(~earlier[name], -100) for name, v in saliency.items()}
            expected = reference(lowest, masks.kept)
            assert all(torch.equal(masks[name], expected[name]) for name in masks)


def test_rounds_that_ask_for_more_than_is_left() -> None:
    saliency = Saliency({"a": torch.rand(10)})
    with pytest.raises(MaskError, match="keeps 9 weights, but earlier rounds left 5"):
        cut(saliency, 0.1, within=cut(saliency, 0.5))


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_schedules(kind: Schedule) -> None:
    steps = schedule(0.9, 4, kind)
    assert len(steps) == 4
    assert steps[-1] == 0.9
    assert steps == sorted(steps)
    changes = [
        b / a if kind == "exponential" else a - b for a, b in itertools.pairwise(1 - s for s in [0, *steps])
    ]
    assert changes == pytest.approx([changes[0]] * 4)
    assert schedule(0.9, 1, kind) == [0.9]


def test_schedules_out_of_range() -> None:
    with pytest.raises(MaskError, match="rounds: expected an integer of at least 1, got 0"):
        schedule(0.9, 0)
    with pytest.raises(MaskError, match="schedule: expected one of exponential, linear, got 'cubic'"):
        schedule(0.9, 2, "cubic")  # type: ignore[arg-type]


@pytest.mark.parametrize("floor", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_cut_with_a_floor_equals_a_sort(kind: str, floor: float) -> None:
    for seed, sparsity in itertools.product(range(3), (0.1, 0.5, 0.8)):
        saliency = drawn(seed, torch.float32, kind)
        saliency["b"] -= 1000  # the ranking alone would empty it
        masks = cut(Saliency(saliency), sparsity, floor=floor)
        share = Fraction(str(floor)) * (1 - Fraction(str(sparsity)))
        floors = {name: math.ceil(share * v.numel()) for name, v in saliency.items()}
        count = kept_count(51, sparsity)
        if sum(floors.values()) > count:
            floors = {name: max(1, math.floor(share * v.numel())) for name, v in saliency.items()}
        expected = reference(saliency, count, floors)
        assert masks.kept == count
        assert all(torch.equal(masks[name], expected[name]) for name in saliency)
        assert not masks.empty


def test_the_order_of_float64_is_kept_below_float32_precision() -> None:
    close = torch.tensor([1.0, 1.0 + 1e-15, 1.0 + 3e-15], dtype=torch.float64)
    assert cut(Saliency({"a": close}), 0.5)["a"].tolist() == [False, True, True]
    assert cut(Saliency({"a": -close}), 0.5)["a"].tolist() == [True, True, False]


def test_both_zeros_are_equal() -> None:
    mask = cut(Saliency({"a": torch.tensor([-0.0, 0.0, -0.0, 0.0])}), 0.5)["a"]
    assert mask.tolist() == [True, True, False, False]


def test_a_wide_tensor_of_many_digits() -> None:
    values = torch.randn(20000, dtype=torch.float64)
    mask = cut(Saliency({"a": values}), 0.9)["a"]
    assert int(mask.sum()) == 2000
    assert values[mask].min() > values[~mask].max()


def test_cut_leaves_the_saliency_as_it_is() -> None:
    values = torch.randn(10, requires_grad=True)
    before = values.detach().clone()
    mask = cut(Saliency({"a": values}), 0.5, floor=0.1)["a"]
    assert torch.equal(values, before)
    assert not mask.requires_grad


def test_sparsity_zero_prunes_nothing() -> None:
    masks = cut(Saliency(drawn(0, torch.float32, "ties")), 0)
    assert all(mask.all() for mask in masks.values())
    assert masks.sparsity == 0


@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, float("nan"), float("inf"), 90])
def test_sparsity_out_of_range(sparsity: float) -> None:
    with pytest.raises(MaskError, match=r"sparsity: expected .* at least 0 and below 1"):
        cut(Saliency({"a": torch.ones(4)}), sparsity)


@pytest.mark.parametrize("floor", [-0.1, 1.5, float("nan")])
def test_floor_out_of_range(floor: float) -> None:
    with pytest.raises(MaskError, match="floor: expected"):
        cut(Saliency({"a": torch.ones(4)}), 0.5, floor=floor)


def test_unknown_ranking() -> None:
    with pytest.raises(MaskError, match="expected one of global, layer, erk, got 'channel'"):
        cut(Saliency({"a": torch.ones(4)}), 0.5, ranking="channel")  # type: ignore[arg-type]


def test_a_floor_that_cannot_be_met() -> None:
    saliency = Saliency({str(i): torch.rand(2) for i in range(10)})
    with pytest.raises(MaskError, match=r"keeps at least 10 weights, but sparsity 0\.9 leaves 2"):
        cut(saliency, 0.9, floor=0.05)
    assert cut(saliency, 0.9).kept == 2


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_saliency_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(ScoreError, match="saliency of 'b': expected finite numbers, got 1 of 3"):
        Saliency({"a": torch.ones(2), "b": torch.tensor([1.0, value, 0.0])})


def test_saliency_of_nothing() -> None:
    with pytest.raises(ScoreError, match="no saliency at all"):
        Saliency({})


def test_share_of_zeros() -> None:
    assert Saliency({"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([-0.0, 2.0])}).zero_share == 0.5


def test_masks_are_bool() -> None:
    with pytest.raises(MaskError, match=r"mask of 'a': expected dtype torch\.bool, got torch\.float32"):
        Masks({"a": torch.ones(2)})


def test_counts_of_masks() -> None:
    masks = Masks({"a": torch.tensor([True, False]), "b": torch.zeros(2, dtype=torch.bool)})
    assert (masks.numel, masks.kept, masks.sparsity, masks.empty) == (4, 1, 0.75, ("b",))


# cut_alive


def test_the_floor_rises_until_the_masks_are_alive(caplog: pytest.LogCaptureFixture) -> None:
    saliency = Saliency({"a": torch.rand(100) + 1, "b": torch.rand(100)})
    seen: list[int] = []

    def alive(masks: Masks) -> bool:
        seen.append(int(masks["b"].sum()))
        return seen[-1] >= 20

    with caplog.at_level(logging.WARNING, "fxprune"):
        result = cut_alive(saliency, 0.5, alive, floor=0.1)
    assert seen == [5, 10, 20]
    assert result.floor == pytest.approx(0.4)
    assert result.floored == ("b",)
    assert result.masks.kept == 100
    assert "floor raised from 0.1 to 0.4" in caplog.text


def test_the_floor_stays_where_the_masks_are_alive() -> None:
    saliency = Saliency({"a": torch.rand(100), "b": torch.rand(100)})
    result = cut_alive(saliency, 0.5, lambda masks: True, floor=0.05)
    plain = cut(saliency, 0.5)
    assert result.floor == 0.05
    assert result.floored == ()
    assert all(torch.equal(result.masks[name], plain[name]) for name in plain)


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_masks_that_nothing_revives_are_returned_with_a_warning(
    floor: float, caplog: pytest.LogCaptureFixture
) -> None:
    saliency = Saliency({"a": torch.rand(100) + 1, "b": torch.rand(100)})
    with caplog.at_level(logging.WARNING, "fxprune"):
        result = cut_alive(saliency, 0.5, lambda masks: False, floor=floor)
    assert result.floor == (1.0 if floor else 0.0)
    assert result.masks.empty == (() if floor else ("b",))
    assert "does not depend on its input" in caplog.text
    assert ("nothing is left of 1 weights: b" in caplog.text) == (not floor)


def test_random_saliencies_of_random_shapes() -> None:
    chance = random.Random(0)
    for _ in range(30):
        sizes = [chance.randint(1, 40) for _ in range(chance.randint(1, 6))]
        saliency = {
            str(i): torch.randint(-3, 4, (size,)).to(chance.choice(DTYPES)) for i, size in enumerate(sizes)
        }
        sparsity = chance.choice([0.1, 0.33, 0.62, 0.9])
        masks = cut(Saliency(saliency), sparsity)
        expected = reference(saliency, kept_count(sum(sizes), sparsity))
        assert all(torch.equal(masks[name], expected[name]) for name in saliency)


def test_a_floor_that_cannot_be_raised_further_stays_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Twelve weights of one element too few: the uniform cut rounds up in each, which is more than there is."""
    saliency = Saliency({f"{i}": torch.rand(31, generator=torch.Generator().manual_seed(i)) for i in range(12)})
    result = cut_alive(saliency, 0.9, lambda _: False, floor=0.05)
    assert result.masks.kept == kept_count(12 * 31, 0.9)
    assert "does not depend on its input" in caplog.text
