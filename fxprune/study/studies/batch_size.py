"""How many images does a score need?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fxprune.study import varied
from fxprune.study.experiment import Experiment, experiments
from fxprune.study.setting import Setting
from fxprune.study.study import Study

METHODS = ("snip", "grasp")


def _experiments(setting: Setting, networks: Sequence[str]) -> list[Experiment]:
    own = setting.per_class  # experiments of `accuracy` where the sparsities are
    varies: list[dict[str, int]] = [{} if count == own else {"per_class": count} for count in setting.per_classes]
    return experiments(networks, METHODS, setting.few_sparsities, setting.seeds, varies=varies)


BATCH_SIZE = Study(
    "batch-size",
    "How many images does a score need?",
    _experiments,
    varied.numbers(lambda row, setting: f"{row['vary'].get('per_class', setting.per_class)} a class"),
    varied.page(
        "Test accuracy in percent after training, mean ± standard deviation over seeds, by the number of images "
        "of each class that the saliencies are computed on, in one batch; the best of each line in bold."
    ),
    partial(varied.plot, label="score images"),
)
