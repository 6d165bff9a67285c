"""Configs of the encoders: torch-free, with the promises that data workers and ``check`` read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

WHISPER_RATE = 16000
WHISPER_HOP = 160
OMNI_RATE = 16000
OMNI_HOP = 160


_WHISPER_STATES = 1500
"""Positions of the published models: 30 s."""


@dataclass
class EncoderConfig:
    """What every encoder promises."""

    sample_rate: int = 16000

    @property
    def width(self) -> int:
        """Size of a state."""
        raise NotImplementedError

    @property
    def max_frames(self) -> int | None:
        """States that a clip may have; None where there is no limit."""
        return None

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
        floor_db: bands are not followed below this level in dB of full scale. Digital silence far below everything else
            makes the spread of a band so wide that loudness hardly shows in it.
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
    floor_db: float = -100.0

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

    @property
    def max_frames(self) -> int | None:
        """See ``EncoderConfig.max_frames``; of a source it is known when that is loaded."""
        return None if self.config is None else int(self.config.get("max_source_positions", _WHISPER_STATES))

    def num_frames(self, num_samples: int) -> int:
        """States: 100 mel frames a second, halved by the second convolution."""
        return -(-(num_samples // WHISPER_HOP) // 2)


@dataclass
class OmniConfig(EncoderConfig):
    """The audio tower of a Qwen Omni model by itself; the thinker is neither built nor read.

    Attributes:
        source: hub name or folder of an Omni model, of which only the tower's tensors are fetched and read, or a folder
            that holds a tower alone; null builds from ``config`` with random weights.
        config: fields of the tower's config in transformers, for random weights.
        output_width: ``output_dim`` of the tower, promised here so that a recipe can be checked without loading it.
        normalize: bring every clip to zero mean and unit variance before its log-mel, as the official model does and
            Qwen's own processor does not.
    """

    source: str | None = None
    config: dict[str, Any] | None = None
    output_width: int = 2048
    normalize: bool = True

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if self.sample_rate != OMNI_RATE:
            raise ValueError(f"encoder {self.kind}: hears {OMNI_RATE} Hz only, got sample_rate {self.sample_rate}")
        self.check_fields(self.config or {})

    def check_fields(self, fields: dict[str, Any]) -> None:
        """Refuse fields of a tower (the recipe's, or those found at ``source``) that break what is promised here.

        Raises:
            ValueError: they do.
        """
        found = fields.get("output_dim", self.output_width)
        if found != self.output_width:
            raise ValueError(
                f"encoder {self.kind}: the states of {self.source or 'this config'} have width {found}, the recipe "
                f"promises output_width: {self.output_width}; set output_width: {found}"
            )

    @property
    def width(self) -> int:
        """Size of a state."""
        return self.output_width


@dataclass
class Qwen3OmniConfig(OmniConfig):
    """The tower of Qwen3-Omni (spec section 3.3), which the official model hears with.

    Attributes:
        isolate: whether the states of a clip under 1 s are those of the clip alone. The official code puts all clips
            of a batch into one call, where such a clip's states depend on whether a longer one is there (golden
            quirk 4).
    """

    isolate: bool = True

    kind: ClassVar[str] = "qwen3_omni"
    chunk: ClassVar[int] = 100
    """Mel frames that the convolutions see at a time (transformers' ``2 * n_window``)."""

    def check_fields(self, fields: dict[str, Any]) -> None:
        """See ``OmniConfig.check_fields``."""
        super().check_fields(fields)
        n_window = fields.get("n_window", self.chunk // 2)
        if 2 * n_window != self.chunk:
            raise ValueError(
                f"encoder {self.kind}: n_window must be {self.chunk // 2}, got {n_window}; transformers counts "
                "13 states for every chunk, which holds for no other"
            )
        window = fields.get("n_window_infer", self.chunk)
        if window < self.chunk:
            raise ValueError(
                f"encoder {self.kind}: n_window_infer must be at least {self.chunk}, got {window}; attention reaches "
                "over whole chunks"
            )

    def num_frames(self, num_samples: int) -> int:
        """States: 13 for every whole chunk of 100 mel frames; the rest halved three times (spec section 3.2)."""
        chunks, rest = divmod(num_samples // OMNI_HOP, self.chunk)
        for _ in range(3):
            rest = (rest + 1) // 2
        return 13 * chunks + rest


@dataclass
class Qwen25OmniConfig(OmniConfig):
    """The tower of Qwen2.5-Omni, which the official code supports beside Qwen3-Omni's."""

    output_width: int = 3584
    kind: ClassVar[str] = "qwen2_5_omni"

    def num_frames(self, num_samples: int) -> int:
        """States: mel frames halved by a convolution (rounded up), then in pairs (an odd last one is dropped)."""
        return (num_samples // OMNI_HOP + 1) // 2 // 2
