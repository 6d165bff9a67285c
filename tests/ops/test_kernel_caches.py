"""Memory does not grow with the number of shapes that were seen."""

import os
import subprocess
import sys

import pytest
from tiny import tiny_model

from bagpiper.ops.kernel_caches import limit_kernel_caches

_NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")

_MANY_SHAPES = """
import torch
from torch.nn.functional import conv1d
from bagpiper.ops.kernel_caches import limit_kernel_caches

def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

limit_kernel_caches()
torch.set_num_threads(1)
filters = torch.randn(64, 128, 5)
before = megabytes()
for length in range(300, 800):
    conv1d(torch.randn(1, 128, length), filters)
print(megabytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_every_new_shape():
    """The run of `quickstart-long` that grew from 1 to 4.7 GB: oneDNN keeps 1,024 kernels, one for every shape."""
    clean = {name: value for name, value in os.environ.items() if name not in _NAMES}
    done = subprocess.run(
        [sys.executable, "-c", _MANY_SHAPES], capture_output=True, text=True, check=True, timeout=120, env=clean
    )
    assert float(done.stdout) < 90  # 37 MB with 64 kernels, 165 MB with all of them


def test_the_users_own_limit_stays(monkeypatch):
    monkeypatch.setenv(_NAMES[0], "7")
    monkeypatch.delenv(_NAMES[1], raising=False)
    limit_kernel_caches()
    assert [os.environ[name] for name in _NAMES] == ["7", "64"]


def test_every_model_limits_them(monkeypatch):
    for name in _NAMES:
        monkeypatch.delenv(name, raising=False)
    tiny_model()
    assert [os.environ[name] for name in _NAMES] == ["64", "64"]
