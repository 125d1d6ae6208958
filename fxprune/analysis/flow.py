"""The gradient flow: how much gradient the weights get, before and after pruning (Wang et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fxprune.batches import replayable
from fxprune.curvature import gradient_norm
from fxprune.loss import Loss, classification
from fxprune.model import PrunedModel
from fxprune.rewrite import mask_name
from fxprune.scoring import Batch, prepare


@dataclass(frozen=True)
class GradientNorms:
    """Squared gradient norms, to first order how fast a step of gradient descent lowers the loss.

    Attributes:
        before: of the dense network, over all prunable weights.
        after: of the pruned one, over the weights kept.
    """

    before: float
    after: float


def gradient_norms(pruned: PrunedModel, data: Iterable[Batch], loss_fn: Loss | None = None) -> GradientNorms:
    """Squared norms of the mean loss's gradient with respect to the prunable weights.

    Both are of the weights as they are in `pruned`, branches closed by their initialisation included, with
    batch normalisation in training mode: where training would start from.

    Args:
        pruned: the model, not yet trained; left as it is.
        data: batches to take the gradient on.
        loss_fn: a mean over the samples; cross-entropy, at temperature 1, by default.

    Raises:
        DataError: the data does not fit the model.
        ScoreError: a gradient is not finite.
    """
    loss_fn = loss_fn or classification(1.0)
    scoring = prepare(pruned.captured, pruned.weights, replayable(data), loss_fn, live=False, mode="train")
    buffers = dict(scoring.model.named_buffers())  # the scoring copy's own
    for weight in pruned.weights:
        buffers[mask_name(weight)].fill_(True)
    return GradientNorms(gradient_norm(scoring), gradient_norm(replace(scoring, masks=pruned.masks)))
