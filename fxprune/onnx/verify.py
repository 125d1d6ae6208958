"""`verify_onnx`: hold an ONNX file against the pruned model that it came from."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import ExportError, VerificationError
from fxprune.memory import capped
from fxprune.model import PrunedModel, require_pruned
from fxprune.onnx.checks import Check, check_format, check_source, check_weights, facts_of, weights_as_stored
from fxprune.onnx.choices import check_choices
from fxprune.onnx.encode import Values
from fxprune.onnx.outputs import Figures, check_outputs
from fxprune.onnx.read import Constants, read_model
from fxprune.onnx.sizes import file_bytes

BATCHES = (1, 2, 5)
VERIFICATION = "fxprune_verification"  # the key of the summary in a file's metadata


@dataclass(frozen=True)
class Verification:
    """What was checked of a file.

    Attributes:
        checks: all checks, in order.
        bytes: size of the file, and of its tensors where they are in a file of their own.
        difference: largest difference of an output, relative to the largest output of its batch, of
            ONNX Runtime as it runs the file by default.
        absolute: the largest difference itself.
        unoptimised: `difference` with ONNX Runtime's graph optimisations off, where decoders run as nodes.
        rounding: relative difference that storing values in float16 makes; 0 for values as they are.
        agreement: share of inputs with the same best class; NaN where no output is of shape (batch, classes).
        nonzero: non-zeros of all decoded weights.
    """

    checks: tuple[Check, ...]
    bytes: int
    difference: float
    absolute: float = float("nan")
    unoptimised: float = float("nan")
    rounding: float = 0.0
    agreement: float = float("nan")
    nonzero: int = 0

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

    def summary(self) -> dict[str, Any]:
        """The figures without the checks' details, for the file's metadata; None where there is none."""
        figures = {k: v for k, v in asdict(self).items() if k not in ("checks", "bytes")}
        return {"passed": self.passed, **{k: None if v != v else v for k, v in figures.items()}}

    def to_json(self) -> dict[str, Any]:
        """As plain dicts and lists."""
        return {"checks": [asdict(check) for check in self.checks], "bytes": self.bytes, **self.summary()}


@capped()
def verify_onnx(
    path: str | os.PathLike[str],
    pruned: PrunedModel,
    *,
    batches: Sequence[int] = BATCHES,
    tolerance: float | None = None,
    images: Tensor | None = None,
    seed: int = 0,
) -> Verification:
    """Check a file: it is valid ONNX, its weights are the masked ones, and ONNX Runtime computes the same.

    Weights are decoded by ONNX Runtime, each by itself and without optimisations, and held against the
    model's bit by bit. Outputs are compared with optimisations and without. What a file asks for beyond the free
    memory is not granted: a forged size fails a check.

    Args:
        path: the file.
        pruned: the model, in any mode; left as it is.
        batches: batch sizes to run; a model whose batch size is fixed runs at that size only.
        tolerance: largest difference of an output relative to the largest output; by default 1e-4, and 1e-2
            for a model in half precision. float32 sums in another order differ by 1e-7 to 1e-5 in networks of
            usual depth. Values in float16 are rounded in the model as well before it is compared; what
            rounding alone changes is bounded by 1e-2 or the tolerance, whichever is larger.
        images: inputs of the model's only input, batch first, to compare the best class on; by default
            the random inputs of all batches.
        seed: for random inputs.

    Raises:
        ExportError: the file cannot be read at all, or there is nothing to hold it against.
    """
    require_pruned(pruned, ExportError)
    check_tolerance(tolerance)
    path = Path(path)
    model = read_model(path)
    facts = facts_of(model)
    source = check_source(facts, pruned)
    if any(tensor.device.type != "cpu" for tensor in pruned.state_dict().values()):
        pruned = copy.deepcopy(pruned).cpu()
    values: Values = "fp16" if facts.get("values") == "fp16" else "fp32"
    wanted = weights_as_stored(pruned, values)
    held, nonzero = check_weights(Constants(model), wanted, pruned)
    checks = [check_format(path, model), source, *held]
    del model
    figures = Figures()
    if checks[0].passed:
        rounded = wanted if values == "fp16" else None
        bound = _tolerance(pruned) if tolerance is None else tolerance
        if pruned.captured.is_whole:
            compared, figures = check_outputs(
                path, pruned, rounded=rounded, batches=batches, tolerance=bound, images=images, seed=seed
            )
        else:
            compared, figures = check_choices(path, pruned, rounded=rounded, tolerance=bound, seed=seed)
        checks += compared
    return Verification(
        tuple(checks),
        file_bytes(path),
        *figures.default,
        unoptimised=figures.unoptimised.relative,
        rounding=figures.rounding.relative,
        agreement=figures.agreement,
        nonzero=nonzero,
    )


def check_tolerance(tolerance: object) -> None:
    """Refuse what no difference can be within.

    Raises:
        ExportError: it is neither None nor a positive number.
    """
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and 0 < tolerance < math.inf):
        raise ExportError(f"tolerance: expected a positive number, such as 1e-4, got {tolerance!r}")


def _tolerance(pruned: PrunedModel) -> float:
    half = any(tensor.dtype is torch.float16 for tensor in pruned.state_dict().values())
    return 1e-2 if half else 1e-4
