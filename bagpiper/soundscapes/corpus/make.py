"""Writing the corpus: FLAC files, one manifest per split, and a note of how it was made."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bagpiper.soundscapes.corpus.captions import write_caption
from bagpiper.soundscapes.corpus.facts import SAMPLE_RATE, check_variety, scene_to_json
from bagpiper.soundscapes.corpus.render import render_scene
from bagpiper.soundscapes.corpus.sampling import sample_scene_for
from bagpiper.soundscapes.corpus.voice import FOLDER, Recordings, Voice

SPLITS = ("train", "valid", "test")
# Goes up whenever the same seed gives other clips or captions, so that an older corpus is not taken for this one.
CORPUS_VERSION = 3

Progress = Callable[[int, int], None]


def make_corpus(
    folder: Path,
    num_train: int,
    num_valid: int,
    num_test: int,
    seed: int,
    variety: str = "quick",
    progress: Progress | None = None,
    voice: Voice | None = None,
) -> None:
    """Writes a corpus, or leaves the folder alone if it already holds this very corpus.

    `train` has no held-out combination of facts, `test` has one in every clip and `valid` in every second clip. Each
    clip depends on the seed, its split and its number only, so a larger corpus begins with the smaller one.

    Args:
        folder: Where to write; it appears whole or not at all.
        num_train: Clips in `train.jsonl`.
        num_valid: Clips in `valid.jsonl`.
        num_test: Clips in `test.jsonl`.
        seed: Decides all clips.
        variety: "quick" or "long".
        progress: Called with the clips that are done and their total number after each clip.
        voice: Speaks the sentences of a corpus with speech, whose recordings are kept beside the clips; None makes a
            corpus without. What it says may differ in the last bits between machines, as speech models do.

    Raises:
        ValueError: A size is negative, the variety is unknown, or the folder holds something else.
    """
    check_variety(variety)
    sizes = dict(zip(SPLITS, (num_train, num_valid, num_test), strict=True))
    for split, size in sizes.items():
        if size < 0:
            raise ValueError(f"num_{split} is {size}; give the number of clips, 0 or more")
    if seed < 0:
        raise ValueError(f"the seed of the corpus is {seed}; give a whole number, 0 or more")
    settings = _settings(sizes, seed, variety, voice)
    folder = Path(folder)
    if _holds(folder, settings):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename stays within one file system.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        recordings = Recordings.of(voice) if voice is not None else None
        if recordings is not None:
            recordings.save(unfinished / FOLDER)
        _write_all(unfinished, sizes, seed, variety, recordings, progress)
        _write_text(unfinished / "corpus.json", json.dumps(settings, indent=2) + "\n")
        # mkdtemp makes folders that nobody else can read.
        unfinished.chmod(0o755)
        _put_in_place(unfinished, folder, settings)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_recordings(folder: Path) -> Recordings | None:
    """Reads what the voice of a corpus says, or returns None for a corpus without speech.

    Args:
        folder: What `make_corpus` wrote.

    Raises:
        ValueError: A recording is missing, or `corpus.json` is damaged.
    """
    note = folder / "corpus.json"
    try:
        name = json.loads(note.read_text(encoding="utf-8")).get("voice") if note.is_file() else None
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{note}: not what a corpus writes ({error}); remove the corpus's folder, to make it again"
        ) from error
    return Recordings.load(folder / FOLDER, name) if name is not None else None


def make_example(
    split: str, index: int, seed: int, variety: str, recordings: Recordings | None = None
) -> tuple[dict[str, Any], np.ndarray]:
    """Makes one clip and its manifest line.

    Args:
        split: One of `SPLITS`.
        index: Number of the clip in its split.
        seed: Seed of the corpus.
        variety: "quick" or "long".
        recordings: What a voice may say; None for a corpus without speech.

    Returns:
        The line as a dict, and the samples float32 [N] at 16 kHz.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    held_out = split == "test" or (split == "valid" and index % 2 == 1)
    scene = sample_scene_for(rng, variety, held_out, speech=recordings is not None)
    caption = write_caption(scene, rng, variety)
    samples = render_scene(scene, rng, recordings)
    name = f"{split}_{index:06d}"
    line = {
        "id": name,
        "audio": f"audio/{name}.flac",
        "caption": caption,
        "duration": round(len(samples) / SAMPLE_RATE, 6),
        "facts": scene_to_json(scene),
    }
    return line, samples


def _settings(sizes: dict[str, int], seed: int, variety: str, voice: Voice | None) -> dict[str, Any]:
    """Returns what `corpus.json` says; two corpora with the same settings are the same."""
    settings = {
        "corpus": "soundscapes",
        "version": CORPUS_VERSION,
        "seed": seed,
        "variety": variety,
        "sizes": sizes,
        "sample_rate": SAMPLE_RATE,
    }
    return settings if voice is None else settings | {"voice": voice.name}


def _holds(folder: Path, settings: dict[str, Any]) -> bool:
    """Says whether a folder already holds this corpus; False if it is free.

    Raises:
        ValueError: The folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    note = folder / "corpus.json"
    way_out = "give another folder, or remove this one to make the corpus anew"
    if not note.is_file():
        raise ValueError(f"{folder} exists but is no soundscapes corpus (it has no corpus.json); {way_out}")
    try:
        present = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{note} is not valid JSON ({error}); {way_out}") from error
    if present == settings:
        return True
    known = present if isinstance(present, dict) else {}
    differences = ", ".join(
        f"{key} is {known.get(key)!r} there but {settings.get(key)!r} here"
        for key in {**settings, **known}
        if known.get(key) != settings.get(key)
    )
    raise ValueError(f"{folder} holds another corpus: {differences or 'its corpus.json differs'}; {way_out}")


def _put_in_place(unfinished: Path, folder: Path, settings: dict[str, Any]) -> None:
    """Renames the finished folder; a corpus that another process finished meanwhile is kept if it is the same."""
    try:
        os.replace(unfinished, folder)
    except OSError:
        if not _holds(folder, settings):
            raise


def _write_all(
    folder: Path,
    sizes: dict[str, int],
    seed: int,
    variety: str,
    recordings: Recordings | None,
    progress: Progress | None,
) -> None:
    """Writes audio and manifests of all splits."""
    # Loaded here, so that scenes and captions can be made without the audio library.
    import soundfile

    (folder / "audio").mkdir()
    done, total = 0, sum(sizes.values())
    for split, size in sizes.items():
        lines = []
        for index in range(size):
            line, samples = make_example(split, index, seed, variety, recordings)
            soundfile.write(folder / line["audio"], samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            lines.append(json.dumps(line) + "\n")
            done += 1
            if progress is not None:
                progress(done, total)
        _write_text(folder / f"{split}.jsonl", "".join(lines))


def _write_text(path: Path, text: str) -> None:
    """Writes a text file and makes sure that it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
