"""Mimi through transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import MimiConfig as HfMimiConfig
from transformers import MimiModel
from transformers.models.mimi.modeling_mimi import MimiConv1d, MimiEuclideanCodebook, MimiRotaryEmbedding

from bagpiper.codecs.configs import MimiConfig
from bagpiper.codecs.hf import (
    HfCodec,
    check_fields,
    check_promises,
    draw_codebooks,
    is_meta,
    noise,
    plain_fields,
    reset_geometry,
)
from bagpiper.pretrained import load_weights

# Fields of transformers' config that shape the model; all are kept in the portable config.
_ARCHITECTURE = (
    "sampling_rate",
    "hidden_size",
    "num_filters",
    "num_residual_layers",
    "upsampling_ratios",
    "kernel_size",
    "last_kernel_size",
    "residual_kernel_size",
    "dilation_growth_rate",
    "use_causal_conv",
    "pad_mode",
    "compress",
    "trim_right_ratio",
    "codebook_size",
    "codebook_dim",
    "num_quantizers",
    "use_conv_shortcut",
    "vector_quantization_hidden_dimension",
    "num_semantic_quantizers",
    "upsample_groups",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "norm_eps",
    "rope_parameters",
    "sliding_window",
    "attention_bias",
)


class MimiParts(nn.Module):
    """Mimi's parts, under the names that they have in published checkpoints.

    transformers moved them between 5.14 and 5.23 (``encoder`` became ``encoder.encoder_seanet``), and a model folder
    must not depend on the version that wrote it.
    """

    def __init__(self, model: MimiModel) -> None:
        super().__init__()
        whole: Any = model
        moved = hasattr(whole.encoder, "encoder_seanet")
        hearing, speaking = (whole.encoder, whole.decoder) if moved else (whole, whole)
        self.config = model.config
        self.encoder = whole.encoder.encoder_seanet if moved else whole.encoder
        self.encoder_transformer = hearing.encoder_transformer
        self.downsample = hearing.downsample
        self.quantizer = whole.quantizer
        self.upsample = speaking.upsample
        self.decoder_transformer = speaking.decoder_transformer
        self.decoder = whole.decoder.decoder_seanet if moved else whole.decoder

    def latents(self, wave: torch.Tensor) -> torch.Tensor:
        """States ``[1, D, T]`` that are quantised, of whole hops ``[1, 1, N]``."""
        states = self.encoder(wave).transpose(1, 2)
        states = self.encoder_transformer(states).last_hidden_state
        return self.downsample(states.transpose(1, 2))

    def waves(self, latents: torch.Tensor) -> torch.Tensor:
        """Waveform ``[1, 1, N]`` of states ``[1, D, T]``."""
        states = self.upsample(latents).transpose(1, 2)
        states = self.decoder_transformer(states).last_hidden_state
        return self.decoder(states.transpose(1, 2))


class MimiCodec(HfCodec):
    """Mimi's encoder, the first K codebooks of its split residual quantiser, and its decoder.

    The model is causal, so whole hops of a clip have the same codes with and without what follows them.
    """

    def __init__(self, config: MimiConfig) -> None:
        """Load the weights that ``config.source`` names, or draw random ones.

        Raises:
            ValueError: the source cannot be read, or is not a model with the settings of the config.
        """
        super().__init__(config)
        whole = (
            load_weights(MimiModel, config.source, "codec.source") if config.source else MimiModel(_hf_config(config))
        )
        found: Any = whole.config
        check_promises(
            "mimi",
            config.source,
            {
                "sample_rate": (config.sample_rate, found.sampling_rate),
                "hop": (config.hop, found.frame_size),
                "frames per second": (config.frame_rate, found.frame_rate),
                "codebook_size": (config.codebook_size, found.codebook_size),
                "channels": (1, found.audio_channels),
                "look-ahead": (False, not found.use_causal_conv),
                "rotary positions": ("default", found.rope_parameters["rope_type"]),
            },
            (config.num_codebooks, found.num_quantizers),
        )
        if config.num_codebooks < found.num_semantic_quantizers:
            raise ValueError(f"codec mimi: num_codebooks must be at least {found.num_semantic_quantizers}")
        self.model = MimiParts(whole)
        if config.source is None and not is_meta(self.model):
            _draw(self.model)
        self.requires_grad_(False)
        self.eval()

    def portable_config(self) -> MimiConfig:
        """See ``Component.portable_config``."""
        return replace(self.config, source=None, config=plain_fields(self.model.config, _ARCHITECTURE))

    def reset_buffers(self) -> None:
        """See ``Component.reset_buffers``: geometry of the convolutions and rotary frequencies."""
        reset_geometry(self.model, MimiConv1d)
        device = next(self.parameters()).device
        for module in self.model.modules():
            if isinstance(module, MimiRotaryEmbedding):
                frequencies = MimiRotaryEmbedding.compute_default_rope_parameters(module.config)[0].to(device)
                module.register_buffer("inv_freq", frequencies, persistent=False)
                module.register_buffer("original_inv_freq", frequencies.clone(), persistent=False)

    def to_codes(self, wave: torch.Tensor) -> torch.Tensor:
        """See ``HfCodec.to_codes``."""
        self._forget()
        return self.model.quantizer.encode(self.model.latents(wave), self.config.num_codebooks)[:, 0]

    def to_wave(self, codes: torch.Tensor) -> torch.Tensor:
        """See ``HfCodec.to_wave``."""
        self._forget()
        return self.model.waves(self.model.quantizer.decode(codes))[0, 0]

    def _forget(self) -> None:
        """Have the codebooks computed from their buffers again.

        transformers keeps the quotient of two buffers in an attribute that follows neither a load nor a device.
        """
        for module in self.model.quantizer.modules():
            if isinstance(module, MimiEuclideanCodebook):
                module._embed = None


@torch.no_grad()
def _draw(parts: MimiParts) -> None:
    """Random codebooks; the semantic quantiser and the acoustic one both see the states themselves."""
    latents = parts.latents(noise(parts.config.frame_size))
    for quantizer in (
        parts.quantizer.semantic_residual_vector_quantizer,
        parts.quantizer.acoustic_residual_vector_quantizer,
    ):
        states = latents if quantizer.input_proj is None else quantizer.input_proj(latents)
        draw_codebooks([layer.codebook.embed_sum for layer in quantizer.layers], states[0].T)


def _hf_config(config: MimiConfig) -> HfMimiConfig:
    """transformers' config of a model without a source."""
    check_fields(config.config or {}, _ARCHITECTURE)
    promised = {"sampling_rate": config.sample_rate, "codebook_size": config.codebook_size}
    return HfMimiConfig(**{**promised, **(config.config or {})})
