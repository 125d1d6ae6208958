"""`within_latency`: how much has to go, for what is left to run within a share of the time in ONNX Runtime.

How time depends on widths is the runtime's own affair, so it is measured: files of several cuts are timed in turn
with that of the whole network, and a bisection over the multiply-adds finds the largest cut that is fast enough.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from fxprune.errors import ShrinkError
from fxprune.model import PrunedModel
from fxprune.progress import working
from fxprune.regions import CapturedModel

logger = logging.getLogger(__name__)

_STEPS = 6  # a share of the multiply-adds to 1 or 2%, about what a time is repeated to


def within_latency(
    captured: CapturedModel,
    choose: Callable[[float], list[int]],
    shrunk: Callable[[list[int]], CapturedModel],
    share: float,
) -> list[int]:
    """The units to cut, as few as measured times allow.

    Args:
        captured: the whole model.
        choose: units to cut for a share of the multiply-adds; raises `ShrinkError` below what can be reached.
        shrunk: the model without these.
        share: of the whole model's time, in (0, 1].

    Raises:
        ShrinkError: no cut that was tried is that fast; says which was the fastest.
        ExportError, VerificationError: no ONNX file can be had of the model.
    """
    from fxprune.onnx.export import export_onnx
    from fxprune.onnx.timing import latency_ratio

    low, high, macs = 0.0, 1.0, share
    best: list[int] | None = None
    fastest = 1.0
    with TemporaryDirectory() as folder:
        whole, file = Path(folder) / "whole.onnx", Path(folder) / "cut.onnx"
        export_onnx(PrunedModel.dense(captured), whole, encoding="dense")
        for _ in range(_STEPS):
            try:
                units = choose(macs)
            except ShrinkError:  # too little is left of the multiply-adds
                low = macs
            else:
                model = PrunedModel.dense(shrunk(units))
                export_onnx(model, file, encoding="dense")
                with working("measuring latency"):
                    found = latency_ratio(file, whole, model)
                logger.info("latency: %.3f of the whole network's at %.3f of the multiply-adds", found, macs)
                fastest = min(fastest, found)
                if found <= share:
                    low, best = macs, units
                else:
                    high = macs
            macs = (low + high) / 2
    if best is None:
        raise ShrinkError(
            f"budget: expected a share of the latency that can be reached, got {share:g}; the fastest cut that "
            f"was tried takes {fastest:.2f} of the whole network's time; fxprune groups says what stays and why"
        )
    return best
