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
        rates = (self.config or {}).get("target_bandwidths", XCODEC_RATES)
        bits = math.ceil(math.log2(self.codebook_size)) * math.ceil(self.frame_rate)
        books = [max(1, int(1000 * rate // bits)) for rate in rates]
        if self.num_codebooks not in books:
            raise ValueError(
                f"codec xcodec: num_codebooks must be one of {', '.join(map(str, books))}, got {self.num_codebooks}"
            )
