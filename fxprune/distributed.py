"""Several processes, one result: each takes its share of the batches, and sums are added up.

`torch.distributed` does the work, under whatever backend the program has initialised (``torchrun`` starts
the processes); where it is not initialised, everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from fxprune.errors import ScoreError


def active() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other processes inside the block, where ``torchrun`` or the like has started several.

    Tensors on CUDA devices travel by nccl, others by gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Wait until all processes have come here."""
    if active():
        dist.barrier()


def processes() -> int:
    """How many processes there are."""
    return dist.get_world_size() if active() else 1


def rank() -> int:
    """The number of this process, from 0 on."""
    return dist.get_rank() if active() else 0


def is_mine(index: int) -> bool:
    """Whether the batch of this index is this process's to compute: they go round."""
    return not active() or index % dist.get_world_size() == dist.get_rank()


def add_up(tensors: Sequence[Tensor], count: int) -> int:
    """Add tensors up over the processes, in place, and return the sum of the counts."""
    if not active():
        return count
    for tensor in tensors:
        dist.all_reduce(tensor)
    total = torch.tensor([count], device=tensors[0].device)
    dist.all_reduce(total)
    return int(total)


def require_equal(tensors: Iterable[Tensor]) -> None:
    """Check that all processes hold the same values.

    Raises:
        ScoreError: they do not.
    """
    if not active():
        return
    sums = torch.stack([tensor.detach().sum(dtype=torch.float64).cpu() for tensor in tensors])
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    least, most = sums.to(device, copy=True), sums.to(device, copy=True)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    if not torch.equal(least, most):
        raise ScoreError(
            "the processes hold different weights: expected the same model in each; seed them alike before it is "
            "built, or load one state dict"
        )
