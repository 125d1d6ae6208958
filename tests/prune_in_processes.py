"""Run under torchrun: prunes and trains small networks in all processes, and saves what each of them got."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from cases import pruned_case
from test_topology import CONFIG, METHODS, VECTORS
from torch import Tensor, nn

from fxprune import prune
from fxprune.errors import ScoreError
from fxprune.training import fit


def masks(criterion: str, seed: int = 0) -> dict[str, Tensor]:
    """Masks of a network with batch statistics, scored on five batches."""
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(6, 1, 6, 6, generator=generator), torch.arange(6) % 5) for _ in range(5)]
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    return dict(prune(model, data=batches, sparsity=0.8, criterion=criterion).masks)


def trained(method: str) -> dict[str, Tensor]:
    """The state dict of a network without batch statistics, trained while its masks move."""
    model = pruned_case("mlp")
    fit(model, VECTORS, CONFIG, [METHODS[method]()])
    return model.state_dict()


def main(out: str) -> None:
    """Save what this rank gets in the folder `out`, and what it says to a model that the others do not have."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank = dist.get_rank()
    result: dict[str, Any] = {"grasp": masks("grasp"), "again": masks("grasp"), "snip": masks("snip")}
    result["trained"] = {method: trained(method) for method in METHODS}
    try:
        masks("grasp", seed=rank)
    except ScoreError as error:
        result["different"] = str(error)
    torch.save(result, f"{out}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
