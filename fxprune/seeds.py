"""One seed, many streams of random numbers that have nothing to do with each other.

Models are built under the seed that pruning is given. A generator seeded with the same number would repeat
the very draws that the weights came from: "random" masks would follow the weights.
"""

from __future__ import annotations

import hashlib

import torch

from fxprune.errors import ScoreError


def check_seed(seed: object) -> None:
    """Refuse what torch takes for no seed.

    Raises:
        ScoreError: it is no integer of 64 bits.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63:
        raise ScoreError(f"seed: expected an integer of 64 bits, got {seed!r}; use a smaller one, such as 0")


def derived(seed: int, purpose: str) -> int:
    """A seed for one purpose, below 2**56, the same for the same seed."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def stream(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose, the same for the same seed."""
    return torch.Generator().manual_seed(derived(seed, purpose))
