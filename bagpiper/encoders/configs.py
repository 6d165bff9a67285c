"""Configs of the encoders: torch-free, with the promises that data workers and ``check`` read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WHISPER_RATE = 16000
WHISPER_HOP = 160


@dataclass
class EncoderConfig:
    """What every encoder promises."""

    sample_rate: int = 16000

    @property
    def width(self) -> int:
        """Size of a state."""
        raise NotImplementedError

    def num_frames(self, num_samples: int) -> int:
        """States that ``num_samples`` samples (at ``sample_rate``) give."""
        raise NotImplementedError


@dataclass
class MelConfig(EncoderConfig):
    """A small encoder to train from nothing: log-mel, strided convolutions, transformer layers.

    Attributes:
        num_mels: mel bands.
        window, hop: of the STFT, in samples.
        channels: width of the states.
        kernel: frames that each convolution sees.
        strides: stride of each convolution; their product times ``hop`` is the samples per state.
        layers, heads: of the transformer after the convolutions (0 layers: none).
        dropout: in the transformer.
    """

    num_mels: int = 80
    window: int = 800
    hop: int = 160
    channels: int = 192
    kernel: int = 3
    strides: tuple[int, ...] = (2, 2)
    layers: int = 0
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.hop <= self.window:
            raise ValueError(f"encoder mel: hop must be from 1 to window ({self.window}), got {self.hop}")
        if any(not 1 <= stride <= self.kernel for stride in self.strides):
            raise ValueError(
                f"encoder mel: every stride must be from 1 to kernel ({self.kernel}), got {tuple(self.strides)}; "
                "a longer stride would skip frames"
            )
        if not self.strides:
            raise ValueError("encoder mel: strides must name at least one convolution, for example [1]")
        if self.layers and self.channels % (2 * self.heads):
            raise ValueError(
                f"encoder mel: channels ({self.channels}) must be a multiple of 2 * heads ({2 * self.heads})"
            )

    @property
    def width(self) -> int:
        """Size of a state."""
        return self.channels

    def num_frames(self, num_samples: int) -> int:
        """States: ``num_samples // hop`` mel frames, then ceil division by every stride."""
        frames = num_samples // self.hop
        for stride in self.strides:
            frames = -(-frames // stride)
        return frames


@dataclass
class WhisperConfig(EncoderConfig):
    """Whisper's encoder (transformers), on the clip's own length instead of 30 s of padding.

    Attributes:
        source: hub name or folder of weights; null builds from ``config`` with random weights.
        config: fields of transformers' WhisperConfig, for random weights.
        output_width: ``d_model`` of the source, promised here so that a recipe can be checked without loading it.
    """

    source: str | None = None
    config: dict[str, Any] | None = None
    output_width: int = 384

    def __post_init__(self) -> None:
        if self.sample_rate != WHISPER_RATE:
            raise ValueError(f"encoder whisper: hears {WHISPER_RATE} Hz only, got sample_rate {self.sample_rate}")

    @property
    def width(self) -> int:
        """Size of a state."""
        return self.output_width

    def num_frames(self, num_samples: int) -> int:
        """States: 100 mel frames a second, halved by the second convolution."""
        return -(-(num_samples // WHISPER_HOP) // 2)
