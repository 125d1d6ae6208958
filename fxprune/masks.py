"""`cut`: saliencies become masks. The only place that ranks weights and decides which go."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from fxprune.errors import MaskError
from fxprune.saliency import Saliency

logger = logging.getLogger(__name__)

Ranking = Literal["global", "layer", "erk"]
Schedule = Literal["exponential", "linear"]


@dataclass(frozen=True)
class Masks(Mapping[str, Tensor]):
    """A bool mask by weight name, True where the weight is kept.

    Raises:
        MaskError: a mask is not of dtype bool.
    """

    by_name: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, mask in self.by_name.items():
            if mask.dtype != torch.bool:
                raise MaskError(f"mask of {name!r}: expected dtype torch.bool, got {mask.dtype}")

    def __getitem__(self, name: str) -> Tensor:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    @property
    def numel(self) -> int:
        """Number of prunable elements."""
        return sum(mask.numel() for mask in self.values())

    @property
    def kept(self) -> int:
        """Number of elements kept."""
        return sum(int(mask.sum()) for mask in self.values())

    @property
    def sparsity(self) -> float:
        """Share of the prunable elements that is removed."""
        return 1 - self.kept / self.numel

    @property
    def empty(self) -> tuple[str, ...]:
        """Names of weights of which nothing is kept."""
        return tuple(name for name, mask in self.items() if not bool(mask.any()))


@dataclass(frozen=True)
class Cut:
    """Masks and how they came about.

    Attributes:
        masks: the masks.
        floor: the floor that was used; above the one asked for where that left an output disconnected.
        floored: weights of which the floor kept more than the ranking alone would have.
    """

    masks: Masks
    floor: float
    floored: tuple[str, ...]


def check_sparsity(sparsity: float) -> None:
    """Raise `MaskError` unless `sparsity` lies in [0, 1)."""
    if not isinstance(sparsity, Real) or not 0 <= sparsity < 1:  # also catches NaN
        raise MaskError(
            f"sparsity: expected the share of weights to remove, at least 0 and below 1, got {sparsity!r}; "
            "write 0.9 for 90%"
        )


def check_cut(sparsity: float, ranking: str, floor: float) -> None:
    """Raise `MaskError` unless the arguments of `cut` are in range."""
    check_sparsity(sparsity)
    if not isinstance(floor, Real) or not 0 <= floor <= 1:
        raise MaskError(f"floor: expected a share of the overall density in [0, 1], got {floor!r}")
    if ranking not in get_args(Ranking):
        raise MaskError(f"ranking: expected one of {', '.join(get_args(Ranking))}, got {ranking!r}")


def kept_count(numel: int, sparsity: float) -> int:
    """How many of `numel` weights are kept: ``numel - floor(sparsity * numel)``."""
    # exact in the decimal that a person wrote: 0.29 of 100 is 29, though 0.29 * 100 < 29 in binary
    return numel - math.floor(Fraction(str(float(sparsity))) * numel)


def schedule(sparsity: float, rounds: int, kind: Schedule = "exponential") -> list[float]:
    """The sparsities of successive rounds, the last being `sparsity`.

    ``"exponential"`` multiplies the density by the same factor each round (SynFlow's schedule),
    ``"linear"`` removes the same share each round.

    Raises:
        MaskError: an argument is out of range.
    """
    check_sparsity(sparsity)
    if not isinstance(rounds, int) or rounds < 1:
        raise MaskError(f"rounds: expected an integer of at least 1, got {rounds!r}")
    if kind not in get_args(Schedule):
        raise MaskError(f"schedule: expected one of {', '.join(get_args(Schedule))}, got {kind!r}")
    steps = [i / rounds for i in range(1, rounds)]
    if kind == "linear":
        return [sparsity * step for step in steps] + [sparsity]
    return [1 - (1 - sparsity) ** step for step in steps] + [sparsity]


def cut(
    saliency: Saliency,
    sparsity: float,
    *,
    ranking: Ranking = "global",
    floor: float = 0.0,
    within: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Keep the weights of highest saliency.

    The number kept over all weights is exact (`kept_count`), whatever the ranking. Of equal saliencies
    the first is kept, in the order of the weights and then of their elements.

    Args:
        saliency: saliency of each weight.
        sparsity: share of the elements to remove, in [0, 1).
        ranking: ``"global"`` compares all elements. ``"layer"`` gives each weight the same density, to
            the nearest element; ``"erk"`` a density in proportion to (sum of its sizes / product of its
            sizes), the Erdős-Rényi kernel of Evci et al. (RigL, ICML 2020).
        floor: least density of each weight as a share of the overall density, in [0, 1]; 0 allows empty
            weights, anything above keeps at least one element of each.
        within: masks of an earlier round: what they removed stays removed.

    Raises:
        MaskError: an argument is out of range, or the floor asks for more than the sparsity leaves.
    """
    check_cut(sparsity, ranking, floor)
    gone = {name: ~within[name].flatten() for name in saliency} if within is not None else {}
    free = {name: v.numel() - (int(gone[name].sum()) if gone else 0) for name, v in saliency.items()}
    total = kept_count(sum(values.numel() for values in saliency.values()), sparsity)
    if total > sum(free.values()):
        raise MaskError(f"sparsity {sparsity} keeps {total} weights, but earlier rounds left {sum(free.values())}")
    least = _least(saliency, sparsity, floor, total)
    counts = {name: min(least[name], free[name]) for name in saliency}
    if ranking != "global":
        shapes = {name: tuple(values.shape) for name, values in saliency.items()}
        counts = apportion(_shares(shapes, ranking), free, counts, total)
    reserved = {name: _top({name: v}, counts[name], gone)[name] for name, v in saliency.items()}
    taken = {name: mask.flatten() | gone[name] if gone else mask.flatten() for name, mask in reserved.items()}
    rest = _top(saliency, total - sum(counts.values()), taken)
    return Masks({name: reserved[name] | rest[name] for name in saliency})


def _least(saliency: Saliency, sparsity: float, floor: float, total: int) -> dict[str, int]:
    """How many elements of each weight the floor keeps."""
    if not floor:
        return dict.fromkeys(saliency, 0)
    exact = {name: floor * (1 - sparsity) * values.numel() for name, values in saliency.items()}
    least = {name: math.ceil(share) for name, share in exact.items()}
    if sum(least.values()) > total:
        # rounding up costs up to one element a weight: give those back before giving up
        least = {name: max(1, math.floor(share)) for name, share in exact.items()}
    if sum(least.values()) > total:
        raise MaskError(
            f"floor {floor} keeps at least {sum(least.values())} weights, but sparsity {sparsity} leaves {total}; "
            "lower one of them, or use floor=0"
        )
    return least


def _shares(shapes: Mapping[str, tuple[int, ...]], ranking: Ranking) -> dict[str, float]:
    """What the number of elements that each weight keeps is proportional to."""
    if ranking == "layer":
        return {name: float(math.prod(shape)) for name, shape in shapes.items()}
    return {name: float(sum(shape)) for name, shape in shapes.items()}  # density times size


def apportion(
    shares: Mapping[str, float], most: Mapping[str, int], least: Mapping[str, int], total: int
) -> dict[str, int]:
    """Whole numbers in proportion to `shares`, within `least` and `most`, that add up to `total`."""

    def bounded(factor: float) -> dict[str, float]:
        return {name: min(max(share * factor, least[name]), most[name]) for name, share in shares.items()}

    low, high = 0.0, max(most[name] / share for name, share in shares.items())
    for _ in range(100):  # more halvings than a float has bits
        middle = (low + high) / 2
        low, high = (middle, high) if sum(bounded(middle).values()) <= total else (low, middle)
    exact = bounded(low)
    counts = {name: math.floor(value) for name, value in exact.items()}
    room = [name for name in exact if counts[name] < most[name]]
    room.sort(key=lambda name: counts[name] - exact[name])  # largest remainder first, ties in order
    for name in room[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def cut_alive(
    saliency: Saliency,
    sparsity: float,
    alive: Callable[[Masks], bool],
    *,
    ranking: Ranking = "global",
    floor: float = 0.0,
    within: Mapping[str, Tensor] | None = None,
) -> Cut:
    """`cut`, with the floor raised step by step to 1 until `alive` accepts the masks.

    A floor of 0 asks for the criterion to the letter: it is kept, and masks that are not alive are
    returned as they are, with a warning.
    """
    plain = cut(saliency, sparsity, ranking=ranking, within=within)
    used = floor
    masks = cut(saliency, sparsity, ranking=ranking, floor=used, within=within) if used else plain
    while not (fine := alive(masks)) and 0 < used < 1:
        higher = min(1.0, 2 * used)
        try:
            masks, used = cut(saliency, sparsity, ranking=ranking, floor=higher, within=within), higher
        except MaskError:  # rounding up in every layer would keep more than the sparsity leaves
            break
    if used != floor:
        logger.warning("floor raised from %g to %g: below, an output did not depend on the input", floor, used)
    if not fine:
        logger.warning("an output of the pruned model does not depend on its input (sparsity %g)", sparsity)
    if masks.empty:
        logger.warning("nothing is left of %d weights: %s", len(masks.empty), ", ".join(masks.empty[:8]))
    floored = tuple(name for name in masks if int(masks[name].sum()) > int(plain[name].sum()))
    return Cut(masks, used, floored)


def largest(values: Tensor, count: int, among: Tensor) -> Tensor:
    """Mask of the `count` largest elements of `values`; ties go as in `cut`.

    Args:
        values: any shape.
        count: how many, at most as many as there are.
        among: bool mask, of the shape of `values`, of the elements that are in the running.
    """
    return _top({"": values}, count, {"": ~among.flatten()})[""]


def _top(saliency: Mapping[str, Tensor], count: int, exclude: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of the `count` highest elements over all tensors.

    `exclude` marks, flat and by name, elements that are out of the running.

    The threshold is found digit by digit, as in a radix sort, so that nothing larger than one tensor of
    keys is held in memory and the count is exact.
    """

    def keys(name: str) -> Tensor:
        found = _sortable(saliency[name])
        return found[~exclude[name]] if name in exclude else found

    prefix, shift, wanted = 0, 64, count
    while shift and wanted:
        shift -= 16
        histogram = torch.zeros(1 << 16, dtype=torch.int64)
        for name in saliency:
            key = keys(name)
            if shift < 48:
                key = key[(key >> (shift + 16)) == prefix]
            digit = (key >> shift) & 0xFFFF
            histogram += torch.bincount(digit, minlength=1 << 16).cpu()
        if shift == 48:  # the top digit carries the sign
            histogram = histogram.roll(1 << 15)
        above = histogram.flip(0).cumsum(0).flip(0)  # elements with this digit or a higher one
        digit_found = int((above >= wanted).nonzero()[-1])
        wanted -= int(above[digit_found] - histogram[digit_found])
        signed = digit_found - (1 << 15) if shift == 48 else digit_found
        prefix = (prefix << 16) + signed
    return _at_least(saliency, prefix if count else None, wanted, exclude)


def _at_least(
    saliency: Mapping[str, Tensor], threshold: int | None, ties: int, exclude: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Masks of keys above the threshold, and of the first `ties` equal to it."""
    masks: dict[str, Tensor] = {}
    for name, values in saliency.items():
        mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
        if threshold is not None:
            key = _sortable(values)
            free = ~exclude[name] if name in exclude else torch.ones_like(mask)
            mask = (key > threshold) & free
            equal = ((key == threshold) & free).nonzero()[:ties, 0]
            mask[equal] = True
            ties -= len(equal)
        masks[name] = mask.view(values.shape)
    return masks


def _sortable(values: Tensor) -> Tensor:
    """Flat int64 keys in the order of the floating-point values; both zeros have one key."""
    bits = (values.detach().flatten().double() + 0.0).view(torch.int64)
    return bits ^ ((bits >> 63) & 0x7FFF_FFFF_FFFF_FFFF)
