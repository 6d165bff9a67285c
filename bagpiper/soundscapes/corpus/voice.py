"""Spoken sentences: a voice speaks each of a closed list a few times, and clips are made of these recordings.

The recordings lie beside the clips, so that whoever measures the clips can compare with the very sounds that they were
made of, without the voice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bagpiper.soundscapes.corpus.facts import SAMPLE_RATE, SENTENCES

Samples = NDArray[np.float64]

# How often each sentence is spoken, each time at another pace and with other breath.
TAKES = 3
FOLDER = "voice"

# The only one of the package's voices that lies in its wheel; it would download the others.
_HIBARI_VOICE = "heart"
_PACES = (1.0, 0.93, 1.07)
_PEAK = 0.9
# Quieter than this under its loudest 50 ms, the ends of a recording count as silence.
_SILENCE_DB = -30.0
_LEVEL_WINDOW = int(0.05 * SAMPLE_RATE)
_FADE = int(0.01 * SAMPLE_RATE)


class Voice(Protocol):
    """Something that speaks."""

    @property
    def name(self) -> str:
        """What it is; two voices of one name sound the same."""
        ...

    def speak(self, sentence: str, take: int) -> NDArray[np.float32]:
        """Says a sentence.

        Args:
            sentence: One of `SENTENCES`.
            take: From 0 to `TAKES` - 1; the same take sounds the same, others a little different.

        Returns:
            Samples [N] at 16 kHz, of any level, with or without silence around the words.
        """
        ...


class HibariVoice:
    """The voice in the wheel of hibari-tts; nothing is downloaded, and it takes one thread."""

    def __init__(self) -> None:
        """Finds the package; the voice is loaded (1 to 3 s) when it first speaks.

        Raises:
            ModuleNotFoundError: The package is not installed.
        """
        try:
            self.name = f"hibari-tts {version('hibari-tts')} {_HIBARI_VOICE}"
        except PackageNotFoundError:
            raise ModuleNotFoundError("hibari-tts is not installed", name="hibari") from None

    def speak(self, sentence: str, take: int) -> NDArray[np.float32]:
        """See `Voice.speak`."""
        import soxr

        tts = self._tts
        samples = tts(f"{sentence.capitalize()}.", speed=_PACES[take], seed=take)
        return np.asarray(soxr.resample(samples, tts.sample_rate, SAMPLE_RATE), dtype=np.float32)

    @cached_property
    def _tts(self) -> Any:
        from hibari import Hibari

        return Hibari(voice=_HIBARI_VOICE, threads=1)


@dataclass(frozen=True, eq=False)
class Recordings:
    """Every sentence in every take.

    Attributes:
        name: Whose voice it is.
        samples: By sentence and take, samples [N] at 16 kHz that begin and end with the words.
    """

    name: str
    samples: dict[tuple[str, int], Samples]

    @classmethod
    def of(cls, voice: Voice) -> Recordings:
        """Has a voice speak every sentence; some 2 s for a voice that is 30 times as fast as speech."""
        takes = [(sentence, take) for sentence in SENTENCES for take in range(TAKES)]
        return cls(voice.name, {key: _trimmed(np.asarray(voice.speak(*key), dtype=np.float64), *key) for key in takes})

    def save(self, folder: Path) -> None:
        """Writes a FLAC file per take into a new folder; `load` gives the same samples back."""
        import soundfile

        folder.mkdir()
        for key, samples in self.samples.items():
            soundfile.write(folder / _file_name(*key), samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")

    @classmethod
    def load(cls, folder: Path, name: str) -> Recordings:
        """Reads what `save` wrote.

        Raises:
            ValueError: A recording is missing.
        """
        import soundfile

        samples = {}
        for sentence in SENTENCES:
            for take in range(TAKES):
                path = folder / _file_name(sentence, take)
                if not path.is_file():
                    raise ValueError(
                        f"the corpus has spoken sentences, but {path} is missing: remove the corpus to make it anew"
                    )
                samples[sentence, take] = soundfile.read(path, dtype="float64")[0]
        return cls(name, samples)


def _file_name(sentence: str, take: int) -> str:
    return f"{sentence.replace(' ', '-')}-{take}.flac"


def _trimmed(samples: Samples, sentence: str, take: int) -> Samples:
    """Cuts silence off both ends and rounds to 16 bits, so that a file keeps every bit."""
    if samples.ndim != 1 or not np.isfinite(samples).all() or not samples.any():
        raise ValueError(f"the voice gave no sound for {sentence!r} (take {take}); use another version of its package")
    power = np.convolve(samples**2, np.ones(_LEVEL_WINDOW) / _LEVEL_WINDOW, mode="same")
    loud = np.flatnonzero(power > power.max() * 10.0 ** (_SILENCE_DB / 10.0))
    words = samples[loud[0] : loud[-1] + 1].copy()
    ramp = np.sin(0.5 * np.pi * (np.arange(_FADE) + 0.5) / _FADE) ** 2
    words[:_FADE] *= ramp
    words[-_FADE:] *= ramp[::-1]
    return np.round(words * (_PEAK * 32768.0 / np.max(np.abs(words)))) / 32768.0
