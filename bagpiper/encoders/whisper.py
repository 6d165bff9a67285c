"""Whisper's encoder on clips of their own length."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from bagpiper.component import Encoder
from bagpiper.encoders.configs import WHISPER_HOP, WHISPER_RATE, WhisperConfig
from bagpiper.ops.mel import whisper_front_end, whisper_log_mel
from bagpiper.ops.precision import full_precision
from bagpiper.pretrained import load_weights

ENCODER_FIELDS = (
    "num_mel_bins",
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "max_source_positions",
    "activation_function",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "init_std",
)
"""Fields of transformers' WhisperConfig that shape the encoder."""


class WhisperEncoder(Encoder):
    """The encoder of Whisper (arXiv:2212.04356) through transformers.

    Unlike Whisper itself, which pads every clip to 30 s, a clip is heard on its own length: its log-mel, its maximum
    (Whisper clamps to 8 decades below it) and positions 0.. . Clips of equal length share one call.
    """

    window: torch.Tensor
    filterbank: torch.Tensor
    positions: torch.Tensor
    encoder: Any

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        from transformers.models.whisper.modeling_whisper import WhisperEncoder as HfWhisperEncoder

        encoder: Any = _load(config.source) if config.source else HfWhisperEncoder(_hf_config(config.config or {}))
        if encoder.config.d_model != config.output_width:
            raise ValueError(
                f"encoder whisper: states of {config.source or 'this config'} have width {encoder.config.d_model}, "
                f"the recipe promises output_width: {config.output_width}; set output_width: {encoder.config.d_model}"
            )
        if encoder.config.encoder_layerdrop:
            raise ValueError("encoder whisper: encoder_layerdrop is not supported; set it to 0")
        # A table of sines that Whisper freezes: as a buffer it is saved, and no freeze rule can switch it on.
        self.register_buffer("positions", encoder.embed_positions.weight.detach().clone())
        encoder.embed_positions = None
        self.encoder = encoder
        window, filterbank = whisper_front_end(encoder.config.num_mel_bins)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filterbank", filterbank, persistent=False)

    def portable_config(self) -> WhisperConfig:
        """See ``Component.portable_config``."""
        fields = {name: getattr(self.encoder.config, name) for name in ENCODER_FIELDS}
        return replace(self.config, source=None, config=fields)

    def reset_buffers(self) -> None:
        """See ``Component.reset_buffers``."""
        window, filterbank = whisper_front_end(self.encoder.config.num_mel_bins)
        self.window, self.filterbank = window.to(self.positions.device), filterbank.to(self.positions.device)

    def features(self, wave: torch.Tensor) -> torch.Tensor:
        """Whisper's log-mel of one clip, without padding to 30 s.

        Args:
            wave: float32 ``[N]``.

        Returns:
            float32 ``[N // 160, num_mel_bins]``.
        """
        with full_precision(wave.device):
            return whisper_log_mel(wave.float(), self.window, self.filterbank, WHISPER_HOP)

    def forward(self, waves: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Encoder.forward``.

        Raises:
            ValueError: a clip is longer than the encoder's positions reach.
        """
        limit = len(self.positions)
        by_length: dict[int, list[int]] = {}
        for index, wave in enumerate(waves):
            if self.config.num_frames(len(wave)) > limit:
                raise ValueError(
                    f"encoder whisper: a clip of {len(wave) / WHISPER_RATE:.1f} s is longer than the "
                    f"{limit * 2 * WHISPER_HOP / WHISPER_RATE:g} s that this encoder's positions reach; "
                    "lower data.max_seconds"
                )
            by_length.setdefault(len(wave) // WHISPER_HOP, []).append(index)
        states: dict[int, torch.Tensor] = {}
        for num_frames, indices in by_length.items():
            features = torch.stack([self.features(waves[index]) for index in indices])
            encoded = self._encode(features) if num_frames else features.new_zeros(len(indices), 0, self.config.width)
            states.update(zip(indices, encoded, strict=True))
        return [states[index] for index in range(len(waves))]

    def _encode(self, features: torch.Tensor) -> torch.Tensor:
        """``[B, F, mels]`` -> ``[B, ceil(F / 2), width]``, as transformers' forward but for the length."""
        dropout = self.encoder.config.dropout
        hidden = F.gelu(self.encoder.conv1(features.transpose(1, 2)))
        hidden = F.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        hidden = F.dropout(hidden + self.positions[: hidden.shape[1]], dropout, self.training)
        for layer in self.encoder.layers:
            hidden = layer(hidden, None)
        return self.encoder.layer_norm(hidden)


def _hf_config(fields: dict[str, Any]) -> Any:
    from transformers import WhisperConfig as HfWhisperConfig

    unknown = sorted(set(fields) - set(ENCODER_FIELDS))
    if unknown:
        raise ValueError(
            f"encoder whisper: unknown config fields {', '.join(unknown)}; allowed: {', '.join(ENCODER_FIELDS)}"
        )
    config = HfWhisperConfig(**fields)
    config._attn_implementation = "sdpa"
    return config


def _load(source: str) -> Any:
    """The encoder of a Whisper checkpoint, float32; the decoder is dropped."""
    from transformers import WhisperModel

    options = {"attn_implementation": "sdpa", "local_files_only": os.path.isdir(source)}
    return load_weights(WhisperModel, source, "encoder.source", part="encoder.", **options).encoder
