"""The audio towers of Qwen's Omni models, by themselves, through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from bagpiper.component import Encoder
from bagpiper.encoders.configs import OMNI_HOP, OmniConfig
from bagpiper.encoders.omni_source import read_fields, read_tower
from bagpiper.ops.clips import split_clips
from bagpiper.ops.mel import whisper_front_end, whisper_log_mel

TOWER_FIELDS = (
    "num_mel_bins",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "d_model",
    "dropout",
    "attention_dropout",
    "activation_function",
    "activation_dropout",
    "scale_embedding",
    "initializer_range",
    "max_source_positions",
    "n_window",
    "output_dim",
)
"""Fields of transformers' config that shape both towers."""


class OmniEncoder(Encoder):
    """What the towers share: the official front end, construction without the rest of the Omni model, and packing.

    Attributes:
        tower: transformers' module; the names of its tensors are those of the Omni checkpoints.
    """

    window: torch.Tensor
    filterbank: torch.Tensor
    tower: Any
    fields: ClassVar[tuple[str, ...]] = TOWER_FIELDS

    def __init__(self, config: OmniConfig) -> None:
        """Build the tower, with the weights of ``config.source`` or random ones; on the meta device with none.

        Raises:
            ValueError: the source cannot be read, or is not the tower that the config promises.
        """
        super().__init__(config)
        is_meta = torch.empty(0).device.type == "meta"
        if config.source is None:
            self.tower = self._build(config.config or {})
        elif is_meta:
            self.tower = self._build(read_fields(config.source, self.fields))
        else:
            fields, tensors = read_tower(config.source, self.fields)
            with torch.device("meta"):
                self.tower = self._build(fields)
            self._fill(tensors)
        window, filterbank = whisper_front_end(self.tower.config.num_mel_bins)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filterbank", filterbank, persistent=False)
        if not is_meta:
            self.reset_buffers()

    def portable_config(self) -> OmniConfig:
        """See ``Component.portable_config``."""
        return replace(self.config, source=None, config={n: getattr(self.tower.config, n) for n in self.fields})

    def reset_buffers(self) -> None:
        """See ``Component.reset_buffers``."""
        device = next(self.tower.parameters()).device
        window, filterbank = whisper_front_end(self.tower.config.num_mel_bins)
        self.window, self.filterbank = window.to(device), filterbank.to(device)
        positions = self.tower.positional_embedding
        with torch.device("cpu"):
            positions.positional_embedding = positions.compute_default_singular_positional_embedding().to(device)

    def features(self, wave: torch.Tensor) -> torch.Tensor:
        """The official log-mel of one clip (spec section 3.1); float32 whatever the precision of the run.

        Args:
            wave: float32 ``[N]``.

        Returns:
            float32 ``[N // 160, num_mel_bins]``.
        """
        with torch.autocast(wave.device.type, enabled=False):
            wave = wave.float()
            if self.config.normalize and len(wave):
                # 1e-7 as in transformers' zero_mean_unit_var_norm
                wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
            return whisper_log_mel(wave, self.window, self.filterbank, OMNI_HOP)

    def forward(self, waves: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Encoder.forward``."""
        clips = [self.features(wave) for wave in waves]
        states: dict[int, torch.Tensor] = {}
        for group in self.groups([len(clip) for clip in clips]):
            states.update(zip(group, self._encode([clips[index] for index in group]), strict=True))
        nothing = self.window.new_zeros(0, self.config.width)
        return [states.get(index, nothing) for index in range(len(waves))]

    def groups(self, num_mel_frames: Sequence[int]) -> list[list[int]]:
        """Which clips share a call of the tower; clips without a frame are left out."""
        heard = [index for index, length in enumerate(num_mel_frames) if length]
        return [heard] if heard else []

    def _encode(self, clips: list[torch.Tensor]) -> list[torch.Tensor]:
        """Mel frames ``[L_i, num_mel_bins]`` -> states, in one call."""
        parameter = next(self.tower.parameters())
        mel = torch.cat(clips).T.to(parameter.dtype)
        lengths = torch.tensor([len(clip) for clip in clips], device=mel.device)
        states = self.tower(input_features=mel, feature_lens=lengths).last_hidden_state
        return split_clips(states, [self.config.num_frames(len(clip) * OMNI_HOP) for clip in clips])

    def _build(self, fields: dict[str, Any]) -> Any:
        """The tower of a config, with random weights."""
        kind = self.config.kind
        unknown = sorted(set(fields) - set(self.fields))
        if unknown:
            raise ValueError(
                f"encoder {kind}: unknown config fields {', '.join(unknown)}; allowed: {', '.join(self.fields)}"
            )
        fields = {"output_dim": self.config.output_width, **fields}
        self.config.check_fields(fields)
        config_class, tower_class = self.classes()
        config = config_class(**fields)
        config._attn_implementation = "sdpa"
        if config.max_source_positions < self.positions(config):
            raise ValueError(
                f"encoder {kind}: config.max_source_positions is {config.max_source_positions}, but a chunk has "
                f"{self.positions(config)} positions"
            )
        return tower_class(config)

    def _fill(self, tensors: dict[str, torch.Tensor]) -> None:
        own = self.tower.state_dict()
        differing = sorted(set(own) ^ set(tensors)) + sorted(
            name for name in set(own) & set(tensors) if own[name].shape != tensors[name].shape
        )
        if differing:
            shown = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
            raise ValueError(
                f"encoder {self.config.kind}: these tensors of {self.config.source} are missing, unknown or of another "
                f"shape than its config says: {shown}"
            )
        self.tower.load_state_dict(tensors, assign=True)

    @staticmethod
    def classes() -> tuple[Any, Any]:
        """transformers' config and tower."""
        raise NotImplementedError

    @staticmethod
    def positions(config: Any) -> int:
        """Positions that a whole chunk takes; they restart in every chunk."""
        raise NotImplementedError


class Qwen3OmniEncoder(OmniEncoder):
    """The AuT tower of Qwen3-Omni (spec section 3.3).

    Convolutions run over chunks of 100 mel frames that are padded to the longest chunk of a call. Alone, a clip under
    1 s ends in the convolutions' own zeros; beside a longer one it ends in 100 frames of what the convolutions make of
    zeros (golden quirk 4). So clips of 100 frames and more share a call, and shorter ones only with their equals,
    unless ``isolate: false`` asks for the official states.
    """

    fields = (*TOWER_FIELDS, "n_window_infer", "conv_chunksize", "downsample_hidden_size")

    def groups(self, num_mel_frames: Sequence[int]) -> list[list[int]]:
        """See ``OmniEncoder.groups``."""
        if not self.config.isolate:
            return super().groups(num_mel_frames)
        groups: dict[int, list[int]] = {}
        for index, length in enumerate(num_mel_frames):
            if length:
                groups.setdefault(min(length, self.config.chunk), []).append(index)
        return list(groups.values())

    @staticmethod
    def classes() -> tuple[Any, Any]:
        """See ``OmniEncoder.classes``."""
        from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as configuration
        from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as modeling

        return configuration.Qwen3OmniMoeAudioEncoderConfig, modeling.Qwen3OmniMoeAudioEncoder

    @staticmethod
    def positions(config: Any) -> int:
        """See ``OmniEncoder.positions``."""
        return 13


class Qwen25OmniEncoder(OmniEncoder):
    """The tower of Qwen2.5-Omni; it masks its own padding, so all clips share one call."""

    @staticmethod
    def classes() -> tuple[Any, Any]:
        """See ``OmniEncoder.classes``."""
        from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as configuration
        from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as modeling

        return configuration.Qwen2_5OmniAudioEncoderConfig, modeling.Qwen2_5OmniAudioEncoder

    @staticmethod
    def positions(config: Any) -> int:
        """See ``OmniEncoder.positions``."""
        return int(config.n_window)
