"""Run under torchrun: prunes a small network in all processes and saves what each of them got."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn

from fxprune import prune
from fxprune.errors import ScoreError


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )


def main(out: str, criterion: str, seed_by_rank: str) -> None:
    """Save the masks of each rank in the folder `out`, or the message of the error."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(6, 1, 6, 6, generator=generator), torch.arange(6) % 5) for _ in range(5)]
    torch.manual_seed(rank if seed_by_rank == "yes" else 0)
    model = network()
    try:
        result: object = dict(prune(model, data=batches, sparsity=0.8, criterion=criterion).masks)
    except ScoreError as error:
        result = str(error)
    torch.save(result, f"{out}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
