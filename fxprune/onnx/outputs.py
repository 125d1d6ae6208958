"""Checks of what a file computes, in ONNX Runtime and beside the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.errors import ExportError
from fxprune.model import PrunedModel
from fxprune.onnx.checks import Check
from fxprune.onnx.parts import eager, tensors
from fxprune.onnx.read import open_session
from fxprune.program import Program
from fxprune.rewrite import fold

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Leaves = Sequence[object]  # flat inputs of a program
Arrays = list[NDArray[Any]]  # flat tensor outputs
Reference = Callable[[Leaves], Arrays]

_ROUNDED = 1e-2  # largest relative difference that values in float16 may make
_CHUNK = 50  # images at a time


class Difference(NamedTuple):
    """The largest difference of outputs: relative to the largest output of a batch, and as it is."""

    relative: float
    absolute: float


_UNSEEN = Difference(np.nan, np.nan)
_NONE = Difference(0.0, 0.0)
_INFINITE = Difference(np.inf, np.inf)


@dataclass(frozen=True)
class Figures:
    """What was seen; NaN where it could not be.

    Attributes:
        default: file against model, with ONNX Runtime's optimisations.
        unoptimised: the same without them.
        rounding: model with values in float16 against model.
        agreement: share of inputs with the same best class.
    """

    default: Difference = _UNSEEN
    unoptimised: Difference = _UNSEEN
    rounding: Difference = _NONE
    agreement: float = np.nan


def check_outputs(
    path: Path,
    pruned: PrunedModel,
    *,
    rounded: Mapping[str, NDArray[Any]] | None,
    batches: Sequence[int],
    tolerance: float,
    images: Tensor | None,
    seed: int,
) -> tuple[list[Check], Figures]:
    """Compare outputs; the arguments are those of `verify_onnx`.

    Args:
        path: the file.
        pruned: the model, on the CPU.
        rounded: weights to put into the model before it is compared; None for its own.
        batches: batch sizes.
        tolerance: largest relative difference.
        images: inputs to compare the best class on.
        seed: of random inputs.
    """
    program = pruned.captured.regions[""]._fxprune["eval"]
    sizes = sorted(set(batches)) if program.dynamic_batch else [program.batch]
    where = f"at batch sizes {', '.join(map(str, sizes))}"
    inputs: list[Leaves] = [program.sample_inputs(size, seed) for size in sizes]
    model = _of_model(pruned, program)
    exact = [model(leaves) for leaves in inputs]
    expected = exact if rounded is None else [*map(_of_rounded(pruned, rounded), inputs)]
    checks, figures = [], Figures()
    for optimised in (True, False):
        name = "outputs" if optimised else "outputs unoptimised"
        try:
            file = _of_file(open_session(path, optimised=optimised), program)
            seen = _largest(expected, [file(leaves) for leaves in inputs])
        except Exception as error:  # ONNX Runtime's errors share no class
            reason = str(error).strip().partition("\n")[0]
            checks.append(Check(name, False, f"ONNX Runtime cannot run the file {where}: {reason}"))
            continue
        figures = replace(figures, default=seen) if optimised else replace(figures, unoptimised=seen)
        checks.append(_within(name, seen, tolerance, where))
    bound = tolerance
    if rounded is not None:
        bound = max(tolerance, _ROUNDED)
        figures = replace(figures, rounding=_largest(exact, expected))
        checks.append(_within("values in float16", figures.rounding, bound, where))
    if all(check.passed for check in checks):
        file = _of_file(open_session(path), program)
        tried = _of_images(images, program) if images is not None else zip(inputs, exact, strict=True)
        found = [(want or model(leaves), file(leaves)) for leaves, want in tried]
        share, check = _agreement(found, bound, "random inputs" if images is None else "images")
        figures = replace(figures, agreement=share)
        checks += [check] if check else []
    return checks, figures


def named_inputs(pruned: PrunedModel) -> dict[str, NDArray[Any]]:
    """Inputs of the model's file, by name: one random sample, or the example of a model captured in parts."""
    if not pruned.captured.is_whole:
        source = eager(pruned)
        return dict(zip(source.names, (tensor.numpy() for tensor in tensors(source.args)), strict=True))
    program = pruned.captured.regions[""]._fxprune["eval"]
    named = zip(program.inputs, program.sample_inputs(1), strict=True)
    return {leaf.name: value.numpy() for leaf, value in named if isinstance(value, Tensor)}


