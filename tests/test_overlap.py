"""Float32 scores keep what float64 scores keep, as far as a plain double backward in float32 does.

On few and small images: with a hundred at 32 x 32 some ReLU sees a number so near zero that float32 and float64
differ about its sign, a kink in the loss that moves all scores by a little, for whoever computes them.
`benchmarks/overlap.py` measures networks of full size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import overlap
import pytest
import torch

from fxprune import data
from fxprune.batches import score_batches
from fxprune.zoo import ModelSpec, build

ROOT = Path(__file__).parent.parent
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "resnet20": (f"{ROOT / 'model_zoo/networks/resnet.py'}:resnet20", 8, {"width": 8}),
    "vit": ("timm:vit_tiny_patch16_224", 32, {"depth": 2, "embed_dim": 96, "num_heads": 3}),
}
IMAGES_A_CLASS = 2
TOLERANCE = 0.0005


@pytest.mark.parametrize("name", CASES)
def test_float32_scores_keep_what_float64_scores_keep(name: str) -> None:
    model, side, kwargs = CASES[name]
    shape = (3, side, side)
    module, _ = build(ModelSpec(model, shape, 10, kwargs))
    digits = data.load("digits", shape)
    batches = score_batches(digits.score, classes=10, per_class=IMAGES_A_CLASS)
    rows = overlap.compare(module, batches)
    assert [row["sparsity"] for row in rows] == [0.8, 0.9, 0.98]
    for row in rows:
        assert row["plain"] > 0.99
        assert row["fxprune"] >= row["plain"] - TOLERANCE


def test_the_baseline_is_the_explicit_hessian_times_the_gradient() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    batches = [(torch.randn(n, 5).double(), torch.arange(n) % 3) for n in (3, 4)]
    names = ["0.weight", "2.weight"]
    values = [module.get_parameter(name).detach() for name in names]
    whole = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = flat.split([value.numel() for value in values])
        given = {n: p.view_as(v) for n, p, v in zip(names, pieces, values, strict=True)}
        logits = torch.func.functional_call(module, given, (whole[0],))
        return torch.nn.functional.cross_entropy(logits / overlap.TEMPERATURE, whole[1])

    point = torch.cat([value.flatten() for value in values])
    hessian, leaf = torch.autograd.functional.hessian(loss, point), point.clone().requires_grad_()
    product = hessian @ torch.autograd.grad(loss(leaf), leaf)[0]
    found = overlap.plain_scores(module, batches, names)
    flat = torch.cat([found[name].flatten() for name in names])
    torch.testing.assert_close(flat, point * product, rtol=1e-9, atol=1e-18)


def test_overlap_counts_what_the_reference_keeps() -> None:
    reference = {"a": torch.arange(10.0)}
    assert overlap.overlap({"a": torch.arange(10.0)}, reference, 0.8) == 1.0
    assert overlap.overlap({"a": -torch.arange(10.0)}, reference, 0.8) == 0.0
    assert overlap.overlap({"a": torch.arange(10.0).roll(1)}, reference, 0.8) == 0.5
