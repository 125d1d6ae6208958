"""`choose`: which units go, so that what is left costs no more than a budget.

GraSP's score is of first order in what is removed, so that of several weights is the sum of theirs (Wang et al.,
ICLR 2020, section 3.2); so are SNIP's and, of the absolute values, the usual norm of a filter. A unit is worth the
sum over all weights in its slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Real
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fxprune.coupling import Coupling
from fxprune.coupling.atoms import FIXED, Labels
from fxprune.errors import ShrinkError
from fxprune.saliency import Saliency
from fxprune.weights import PrunableWeight, Weights

Cost = Literal["macs", "params", "latency"]
Normalise = Literal["cost", "size", "none"]
Among = Literal["global", "layer"]


@dataclass(frozen=True)
class Budget:
    """What may be left.

    Attributes:
        cost: ``"macs"``, multiply-adds of products with prunable weights; ``"params"``, all parameters; or
            ``"latency"``, time in ONNX Runtime, for which `fxprune.latency` finds the multiply-adds.
        share: of the whole model's, in (0, 1].

    Raises:
        ShrinkError: one of these is something else.
    """

    cost: Cost
    share: float

    def __post_init__(self) -> None:
        if self.cost not in get_args(Cost):
            raise ShrinkError(f"budget: expected one of {', '.join(get_args(Cost))}, got {self.cost!r}")
        if not isinstance(self.share, Real) or not 0 < self.share <= 1:
            raise ShrinkError(f"budget: expected a share of the whole in (0, 1], got {self.share!r}")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``macs=0.5``."""
        cost, _, share = text.partition("=")
        try:
            return cls(cost, float(share))  # type: ignore[arg-type]  # checked above
        except ValueError as error:
            raise ShrinkError(f"budget: expected something like macs=0.5, got {text!r}") from error

    def __str__(self) -> str:
        return f"{self.cost}={self.share:g}"


def check_channels(
    budget: str | Budget, normalise: str, floor: float, round_to: int, ranking: str = "global"
) -> Budget:
    """Check the settings of `choose`; gives the budget.

    Raises:
        ShrinkError: one of them is out of range.
    """
    if normalise not in get_args(Normalise):
        raise ShrinkError(f"normalise: expected one of {', '.join(get_args(Normalise))}, got {normalise!r}")
    if ranking not in get_args(Among):
        raise ShrinkError(f"ranking: expected one of {', '.join(get_args(Among))} for channels, got {ranking!r}")
    if not 0 <= floor <= 1:
        raise ShrinkError(f"floor: expected a share of the units in [0, 1], got {floor!r}")
    if not isinstance(round_to, int) or round_to < 1:
        raise ShrinkError(f"round_to: expected a positive integer, got {round_to!r}")
    return budget if isinstance(budget, Budget) else Budget.parse(str(budget))


