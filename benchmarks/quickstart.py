"""Train a quickstart recipe from nothing, as a user does, and hold its scores and times against their bars.

    python benchmarks/quickstart.py [--recipe quickstart] [--run RUN_FOLDER] [key=value ...]

With --run an existing, finished run is read instead (its times are left out).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import finish, row

BARS = {"quickstart": (0.87, 0.75), "quickstart-long": (0.97, 0.90)}
MINUTES = {"quickstart": 10.0, "quickstart-long": 45.0}


def main() -> None:
    """Train (or read) and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="quickstart", choices=sorted(BARS))
    parser.add_argument("--run", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    run = arguments.run
    if run is None:
        wanted = [word.removeprefix("run_dir=") for word in arguments.overrides if word.startswith("run_dir=")]
        run = Path(wanted[-1]) if wanted else Path(tempfile.mkdtemp(prefix="bagpiper-")) / arguments.recipe
        given = arguments.overrides if wanted else [*arguments.overrides, f"run_dir={run}"]
        command = [sys.executable, "-m", "bagpiper", "train", arguments.recipe, *given]
        start = time.monotonic()
        subprocess.run(command, check=True, stdout=sys.stderr)
        minutes = (time.monotonic() - start) / 60
        row(f"{arguments.recipe}: whole command", minutes, "min", MINUTES[arguments.recipe], "lower")
    hears, speaks = BARS[arguments.recipe]
    scores = json.loads((run / "eval.json").read_text())
    for name, bar in (
        ("audio_to_caption", hears),
        ("caption_to_audio", speaks),
        ("cycle_audio", None),
        ("cycle_caption", None),
    ):
        if name in scores:
            row(f"{arguments.recipe}: {name} score", scores[name]["score"], "chance-corrected share of facts", bar)
            row(f"{arguments.recipe}: {name} value", scores[name]["value"], "share of facts")
            for fact, figures in scores[name]["facts"].items():
                row(f"{arguments.recipe}: {name} {fact}", figures["score"], "chance-corrected share of facts")
    finish()


if __name__ == "__main__":
    main()
