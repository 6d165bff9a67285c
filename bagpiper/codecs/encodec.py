"""EnCodec 24 kHz through transformers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import EncodecConfig as HfEncodecConfig
from transformers import EncodecModel
from transformers.models.encodec.modeling_encodec import EncodecConv1d

from bagpiper.codecs.configs import EncodecConfig
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
from bagpiper.errors import brief, reason
from bagpiper.pretrained import fault_of, load_weights

# Names in Meta's checkpoints -> names in transformers; all 252 tensors of the 24 kHz model map.
_RENAMINGS = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(?:conv\.conv|convtr\.convtr)\.", ".conv."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
)
# Fields of transformers' config that shape the model; kept in the portable config where they are not the default.
_ARCHITECTURE = (
    "target_bandwidths",
    "hidden_size",
    "num_filters",
    "num_residual_layers",
    "upsampling_ratios",
    "norm_type",
    "kernel_size",
    "last_kernel_size",
    "residual_kernel_size",
    "dilation_growth_rate",
    "use_causal_conv",
    "pad_mode",
    "compress",
    "num_lstm_layers",
    "trim_right_ratio",
    "codebook_size",
    "codebook_dim",
    "use_conv_shortcut",
)


class EncodecCodec(HfCodec):
    """EnCodec's encoder, the first K codebooks of its residual quantiser, and its decoder.

    The model is causal, so whole hops of a clip have the same codes with and without what follows them.
    """

    def __init__(self, config: EncodecConfig) -> None:
        """Load the weights that ``config.source`` names, or draw random ones.

        Raises:
            ValueError: the source cannot be read, or is not a model with the settings of the config.
        """
        super().__init__(config)
        source = config.source
        if source is None:
            self.model = _random_model(_hf_config(config))
        elif source.endswith(".th"):
            self.model = _read_meta(Path(source), _hf_config(config))
        else:
            self.model = load_weights(EncodecModel, source, "codec.source")
        found = self.model.config
        check_promises(
            "encodec",
            source,
            {
                "sample_rate": (config.sample_rate, found.sampling_rate),
                "hop": (config.hop, found.hop_length),
                "codebook_size": (config.codebook_size, found.codebook_size),
            },
            (config.num_codebooks, found.num_quantizers),
        )
        _check_kind(source, found)
        self.requires_grad_(False)
        self.eval()

    def portable_config(self) -> EncodecConfig:
        """See ``Component.portable_config``."""
        plain = HfEncodecConfig(sampling_rate=self.config.sample_rate)
        usual, found = plain_fields(plain, _ARCHITECTURE), plain_fields(self.model.config, _ARCHITECTURE)
        other = {name: value for name, value in found.items() if value != usual[name]}
        return replace(self.config, source=None, config=other or None)

    def reset_buffers(self) -> None:
        """See ``Component.reset_buffers``: the convolutions keep their geometry in buffers that no file carries."""
        reset_geometry(self.model, EncodecConv1d)

    def to_codes(self, wave: torch.Tensor) -> torch.Tensor:
        """See ``HfCodec.to_codes``."""
        residual = self.model.encoder(wave)
        codes = []
        layers: list[Any] = list(self.model.quantizer.layers)
        for layer in layers[: self.config.num_codebooks]:
            codes.append(layer.encode(residual))
            residual = residual - layer.decode(codes[-1])
        return torch.cat(codes)

    def to_wave(self, codes: torch.Tensor) -> torch.Tensor:
        """See ``HfCodec.to_wave``."""
        return self.model.decoder(self.model.quantizer.decode(codes.transpose(0, 1)))[0, 0]


def meta_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of Meta's checkpoint under transformers' names."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, new in _RENAMINGS:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


def _hf_config(config: EncodecConfig) -> HfEncodecConfig:
    check_fields(config.config or {}, _ARCHITECTURE)
    return HfEncodecConfig(**{"codebook_size": config.codebook_size, **(config.config or {})})


@torch.no_grad()
def _random_model(hf_config: HfEncodecConfig) -> EncodecModel:
    """A model with random weights whose codes follow the waveform.

    Beside random biases (0.03) the output of a random encoder hardly moves (0.0007), so they are zero.
    """
    model = EncodecModel(hf_config)
    if is_meta(model):
        return model
    for name, parameter in model.encoder.named_parameters():
        if "bias" in name:
            parameter.zero_()
    layers: Any = model.quantizer.layers
    draw_codebooks([layer.codebook.embed for layer in layers], model.encoder(noise(hf_config.hop_length))[0].T)
    return model


def _read_meta(path: Path, hf_config: HfEncodecConfig) -> EncodecModel:
    """The model of Meta's own checkpoint (``encodec_24khz-d7cc33bc.th``)."""
    if not path.is_file():
        raise ValueError(f"codec.source: there is no file {brief(path)}")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        fault = fault_of(path) or f"is not a checkpoint of tensors only ({reason(error)})"
        raise ValueError(f"codec.source: {brief(path)} {fault}") from error
    tensors = tensors.get("best_state", tensors)
    model = EncodecModel(hf_config)
    try:
        model.load_state_dict(meta_names(tensors))
    except RuntimeError as error:
        raise ValueError(
            f"codec.source: {brief(path)} is not EnCodec 24 kHz as Meta publishes it ({reason(error)})"
        ) from error
    return model


def _check_kind(name: str | None, found: HfEncodecConfig) -> None:
    """Refuse models of another kind than EnCodec 24 kHz."""
    if found.audio_channels != 1 or found.normalize or found.chunk_length_s is not None or not found.use_causal_conv:
        raise ValueError(
            f"codec encodec: {name or 'the model'} has more than one channel, chunks or look-ahead "
            "(only models like EnCodec 24 kHz are supported); correct the recipe"
        )
