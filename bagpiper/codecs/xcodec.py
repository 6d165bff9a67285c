"""X-Codec through transformers: the codec of the official model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import XcodecConfig as HfXcodecConfig
from transformers import XcodecModel

from bagpiper.codecs.configs import XcodecConfig
from bagpiper.codecs.hf import (
    HfCodec,
    check_fields,
    check_promises,
    draw_codebooks,
    is_meta,
    noise,
    plain_fields,
)
from bagpiper.pretrained import load_weights

# Fields of transformers' configs that shape the model; all are kept in the portable config.
_TOP = (
    "target_bandwidths",
    "sample_rate",
    "kernel_size",
    "channel_ratios",
    "strides",
    "block_dilations",
    "unit_kernel_size",
    "codebook_size",
    "codebook_dim",
)
_PARTS = {
    "acoustic_model_config": (
        "model_type",
        "encoder_hidden_size",
        "downsampling_ratios",
        "decoder_hidden_size",
        "upsampling_ratios",
        "hidden_size",
    ),
    "semantic_model_config": (
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "layer_norm_eps",
        "feat_extract_norm",
        "feat_extract_activation",
        "feat_proj_layer_norm",
        "conv_dim",
        "conv_stride",
        "conv_kernel",
        "conv_bias",
        "num_conv_pos_embeddings",
        "num_conv_pos_embedding_groups",
        "conv_pos_batch_norm",
        "do_stable_layer_norm",
        # of WavLM, which some X-Codec models have in HuBERT's place
        "num_buckets",
        "max_bucket_distance",
        # these two decide only whether there is a tensor `masked_spec_embed`: nothing is masked outside training
        "mask_time_prob",
        "mask_feature_prob",
    ),
}


class XcodecCodec(HfCodec):
    """X-Codec (arXiv:2408.17175): HuBERT's and a convolutional encoder's states in one residual quantiser.

    Both encoders look at the whole clip (group norm and full attention), so a clip is never padded to its batch mates'
    length: with padding most of its codes change (spec section 4.3).
    """

    def __init__(self, config: XcodecConfig) -> None:
        """Load the weights that ``config.source`` names, or draw random ones.

        Raises:
            ValueError: the source cannot be read, or is not a model with the settings of the config.
        """
        super().__init__(config)
        self.model = (
            load_weights(XcodecModel, config.source, "codec.source")
            if config.source
            else _random_model(hf_config(config))
        )
        found = self.model.config
        check_promises(
            "xcodec",
            config.source,
            {
                "sample_rate": (config.sample_rate, found.sample_rate),
                "hop": (config.hop, found.hop_length),
                "codebook_size": (config.codebook_size, found.codebook_size),
            },
            (config.num_codebooks, found.num_quantizers),
        )
        self.requires_grad_(False)
        self.eval()

    def portable_config(self) -> XcodecConfig:
        """See ``Component.portable_config``."""
        return replace(self.config, source=None, config=xcodec_config(self.model.config).config)

    def to_codes(self, wave: torch.Tensor) -> torch.Tensor:
        """See ``HfCodec.to_codes``; codebooks are coded in order, so the first K do not depend on the others."""
        return self.model.encode(wave, return_dict=False)[0, : self.config.num_codebooks]

    def to_wave(self, codes: torch.Tensor) -> torch.Tensor:
        """See ``HfCodec.to_wave``."""
        return self.model.decode(codes, return_dict=False)[0, 0]


def xcodec_config(found: HfXcodecConfig) -> XcodecConfig:
    """Our config, without a source, of the model that a config of transformers (a ``config.json``) describes."""
    fields = plain_fields(found, _TOP)
    for part, names in _PARTS.items():
        fields[part] = plain_fields(getattr(found, part), names)
    return XcodecConfig(
        source=None,
        sample_rate=found.sample_rate,
        hop=found.hop_length,
        num_codebooks=found.num_quantizers,
        codebook_size=found.codebook_size,
        config=fields,
    )


def hf_config(config: XcodecConfig) -> HfXcodecConfig:
    """transformers' config of a model without a source.

    Raises:
        ValueError: fields that do not shape the model.
    """
    given = config.config or {}
    check_fields(given, (*_TOP, *_PARTS))
    for part, names in _PARTS.items():
        check_fields(given.get(part) or {}, names, f"codec.config.{part}")
    fields: dict[str, Any] = {name: dict(value) if name in _PARTS else value for name, value in given.items()}
    return HfXcodecConfig(**{"codebook_size": config.codebook_size, "sample_rate": config.sample_rate, **fields})


@torch.no_grad()
def _random_model(config: HfXcodecConfig) -> XcodecModel:
    model = XcodecModel(config).eval()
    if is_meta(model):
        return model
    heard: list[torch.Tensor] = []
    layers: Any = model.quantizer.quantizers
    hook = model.fc.register_forward_hook(lambda _module, _inputs, states: heard.append(states[0]))
    model.encode(noise(config.hop_length), return_dict=False)
    hook.remove()
    draw_codebooks([layer.codebook.embed for layer in layers], heard[0])
    return model
