"""What the offline codec keeps: speech at two rates, soundscapes and tones at the quickstart's rate.

    python benchmarks/offline_codec.py --data FOLDER [--clips 40] [--scenes 150]

FOLDER holds ``manifest.jsonl`` with ``audio`` (relative to it) and ``text``, English speech. Codecs are fitted to all
clips but the held-out ones that are measured. Needs the packages pystoi, pocketsphinx and jiwer.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from pathlib import Path

import jiwer
import numpy as np
import torch
from figures import figure, finish
from numpy.typing import NDArray
from pocketsphinx import Decoder
from pystoi import stoi

from bagpiper.codecs.configs import RvqConfig
from bagpiper.codecs.rvq import RvqCodec
from bagpiper.data.audio import read_clip
from bagpiper.soundscapes.corpus.facts import LOUDNESS_DB, PITCHES, scene_to_json
from bagpiper.soundscapes.corpus.render import render_scene
from bagpiper.soundscapes.corpus.sampling import sample_scene_for
from bagpiper.soundscapes.scoring.analyse import analyse_audio
from bagpiper.soundscapes.scoring.score import score_many

RATE = 16000
QUICKSTART = RvqConfig()
SPEECH = RvqConfig(hop=320, num_codebooks=8, codebook_size=1024)
# Name, settings, lowest STOI, highest word error rate over that of the original (in words per word).
SPEECH_SETTINGS = (
    ("speech, 50 frames/s x 8 x 1024", SPEECH, 0.89, 0.15),
    ("speech, 25 frames/s x 4 x 256", QUICKSTART, 0.79, None),
)
Wave = NDArray[np.float32]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.jsonl")
    parser.add_argument("--clips", type=int, default=40, help="held-out clips of 2 to 6 s that are measured")
    parser.add_argument("--scenes", type=int, default=150, help="held-out soundscapes that are measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure_speech(options.data, options.clips)
    codec = measure_soundscapes(options.scenes)
    measure_tones(codec)
    finish()


def measure_speech(folder: Path, count: int) -> None:
    """STOI, and word errors of a recogniser beside those that it makes on the original."""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    clips = [(line["text"], read_clip(folder / line["audio"], RATE)) for line in lines]
    random.Random(0).shuffle(clips)
    held_out = [clip for clip in clips if 2.0 < len(clip[1]) / RATE < 6.0][:count]
    measured = {id(clip) for clip in held_out}
    waves = [clip[1] for clip in clips if id(clip) not in measured]
    recogniser, texts = Decoder(), [text for text, _ in held_out]
    original = word_errors(recogniser, texts, [wave for _, wave in held_out])
    figure("speech: WER of the original", original, "share")
    for name, config, least, slack in SPEECH_SETTINGS:
        codec = fit(name, config, waves)
        rebuilt = [round_trip(codec, wave) for _, wave in held_out]
        scores = [stoi(wave[: len(new)], new, RATE) for (_, wave), new in zip(held_out, rebuilt, strict=True)]
        figure(f"{name}: STOI", float(np.mean(scores)), "STOI", least)
        bar = None if slack is None else original + slack
        figure(f"{name}: WER", word_errors(recogniser, texts, rebuilt), "share", bar, "lower")


def measure_soundscapes(count: int) -> RvqCodec:
    """Share of the facts that can still be measured, and speed; the codec is returned."""
    rng = np.random.default_rng(0)
    waves = [render_scene(sample_scene_for(rng, "quick", False), rng) for _ in range(800)]
    codec = fit("soundscapes, 25 frames/s x 4 x 256", QUICKSTART, waves)
    scenes = [sample_scene_for(rng, "quick", True) for _ in range(count)]
    clips = [render_scene(scene, rng) for scene in scenes]
    truths = [scene_to_json(scene) for scene in scenes]
    start = time.process_time()
    codes = codec.encode([torch.from_numpy(clip) for clip in clips])
    encoded = time.process_time()
    rebuilt = [wave.numpy() for wave in codec.decode(codes)]
    decoded = time.process_time()
    seconds = sum(map(len, clips)) / RATE
    figure("encoding 2.5 s", 1000 * (encoded - start) / seconds * 2.5, "ms", 10.0, "lower")
    figure("decoding 2.5 s", 1000 * (decoded - encoded) / seconds * 2.5, "ms", 75.0, "lower")
    for name, waves, bar in (("original", clips, None), ("decoded", rebuilt, 0.98)):
        found = score_many(truths, [analyse_audio(wave, RATE) for wave in waves])
        figure(f"soundscapes: facts right, {name}", found["value"], "share", bar)
        for fact, tally in found["facts"].items():
            if tally["value"] < 1.0:
                figure(f"soundscapes: {fact} right, {name}", tally["value"], "share")
    return codec


def measure_tones(codec: RvqCodec) -> None:
    """Largest errors in pitch and level over all notes and loudnesses of the soundscapes."""
    times = np.arange(RATE) / RATE
    cents, decibels = [], []
    for pitch in PITCHES.values():
        for level in LOUDNESS_DB.values():
            tone = (np.sqrt(2.0) * 10.0 ** (level / 20.0) * np.sin(2.0 * np.pi * pitch * times)).astype(np.float32)
            inner, truth = round_trip(codec, tone)[2000:14000], tone[2000:14000]
            spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner)), 1 << 17))
            cents.append(abs(1200.0 * np.log2(spectrum.argmax() * RATE / (1 << 17) / pitch)))
            decibels.append(abs(20.0 * np.log10(inner.std() / truth.std())))
    figure("tones: largest pitch error", float(max(cents)), "cents", 40.0, "lower")
    figure("tones: largest level error", float(max(decibels)), "dB", 2.0, "lower")


def fit(name: str, config: RvqConfig, waves: list[Wave]) -> RvqCodec:
    """A codec of its own, and how long that took on one core."""
    start = time.process_time()
    codec = RvqCodec(config).fit(waves, seed=0)
    figure(
        f"{name}: fit to {sum(map(len, waves)) / RATE / 60:.0f} minutes",
        time.process_time() - start,
        "s",
        60.0,
        "lower",
    )
    return codec


def round_trip(codec: RvqCodec, wave: Wave) -> Wave:
    """To codes and back; up to one frame shorter."""
    return codec.decode(codec.encode([torch.from_numpy(wave)]))[0].numpy()


def word_errors(recogniser: Decoder, texts: list[str], waves: list[Wave]) -> float:
    """Word error rate over all clips, by pocketsphinx with its own language model."""
    heard = []
    for wave in waves:
        recogniser.start_utt()
        recogniser.process_raw((wave.clip(-1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        recogniser.end_utt()
        best = recogniser.hyp()
        heard.append(plain(best.hypstr) if best else "")
    return float(jiwer.wer([plain(text) for text in texts], heard))


def plain(text: str) -> str:
    """Words without case and punctuation."""
    return " ".join(re.sub(r"[^a-z' ]+", " ", text.lower()).split())


if __name__ == "__main__":
    main()
