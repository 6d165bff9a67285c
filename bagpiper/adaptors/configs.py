"""Configs of the adaptors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class AdaptorConfig:
    """What every adaptor promises."""

    def num_frames(self, num_states: int) -> int:
        """Embeddings that ``num_states`` encoder states give."""
        return num_states


@dataclass
class LinearConfig(AdaptorConfig):
    """One affine layer, as in the official model."""


@dataclass
class MlpConfig(AdaptorConfig):
    """Frames stacked, then two layers with GELU between.

    Attributes:
        stack: neighbouring states that become one embedding; the last group is padded with zeros.
        hidden: width between the layers; null means the LLM's width.
        output_rms: where training starts the size of an embedding (RMSNorm with a learned gain); choose the size of
            the LLM's own input rows, 1 for one made from nothing. Null leaves the affine layer's, about 0.1.
    """

    stack: int = 2
    hidden: int | None = None
    output_rms: float | None = None

    def __post_init__(self) -> None:
        if self.stack < 1:
            raise ValueError(f"adaptor mlp: stack must be at least 1, got {self.stack}")
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"adaptor mlp: hidden must be at least 1, got {self.hidden}")
        if self.output_rms is not None and self.output_rms <= 0:
            raise ValueError(f"adaptor mlp: output_rms must be above 0, got {self.output_rms}")

    def num_frames(self, num_states: int) -> int:
        """Ceil division by ``stack``."""
        return -(-num_states // self.stack)


@dataclass
class ConvConfig(AdaptorConfig):
    """A strided convolution over time and GELU, then one affine layer.

    Attributes:
        kernel, stride: of the convolution; padding is ``(kernel - 1) // 2`` on the left, enough on the right.
    """

    kernel: int = 3
    stride: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.kernel:
            raise ValueError(
                f"adaptor conv: stride must be from 1 to kernel ({self.kernel}), got {self.stride}; "
                "a longer stride would skip states"
            )

    def num_frames(self, num_states: int) -> int:
        """Ceil division by ``stride``."""
        return -(-num_states // self.stride)


@dataclass
class QformerConfig(AdaptorConfig):
    """Learned queries look at windows of states: a fixed number of embeddings a second, whatever the encoder's rate.

    The window-level Q-Former of SALMONN (arXiv:2310.13289 section 3.1), without BLIP-2's text side.

    Attributes:
        window: neighbouring states that the queries see; the last window of a clip may hold fewer.
        queries: embeddings of a window.
        width: of the transformer; null means the encoder's.
        layers, heads: of the transformer; a layer is attention among the queries, then over the window, then two
            affine layers with ``4 * width`` between.
        dropout: in the transformer.
        output_rms: see ``MlpConfig``.
    """

    window: int = 8
    queries: int = 2
    width: int | None = None
    layers: int = 2
    heads: int = 4
    dropout: float = 0.0
    output_rms: float | None = None

    def __post_init__(self) -> None:
        for name in ("window", "queries", "layers", "heads", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"adaptor qformer: {name} must be at least 1, got {value}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adaptor qformer: dropout must be from 0 to below 1, got {self.dropout}")
        if self.output_rms is not None and self.output_rms <= 0:
            raise ValueError(f"adaptor qformer: output_rms must be above 0, got {self.output_rms}")

    def num_frames(self, num_states: int) -> int:
        """``queries`` for every window, a short last one included."""
        return self.queries * -(-num_states // self.window)
