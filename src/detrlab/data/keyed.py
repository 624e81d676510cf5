"""Random generators keyed by what they are for, so that nothing hangs on global state.

The same key gives the same draws in every process, whatever was drawn before it.
"""

from __future__ import annotations

import hashlib

import numpy as np


def keyed(purpose: str, *key: int | str) -> np.random.Generator:
    """A generator for one purpose, such as ``keyed("order", seed, epoch)``.

    The key is hashed, so that neighbouring seeds, epochs and ids give unrelated draws, and
    text ids serve as well as numbers.
    """
    digest = hashlib.blake2b(repr((purpose, *key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
