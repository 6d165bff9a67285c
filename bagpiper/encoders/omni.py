"""The audio towers of Qwen's Omni models, by themselves, through transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from bagpiper.component import Encoder
from bagpiper.encoders.configs import OMNI_HOP, OmniConfig
from bagpiper.encoders.omni_source import read_fields, read_tower
from bagpiper.ops.clips import split_clips
from bagpiper.ops.mel import whisper_front_end, whisper_log_mel
from bagpiper.ops.precision import full_precision

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
        with full_precision(wave.device):
            wave = wave.float()
            if self.config.normalize and len(wave):
                # 1e-7 as in transformers' zero_mean_unit_var_norm
                wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
            return whisper_log_mel(wave, self.window, self.filterbank, OMNI_HOP)

    def forward(self, waves: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Encoder.forward``."""
        clips = [self.features(wave) for wave in waves]
        heard = [clip for clip in clips if len(clip)]
        states = iter(self._encode(heard) if heard else [])
        nothing = self.window.new_zeros(0, self.config.width)
        return [next(states) if len(clip) else nothing for clip in clips]

    def _encode(self, clips: list[torch.Tensor]) -> list[torch.Tensor]:
        """Mel frames ``[L_i, num_mel_bins]``, at least one each -> states, in one call of transformers' tower."""
        mel = torch.cat(clips).T.to(next(self.tower.parameters()).dtype)
        lengths = torch.tensor([len(clip) for clip in clips], device=mel.device)
        states = self.tower(input_features=mel, feature_lens=lengths).last_hidden_state
        return split_clips(states, self._num_states(clips))

    def _num_states(self, clips: list[torch.Tensor]) -> list[int]:
        return [self.config.num_frames(len(clip) * OMNI_HOP) for clip in clips]

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

    Convolutions run over chunks of 100 mel frames, attention over windows of ``n_window_infer``. transformers fills the
    chunks of a call up to the longest, and every convolution sees what the one before made of the filling. So it is in
    the last chunk of a clip of 1 s and more, whatever its batch mates; but a shorter clip ends in the convolutions' own
    zeros when alone, and in filling beside a longer one (golden quirk 4). Here it always ends in zeros, and all clips
    share one call.
    """

    fields = (*TOWER_FIELDS, "n_window_infer", "conv_chunksize", "downsample_hidden_size")

    def _encode(self, clips: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``OmniEncoder._encode``; ``isolate: false`` leaves it to transformers."""
        if not self.config.isolate:
            return super()._encode(clips)
        tower = self.tower
        size = self.config.chunk
        chunks = [chunk for clip in clips for chunk in clip.split(size)]
        ends = [min(len(clip), size) for clip in clips for _ in range(0, len(clip), size)]
        rows = self._convolve(chunks, ends)
        counts = self._num_states(clips)
        window = self.positions(tower.config) * (tower.config.n_window_infer // size)
        sizes = [min(window, count - start) for count in counts for start in range(0, count, window)]
        # on the CPU: every layer asks for the borders as Python numbers
        borders = F.pad(torch.tensor(sizes).cumsum(0), (1, 0))
        for layer in tower.layers:
            rows = layer(rows, borders)[0]
        return split_clips(tower.proj2(tower.act(tower.proj1(tower.ln_post(rows)))), counts)

    def _convolve(self, chunks: list[torch.Tensor], ends: list[int]) -> torch.Tensor:
        """What attention sees of chunks, laid end to end.

        Args:
            chunks: mel frames ``[L_i, num_mel_bins]``.
            ends: frame of each chunk from which on every convolution sees zeros, not before ``L_i``.
        """
        tower = self.tower
        padded = pad_sequence(chunks, batch_first=True).transpose(1, 2).unsqueeze(1).to(tower.conv2d1.weight.dtype)
        counts = torch.tensor(self._num_states(chunks))
        size = tower.config.conv_chunksize  # bounds the memory of the first convolution: 6 MB a chunk
        parts = []
        for part, end, count in zip(
            padded.split(size), torch.tensor(ends).split(size), counts.split(size), strict=True
        ):
            for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
                part, end = F.gelu(convolution(part)), (end + 1) // 2
                part = part.masked_fill(~_before(end, part)[:, None, None], 0.0)
            rows = tower.conv_out(part.permute(0, 3, 1, 2).flatten(2))
            positions = tower.positional_embedding.positional_embedding[: rows.shape[1]]
            parts.append((rows + positions.to(rows.dtype))[_before(count, part)])
        return torch.cat(parts)

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


def _before(ends: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Which frames of ``rows [n, ..., T]`` come before the end of their chunk: bool ``[n, T]`` on its device."""
    return (torch.arange(rows.shape[-1]) < ends[:, None]).to(rows.device)
