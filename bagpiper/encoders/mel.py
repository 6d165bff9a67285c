"""A small encoder to train from nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from bagpiper.component import Encoder
from bagpiper.encoders.configs import MelConfig
from bagpiper.ops.clips import split_clips, strided_windows
from bagpiper.ops.mel import log_mel, mel_filterbank
from bagpiper.ops.precision import full_precision


class MelEncoder(Encoder):
    """Log-mel frames, strided convolutions with GELU, transformer layers, LayerNorm.

    The log-mel is scaled by fixed numbers, never by the clip's own level, so loudness stays visible. The front end is
    float32 whatever the precision of the run.
    """

    window: torch.Tensor
    filterbank: torch.Tensor
    band_mean: torch.Tensor
    band_std: torch.Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__(config)
        # log10 power from -10 (digital silence) to 0; without calibration, numbers that suit speech and music
        self.register_buffer("band_mean", torch.full((config.num_mels,), -5.0))
        self.register_buffer("band_std", torch.full((config.num_mels,), 2.0))
        window, filterbank = _front_end(config)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filterbank", filterbank, persistent=False)
        widths = [config.num_mels] + [config.channels] * (len(config.strides) - 1)
        # a convolution is one matrix product over the windows of all clips, see ops/clips.py
        self.convolutions = nn.ModuleList(nn.Linear(config.kernel * width, config.channels) for width in widths)
        self.layers = nn.ModuleList(
            TransformerLayer(config.channels, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.channels)

    def reset_buffers(self) -> None:
        """See ``Component.reset_buffers``."""
        device = self.norm.weight.device
        window, filterbank = _front_end(self.config)
        self.window, self.filterbank = window.to(device), filterbank.to(device)

    @torch.no_grad()
    def calibrate(self, waves: Iterable[torch.Tensor]) -> None:
        """Take mean and deviation of every band from clips ``[N_i]`` of the training set, before training.

        The states of an encoder made from nothing otherwise differ by a few percent of what they have in common, and
        the LLM hears nothing for thousands of steps.
        """
        frames = torch.cat([self.log_mel(wave) for wave in waves])
        assert len(frames) > 1, "calibration needs audio"
        self.band_mean.copy_(frames.mean(0))
        self.band_std.copy_(frames.std(0).clamp(min=0.1))

    def log_mel(self, wave: torch.Tensor) -> torch.Tensor:
        """log10 of the power of every band: float32 ``[N]`` -> ``[N // hop, num_mels]``."""
        floor = 10.0 ** (self.config.floor_db / 10.0)
        return log_mel(wave.float(), self.window, self.filterbank, self.config.hop, floor)

    def features(self, wave: torch.Tensor) -> torch.Tensor:
        """Scaled log-mel frames of one clip.

        Args:
            wave: float32 ``[N]``.

        Returns:
            float32 ``[N // hop, num_mels]``, standardised by numbers that are the same for every clip.
        """
        with full_precision(wave.device):
            return (self.log_mel(wave) - self.band_mean) / self.band_std

    def forward(self, waves: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Encoder.forward``."""
        if not waves:
            return []
        clips = [self.features(wave) for wave in waves]
        left = (self.config.kernel - 1) // 2
        for convolution, stride in zip(self.convolutions, self.config.strides, strict=True):
            windows, lengths = strided_windows(clips, self.config.kernel, stride, left)
            rows = F.gelu(convolution(windows))
            clips = split_clips(rows, lengths)
        if len(self.layers):
            table = _sinusoids(max(lengths), self.config.channels, rows.device)
            rows = rows + torch.cat([table[:length] for length in lengths]).to(rows.dtype)
        for layer in self.layers:
            rows = layer(rows, lengths)
        return split_clips(self.norm(rows), lengths)


class TransformerLayer(nn.Module):
    """A pre-norm transformer layer over clips laid end to end; attention stays inside a clip."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, rows: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """``[sum F_i, C]`` -> the same shape."""
        rows = rows + self._drop(self.mix(self._attend(self.qkv(self.attention_norm(rows)), lengths)))
        hidden = F.gelu(self.expand(self.feed_forward_norm(rows)))
        return rows + self._drop(self.contract(hidden))

    def _attend(self, qkv: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        dropout = self.dropout if self.training else 0.0
        mixed = []
        # one call per clip: a dense mask costs more, and lets a NaN cross (a weight of zero times NaN is NaN)
        for clip in qkv.split(lengths):
            parts = clip.view(len(clip), 3, self.heads, self.mix.in_features // self.heads).permute(1, 2, 0, 3)
            attended = F.scaled_dot_product_attention(parts[0][None], parts[1][None], parts[2][None], dropout_p=dropout)
            mixed.append(attended[0].transpose(0, 1).flatten(1))
        return torch.cat(mixed)

    def _drop(self, rows: torch.Tensor) -> torch.Tensor:
        return F.dropout(rows, self.dropout, self.training)


def _front_end(config: MelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Window (scaled so that a full-scale sine reads power 1) and filterbank, on the CPU."""
    window = torch.hann_window(config.window, device="cpu")
    filterbank = mel_filterbank(config.num_mels, config.window, config.sample_rate, norm="peak")
    return window * (2.0 / window.sum()), filterbank


def _sinusoids(length: int, width: int, device: torch.device) -> torch.Tensor:
    """Sinusoidal positions ``[length, width]`` (arXiv:1706.03762 section 3.5)."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
