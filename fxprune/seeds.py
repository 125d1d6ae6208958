"""One seed, many streams of random numbers that have nothing to do with each other.

Models are built under the seed that pruning is given. A generator seeded with the same number would repeat
the very draws that the weights came from: "random" masks would follow the weights.
"""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose, the same for the same seed."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
