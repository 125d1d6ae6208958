"""`cut`: saliencies become masks. The only place that ranks weights and decides which go."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from fxprune.errors import MaskError
from fxprune.saliency import Saliency

logger = logging.getLogger(__name__)

Ranking = Literal["global", "layer"]


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
    if not 0 <= sparsity < 1:  # also catches NaN
        raise MaskError(
            f"sparsity: expected the share of weights to remove, at least 0 and below 1, got {sparsity}; "
            "write 0.9 for 90%"
        )


def kept_count(numel: int, sparsity: float) -> int:
    """How many of `numel` weights are kept: ``numel - floor(sparsity * numel)``."""
    # exact in the decimal that a person wrote: 0.29 of 100 is 29, though 0.29 * 100 < 29 in binary
    return numel - math.floor(Fraction(str(float(sparsity))) * numel)


def cut(saliency: Saliency, sparsity: float, *, ranking: Ranking = "global", floor: float = 0.0) -> Masks:
    """Keep the weights of highest saliency.

    The number kept is exact (`kept_count`). Of equal saliencies the first is kept, in the order of the
    weights and then of their elements.

    Args:
        saliency: saliency of each weight.
        sparsity: share of the elements to remove, in [0, 1).
        ranking: ``"global"`` compares all elements; ``"layer"`` cuts each weight to the same sparsity.
        floor: least density of each weight as a share of the overall density, in [0, 1]; 0 allows empty
            weights, anything above keeps at least one element of each.

    Raises:
        MaskError: an argument is out of range, or the floor asks for more than the sparsity leaves.
    """
    check_sparsity(sparsity)
    if not 0 <= floor <= 1:
        raise MaskError(f"floor: expected a share of the overall density in [0, 1], got {floor}")
    if ranking not in ("global", "layer"):
        raise MaskError(f"ranking: expected 'global' or 'layer', got {ranking!r}")
    if ranking == "layer":
        kept = {name: kept_count(values.numel(), sparsity) for name, values in saliency.items()}
        if floor:
            kept = {name: max(count, 1) for name, count in kept.items()}
        return Masks({name: _top({name: values}, kept[name])[name] for name, values in saliency.items()})
    return _cut_globally(saliency, sparsity, floor)


def _cut_globally(saliency: Saliency, sparsity: float, floor: float) -> Masks:
    total = kept_count(sum(values.numel() for values in saliency.values()), sparsity)
    least = {name: math.ceil(floor * (1 - sparsity) * v.numel()) for name, v in saliency.items()}
    reserved = sum(least.values())
    if reserved > total:
        # rounding up costs at most one element a weight: give those back before giving up
        least = {name: max(1, math.floor(floor * (1 - sparsity) * v.numel())) for name, v in saliency.items()}
        reserved = sum(least.values())
    if reserved > total:
        raise MaskError(
            f"floor {floor} keeps at least {reserved} of {sum(v.numel() for v in saliency.values())} weights, "
            f"but sparsity {sparsity} leaves {total}; lower one of them, or use floor=0"
        )
    floored = {name: _top({name: values}, least[name])[name] for name, values in saliency.items()}
    rest = _top(saliency, total - reserved, exclude=floored)
    return Masks({name: floored[name] | rest[name] for name in saliency})


def cut_alive(
    saliency: Saliency,
    sparsity: float,
    alive: Callable[[Masks], bool],
    *,
    ranking: Ranking = "global",
    floor: float = 0.0,
) -> Cut:
    """`cut`, with the floor raised step by step to 1 until `alive` accepts the masks.

    A floor of 0 asks for the criterion to the letter: it is kept, and masks that are not alive are
    returned as they are, with a warning.
    """
    plain = cut(saliency, sparsity, ranking=ranking)
    used = floor
    masks = cut(saliency, sparsity, ranking=ranking, floor=used) if used else plain
    while not (fine := alive(masks)) and 0 < used < 1:
        used = min(1.0, 2 * used)
        masks = cut(saliency, sparsity, ranking=ranking, floor=used)
    if used != floor:
        logger.warning("floor raised from %g to %g: below, an output did not depend on the input", floor, used)
    if not fine:
        logger.warning("an output of the pruned model does not depend on its input (sparsity %g)", sparsity)
    if masks.empty:
        logger.warning("nothing is left of %d weights: %s", len(masks.empty), ", ".join(masks.empty[:8]))
    floored = tuple(name for name in masks if int(masks[name].sum()) > int(plain[name].sum()))
    return Cut(masks, used, floored)


def _top(
    saliency: Mapping[str, Tensor], count: int, exclude: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Masks of the `count` highest elements over all tensors, without those that `exclude` marks.

    The threshold is found digit by digit, as in a radix sort, so that nothing larger than one tensor of
    keys is held in memory and the count is exact.
    """

    def keys(name: str) -> Tensor:
        found = _sortable(saliency[name])
        return found if exclude is None else found[~exclude[name].flatten()]

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
    saliency: Mapping[str, Tensor], threshold: int | None, ties: int, exclude: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Masks of keys above the threshold, and of the first `ties` equal to it."""
    masks: dict[str, Tensor] = {}
    for name, values in saliency.items():
        mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
        if threshold is not None:
            key = _sortable(values)
            free = torch.ones_like(mask) if exclude is None else ~exclude[name].flatten()
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
