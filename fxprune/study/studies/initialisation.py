"""Does it matter how the weights were drawn?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fxprune.study import varied
from fxprune.study.experiment import Experiment, experiments
from fxprune.study.lab import INITIALISATIONS
from fxprune.study.setting import Setting
from fxprune.study.study import Study

METHODS = ("random", "snip", "grasp")


def _experiments(setting: Setting, networks: Sequence[str]) -> list[Experiment]:
    varies = [{} if name == "own" else {"initialisation": name} for name in INITIALISATIONS]
    return experiments(networks, METHODS, setting.few_sparsities, setting.seeds, varies=varies)


INITIALISATION = Study(
    "initialisation",
    "Does it matter how the weights were drawn?",
    _experiments,
    varied.numbers(lambda row, _: row["vary"].get("initialisation", "own")),
    varied.page(
        "Test accuracy in percent after training, mean ± standard deviation over seeds; the best of each line "
        "in bold. *own* is what the network's code draws; *kaiming* and *xavier* are normal with the deviations "
        "of He et al. (2015) and Glorot and Bengio (2010), *normal* has the deviation 0.1 in every layer."
    ),
    partial(varied.plot, label="initialisation"),
)
