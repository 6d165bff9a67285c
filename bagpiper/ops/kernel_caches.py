"""How many CPU kernels stay in memory."""

from __future__ import annotations

import os

_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's own cache and the one of PyTorch's layer above it; both read their size when they are first used."""

_KERNELS = "64"


def limit_kernel_caches() -> None:
    """Keep 64 of oneDNN's kernels instead of 1,024, unless the environment says how many.

    oneDNN compiles a kernel for every shape. Packs, and clips above all, hardly ever have a shape twice, so old kernels
    are of no use, and in between them the heap of a training run goes to pieces: `quickstart-long` had grown to 4.7 GB
    after 1,500 steps. A step uses fewer than 64 and takes as long as before.
    """
    for name in _CACHES:
        os.environ.setdefault(name, _KERNELS)
