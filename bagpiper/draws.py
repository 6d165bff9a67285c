"""Random draws, keyed by what they are for and never by global state: the same key gives the same draw everywhere.

Keys are spelled in two ways, which runs that have begun depend on: seeds join the items as text, numbers and words
take their ``repr``. Draws come from SHA-256 and from the raw output of Philox, which NumPy keeps stable between
versions (its ``shuffle`` is not).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive_seed(*key: object) -> int:
    """A 63-bit seed that depends on every item of ``key`` and on nothing else."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def uniform(*key: object) -> float:
    """A number in [0, 1) that depends on ``key`` (of strings and integers) alone."""
    return (int.from_bytes(_digest(key)[:8], "big") >> 11) * 2.0**-53


def words(count: int, *key: object) -> NDArray[np.uint64]:
    """``count`` random words of 64 bits that depend on ``key`` (of strings and integers) alone."""
    return np.random.Philox(key=int.from_bytes(_digest(key)[:16], "big")).random_raw(count)


def _digest(key: tuple[object, ...]) -> bytes:
    return hashlib.sha256(repr(key).encode()).digest()
