"""Train a quickstart recipe from nothing, as a user does, and hold its scores and times against their bars.

    python benchmarks/quickstart.py [--recipe quickstart] [--run RUN_FOLDER] [key=value ...]

With --run an existing, finished run is read instead (the time of the whole command is left out). What the codec alone
leaves of the facts, and the minutes that the steps took, stand beside the scores.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from figures import figure, finish

from bagpiper.codecs.rvq import RvqCodec
from bagpiper.data.audio import read_clip
from bagpiper.recipe.load import load_recipe
from bagpiper.soundscapes.corpus.make import read_recordings
from bagpiper.soundscapes.scoring.analyse import analyse_audio
from bagpiper.soundscapes.scoring.score import score_many

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
        figure(f"{arguments.recipe}: whole command", minutes, "min", MINUTES[arguments.recipe], "lower")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        figure(f"{arguments.recipe}: largest resident memory", peak, "GB")
    figure(f"{arguments.recipe}: steps of training", minutes_of_steps(run), "min")
    for name, facts in codec_ceiling(run).items():
        figure(f"{arguments.recipe}: through the codec alone, {name}", facts, "share of facts")
    hears, speaks = BARS[arguments.recipe]
    scores = json.loads((run / "eval.json").read_text())
    for name, bar in (
        ("audio_to_caption", hears),
        ("caption_to_audio", speaks),
        ("cycle_audio", None),
        ("cycle_caption", None),
    ):
        if name in scores:
            figure(f"{arguments.recipe}: {name} score", scores[name]["score"], "chance-corrected share of facts", bar)
            figure(f"{arguments.recipe}: {name} value", scores[name]["value"], "share of facts")
            for fact, figures in scores[name]["facts"].items():
                figure(f"{arguments.recipe}: {name} {fact}", figures["score"], "chance-corrected share of facts")
    finish()


def minutes_of_steps(run: Path) -> float:
    """What the steps took, without validation, listening and checkpoints."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in rows if line["split"] == "train"]
    recipe = load_recipe(str(run), ready=False)
    # packs are 99 % full, so a step has the budget's rows
    rows_of_a_step = recipe.data.token_budget * recipe.trainer.accumulate * recipe.trainer.devices
    starts = [0, *(line["step"] for line in train[:-1])]
    steps_per_rate = ((line["step"] - start) / line["speed/rows"] for start, line in zip(starts, train, strict=True))
    return rows_of_a_step * sum(steps_per_rate) / 60


def codec_ceiling(run: Path) -> dict[str, float]:
    """Facts that are found in the test clips once they went through the run's codec; the best that a model can do."""
    corpus = run / "corpus"
    codec, recordings = RvqCodec.load(run / "codec.safetensors"), read_recordings(corpus)
    items = [json.loads(line) for line in (corpus / "test.jsonl").read_text().splitlines()]
    waves = [torch.from_numpy(read_clip(corpus / item["audio"], codec.config.sample_rate)) for item in items]
    decoded = codec.decode(codec.encode(waves))
    found = [analyse_audio(wave.numpy(), codec.config.sample_rate, recordings) for wave in decoded]
    result = score_many([item["facts"] for item in items], found)
    return {"all": result["value"], **{fact: figures["value"] for fact, figures in result["facts"].items()}}


if __name__ == "__main__":
    main()
