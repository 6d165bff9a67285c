"""Configs of the codecs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class CodecConfig:
    """What every codec promises.

    Attributes:
        sample_rate: in Hz, of the waveforms in and out.
        hop: samples per frame.
        num_codebooks: K.
        codebook_size: codes per codebook.
    """

    sample_rate: int = 16000
    hop: int = 640
    num_codebooks: int = 4
    codebook_size: int = 256

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip: whole hops."""
        return num_samples // self.hop

    def num_samples(self, num_frames: int) -> int:
        """Samples that decoding gives."""
        return num_frames * self.hop


@dataclass
class RvqConfig(CodecConfig):
    """The offline codec: log-mel spectra in vector-quantised form, phases by Griffin-Lim.

    Codebook 0 holds how the level moves within a frame, the others the spectrum, coarse to fine.

    Attributes:
        path: fitted codec (safetensors); null fits one to the run's own audio before training.
        num_mels: mel bands.
        window, mel_hop: of the STFT, in samples; ``hop`` is a multiple of ``mel_hop``, so many spectra are stacked.
        fit_seconds: audio that codebooks are fitted to.
        griffin_lim: iterations of phase estimation.
    """

    path: str | None = None
    num_mels: int = 80
    window: int = 1024
    mel_hop: int = 160
    fit_seconds: float = 1800.0
    griffin_lim: int = 12

    def __post_init__(self) -> None:
        if self.mel_hop < 1 or self.hop < 1 or self.hop % self.mel_hop:
            raise ValueError(f"codec rvq: hop must be a multiple of mel_hop ({self.mel_hop}), got {self.hop}")
        if self.window % 2 or self.window < 2 * self.mel_hop:
            raise ValueError(
                f"codec rvq: window must be even and at least two mel_hop ({2 * self.mel_hop}), got {self.window}"
            )
        if self.num_codebooks < 2:
            raise ValueError(
                f"codec rvq: num_codebooks must be at least 2 (level, then spectrum), got {self.num_codebooks}"
            )
        if self.griffin_lim < 0:
            raise ValueError(f"codec rvq: griffin_lim must not be negative, got {self.griffin_lim}")

    @property
    def stack(self) -> int:
        """Spectra per frame."""
        return self.hop // self.mel_hop


PUBLISHED: dict[str, dict[str, int]] = {
    "facebook/encodec_24khz": {"sample_rate": 24000, "hop": 320, "num_codebooks": 32, "codebook_size": 1024},
    "hf-audio/xcodec-hubert-general": {"sample_rate": 16000, "hop": 320, "num_codebooks": 8, "codebook_size": 1024},
    "descript/dac_44khz": {"sample_rate": 44100, "hop": 512, "num_codebooks": 9, "codebook_size": 1024},
    "descript/dac_24khz": {"sample_rate": 24000, "hop": 320, "num_codebooks": 32, "codebook_size": 1024},
    "descript/dac_16khz": {"sample_rate": 16000, "hop": 320, "num_codebooks": 12, "codebook_size": 1024},
    "kyutai/mimi": {"sample_rate": 24000, "hop": 1920, "num_codebooks": 32, "codebook_size": 2048},
}
"""What published models keep to, so that a recipe that promises something else is refused before anything is loaded."""


def check_published(name: str, config: CodecConfig, source: str | None) -> None:
    """Refuse promises that the published model called ``source`` does not keep; other sources are checked when loaded.

    Raises:
        ValueError: rate, hop or codebook size differ, or there are not so many codebooks.
    """
    wrong = []
    for key, found in PUBLISHED.get(source or "", {}).items():
        promised = getattr(config, key)
        if key == "num_codebooks" and promised > found:
            wrong.append(f"at most {found} num_codebooks (not {promised})")
        elif key != "num_codebooks" and promised != found:
            wrong.append(f"{key} {found} (not {promised})")
    if wrong:
        raise ValueError(f"codec {name}: {source} has {', '.join(wrong)}; correct the recipe")


ENCODEC_BOOKS = (2, 4, 8, 16, 32)
"""Codebooks that EnCodec 24 kHz was trained to work with: 1.5, 3, 6, 12 and 24 kbit/s at 75 frames per second."""