def _of_model(pruned: PrunedModel, program: Program) -> Reference:
    host = pruned.captured.regions[""]

    def run(leaves: Leaves) -> Arrays:
        with torch.no_grad():
            return _arrays(program.function(host, *leaves))

    return run


def _of_rounded(pruned: PrunedModel, weights: Mapping[str, NDArray[Any]]) -> Reference:
    """The model with other values in its weights."""
    folded = fold(pruned.captured, pruned.weights)
    for name, value in weights.items():
        prefix, _, leaf = name.rpartition(".")
        setattr(folded.get_submodule(prefix), leaf, torch.from_numpy(value))

    def run(leaves: Leaves) -> Arrays:
        with torch.no_grad():
            return _arrays(folded(*leaves))

    return run


def _arrays(outputs: Any) -> Arrays:
    return [leaf.detach().numpy() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _of_file(session: InferenceSession, program: Program) -> Reference:
    taken = {entry.name for entry in session.get_inputs()}

    def run(leaves: Leaves) -> Arrays:
        named = zip(program.inputs, leaves, strict=True)
        given = {leaf.name: value.numpy() for leaf, value in named if isinstance(value, Tensor)}
        return session.run(None, {name: value for name, value in given.items() if name in taken})

    return run


def _of_images(images: Tensor, program: Program) -> Iterator[tuple[Leaves, None]]:
    """Images as flat inputs, a chunk at a time."""
    places = [i for i, leaf in enumerate(program.inputs) if leaf.shape is not None]
    if len(places) != 1:
        raise ExportError(f"images: expected a model of one input, got one of {len(places)}; leave images out")
    size = _CHUNK if program.dynamic_batch else program.batch
    for chunk in images.split(size):
        if program.dynamic_batch or len(chunk) == size:
            leaves = program.sample_inputs(len(chunk))
            leaves[places[0]] = chunk
            program.inputs[places[0]].check(chunk)
            yield leaves, None


def _largest(want: Sequence[Arrays], got: Sequence[Arrays]) -> Difference:
    pairs = [(w, g) for ws, gs in zip(want, got, strict=True) for w, g in zip(ws, gs, strict=True)]
    found = [difference(w, g) for w, g in pairs]
    return Difference(max(each.relative for each in found), max(each.absolute for each in found))


def difference(want: NDArray[Any], got: NDArray[Any]) -> Difference:
    """The largest difference of two arrays; infinite for other shapes, integers or infinities."""
    if want.shape != got.shape:
        return _INFINITE
    if not np.issubdtype(want.dtype, np.floating):
        return _NONE if np.array_equal(want, got) else _INFINITE
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return _INFINITE
    scale = float(np.abs(want[finite]).max(initial=0.0))
    absolute = float(np.abs(want[finite].astype(np.float64) - got[finite]).max(initial=0.0))
    return Difference(absolute / scale if scale else absolute, absolute)


def _within(name: str, seen: Difference, tolerance: float, where: str) -> Check:
    detail = (
        f"largest relative difference {seen.relative:.1e}, absolute {seen.absolute:.1e} {where}, "
        f"tolerance {tolerance:.0e}"
    )
    return Check(name, seen.relative <= tolerance, detail)


def _agreement(found: Sequence[tuple[Arrays, Arrays]], tolerance: float, what: str) -> tuple[float, Check | None]:
    """Share of samples with the same best class; other classes pass if the model has them as good as equal."""
    count, same, apart = 0, 0, 0
    for want, got in found:
        scores = [
            (w, g)
            for w, g in zip(want, got, strict=True)
            if w.ndim == 2 and w.shape[1] > 1 and w.dtype.kind == "f"
        ]
        if not scores:
            return float("nan"), None
        w, g = scores[0]
        rows, own, others = np.arange(len(w)), w.argmax(1), g.argmax(1)
        margin = 2 * tolerance * np.abs(w[np.isfinite(w)]).max(initial=0.0)
        count, same = count + len(w), same + int((own == others).sum())
        apart += int(((own != others) & ~(w[rows, others] >= w[rows, own] - margin)).sum())
    detail = f"the same class for {same} of {count} {what}"
    detail += f", {count - same - apart} by a hair" if count - same - apart else ""
    return same / count, Check("top-1", not apart, detail)
