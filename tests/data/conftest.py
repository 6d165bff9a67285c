"""Small clips and manifests for the tests of the data room."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bagpiper.adaptors.configs import AdaptorConfig, LinearConfig
from bagpiper.codecs.configs import CodecConfig
from bagpiper.data.codes import CodeCache, fill_codes
from bagpiper.data.examples import Example, distinct_clips, read_sources
from bagpiper.data.ledger import Ledger
from bagpiper.encoders.configs import EncoderConfig, MelConfig
from bagpiper.language.conversation import Template
from bagpiper.language.patterns import get_pattern
from bagpiper.language.vocabulary import Vocabulary
from bagpiper.recipe.settings import SourceSettings

CODEC = CodecConfig(sample_rate=16000, hop=640, num_codebooks=3, codebook_size=64)


def tone(seconds: float, rate: int = 16000, pitch: float = 440.0) -> np.ndarray:
    """A sine, float32 ``[N]``."""
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@dataclass
class Folder:
    """A folder with clips and manifests in it."""

    path: Path
    template: Template
    codec: CodecConfig = field(default_factory=lambda: CODEC)
    encoder: EncoderConfig = field(default_factory=MelConfig)
    adaptor: AdaptorConfig = field(default_factory=LinearConfig)

    def clip(self, name: str, wave: np.ndarray | None = None, rate: int = 16000, **kwargs: Any) -> str:
        """Write a clip; returns its name."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(self.path / name, tone(0.5, rate) if wave is None else wave, rate, **kwargs)
        return name

    def manifest(self, rows: Sequence[Any], name: str = "train.jsonl") -> SourceSettings:
        """Write rows (objects, or lines as they are)."""
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (self.path / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return SourceSettings(path=str(self.path / name))

    def read(self, *sources: SourceSettings, ledger: Ledger | None = None, **kwargs: Any) -> list[Example]:
        """Examples of sources, in ``fail`` mode unless told otherwise."""
        settings = {"on_bad": "fail", "max_seconds": 30.0, **kwargs}
        return read_sources(sources, ledger=ledger or Ledger(), **settings)

    def cache(self, examples: Sequence[Example]) -> CodeCache:
        """A code cache that holds made-up codes of every spoken clip."""
        cache = CodeCache(self.path / "cache", "made-up")
        fill_codes(cache, distinct_clips(examples, spoken=True), self.codec, self.encode)
        return cache

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """Codes that depend on the clip's length alone."""
        shapes = [(self.codec.num_frames(len(wave)), self.codec.num_codebooks) for wave in waves]
        return [(np.arange(t * k).reshape(t, k) * 7 + t) % self.codec.codebook_size for t, k in shapes]


def heard(name: str, clip: str, text: str = "a tone") -> dict[str, Any]:
    """Audio -> text."""
    user = {"role": "user", "content": [{"type": "audio", "audio": clip}]}
    return {"id": name, "messages": [user, {"role": "assistant", "content": text}]}


def spoken(name: str, clip: str, text: str = "a tone") -> dict[str, Any]:
    """Text -> audio."""
    reply = {"role": "assistant", "content": [{"type": "audio", "audio": clip}]}
    return {"id": name, "messages": [{"role": "user", "content": text}, reply]}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty folder; text is tokenised as bytes, 3 codebooks of 64 codes."""
    vocabulary = Vocabulary(text_size=256, num_codebooks=3, codebook_size=64)
    template = Template(vocabulary, get_pattern("delay"), lambda text: list(text.encode()), (1 / 3, 1 / 3, 1 / 3))
    return Folder(tmp_path, template)


@pytest.fixture
def rows() -> dict[str, Callable[..., dict[str, Any]]]:
    """Makers of manifest rows: ``heard`` and ``spoken``."""
    return {"heard": heard, "spoken": spoken}
