from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from fxprune.batches import check_batch, loader, replayable, score_batches
from fxprune.errors import DataError


class Labelled(Dataset[Any]):
    """Sample i is the number i; notes which samples were read."""

    def __init__(self, labels: list[int], *, told: bool = True) -> None:
        self.labels, self.read = labels, list[int]()
        if told:
            self.targets = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read.append(index)
        return torch.tensor([float(index)]), self.labels[index]


# --- score batches


def test_score_batches_are_balanced() -> None:
    dataset = Labelled([i % 4 for i in range(200)])
    ((inputs, targets),) = score_batches(dataset, classes=4, per_class=10)
    assert (inputs.shape, targets.dtype) == ((40, 1), torch.int64)
    assert targets.bincount().tolist() == [10] * 4
    assert len(inputs.unique()) == 40
    assert torch.equal(inputs.squeeze().long() % 4, targets)
    assert len(dataset.read) == 40  # no more than were drawn


def test_each_score_batch_mixes_all_classes() -> None:
    dataset = Labelled(sorted(i % 4 for i in range(200)))
    batches = score_batches(dataset, classes=4, per_class=6, batch_size=8)
    assert [targets.bincount().tolist() for _, targets in batches] == [[2] * 4] * 3
    assert any(targets.tolist() != sorted(targets.tolist()) for _, targets in batches)


def test_score_batches_are_of_even_size() -> None:
    batches = score_batches(Labelled([i % 10 for i in range(300)]), classes=10, batch_size=33)
    assert [len(targets) for _, targets in batches] == [25, 25, 25, 25]  # and not 33, 33, 33, 1


def test_score_batches_follow_the_seed_and_leave_the_global_one() -> None:
    dataset = Labelled([i % 4 for i in range(200)])

    def drawn(seed: int) -> Tensor:
        return score_batches(dataset, classes=4, seed=seed)[0][0]

    state = torch.get_rng_state()
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_targets_are_seen_through_subsets(kind: Any) -> None:
    dataset = Labelled([i % 4 for i in range(200)])
    dataset.targets = kind(dataset.targets)
    nested = Subset(Subset(dataset, range(100, 200)), range(0, 100, 5))
    inputs, targets = score_batches(nested, classes=4, per_class=2)[0]
    assert len(dataset.read) == 8
    assert inputs.min() >= 100
    assert torch.equal(inputs.squeeze().long() % 4, targets)


def test_data_without_targets_is_read_until_filled() -> None:
    labels = [i % 4 for i in range(2000)]
    silent, telling = Labelled(labels, told=False), Labelled(labels)
    found, expected = (score_batches(d, classes=4, per_class=3)[0] for d in (silent, telling))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert len(silent.read) < 200
    tensors = TensorDataset(torch.randn(40, 3), torch.tensor(labels[:40]))  # labels as tensors
    assert score_batches(tensors, classes=4, per_class=3)[0][1].bincount().tolist() == [3] * 4


def test_score_batches_say_what_ran_dry() -> None:
    with pytest.raises(DataError, match="expected 5 images of each of 4 classes, got 2 of class 1, 0 of class 3;"):
        score_batches(Labelled([0] * 9 + [1] * 2 + [2] * 5), classes=4, per_class=5)
    with pytest.raises(DataError, match="9 of class 9 and too few of 90 more"):
        score_batches(Labelled([i % 100 for i in range(900)]), classes=100)


@pytest.mark.parametrize(
    ("dataset", "options", "said"),
    [
        (Labelled([0, 1, 2]), {"classes": 2}, "labels from 0 to 1, got 2"),
        (Labelled([0, -1]), {"classes": 2}, "labels from 0 to 1, got -1"),
        (Labelled([0]), {"classes": 0}, "positive classes"),
        (Labelled([0]), {"classes": 1, "per_class": 0}, "positive per_class"),
        (Labelled([0]), {"classes": 1, "batch_size": 0}, "positive batch_size"),
        ([(torch.zeros(2), "cat")], {"classes": 1}, "class number as the label of sample 0, got 'cat'"),
        ([torch.zeros(2)], {"classes": 1}, "samples (image, label), got tensor of shape (2,)"),
        ([(np.zeros(2), 0)], {"classes": 1, "per_class": 1}, "images as tensors, got ndarray"),
        (
            [(torch.zeros(2), 0), (torch.zeros(3), 0)],
            {"classes": 1, "per_class": 2},
            "one shape, got (2,) and (3,)",
        ),
    ],
)
def test_data_that_cannot_be_scored_on_is_explained(dataset: Any, options: dict[str, int], said: str) -> None:
    with pytest.raises(DataError) as caught:
        score_batches(dataset, **options)
    assert said in str(caught.value)


