"""What GraSP is for: the pruned network's squared gradient norm, on images that the score did not see.

The whole of it, on the networks and sparsities of the paper, is measured by `benchmarks/gradient_flow.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fxprune import capture, criteria, data, find_weights
from fxprune.batches import score_batches
from fxprune.curvature import gradient_norm
from fxprune.loss import classification
from fxprune.masks import cut
from fxprune.scoring import Scoring, prepare
from fxprune.zoo import ModelSpec, build

RESNET = f"{Path(__file__).parent.parent / 'model_zoo/networks/resnet.py'}:resnet20"
SHAPE = (3, 8, 8)
SEEDS = range(3)
SPARSITY = 0.98


def flow(scoring: Scoring, saliency: Mapping[str, Tensor], fresh: Scoring) -> float:
    """Squared gradient norm of the network that a global ranking leaves."""
    return gradient_norm(replace(fresh, masks=cut(saliency, SPARSITY)))


@functools.cache
def flows() -> dict[str, float]:
    """The mean over seeds for each criterion, on a ResNet-20 at its initialisation."""
    digits = data.load("digits", SHAPE)
    spec = ModelSpec(RESNET, SHAPE, 10, {"width": 8})
    captured = capture(build(spec)[0], (torch.zeros(2, *SHAPE),))
    weights = find_weights(captured)
    found = dict.fromkeys(("grasp", "reversed", "snip"), 0.0)
    for seed in SEEDS:
        torch.manual_seed(seed)
        captured.host.load_state_dict(build(spec)[0].state_dict())
        score_on = score_batches(digits.score, classes=10, per_class=10, seed=seed)
        measure_on = score_batches(digits.test, classes=10, per_class=20, seed=seed)
        scoring = prepare(captured, weights, score_on, classification(), live=False)
        fresh = replace(scoring, batches=measure_on, loss_fn=classification(temperature=1.0))
        grasp, snip = (criteria.get(name).saliency(scoring) for name in ("grasp", "snip"))
        found["grasp"] += flow(scoring, grasp, fresh) / len(SEEDS)
        found["reversed"] += flow(scoring, {n: -values for n, values in grasp.items()}, fresh) / len(SEEDS)
        found["snip"] += flow(scoring, snip, fresh) / len(SEEDS)
    return found


@pytest.mark.parametrize("other", ["reversed", "snip"])
def test_grasp_keeps_more_gradient_flow_than(other: str) -> None:
    # each of six seeds had at least 13 times as much as either
    assert flows()["grasp"] > 2 * flows()[other]
