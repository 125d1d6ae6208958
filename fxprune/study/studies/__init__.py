"""Each study: the experiments that it needs, and the page and the plot that it makes of their rows."""

from __future__ import annotations

from fxprune.errors import StudyError
from fxprune.study.studies.accuracy import ACCURACY
from fxprune.study.studies.batch_size import BATCH_SIZE
from fxprune.study.studies.channels import CHANNELS_STUDY
from fxprune.study.studies.flow import GRADIENT_FLOW
from fxprune.study.studies.initialisation import INITIALISATION
from fxprune.study.studies.ntk import NTK
from fxprune.study.studies.sanity import SANITY
from fxprune.study.study import Study

PAPER = (ACCURACY, GRADIENT_FLOW, INITIALISATION, BATCH_SIZE, NTK, SANITY)  # its questions, in one go as "all"
STUDIES: dict[str, Study] = {study.name: study for study in (*PAPER, CHANNELS_STUDY)}


def study(name: str) -> Study:
    """A study by its name.

    Raises:
        StudyError: there is none of that name.
    """
    if name not in STUDIES:
        raise StudyError(f"study: expected one of {', '.join(STUDIES)}, got {name!r}")
    return STUDIES[name]
