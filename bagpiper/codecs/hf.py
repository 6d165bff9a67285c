"""What the codecs that run through transformers have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bagpiper.codecs.checks import check_codes, check_wave
from bagpiper.component import Codec
from bagpiper.ops.precision import full_precision

# Noise that random codebooks are drawn by: enough frames for a mean and a deviation.
_NOISE_FRAMES = 50


class HfCodec(Codec):
    """A codec of transformers: every clip by itself, whole hops of it, float32 outside autocast.

    Attributes:
        model: the module of transformers, its state dict under the names that transformers gives it.
    """

    model: Any

    @torch.no_grad()
    def encode(self, waves: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Codec.encode``.

        Raises:
            ValueError: a waveform is not one channel of finite numbers.
        """
        return [self._encode_clip(wave) for wave in waves]

    @torch.no_grad()
    def decode(self, codes: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Codec.decode``.

        Raises:
            ValueError: codes have another shape or lie out of range.
        """
        return [self._decode_clip(clip) for clip in codes]

    def to_codes(self, wave: torch.Tensor) -> torch.Tensor:
        """Codes ``[K, T]`` of whole hops ``[1, 1, N]``."""
        raise NotImplementedError

    def to_wave(self, codes: torch.Tensor) -> torch.Tensor:
        """Waveform ``[N]`` of codes ``[1, K, T]``."""
        raise NotImplementedError

    def _encode_clip(self, wave: torch.Tensor) -> torch.Tensor:
        device = next(self.parameters()).device
        num_frames = self.config.num_frames(len(check_wave(wave)))
        if num_frames == 0:
            return torch.zeros(0, self.config.num_codebooks, dtype=torch.int64, device=device)
        whole = wave[: num_frames * self.config.hop].to(device, torch.float32)
        with full_precision(device):
            codes = self.to_codes(whole[None, None]).T.contiguous()
        assert codes.shape == (num_frames, self.config.num_codebooks), codes.shape
        return codes

    def _decode_clip(self, codes: torch.Tensor) -> torch.Tensor:
        device = next(self.parameters()).device
        codes = check_codes(codes, self.config.num_codebooks, self.config.codebook_size).to(device)
        if len(codes) == 0:
            return torch.zeros(0, device=device)
        with full_precision(device):
            wave = self.to_wave(codes.T[None])
        assert len(wave) == self.config.num_samples(len(codes)), wave.shape
        return wave


def check_promises(
    name: str, source: str | None, facts: Mapping[str, tuple[Any, Any]], num_codebooks: tuple[int, int]
) -> None:
    """Refuse a model that breaks what the config promises to the rest of the house.

    Args:
        name: of the codec.
        source: where the model is from.
        facts: name of a promise -> (promised, found).
        num_codebooks: (promised, found); the model may have more.

    Raises:
        ValueError: some differ; the message says what to put into the recipe.
    """
    wrong = [f"{key} {found} (not {promised})" for key, (promised, found) in facts.items() if promised != found]
    if num_codebooks[0] > num_codebooks[1]:
        wrong.append(f"{num_codebooks[1]} codebooks (not {num_codebooks[0]})")
    if wrong:
        raise ValueError(f"codec {name}: {source or 'the model'} has {', '.join(wrong)}; correct the recipe")


def check_fields(given: Mapping[str, Any], known: Sequence[str], where: str = "codec.config") -> None:
    """Refuse fields of a model's config that are not known to shape it.

    Raises:
        ValueError: there are such fields.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown fields {', '.join(unknown)}; known: {', '.join(known)}")


def plain_fields(config: Any, names: Sequence[str]) -> dict[str, Any]:
    """Fields that a config of transformers has, as they come back from YAML and JSON (tuples as lists)."""
    values = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def is_meta(model: nn.Module) -> bool:
    """Whether a model is being built on the meta device, where nothing can be drawn."""
    return next(model.parameters()).is_meta


@torch.no_grad()
def draw_codebooks(codebooks: Sequence[torch.Tensor], states: torch.Tensor) -> None:
    """Random codebooks of a residual quantiser that spread over what a random encoder gives.

    transformers leaves them at zero, which makes every code 0; and no fixed size would do, for the states of random
    encoders of different sizes differ by a factor of 10,000.

    Args:
        codebooks: ``[C, D]`` each; filled in place.
        states: ``[N, D]``, what the encoder gives for ``noise``.
    """
    residual = states
    for codebook in codebooks:
        codebook.copy_(residual.mean(0) + residual.std(0) * torch.randn_like(codebook))
        residual = residual - codebook[torch.cdist(residual, codebook).argmin(-1)]


def noise(hop: int) -> torch.Tensor:
    """White noise ``[1, 1, N]`` to draw codebooks by."""
    return 0.1 * torch.randn(1, 1, _NOISE_FRAMES * hop)


def reset_geometry(model: nn.Module, kind: type[nn.Module]) -> None:
    """Fill the buffers in which causal convolutions of transformers keep their geometry, and which no file carries.

    Args:
        model: the model.
        kind: class of the convolutions; each has the real one as ``conv``.
    """
    device = next(model.parameters()).device
    for module in model.modules():
        if isinstance(module, kind):
            conv: Any = module.conv
            reach = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
            geometry = {"stride": conv.stride[0], "kernel_size": reach, "padding_total": reach - conv.stride[0]}
            for name, value in geometry.items():
                module.register_buffer(name, torch.tensor(value, device=device), persistent=False)