def choose(
    coupling: Coupling,
    weights: Weights,
    selected: Weights,
    saliency: Saliency,
    budget: Budget,
    *,
    ranking: Among = "global",
    normalise: Normalise = "cost",
    floor: float = 0.05,
    round_to: int = 1,
) -> list[int]:
    """Cut the units of the lowest saliency, as few as the budget asks for.

    Units of which no selected weight has a part stay, as do those with a part of a weight that is not selected.

    Args:
        coupling: of the model.
        weights: all its prunable weights: what multiply-adds are counted for.
        selected: those that may become smaller.
        saliency: of these.
        budget: what may be left, in multiply-adds or parameters.
        ranking: ``"global"`` compares all units; ``"layer"`` takes the same share of those that are alike,
            whatever the others are worth.
        normalise: divide a unit's saliency by what it costs of the budget (``"cost"``: the least saliency is lost
            for what is saved), by the number of its weights (``"size"``), or by nothing (``"none"``).
        floor: least share of the units along each dimension of a tensor that stays; one in any case.
        round_to: keep a multiple of so many indices of each dimension, where there are as many. Some runtimes are
            faster at multiples of 8.

    Raises:
        ShrinkError: the budget cannot be met; says what can.
    """
    costs = _Costs(coupling, weights)
    worth, size, macs = _sums(coupling, selected, saliency)
    cost = macs if budget.cost == "macs" else size
    divisor = {"cost": cost, "size": size, "none": np.ones_like(size)}[normalise]
    worth = np.divide(worth, divisor, out=np.zeros_like(worth), where=divisor > 0)
    worth = _places(coupling, worth) if ranking == "layer" else worth
    candidates = _candidates(coupling, weights, selected, size)
    stays = _floored(coupling, worth, candidates, floor)
    order = sorted(candidates - stays, key=lambda unit: (worth[unit], unit))
    multiples = _multiples(coupling, order, round_to)

    def first(count: int) -> list[int]:
        gone = set(order[:count])
        return sorted(gone.difference(*(multiple.spared(gone) for multiple in multiples)))

    def left(count: int) -> float:
        return costs.share(budget.cost, first(count))

    if left(len(order)) > budget.share:
        least = math.ceil(1000 * left(len(order))) / 1000
        raise ShrinkError(
            f"budget: expected a share of at least {least:g} of the {budget.cost}, the smallest that can be "
            f"reached, got {budget.share:g}; fxprune groups says what stays and why"
        )
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= budget.share else (middle + 1, high)
    return first(low)


def check_included(coupling: Coupling, weights: Weights, selected: Weights, include: Sequence[str]) -> None:
    """Refuse a glob of weights of which none can lose a channel.

    Raises:
        ShrinkError: says of one such weight why each dimension stays, or what else would get smaller with it.
    """
    chosen = {weight.name for weight in selected}
    others = [weight for weight in weights if weight.name not in chosen]
    held = {weight.name: _units_of(coupling, weight) for weight in others}
    for glob in include:
        matched = [weight for weight in selected if fnmatchcase(weight.name, glob)]
        if any(_units_of(coupling, weight) - set().union(*held.values()) for weight in matched):
            continue
        weight = matched[0]
        why = [
            f"dimension {dim}: {reason}"
            for dim, labels in enumerate(coupling.labels_of(weight))
            if (reason := coupling.atoms.why(labels))
        ]
        also = [name for name, units in held.items() if units & _units_of(coupling, weight)]
        why += [f"not included, and smaller with it: {', '.join(also)}"] if also else []
        raise ShrinkError(
            f"include: expected a weight that can lose channels, got {glob!r}; of {weight.name} none can go "
            f"({'; '.join(why)}); fxprune groups says what is cut together"
        )


def _units_of(coupling: Coupling, weight: PrunableWeight) -> set[int]:
    return _units_in(coupling, coupling.labels_of(weight))


def _units_in(coupling: Coupling, labels: Sequence[NDArray[np.int64]]) -> set[int]:
    return {int(root) for array in labels for root in coupling.atoms.roots(array)} - {FIXED}


def _places(coupling: Coupling, worth: NDArray[np.float64]) -> NDArray[np.float64]:
    """The place of each unit among those that are alike, as a share."""
    places = np.zeros_like(worth)
    for family in coupling.families():
        units = np.array(sorted(family.units, key=lambda unit: (worth[unit], unit)))
        places[units] = (np.arange(len(units)) + 0.5) / len(units)
    return places


def _factors(coupling: Coupling, weight: PrunableWeight) -> Iterator[tuple[Labels, list[NDArray[np.int64]]]]:
    """For each product with a weight: labels of the weight, and of the rows that it is computed for.

    Rows are what else the result has: channels, where a layer mixes the places of each, or heads in the batch.
    """
    own = coupling.labels_of(weight)
    values = {node.name: labels for node, labels in coupling.flows[weight.region, "eval"].values.items()}
    for name in weight.products:
        result = values[name] or ()
        arrays = [array for array in result if not isinstance(array, tuple)]  # a recurrent layer has no such rows
        yield own, [a for a in arrays if not _units_in(coupling, [a]) & _units_in(coupling, own)]


