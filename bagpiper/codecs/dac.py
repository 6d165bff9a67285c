"""DAC through transformers."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from transformers import DacConfig as HfDacConfig
from transformers import DacModel

from bagpiper.codecs.configs import DacConfig
from bagpiper.codecs.hf import HfCodec, check_fields, check_promises, plain_fields
from bagpiper.pretrained import load_weights

# Fields of transformers' config that shape the model; all are kept in the portable config. `hop_length` is not among
# them: the published 24 kHz config says 512, but its ratios make 320.
_ARCHITECTURE = (
    "sampling_rate",
    "encoder_hidden_size",
    "downsampling_ratios",
    "hidden_size",
    "decoder_hidden_size",
    "upsampling_ratios",
    "n_codebooks",
    "codebook_size",
    "codebook_dim",
)


class DacCodec(HfCodec):
    """DAC's encoder, the first K codebooks of its residual quantiser, and its decoder."""

    def __init__(self, config: DacConfig) -> None:
        """Load the weights that ``config.source`` names, or draw random ones.

        Raises:
            ValueError: the source cannot be read, or is not a model with the settings of the config.
        """
        super().__init__(config)
        self.model = (
            load_weights(DacModel, config.source, "codec.source") if config.source else DacModel(_hf_config(config))
        )
        found = self.model.config
        check_promises(
            "dac",
            config.source,
            {
                "sample_rate": (config.sample_rate, found.sampling_rate),
                "hop": (config.hop, math.prod(found.downsampling_ratios)),
                "codebook_size": (config.codebook_size, found.codebook_size),
                "ratios": (list(config.ratios), list(found.downsampling_ratios)),
                "ratios of the decoder": (list(config.ratios)[::-1], list(found.upsampling_ratios)),
            },
            (config.num_codebooks, found.n_codebooks),
        )
        self.requires_grad_(False)
        self.eval()

    def portable_config(self) -> DacConfig:
        """See ``Component.portable_config``."""
        return replace(self.config, source=None, config=plain_fields(self.model.config, _ARCHITECTURE))

    def to_codes(self, wave: torch.Tensor) -> torch.Tensor:
        """See ``HfCodec.to_codes``."""
        return self.model.encode(wave, n_quantizers=self.config.num_codebooks, return_dict=False)[2][0]

    def to_wave(self, codes: torch.Tensor) -> torch.Tensor:
        """See ``HfCodec.to_wave``."""
        return self.model.decode(audio_codes=codes, return_dict=False)[0][0]


def _hf_config(config: DacConfig) -> HfDacConfig:
    """transformers' config of a model without a source; what is not said follows the promises."""
    check_fields(config.config or {}, _ARCHITECTURE)
    promised = {
        "sampling_rate": config.sample_rate,
        "downsampling_ratios": list(config.ratios),
        "n_codebooks": config.num_codebooks,
        "codebook_size": config.codebook_size,
    }
    return HfDacConfig(**{**promised, **(config.config or {})})