def test_targets_that_contradict_the_samples_are_noticed() -> None:
    dataset = Labelled([0, 1] * 9)
    dataset.targets = [1, 0] * 9
    with pytest.raises(DataError, match=r"as in \.targets"):
        score_batches(dataset, classes=2, per_class=2)


def test_streams_cannot_be_scored_on() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter([])

    with pytest.raises(DataError, match="a data set with a length, got Stream"):
        score_batches(Stream(), classes=2)


# --- batches


def pairs(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    return ((torch.full((2, 3), float(i)), torch.zeros(2).long()) for i in range(count))


def test_a_generator_can_be_replayed() -> None:
    again = replayable(pairs(3))
    for _ in range(2):
        assert [inputs[0, 0].item() for inputs, _ in again] == [0, 1, 2]


def test_what_can_be_replayed_is_returned_as_it_is() -> None:
    batches = list(pairs(2))
    assert replayable(batches) is batches
    shuffled = loader(Labelled([0] * 10), 2, shuffle=True, seed=0)
    state = shuffled.generator.get_state()
    assert replayable(shuffled) is shuffled
    assert torch.equal(shuffled.generator.get_state(), state)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "at least one batch"),
        (pairs(0), "at least one batch"),
        (next(pairs(1)), "got one tuple of 2; put it in a list"),
        (list(next(pairs(1))), "got one list of 2"),
        (torch.zeros(2, 3), "got one tensor of shape (2, 3)"),
        ({"x": torch.zeros(1)}, "got one dict of 1"),
        (None, "an iterable of batches (inputs, targets), got NoneType"),
    ],
)
def test_what_holds_no_batches_is_explained(batches: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        replayable(batches)
    assert said in str(caught.value)


def test_batches_of_every_kind_pass() -> None:
    x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    assert check_batch((x, y))[0] is x
    assert check_batch([x, y])[1] is y
    assert check_batch(((x, x), y))[0] == (x, x)
    assert check_batch(([x, x], y))[0] == (x, x)
    assert check_batch(({"image": x}, y))[0] == {"image": x}
    check_batch((x, torch.tensor([0, 7])))
    boxes = [{"boxes": x}, {"boxes": x}]
    assert check_batch((([x, x], boxes), boxes)) == (([x, x], boxes), boxes)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (torch.zeros(2, 3), "got tensor of shape (2, 3)"),
        ((torch.zeros(2),), "got tuple of 1"),
        ({"x": 1}, "got dict of 1"),
        ((np.zeros(2), torch.zeros(2)), "a tuple or dict of what holds tensors, got ndarray"),
        (((), torch.zeros(2)), "got tuple of 0"),
        ((torch.zeros(2), [0, 1]), "tensors of each sample, got list of 2"),
        ((torch.zeros(2), {"x": torch.zeros(2)}), "tensors of each sample, got dict of 1"),
    ],
)
def test_wrong_batches_are_explained(batch: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        check_batch(batch)
    assert said in str(caught.value)


def test_a_loader_follows_its_seed() -> None:
    def order(seed: int, **options: Any) -> list[float]:
        made: DataLoader[Any] = loader(Labelled([0] * 50), 8, shuffle=True, seed=seed, **options)
        return torch.cat([inputs for inputs, _ in made]).flatten().tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(order(0)) == list(range(50))
    assert len(order(0, drop_last=True)) == 48
    unshuffled = loader(Labelled([0] * 9), 4, shuffle=False, seed=0)
    assert torch.cat([inputs for inputs, _ in unshuffled]).flatten().tolist() == list(range(9))


def test_loaders_that_would_give_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="at least 1 samples, got 0"):
        loader(Labelled([]), 4, shuffle=True, seed=0)
    with pytest.raises(DataError, match="at least 16 samples, got 9"):
        loader(Labelled([0] * 9), 16, shuffle=True, seed=0, drop_last=True)
    with pytest.raises(DataError, match="positive batch_size, got 0"):
        loader(Labelled([0]), 0, shuffle=True, seed=0)


class Rewindless:
    """Iterable, no iterator, and yet to be gone through once only."""

    def __init__(self) -> None:
        self.generator = iter([(torch.zeros(2, 3), torch.tensor([i, i])) for i in range(3)])

    def __iter__(self) -> Any:
        return self.generator


def test_an_iterable_that_hands_out_one_iterator_is_kept() -> None:
    kept = replayable(Rewindless())
    assert [len(list(kept)), len(list(kept))] == [3, 3]