@dataclass
class EncodecConfig(CodecConfig):
    """EnCodec 24 kHz (arXiv:2210.13438) through transformers; equals the ``encodec`` package exactly.

    Attributes:
        source: hub name or folder; or a ``.th`` file of Meta's; null builds random weights.
        config: fields of transformers' EncodecConfig, for random weights or a ``.th`` file; null is the 24 kHz model.
    """

    source: str | None = "facebook/encodec_24khz"
    sample_rate: int = 24000
    hop: int = 320
    num_codebooks: int = 8
    codebook_size: int = 1024
    config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_published("encodec", self, self.source)
        if self.num_codebooks not in ENCODEC_BOOKS:
            raise ValueError(
                f"codec encodec: num_codebooks must be one of {', '.join(map(str, ENCODEC_BOOKS))}, "
                f"got {self.num_codebooks}"
            )


XCODEC_RATES = (0.5, 1, 1.5, 2, 4)
"""Bit rates (kbit/s) that X-Codec was trained for: 1, 2, 3, 4 and 8 codebooks of 10 bits, 50 frames per second."""


@dataclass
class XcodecConfig(CodecConfig):
    """X-Codec (arXiv:2408.17175) through transformers: the official model's codec (spec section 4.1).

    Attributes:
        source: hub name or folder; null builds random weights.
        config: fields of transformers' XcodecConfig, for random weights; null is the official model's.
    """

    source: str | None = "hf-audio/xcodec-hubert-general"
    sample_rate: int = 16000
    hop: int = 320
    num_codebooks: int = 8
    codebook_size: int = 1024
    config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_published("xcodec", self, self.source)
        if self.hop < 1 or self.sample_rate < 1 or self.codebook_size < 2:
            raise ValueError(
                "codec xcodec: hop and sample_rate must be at least 1 and codebook_size at least 2, "
                f"got {self.hop}, {self.sample_rate} and {self.codebook_size}"
            )
        rates = (self.config or {}).get("target_bandwidths", XCODEC_RATES)
        of_a_book = math.log2(self.codebook_size) * math.ceil(self.frame_rate) / 1000  # as transformers computes it
        books = sorted({max(1, math.floor(rate / of_a_book)) for rate in rates})
        if self.num_codebooks not in books:
            raise ValueError(
                f"codec xcodec: num_codebooks must be one of {', '.join(map(str, books))}, got {self.num_codebooks}"
            )


@dataclass
class DacConfig(CodecConfig):
    """DAC (arXiv:2306.06546) through transformers. It was trained with any number of first codebooks.

    The defaults are those of ``descript/dac_44khz``; ``descript/dac_24khz`` needs ``sample_rate: 24000``, ``hop: 320``,
    ``ratios: [2, 4, 5, 8]`` and at most 32 codebooks, ``descript/dac_16khz`` the same with 16000 and at most 12.

    Attributes:
        source: hub name or folder; null builds random weights.
        ratios: stride of each block of the encoder; their product is ``hop``.
        config: fields of transformers' DacConfig, for random weights.
    """

    source: str | None = "descript/dac_44khz"
    sample_rate: int = 44100
    hop: int = 512
    num_codebooks: int = 9
    codebook_size: int = 1024
    ratios: tuple[int, ...] = (2, 4, 8, 8)
    config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_published("dac", self, self.source)
        if math.prod(self.ratios) != self.hop:
            raise ValueError(
                f"codec dac: hop must be the product of ratios, {math.prod(self.ratios)} for {list(self.ratios)}, "
                f"got {self.hop}"
            )

    def num_samples(self, num_frames: int) -> int:
        """Samples that decoding gives: every block of an odd stride ends one sample early (its padding is uneven)."""
        length = num_frames
        for ratio in reversed(self.ratios):
            length = max(0, length * ratio - ratio % 2)
        return length


@dataclass
class MimiConfig(CodecConfig):
    """Mimi (arXiv:2410.00037) through transformers: 12.5 frames per second, one semantic and 31 acoustic codebooks.

    It was trained with any number of first codebooks; Moshi uses 8.

    Attributes:
        source: hub name or folder; null builds random weights.
        config: fields of transformers' MimiConfig, for random weights.
    """

    source: str | None = "kyutai/mimi"
    sample_rate: int = 24000
    hop: int = 1920
    num_codebooks: int = 8
    codebook_size: int = 2048
    config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_published("mimi", self, self.source)
