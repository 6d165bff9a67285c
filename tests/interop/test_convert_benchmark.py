"""The benchmark of conversions at a tenth of its size; times depend on what else the machine does, memory does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_memory_stays_small_and_every_bit_comes_back(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "convert.py"), "--gigabytes", "0.4", "--folder", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode in (0, 1), done.stderr
    timed = {name for name in rows if "time against" in name}
    assert len(timed) == 4
    assert rows["checkpoint"]["value"] == pytest.approx(0.4, rel=0.05)
    assert all(row["holds"] for name, row in rows.items() if name not in timed), rows
    assert not list(tmp_path.iterdir())
