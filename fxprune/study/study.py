"""`Study`: a question, the experiments that answer it, and what is shown of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxprune.rows import Row
from fxprune.study.experiment import Experiment
from fxprune.study.setting import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Study:
    """A question of the paper.

    Attributes:
        name: on the command line.
        question: in a sentence.
        experiments: what has to be done, in a setting, on some of its networks.
        numbers: of rows, as JSON: all that page and plot show.
        page: Markdown below the title, of those numbers.
        plot: of those numbers.
    """

    name: str
    question: str
    experiments: Callable[[Setting, Sequence[str]], list[Experiment]]
    numbers: Callable[[Setting, Sequence[Row]], dict[str, Any]]
    page: Callable[[dict[str, Any]], str]
    plot: Callable[[dict[str, Any]], Figure]
