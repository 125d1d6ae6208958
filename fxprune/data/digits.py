"""scikit-learn's handwritten digits, which come with the package."""

from __future__ import annotations

import torch

from fxprune.data.family import Family, Place, Source
from fxprune.data.splits import Split
from fxprune.sampling import held_out


def _digits(_: Place) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)  # 17 levels of grey
    whole = Split(images, bunch.target.tolist())
    train, test = held_out(whole.targets, every=5)
    return Source(whole.take(train), whole.take(test), tuple("0123456789"))


DIGITS = Family(read=_digits, count=lambda _: 10, mean=(0.3053,), std=(0.3760,))
