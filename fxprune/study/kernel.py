"""The tangent kernel of a pruned network before training, and how well it foretells the first steps."""

from __future__ import annotations

from typing import Any

from fxprune.analysis.ntk import real_losses, tangent_kernel
from fxprune.batches import score_batches
from fxprune.seeds import derived
from fxprune.study.lab import Lab

_LEADING = 10  # eigenvectors whose alignment is told: as many as the smallest data sets have classes


def kernel(lab: Lab, method: str, sparsity: float, seed: int) -> dict[str, Any]:
    """Eigenvalues, alignment of the labels, and losses predicted and real, on a few training images."""
    wanted, classes = lab.setting.kernel, lab.images.num_classes
    lab.start(seed)
    model = lab.dense() if method == "dense" else lab.prune(method, sparsity, seed)
    ((images, labels),) = score_batches(
        lab.images.score, classes=classes, per_class=wanted["per_class"], seed=derived(seed, "kernel")
    )
    images, labels = images.to(lab.device), labels.to(lab.device)
    model.train()
    found = tangent_kernel(model, images)
    values, _ = found.eigen()
    alignment = found.alignment(labels)
    steps, lr = int(wanted["steps"]), float(wanted["lr"])
    predicted = found.losses(labels, lr, steps)
    real = real_losses(model, images, labels, lr, steps)
    return {
        "kept": model.masks.kept,
        "prunable": model.masks.numel,
        "eigenvalues": _short(values.clamp_min(0).tolist()),
        "trace": float(f"{float(values.sum()):.5g}"),
        "alignment": float(f"{float(alignment[:_LEADING].sum()):.5g}"),
        "predicted": _short(predicted),
        "real": _short(real),
    }


def _short(numbers: list[float]) -> list[float]:
    return [float(f"{number:.4g}") for number in numbers]
