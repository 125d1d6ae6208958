"""What is left of a mask's merit when it is scrambled?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fxprune.study import varied
from fxprune.study.experiment import Experiment, experiments
from fxprune.study.setting import Setting
from fxprune.study.study import Study

METHODS = ("snip", "synflow", "grasp")
CHECKS = ("shuffle", "reinitialise", "invert")


def _experiments(setting: Setting, networks: Sequence[str]) -> list[Experiment]:
    varies = [{}, *({"sanity": check} for check in CHECKS)]
    return experiments(networks, METHODS, setting.few_sparsities, setting.seeds, varies=varies)


SANITY = Study(
    "sanity",
    "What is left of a mask's merit when it is scrambled?",
    _experiments,
    varied.numbers(lambda row, _: row["vary"].get("sanity", "as scored")),
    varied.page(
        "Test accuracy in percent after training, mean ± standard deviation over seeds; the best of each line "
        "in bold. *shuffle* moves the kept elements to random places of the same layer, *reinitialise* shuffles "
        "the weights under the mask, *invert* keeps what the criterion would remove first. If shuffling costs "
        "nothing, a mask is worth its layer densities and no more (Su et al., NeurIPS 2020; Frankle et al., "
        "ICLR 2021)."
    ),
    partial(varied.plot, label="sanity check"),
)
