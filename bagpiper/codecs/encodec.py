"""EnCodec 24 kHz through transformers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import EncodecConfig as HfEncodecConfig
from transformers import EncodecModel
from transformers.models.encodec.modeling_encodec import EncodecConv1d, EncodecEuclideanCodebook

from bagpiper.codecs.checks import check_codes, check_wave
from bagpiper.codecs.configs import EncodecConfig
from bagpiper.component import Codec

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


class EncodecCodec(Codec):
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
            self.model = _from_transformers(source)
        _check_promises(config, self.model.config)
        self.requires_grad_(False)
        self.eval()

    def portable_config(self) -> EncodecConfig:
        """See ``Component.portable_config``."""
        plain = HfEncodecConfig(sampling_rate=self.config.sample_rate)
        found = {name: _plain(getattr(self.model.config, name)) for name in _ARCHITECTURE}
        other = {name: value for name, value in found.items() if value != _plain(getattr(plain, name))}
        return replace(self.config, source=None, config=other or None)

    def reset_buffers(self) -> None:
        """See ``Component.reset_buffers``: the convolutions keep their geometry in buffers that no file carries."""
        device = next(self.parameters()).device
        for module in self.model.modules():
            if isinstance(module, EncodecConv1d):
                conv = module.conv
                reach = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
                geometry = {"stride": conv.stride[0], "kernel_size": reach, "padding_total": reach - conv.stride[0]}
                for name, value in geometry.items():
                    module.register_buffer(name, torch.tensor(value, device=device), persistent=False)

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

    def _encode_clip(self, wave: torch.Tensor) -> torch.Tensor:
        device = next(self.parameters()).device
        num_frames = self.config.num_frames(len(check_wave(wave)))
        if num_frames == 0:
            return torch.zeros(0, self.config.num_codebooks, dtype=torch.int64, device=device)
        with torch.autocast(device.type, enabled=False):
            whole = wave[: num_frames * self.config.hop].to(device, torch.float32)
            residual = self.model.encoder(whole[None, None])
            codes = []
            layers: list[Any] = list(self.model.quantizer.layers)
            for layer in layers[: self.config.num_codebooks]:
                codes.append(layer.encode(residual))
                residual = residual - layer.decode(codes[-1])
        result = torch.cat(codes).T.contiguous()
        assert result.shape == (num_frames, self.config.num_codebooks), result.shape
        return result

    def _decode_clip(self, codes: torch.Tensor) -> torch.Tensor:
        device = next(self.parameters()).device
        codes = check_codes(codes, self.config.num_codebooks, self.config.codebook_size).to(device)
        if len(codes) == 0:
            return torch.zeros(0, device=device)
        with torch.autocast(device.type, enabled=False):
            wave = self.model.decoder(self.model.quantizer.decode(codes.T[:, None]))[0, 0]
        assert len(wave) == self.config.num_samples(len(codes)), wave.shape
        return wave


def meta_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of Meta's checkpoint under transformers' names."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, new in _RENAMINGS:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


def _plain(value: Any) -> Any:
    """Tuples as lists, as they come back from YAML."""
    return list(value) if isinstance(value, (list, tuple)) else value


def _hf_config(config: EncodecConfig) -> HfEncodecConfig:
    unknown = sorted(set(config.config or {}) - set(_ARCHITECTURE))
    if unknown:
        raise ValueError(f"codec.config has unknown fields {', '.join(unknown)}; known: {', '.join(_ARCHITECTURE)}")
    return HfEncodecConfig(**{"codebook_size": config.codebook_size, **(config.config or {})})


@torch.no_grad()
def _random_model(hf_config: HfEncodecConfig) -> EncodecModel:
    """A model with random weights whose codes follow the waveform.

    transformers leaves codebooks at zero, which makes every code 0. Beside random biases (0.03) the output of a random
    encoder hardly moves (0.0007), which would make all frames alike; so they are zero, and codebooks of that size.
    """
    model = EncodecModel(hf_config)
    for name, parameter in model.encoder.named_parameters():
        if "bias" in name:
            parameter.zero_()
    for module in model.modules():
        if isinstance(module, EncodecEuclideanCodebook):
            module.embed.normal_(std=0.001)
    return model


def _read_meta(path: Path, hf_config: HfEncodecConfig) -> EncodecModel:
    """The model of Meta's own checkpoint (``encodec_24khz-d7cc33bc.th``)."""
    if not path.is_file():
        raise ValueError(f"codec.source: there is no file {path}")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"codec.source: {path} is not a checkpoint of tensors only ({error})") from error
    tensors = tensors.get("best_state", tensors)
    model = EncodecModel(hf_config)
    try:
        model.load_state_dict(meta_names(tensors))
    except RuntimeError as error:
        raise ValueError(f"codec.source: {path} is not EnCodec 24 kHz as Meta publishes it ({error})") from error
    return model


def _from_transformers(source: str) -> EncodecModel:
    try:
        return EncodecModel.from_pretrained(source, dtype=torch.float32)
    except OSError as error:
        raise ValueError(
            f"codec.source: cannot load '{source}' ({error}); name a folder, a .th file of Meta's, "
            "or use the codec rvq, which needs no download"
        ) from error


def _check_promises(config: EncodecConfig, found: HfEncodecConfig) -> None:
    """Refuse a model that breaks what the config promises to the rest of the house."""
    facts = {
        "sample_rate": (config.sample_rate, found.sampling_rate),
        "hop": (config.hop, found.hop_length),
        "codebook_size": (config.codebook_size, found.codebook_size),
    }
    wrong = [f"{name} {real} (not {said})" for name, (said, real) in facts.items() if said != real]
    if found.audio_channels != 1 or found.normalize or found.chunk_length_s is not None or not found.use_causal_conv:
        wrong.append("more than one channel, chunks or look-ahead (only models like EnCodec 24 kHz are supported)")
    if config.num_codebooks > found.num_quantizers:
        wrong.append(f"{found.num_quantizers} codebooks (not {config.num_codebooks})")
    if wrong:
        raise ValueError(f"codec encodec: {config.source or 'the model'} has {'; '.join(wrong)}; correct the recipe")
