"""The offline codec: gain-shape vector quantisation of log-mel spectra, fitted in under a minute, no download."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from bagpiper.codecs.checks import check_codes, check_wave
from bagpiper.codecs.configs import RvqConfig
from bagpiper.codecs.kmeans import kmeans, nearest_centroids
from bagpiper.codecs.vocoder import MelVocoder
from bagpiper.component import Codec
from bagpiper.errors import brief, reason
from bagpiper.ops.precision import full_precision
from bagpiper.pretrained import fault_of

_FORMAT = "bagpiper-rvq-1"
# A frame's level in dBFS is not followed below this.
_QUIETEST_DB = -80.0
# A band's level relative to its spectrum is kept as it is down to the knee and then compressed, down to the floor:
# what lies under louder bands is hardly heard, and would take most of the codes.
_KNEE_DB, _COMPRESSION, _FLOOR_DB = -30.0, 3.0, -60.0
# Squared errors of a band that lies x dB (as compressed above) under the loudest band of the frame count 10^(-x / 50).
# On 80 soundscapes at 25 frames/s x 4 x 256, in one plain residual quantiser, this raised the share of facts that
# survive from 92.2 % to 98.6 %; 10^(-x / 33) and 10^(-x / 20) gave 96.4 % and 94.8 %.
_WEIGHT_SLOPE = 0.2
# Frames that codebooks are fitted to: enough for 8 x 1024 codes in 40 s on one core.
_FRAMES_PER_CODE, _MOST_FRAMES = 120, 24_000
_LN_10 = math.log(10.0)
_IDENTITY = ("sample_rate", "hop", "num_codebooks", "codebook_size", "num_mels", "window", "mel_hop")

Progress = Callable[[int, int], None]
_LOG = logging.getLogger(__name__)


class RvqCodec(Codec):
    """Log-mel spectra of a frame -> a code for their levels, and a code per residual stage for their shape.

    Codebook 0 quantises the levels in dB of the frame's ``stack`` spectra, so loudness, onsets and gaps survive
    whatever happens to the rest (a clip's level errs by 0.2 dB; with one residual quantiser of the whole by 1 dB). The
    others quantise the spectra relative to their level, each what the ones before left over. After decoding, spectra
    are scaled to the decoded levels exactly.

    State lives in buffers, so a state dict or a safetensors file holds the codec.
    """

    levels: torch.Tensor
    shapes: torch.Tensor
    fitted: torch.Tensor

    def __init__(self, config: RvqConfig) -> None:
        """Build the codec, unfitted unless ``config.path`` names a fitted one.

        Raises:
            ValueError: the file is no such codec, or one of other settings.
        """
        super().__init__(config)
        self.vocoder = MelVocoder(config.sample_rate, config.num_mels, config.window, config.mel_hop)
        size, books = config.codebook_size, config.num_codebooks
        self.register_buffer("levels", torch.zeros(size, config.stack))
        self.register_buffer("shapes", torch.zeros(books - 1, size, config.stack * config.num_mels))
        self.register_buffer("fitted", torch.tensor(False))
        self.eval()
        if config.path is not None:
            self._read(Path(config.path))

    def portable_config(self) -> RvqConfig:
        """See ``Component.portable_config``."""
        return replace(self.config, path=None)

    def identity(self) -> dict[str, Any]:
        """See ``Codec.identity``; how long phases are iterated changes no code."""
        return {key: getattr(self.config, key) for key in _IDENTITY}

    def reset_buffers(self) -> None:
        """See ``Component.reset_buffers``."""
        self.vocoder.reset_buffers(self.levels.device)

    # -- codes --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, waves: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Codec.encode``.

        Raises:
            ValueError: the codec is not fitted, or a waveform is not one channel of finite numbers.
        """
        self._require_fitted()
        return [self._encode_clip(wave) for wave in waves]

    @torch.no_grad()
    def decode(self, codes: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Codec.decode``.

        Raises:
            ValueError: the codec is not fitted, or codes have another shape or lie out of range.
        """
        self._require_fitted()
        return [self._decode_clip(clip) for clip in codes]

    def _encode_clip(self, wave: torch.Tensor) -> torch.Tensor:
        with full_precision(self.levels.device):
            levels, shape, weights = self._describe(check_wave(wave).to(self.levels.device))
            codes = [nearest_centroids(levels, torch.ones_like(levels), self.levels)]
            for book in self.shapes:
                codes.append(nearest_centroids(shape, weights, book))
                shape = shape - book[codes[-1]]
        return torch.stack(codes, dim=1)

    def _decode_clip(self, codes: torch.Tensor) -> torch.Tensor:
        codes = check_codes(codes, self.config.num_codebooks, self.config.codebook_size).to(self.levels.device)
        with full_precision(self.levels.device):
            shape = self.shapes.new_zeros(len(codes), self.shapes.shape[2])
            for book, column in zip(self.shapes, codes[:, 1:].unbind(1), strict=True):
                shape = shape + book[column]
            power = (_expand(shape).view(-1, self.config.num_mels) / 10.0 * _LN_10).exp()
            target = (self.levels[codes[:, 0]].view(-1, 1) / 10.0 * _LN_10).exp()
            power = power * (target / power.sum(dim=1, keepdim=True))
            return self.vocoder.synthesise(power, self.config.griffin_lim)

    def _describe(self, wave: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is quantised.

        Args:
            wave: float32 ``[N]``.

        Returns:
            Levels ``[T, stack]`` in dBFS, compressed shapes ``[T, stack * num_mels]`` in dB relative to the level, and
            weights of the same shape from 0 to 1.
        """
        stack = self.config.stack
        power = self.vocoder.analyse(wave[: self.config.num_frames(len(wave)) * self.config.hop])
        decibels = 10.0 * power.clamp(min=1e-10).log10()
        levels = (10.0 * power.sum(dim=1, keepdim=True).clamp(min=1e-10).log10()).clamp(min=_QUIETEST_DB)
        shape = _compress(decibels - levels).view(-1, stack * self.config.num_mels)
        loudness = (shape.view(-1, stack, self.config.num_mels) + levels.view(-1, stack, 1)).flatten(1)
        weights = ((loudness - loudness.amax(dim=1, keepdim=True)) * (_WEIGHT_SLOPE / 10.0) * _LN_10).exp()
        return levels.view(-1, stack), shape, weights

    # -- fitting ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, waves: Iterable[NDArray[np.float32]], seed: int, progress: Progress | None = None) -> RvqCodec:
        """Fit the codebooks to a corpus; on the CPU, the same for the same waves and seed.

        Args:
            waves: float32 ``[N]`` each at ``config.sample_rate``, in an order that makes the first ``fit_seconds`` a
                fair sample; what follows them is not read.
            seed: of seeding and of the choice of frames.
            progress: called with (codebooks done, codebooks).

        Returns:
            The codec itself.

        Raises:
            ValueError: too little audio, or a waveform that is not one channel of finite numbers.
        """
        config = self.config
        assert self.levels.device.type == "cpu", "codebooks are fitted on the CPU"
        levels, shape, weights = self._frames(waves)
        if len(levels) < config.codebook_size:
            raise ValueError(
                f"the codec needs at least {config.codebook_size / config.frame_rate:.1f} s of audio to fit "
                f"{config.codebook_size} codes, got {len(levels) / config.frame_rate:.1f} s; "
                "give it more clips or lower codec.codebook_size"
            )
        generator = torch.Generator().manual_seed(seed)
        most = min(_MOST_FRAMES, _FRAMES_PER_CODE * config.codebook_size)
        chosen = torch.randperm(len(levels), generator=generator)[:most].sort().values
        levels, shape, weights = levels[chosen], shape[chosen], weights[chosen]
        _LOG.info("fitting %d codebooks to %d of the corpus's frames", config.num_codebooks, len(chosen))
        self.levels.copy_(kmeans(levels, torch.ones_like(levels), config.codebook_size, generator))
        for number, book in enumerate(self.shapes, start=1):
            if progress is not None:
                progress(number, config.num_codebooks)
            book.copy_(kmeans(shape, weights, config.codebook_size, generator))
            shape = shape - book[nearest_centroids(shape, weights, book)]
        self.fitted.fill_(True)
        if progress is not None:
            progress(config.num_codebooks, config.num_codebooks)
        return self

    def _frames(self, waves: Iterable[NDArray[np.float32]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Levels, shapes and weights of the frames of the first ``fit_seconds``."""
        frames = [self._describe(torch.zeros(0))]
        left = self.config.fit_seconds * self.config.sample_rate
        for wave in waves:
            frames.append(self._describe(check_wave(torch.as_tensor(wave))))
            left -= len(wave)
            if left <= 0:
                break
        levels, shapes, weights = zip(*frames, strict=True)
        return torch.cat(levels), torch.cat(shapes), torch.cat(weights)

    # -- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the fitted codec as safetensors, its settings in the header.

        Raises:
            ValueError: the codec is not fitted.
        """
        self._require_fitted()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        settings = json.dumps(asdict(self.portable_config()), sort_keys=True)
        save_file(tensors, path, metadata={"format": _FORMAT, "config": settings})

    @staticmethod
    def load(path: str | Path) -> RvqCodec:
        """Read a codec that ``save`` wrote.

        Raises:
            ValueError: the file is no such codec.
        """
        settings, _ = _read_file(Path(path))
        return RvqCodec(RvqConfig(**{**settings, "path": str(path)}))

    def _read(self, path: Path) -> None:
        """Take the codebooks of a file."""
        settings, tensors = _read_file(path)
        other = [
            f"{key} {settings.get(key)} (not {value})"
            for key, value in self.identity().items()
            if settings.get(key) != value
        ]
        if other:
            raise ValueError(f"{path} holds a codec with {', '.join(other)}; change codec rvq in the recipe to match")
        try:
            self.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(
                f"codec.path: {brief(path)} is not whole ({reason(error)}); fit the codec again"
            ) from error
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError(f"codec.path: {brief(path)} holds numbers that are not finite; fit the codec again")

    def _require_fitted(self) -> None:
        if not bool(self.fitted):
            raise ValueError("the rvq codec is not fitted: call fit(), or set codec.path to a fitted one")


def _compress(decibels: torch.Tensor) -> torch.Tensor:
    """Levels relative to their spectrum, squeezed below the knee."""
    decibels = decibels.clamp(min=_FLOOR_DB)
    return torch.where(decibels > _KNEE_DB, decibels, _KNEE_DB + (decibels - _KNEE_DB) / _COMPRESSION)


def _expand(decibels: torch.Tensor) -> torch.Tensor:
    """The inverse of ``_compress``."""
    return torch.where(decibels > _KNEE_DB, decibels, _KNEE_DB + (decibels - _KNEE_DB) * _COMPRESSION)


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Settings and tensors of a codec file."""
    if not path.is_file():
        raise ValueError(
            f"codec.path: there is no file {brief(path)}; set codec.path to null to fit a codec to the run's own audio"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:
        fault = fault_of(path) or f"is not a safetensors file ({reason(error)})"
        raise ValueError(f"codec.path: {brief(path)} {fault}; or fit the codec again") from error
    if header.get("format") != _FORMAT:
        raise ValueError(f"{path} is not an rvq codec of this version ({_FORMAT}); fit the codec again")
    try:
        settings = json.loads(header["config"])
        RvqConfig(**settings)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"codec.path: {brief(path)} does not tell what codec it is ({reason(error)}); fit the codec again"
        ) from error
    return settings, tensors
