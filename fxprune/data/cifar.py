"""CIFAR-10 and CIFAR-100, in the files of their authors."""

from __future__ import annotations

import torch

from fxprune.data.family import Family, Place, Source
from fxprune.data.fetch import fetch
from fxprune.data.splits import Split


def _cifar(place: Place, name: str) -> Source:
    from torchvision import datasets

    kind = getattr(datasets, name)
    splits = [fetch(kind, place, train=train) for train in (True, False)]
    train, test = (Split(torch.from_numpy(s.data).permute(0, 3, 1, 2), list(s.targets)) for s in splits)
    return Source(train, test, tuple(splits[0].classes))


CIFAR10 = Family(
    read=lambda place: _cifar(place, "CIFAR10"),
    count=lambda _: 10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    crop="padded",
)
CIFAR100 = Family(
    read=lambda place: _cifar(place, "CIFAR100"),
    count=lambda _: 100,
    mean=(0.5071, 0.4866, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    crop="padded",
)
