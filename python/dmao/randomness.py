"""Seeds as pure functions of what they are for: a resumed run draws what it would have drawn anyway."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, stream: str, index: int = 0) -> int:
    """A seed below 2**63 that differs for every (seed, stream, index)."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A CPU generator with that seed."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, index))
