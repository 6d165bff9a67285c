"""Configs of the codecs."""

from __future__ import annotations

from dataclasses import dataclass


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
    """The offline codec: residual vector quantisation of stacked log-mel frames, Griffin-Lim phase.

    Attributes:
        path: fitted codec (safetensors); null fits one to the run's own audio before training.
        num_mels: mel bands.
        window, mel_hop: of the STFT, in samples; ``hop`` is a multiple of ``mel_hop``, so many frames are stacked.
        fit_seconds: audio that codebooks are fitted to.
        griffin_lim: iterations of phase estimation.
    """

    path: str | None = None
    num_mels: int = 80
    window: int = 1024
    mel_hop: int = 160
    fit_seconds: float = 1800.0
    griffin_lim: int = 32


@dataclass
class EncodecConfig(CodecConfig):
    """EnCodec 24 kHz (arXiv:2210.13438) through transformers; equals the ``encodec`` package exactly.

    Attributes:
        source: hub name or folder; or a ``.th`` file of Meta's; null builds random weights (tests).
    """

    source: str | None = "facebook/encodec_24khz"
    sample_rate: int = 24000
    hop: int = 320
    num_codebooks: int = 8
    codebook_size: int = 1024
