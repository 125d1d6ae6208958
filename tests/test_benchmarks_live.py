"""The scripts behind benchmarks/live_point.md: rows become the right table, and masks are those of `prune`."""

from __future__ import annotations

import live_families
import live_training
import pytest
import torch
import warm_up
from cases import ZeroScale

import fxprune
from fxprune import capture, find_weights


def row(status: str = "measured", **losses: int) -> dict[str, object]:
    found = {"point": "live", "sparsity": 0.9, "floor": 0.0, "emptied": 0, "cut_off": 0, "silenced": 0} | losses
    return {"model": "m", "parameters": 10**6, "status": status, "live_changes": 1, "cuts": [found]}


def test_families_count_what_is_alive_and_what_was_not_measured() -> None:
    text = live_families.table([row(), row(silenced=3), row(emptied=2, silenced=2), row("time limit")], 9)
    assert "3 of 9 families measured, 1 over the limits, 5 not tried yet; 3 have something" in text
    assert "| 90% | live | 0 | 3 | 2 (67%) | 3 (100%) | 1 (33%) | 1 (33%) | 2 | 5 |" in text
    assert "Not measured: m (1.0 M): time limit." in text


def test_training_gives_mean_and_deviation_over_seeds() -> None:
    shared = {"case": "vit", "sparsity": 0.95, "weights": 7}
    rows = [
        shared | {"method": "random", "seed": seed, "accuracy": accuracy, "emptied": 0}
        for seed, accuracy in enumerate((0.5, 0.6, 0.7))
    ]
    rows.append(shared | {"method": "plain GraSP", "seed": 0, "accuracy": 0.25, "emptied": 3})
    lines = live_training.table(rows).splitlines()
    assert lines[0] == "| method | vit, 95% |"
    assert "| random | 60.0 ± 10.0 |" in lines
    assert "| plain GraSP | 25.0, 1 of 3 seeds (3 of 7 emptied) |" in lines


@pytest.mark.parametrize("criterion", ["grasp", "magnitude"])
def test_training_makes_the_masks_of_prune(criterion: str) -> None:
    module, images = ZeroScale(), torch.randn(4, 1, 8, 8)
    batches = [(images, torch.arange(4))]
    captured = capture(module, (images,))
    before = {name: tensor.clone() for name, tensor in captured.host.state_dict().items()}
    method = live_training.Method(criterion)
    masks = live_training.masks_of(captured, find_weights(captured), batches, method, 0.8, 0)
    wanted = fxprune.prune(module, data=batches, sparsity=0.8, criterion=criterion).masks
    assert all(torch.equal(masks[name], wanted[name]) for name in wanted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in captured.host.state_dict().items())


def test_a_warm_up_opens_scales_and_leaves_the_rest() -> None:
    module, images = ZeroScale(), torch.randn(4, 1, 8, 8)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    warm_up.warm_up(module, [(images, torch.arange(4))])
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert "block.bn2.weight" in changed
    assert all(before[name].dim() <= 1 for name in changed)
    assert all(parameter.requires_grad for parameter in module.parameters())
