"""Named random streams of one seed: stable across processes, independent of one another."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, name: str) -> np.random.Generator:
    """The random stream called `name` of an experiment with this seed.

    Each use has a name of its own, so a further draw in one place moves nothing in another. The pair is
    hashed with SHA-256, not `hash()`, which differs from process to process.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
