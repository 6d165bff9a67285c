"""A voice for tests: each letter is a buzz or a hiss of its own, so every sentence sounds different."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
_LETTER = int(0.055 * RATE)
_FORMANTS = {
    "a": (800, 1200),
    "e": (500, 1900),
    "i": (300, 2400),
    "o": (450, 850),
    "u": (330, 700),
    "y": (350, 2000),
    "l": (380, 1100),
    "m": (260, 1000),
    "n": (280, 1500),
    "r": (400, 1400),
    "w": (300, 650),
}


class FakeVoice:
    """Speaks in formants; a little higher and faster with every take."""

    def __init__(self, name: str = "fake 1") -> None:
        self.name = name

    def speak(self, sentence: str, take: int) -> NDArray[np.float32]:
        """See ``bagpiper.soundscapes.corpus.voice.Voice``."""
        letters = [self._letter(letter, take) for letter in sentence]
        silence = np.zeros(RATE // 5)
        return np.concatenate([silence, *letters, silence]).astype(np.float32)

    def _letter(self, letter: str, take: int) -> NDArray[np.float64]:
        times = np.arange(_LETTER - 40 * take) / RATE
        if letter == " ":
            return np.zeros(len(times))
        if letter in _FORMANTS:
            hertz = 120.0 + 4.0 * take
            partials = np.arange(1, int(7000 / hertz)) * hertz
            heights = sum(1.0 / (1.0 + ((partials - peak) / 90.0) ** 2) for peak in _FORMANTS[letter])
            return np.sin(2 * np.pi * np.outer(times, partials)) @ heights
        # Consonants: noise round a frequency that the letter decides.
        seed = zlib.crc32(letter.encode())
        noise = np.random.default_rng(seed + take).standard_normal(len(times))
        return 1.5 * noise * np.sin(2 * np.pi * (2000 + seed % 4000) * times) * np.hanning(len(times))
