"""fxprune: prune any `torch.nn.Module` at initialisation, train it, export a verified sparse ONNX file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fxprune import criteria, errors
from fxprune.batches import score_batches
from fxprune.capture import capture
from fxprune.checkpoint import load, save
from fxprune.dead import cut_dead
from fxprune.errors import FxpruneError
from fxprune.masks import Masks, cut
from fxprune.model import PrunedModel
from fxprune.pipeline import prune, prune_channels
from fxprune.regions import CapturedModel
from fxprune.report import CompressionReport, report
from fxprune.saliency import Saliency
from fxprune.weights import PrunableWeight, Weights, find_weights
from fxprune.zoo import ModelSpec

if TYPE_CHECKING:
    from fxprune.onnx.verify import Verification

__version__ = "0.1.0"

__all__ = [
    "CapturedModel",
    "CompressionReport",
    "FxpruneError",
    "Masks",
    "ModelSpec",
    "PrunableWeight",
    "PrunedModel",
    "Saliency",
    "Weights",
    "capture",
    "criteria",
    "cut",
    "cut_dead",
    "errors",
    "export_onnx",
    "find_weights",
    "load",
    "prune",
    "prune_channels",
    "report",
    "save",
    "score_batches",
]


def export_onnx(pruned: PrunedModel, path: str | os.PathLike[str], **options: Any) -> Verification:
    """Write and verify an ONNX file; see `fxprune.onnx.export.export_onnx`."""
    from fxprune.onnx.export import export_onnx as export  # onnx takes a second to import

    return export(pruned, path, **options)
