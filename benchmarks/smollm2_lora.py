"""LoRA-tune SmolLM2-135M on real recordings, as docs/finetune-smollm2.md tells it, and measure whether it listens.

    python benchmarks/smollm2_lora.py --data FOLDER [--run RUN_FOLDER] [key=value ...]

FOLDER holds the folders of SHORT_FIRST and the official demo's rows, each with its manifest.jsonl. The bar: on short
clips that it trained on, the loss of a clip's text given its own audio is at least 25 % lower than given another
clip's. The same figure for clips that it never heard, of a text that it never read, stands beside it. With --run a
finished run of the same imports is measured and not trained again (the imports choose by hash: always the same clips).
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from figures import figure, finish
from numpy.typing import NDArray

from bagpiper.batch import collate
from bagpiper.data.audio import read_clip
from bagpiper.data.examples import Example, read_sources
from bagpiper.data.importers import import_demo, import_pairs
from bagpiper.data.ledger import Ledger
from bagpiper.language.conversation import Conversation
from bagpiper.model import Bagpiper
from bagpiper.recipe.model_config import find_model
from bagpiper.recipe.settings import SourceSettings
from bagpiper.weights.model_folder import load_model

PAIRS = ("asterisk_en", "sfx_music", "tiny_permissive")
DEMO = "bagpiper_demo"
QUESTION = "What do you hear?"
SHORT, LONGEST_SPOKEN = 0.8, 10.0
"""Seconds: clips of the fixed subset, and clips that the model learns to make."""

WEIGHTS = {"short": 1.0, "all": 0.03, "speak": 0.005, "demo": 0.01}
"""How often an example of each import is drawn: half of the rows go to the subset, a fifth to the demo's long turns."""

BAR = 0.25
OTHERS = 3
"""Other clips that every text is tried with."""


@dataclass(frozen=True)
class Imports:
    """Files of conversations.

    Attributes:
        train: what is trained on, with weights.
        valid: what is held out.
        subset, unseen: short clips that are measured: in ``train``, and in nothing that is trained on.
    """

    train: list[SourceSettings]
    valid: list[SourceSettings]
    subset: list[SourceSettings]
    unseen: list[SourceSettings]


def main() -> None:
    """Import, train (or read) and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the folders of recordings")
    parser.add_argument("--run", type=Path, help="a finished run to measure")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bagpiper-") as made:
        imports = import_all(options.data, Path(made))
        run = options.run or train(imports, Path(made) / "run", options.overrides)
        model = load_model(find_model(run))
        measure(model, "trained on", imports.subset, BAR)
        measure(model, "unseen", imports.unseen)
    finish()


def import_all(data: Path, folder: Path) -> Imports:
    """The imports of docs/finetune-smollm2.md; a tenth of the texts is held out, with every clip that has them."""
    imports = Imports([], [], [], [])
    for name in PAIRS:
        for kind, changes in {
            "short": {"task": "audio_to_text", "max_seconds": SHORT},
            "all": {"task": "audio_to_text", "question": QUESTION},
            "speak": {"task": "text_to_audio", "max_seconds": LONGEST_SPOKEN},
        }.items():
            out = folder / f"{name}-{kind}.jsonl"
            made = import_pairs(data / name / "manifest.jsonl", out, valid_share=0.1, split_by="text", **changes)
            trained, held_out = SourceSettings(str(out), WEIGHTS[kind]), SourceSettings(str(made.valid_path))
            imports.train.append(trained)
            if kind == "short":
                imports.subset.append(trained)
                imports.unseen.append(held_out)
            else:
                imports.valid.append(held_out)
    made = import_demo(data / DEMO / "manifest.jsonl", folder / "demo.jsonl", valid_share=0.1)
    imports.train.append(SourceSettings(str(made.path), WEIGHTS["demo"]))
    imports.valid.append(SourceSettings(str(made.valid_path)))
    return imports


def train(imports: Imports, run: Path, overrides: Sequence[str]) -> Path:
    """Run the recipe on one thread, as a user does."""
    sources = ", ".join(f"{{path: {source.path}, weight: {source.weight}}}" for source in imports.train)
    valid = ", ".join(source.path for source in imports.valid)
    given = [f"data.sources=[{sources}]", f"data.valid_sources=[{valid}]", f"run_dir={run}", "trainer.threads=1"]
    start = time.monotonic()
    command = [sys.executable, "-m", "bagpiper", "train", "sft/smollm2-lora", *given, *overrides]
    subprocess.run(command, check=True, stdout=sys.stderr)
    figure("sft/smollm2-lora: whole command", (time.monotonic() - start) / 60, "min", 45.0, "lower")
    return run


def measure(model: Bagpiper, name: str, sources: Sequence[SourceSettings], bar: float | None = None) -> None:
    """Print the loss of the texts given their own and given other clips."""
    examples = read_sources(sources, on_bad="fail", max_seconds=None, ledger=Ledger())
    own, other = compare(model, examples)
    figure(f"{name}: clips", len(examples), "clips")
    figure(f"{name}: loss of the text given its own clip", own, "nats a token")
    figure(f"{name}: loss of the text given another clip", other, "nats a token")
    figure(f"{name}: lower by", 1.0 - own / other, "share", bar)


def compare(model: Bagpiper, examples: Sequence[Example]) -> tuple[float, float]:
    """Mean loss of the examples' texts given their own clips, and given those of others.

    Args:
        model: in eval mode.
        examples: each hears one clip and answers with text; at least two.

    Returns:
        Means over examples of the loss per token, in nats; the second also over ``OTHERS`` other clips.
    """
    rate = model.settings.encoder.sample_rate
    clips = [read_clip(next(iter(example.clips.values())).path, rate) for example in examples]
    texts = [example.conversation for example in examples]
    own = [text_loss(model, text, clip) for text, clip in zip(texts, clips, strict=True)]
    order = list(range(len(examples)))
    random.Random(0).shuffle(order)
    other = []
    for shift in range(1, min(OTHERS, len(order) - 1) + 1):  # a shift in a circle leaves no clip in its place
        pairs = zip(order, order[shift:] + order[:shift], strict=True)
        other += [text_loss(model, texts[text], clips[clip]) for text, clip in pairs]
    return float(np.mean(own)), float(np.mean(other))


def text_loss(model: Bagpiper, conversation: Conversation, clip: NDArray[np.float32]) -> float:
    """Loss per token of the assistant's text, its control tokens included, when ``clip`` is what is heard.

    Args:
        model: in eval mode.
        conversation: hears one clip; which one does not matter.
        clip: float32 ``[N]`` at the encoder's rate.
    """
    (heard,) = (n for n, message in enumerate(conversation.messages) if message.modality == "audio")
    states = model.settings.adaptor.num_frames(model.settings.encoder.num_frames(len(clip)))
    grid = model.template.grid(conversation, states={heard: states})
    batch = collate([grid], [[clip]], [conversation.id], audio_start=model.vocabulary.audio_start)
    with torch.no_grad():
        total, count = model(batch).metrics["loss/text"].tolist()
    return total / count


if __name__ == "__main__":
    main()
