"""`verify_onnx`: hold an ONNX file against the pruned model that it came from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.errors import ExportError, VerificationError
from fxprune.model import PrunedModel
from fxprune.program import Program

BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Check:
    """One thing that was checked: what, whether it holds, and what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """What was checked of a file.

    Attributes:
        checks: all checks, in order.
        bytes: size of the file.
        difference: largest difference of an output, relative to the largest output of its batch.
    """

    checks: tuple[Check, ...]
    bytes: int
    difference: float

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    def require(self) -> None:
        """Raise `VerificationError` naming the checks that do not hold."""
        failed = [f"{check.name}: {check.detail}" for check in self.checks if not check.passed]
        if failed:
            raise VerificationError(
                "the ONNX file does not do what the model does, and is not kept: " + "; ".join(failed)
            )

    def to_json(self) -> dict[str, Any]:
        """As plain dicts and lists."""
        return {**asdict(self), "passed": self.passed}


def verify_onnx(
    path: str | os.PathLike[str],
    pruned: PrunedModel,
    *,
    batches: Sequence[int] = BATCHES,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Verification:
    """Check a file: it is valid ONNX, its weights are the masked ones, and ONNX Runtime computes the same.

    Args:
        path: the file.
        pruned: the model, on the CPU, in any mode; left as it is.
        batches: batch sizes to run; a model whose batch size is fixed runs at that size only.
        tolerance: largest difference of an output relative to the largest output. float32 sums in
            another order differ by 1e-7 to 1e-5 in networks of usual depth.
        seed: for the inputs.

    Raises:
        ExportError: the file cannot be read at all.
    """
    import onnx

    path = Path(path)
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's errors share no class
        raise ExportError(f"{path}: expected an ONNX file, got one that cannot be read ({error})") from error
    program = pruned.captured.regions[""]._fxprune["eval"]
    sizes = sorted(set(batches)) if program.dynamic_batch else [program.batch]
    checks = [_check_format(model), *_check_weights(model, pruned)]
    difference = float("nan")
    if checks[0].passed:
        where = f"at batch sizes {', '.join(map(str, sizes))}"
        try:
            difference = float(np.max(list(_differences(path, pruned, program, sizes, seed))))
        except Exception as error:  # ONNX Runtime's errors share no class
            reason = str(error).strip().partition("\n")[0]
            checks.append(Check("outputs", False, f"ONNX Runtime cannot run the file {where}: {reason}"))
        else:
            detail = f"largest relative difference {difference:.1e} {where}, tolerance {tolerance:.0e}"
            checks.append(Check("outputs", difference <= tolerance, detail))
    return Verification(tuple(checks), path.stat().st_size, difference)


def _check_format(model: Any) -> Check:
    import onnx

    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # checker and shape inference raise errors of several classes
        return Check("format", False, str(error).strip().partition("\n")[0])
    return Check("format", True, f"valid, IR version {model.ir_version}, opset {opsets}")


def _check_weights(model: Any, pruned: PrunedModel) -> Iterator[Check]:
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    filled, altered, missing, nonzero, kept = [], [], [], 0, 0
    masks = pruned.masks
    for weight in pruned.weights:
        if "eval" not in weight.sites:
            continue
        if weight.name not in stored:
            missing.append(weight.name)
            continue
        found = numpy_helper.to_array(stored[weight.name])
        mask = masks[weight.name].numpy()
        wanted = pruned.effective_weight(weight.name).numpy()
        nonzero, kept = nonzero + int(np.count_nonzero(found)), kept + int(mask.sum())
        if found.shape != mask.shape or np.any(found[~mask]):
            filled.append(weight.name)
        elif not np.array_equal(found, wanted):
            altered.append(weight.name)
    yield Check(
        "zero pattern",
        not (filled or missing),
        f"{nonzero:,} non-zero of {kept:,} kept" + _named("filled", filled) + _named("missing", missing),
    )
    yield Check("weights", not altered, "equal, bit for bit" if not altered else _named("differ", altered))


def _named(what: str, names: list[str]) -> str:
    return f"; {what} in {', '.join(names[:4])}" if names else ""


def _differences(
    path: Path, pruned: PrunedModel, program: Program, sizes: Sequence[int], seed: int
) -> Iterator[float]:
    """Relative difference of each tensor output at each batch size."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings about the graph are of no use here
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    host = pruned.captured.regions[""]
    for size in sizes:
        leaves = program.sample_inputs(size, seed)
        with torch.no_grad():
            outputs = program.function(host, *leaves)
        expected = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
        named = {
            leaf.name: v.numpy() for leaf, v in zip(program.inputs, leaves, strict=True) if isinstance(v, Tensor)
        }
        taken = {entry.name for entry in session.get_inputs()}
        found = session.run(None, {name: value for name, value in named.items() if name in taken})
        for want, got in zip(expected, found, strict=True):
            yield _relative(want.numpy(), got)


def _relative(want: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> float:
    if want.shape != got.shape:
        return float("inf")
    if not np.issubdtype(want.dtype, np.floating):
        return 0.0 if np.array_equal(want, got) else float("inf")
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    scale = float(np.abs(want[finite]).max(initial=0.0))
    difference = float(np.abs(want[finite].astype(np.float64) - got[finite]).max(initial=0.0))
    return difference / scale if scale else difference