class _Costs:
    """What a model costs without some of its units."""

    def __init__(self, coupling: Coupling, weights: Weights) -> None:
        self._size = len(coupling.atoms)
        self._products = [
            (weight.macs / len(weight.products), [coupling.atoms.roots(array) for array in (*own, *rows)])
            for weight in weights
            for own, rows in _factors(coupling, weight)
        ]
        self._tensors = [
            (math.prod(len(array) for array in labels), [coupling.atoms.roots(array) for array in labels])
            for name, labels in coupling.state.items()
            if name in coupling.parameters
        ]

    def share(self, cost: Cost, cut: Sequence[int]) -> float:
        """Of the whole model's."""
        gone = np.zeros(self._size, bool)
        gone[list(cut)] = True
        terms = self._products if cost == "macs" else self._tensors
        whole = sum(amount for amount, _ in terms)
        left = sum(amount * math.prod(1 - gone[roots].mean() for roots in dims) for amount, dims in terms)
        return float(left / whole)


def _sums(
    coupling: Coupling, selected: Weights, saliency: Saliency
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each unit: saliency, number of weights and multiply-adds of the whole model."""
    worth, size, macs = (np.zeros(len(coupling.atoms)) for _ in range(3))
    for weight in selected:
        values = saliency[weight.name].detach().double().cpu().numpy()
        for dim, labels in enumerate(coupling.labels_of(weight)):
            roots = coupling.atoms.roots(labels)
            others = tuple(place for place in range(values.ndim) if place != dim)
            np.add.at(worth, roots, values.sum(axis=others))
            np.add.at(size, roots, values.size / len(roots))
            np.add.at(macs, roots, weight.macs / len(roots))
        for _, rows in _factors(coupling, weight):
            for roots in map(coupling.atoms.roots, rows):
                np.add.at(macs, roots, weight.macs / len(weight.products) / len(roots))
    return worth, size, macs


def _candidates(coupling: Coupling, weights: Weights, selected: Weights, size: NDArray[np.float64]) -> set[int]:
    chosen = {weight.name for weight in selected}
    left_out = set().union(*(_units_of(coupling, weight) for weight in weights if weight.name not in chosen))
    return {unit for unit in coupling.units() if size[unit] > 0} - left_out


def _floored(coupling: Coupling, worth: NDArray[np.float64], candidates: set[int], floor: float) -> set[int]:
    """The best units of each dimension of each tensor, as many as have to stay."""
    stays: set[int] = set()
    seen: set[bytes] = set()
    for _, _, labels in coupling.lines():
        units = np.unique(coupling.atoms.roots(labels))
        if units.tobytes() in seen or not candidates.issuperset(units.tolist()):
            continue  # something of it stays in any case
        seen.add(units.tobytes())
        least = max(1, math.ceil(floor * len(units)))
        stays.update(sorted(units.tolist(), key=lambda unit: (-worth[unit], unit))[:least])
    return stays


@dataclass(frozen=True)
class _Multiple:
    """Units that are alike, of which a multiple has to stay.

    Attributes:
        step: of what.
        count: how many there are.
        units: those that may go, in the order in which they do.
    """

    step: int
    count: int
    units: tuple[int, ...]

    def spared(self, gone: set[int]) -> tuple[int, ...]:
        """Those that stay after all, the last to go."""
        mine = [unit for unit in self.units if unit in gone]
        odd = (self.count - len(mine)) % self.step
        return tuple(mine[-(self.step - odd) :]) if odd else ()


def _multiples(coupling: Coupling, order: Sequence[int], multiple: int) -> list[_Multiple]:
    """Dimensions of fewer indices than that are left as they come."""
    place = {unit: number for number, unit in enumerate(order)}
    found = []
    for family in coupling.families():
        step = multiple // math.gcd(multiple, max(count for _, _, count in family.dims))
        units = sorted((unit for unit in family.units if unit in place), key=place.__getitem__)
        if len(family.units) >= step > 1:
            found.append(_Multiple(step, len(family.units), tuple(units)))
    return found
