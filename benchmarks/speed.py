"""Time of the light verbs, tokens per second of a training step, and how full packs are.

python benchmarks/speed.py [--steps 20]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import figure, finish


def seconds(command: list[str], runs: int = 5) -> float:
    """Median wall time of a command, after one run that warms the disk cache."""
    times = []
    for _ in range(runs + 1):
        start = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    bagpiper = str(Path(sys.executable).with_name("bagpiper"))
    figure("bagpiper --help", seconds([bagpiper, "--help"]), "s", 0.4, "lower")
    figure("bagpiper check quickstart", seconds([bagpiper, "check", "quickstart"]), "s", 2.0, "lower")
    run = Path(tempfile.mkdtemp(prefix="bagpiper-")) / "speed"
    overrides = [
        f"run_dir={run}", f"trainer.max_steps={steps}", "trainer.log_every=5", "trainer.validate_every=0",
        "data.soundscapes.train=600", "data.soundscapes.valid=4", "data.soundscapes.test=4",
        "listening.every=0", "eval.at_end=false", "tracking.enabled=false",
    ]  # fmt: skip
    output = subprocess.run(
        [bagpiper, "train", "quickstart", *overrides], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line for line in rows if "speed/rows" in line][1:]
    for key, unit in (("rows", "1/s"), ("text_tokens", "1/s"), ("audio_frames", "1/s"), ("audio_seconds", "s/s")):
        figure(f"quickstart: {key} a second", statistics.median(line[f"speed/{key}"] for line in rates), unit)
    filled = next(word for word in output.replace("(", " ").split() if word.endswith("%"))
    figure("quickstart: share of a pack that is real rows", float(filled.rstrip("%")) / 100, "share", 0.97)
    finish()


if __name__ == "__main__":
    main()
