"""The registry of criteria by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fxprune.errors import ScoreError
from fxprune.regions import Mode
from fxprune.saliency import Saliency
from fxprune.scoring import Scoring

Score = Callable[[Scoring], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Criterion:
    """A way to compute saliencies.

    Attributes:
        name: what users call it.
        score: from a `Scoring` to one tensor a weight, of its shape, higher being kept.
        live: whether it may be computed at the live point (`fxprune.live`). False for what asks for the
            weights as they are.
        mode: whether it scores with the statistics of the score batches, or with those of a trained model.
        needs_data: whether it looks at batches.
    """

    name: str
    score: Score
    live: bool = True
    mode: Mode = "train"
    needs_data: bool = True

    def saliency(self, scoring: Scoring) -> Saliency:
        """Compute saliencies, and check that there is one tensor of the right shape for each weight.

        Raises:
            ScoreError: there is not, or a number is not finite.
        """
        values = self.score(scoring)
        if not isinstance(values, Mapping) or not all(isinstance(v, Tensor) for v in values.values()):
            raise ScoreError(
                f"criterion {self.name!r}: expected a dict of one tensor a weight, got {type(values).__name__}"
            )
        wanted = {name: tuple(operand.shape) for name, operand in scoring.operands.items()}
        found = {name: tuple(v.shape) for name, v in values.items()}
        if wanted != found:
            odd = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
            raise ScoreError(
                f"criterion {self.name!r}: expected one tensor of the shape of each weight; {odd[0]!r} is to have "
                f"{wanted.get(odd[0])} and has {found.get(odd[0])}"
            )
        return Saliency({name: values[name] for name in wanted})


_criteria: dict[str, Criterion] = {}


def register(
    name: str, *, live: bool = True, mode: Mode = "train", needs_data: bool = True
) -> Callable[[Score], Score]:
    """Make a function available under `name`, for `prune` and the command line; see `Criterion`.

    Raises:
        ScoreError: the name is taken.
    """

    def add(score: Score) -> Score:
        if name in _criteria:
            raise ScoreError(f"criterion {name!r} is registered already; choose another name")
        _criteria[name] = Criterion(name, score, live, mode, needs_data)
        return score

    return add


def names() -> list[str]:
    """Names of all criteria, sorted."""
    return sorted(_criteria)


def get(name: str | Score) -> Criterion:
    """The criterion called `name`; a function is taken for a criterion of its own.

    Raises:
        ScoreError: there is no such criterion.
    """
    if callable(name):
        return Criterion(getattr(name, "__name__", "custom"), name)
    if name not in _criteria:
        near = difflib.get_close_matches(str(name), _criteria, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ScoreError(
            f"unknown criterion {name!r}; {hint}there are {', '.join(names())}, "
            "and fxprune.criteria.register adds your own"
        )
    return _criteria[name]
