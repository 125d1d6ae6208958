"""Encodings of sparse weights: an encoding a file, and this list of them."""

from __future__ import annotations

import numpy as np

from fxprune.onnx.encodings.bitmask import Bitmask
from fxprune.onnx.encodings.coo import Coo
from fxprune.onnx.encodings.dense import Dense
from fxprune.onnx.encodings.gaps import Gaps, PackedGaps
from fxprune.onnx.encodings.weight import DOMAIN, Encoded, Encoding, SparseWeight

# What each name offers, of which the smallest is taken for each weight.
ENCODINGS: dict[str, tuple[Encoding, ...]] = {
    "dense": (Dense(),),
    "coo": (Coo(),),
    "bitmask": (Bitmask(),),
    "gaps": (PackedGaps(), Gaps(np.uint8), Gaps(np.uint16)),
}
ENCODINGS["auto"] = (*ENCODINGS["dense"], *ENCODINGS["bitmask"], *ENCODINGS["gaps"])

__all__ = ["DOMAIN", "ENCODINGS", "Encoded", "Encoding", "SparseWeight"]
