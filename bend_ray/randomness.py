"""Randomness is an argument: a generator derived from what it is for.

``generator_for(0, "fork", 17)`` is the same stream on every machine and in every process, so a
population does not depend on how many actors trained it or on which of them died.
"""

from __future__ import annotations

import hashlib

from bend_ray.process.lazy import torch


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose under a base seed.

    >>> seed_for(0, "fork", 1) == seed_for(0, "fork", 1)
    True
    >>> seed_for(0, "fork", 1) == seed_for(0, "fork", 2)
    False
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose under a base seed."""
    return torch.Generator().manual_seed(seed_for(seed, *purpose))
