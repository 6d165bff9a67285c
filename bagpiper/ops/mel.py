"""Mel spectrograms: pure functions shared by encoders and codecs."""

from __future__ import annotations

import math
from typing import Literal

import torch

MelScale = Literal["slaney", "htk", "asinh"]

_SLANEY_HZ_PER_MEL = 200.0 / 3.0
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_BREAK_MEL = _SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_LOG_STEP = math.log(6.4) / 27.0
_ASINH_BREAK_HZ = 450.0


def hz_to_mel(hz: torch.Tensor, scale: MelScale) -> torch.Tensor:
    """Hertz -> mel: Slaney's Auditory Toolbox (linear to 1 kHz, then logarithmic), HTK's 2595 log10(1 + f / 700).

    ``asinh`` is arcsinh(f / 450): close to HTK's at the top, and half as wide bands below 1 kHz (codecs use it).
    """
    if scale == "asinh":
        return torch.asinh(hz / _ASINH_BREAK_HZ)
    if scale == "htk":
        return 2595.0 * torch.log10(1.0 + hz / 700.0)
    log_part = _SLANEY_BREAK_MEL + torch.log(hz.clamp(min=_SLANEY_BREAK_HZ) / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP
    return torch.where(hz < _SLANEY_BREAK_HZ, hz / _SLANEY_HZ_PER_MEL, log_part)


def mel_to_hz(mel: torch.Tensor, scale: MelScale) -> torch.Tensor:
    """The inverse of ``hz_to_mel``."""
    if scale == "asinh":
        return _ASINH_BREAK_HZ * torch.sinh(mel)
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    log_part = _SLANEY_BREAK_HZ * torch.exp(_SLANEY_LOG_STEP * (mel - _SLANEY_BREAK_MEL))
    return torch.where(mel < _SLANEY_BREAK_MEL, mel * _SLANEY_HZ_PER_MEL, log_part)


def mel_filterbank(
    num_mels: int,
    n_fft: int,
    sample_rate: int,
    f_min: float = 0.0,
    f_max: float | None = None,
    scale: MelScale = "slaney",
    norm: Literal["area", "peak"] = "area",
) -> torch.Tensor:
    """Triangular filters, evenly spaced in mel.

    Args:
        num_mels: bands.
        n_fft: length of the FFT.
        sample_rate: in Hz.
        f_min, f_max: lowest and highest frequency in Hz; null means half the sample rate.
        scale: mel scale.
        norm: ``area`` gives every triangle area 1 in Hz (Slaney; what Whisper uses), ``peak`` height 1.

    Returns:
        float32 ``[n_fft // 2 + 1, num_mels]``, on the CPU (computed in float64).

    Raises:
        ValueError: impossible frequencies, or a band so narrow that no FFT bin falls into it.
    """
    top = sample_rate / 2 if f_max is None else f_max
    if not 0 <= f_min < top <= sample_rate / 2:
        raise ValueError(f"mel bands from {f_min} to {top} Hz do not fit a sample rate of {sample_rate} Hz")
    bins = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64, device="cpu")
    low, high = hz_to_mel(torch.tensor([f_min, top], dtype=torch.float64, device="cpu"), scale).tolist()
    edges = mel_to_hz(torch.linspace(low, high, num_mels + 2, dtype=torch.float64, device="cpu"), scale)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - left) / (centre - left)
    falling = (right - bins[:, None]) / (right - centre)
    filters = torch.minimum(rising, falling).clamp(min=0.0)
    empty = int((filters.amax(dim=0) == 0).sum())
    if empty:
        raise ValueError(
            f"{empty} of {num_mels} mel bands hold no FFT bin (window {n_fft} at {sample_rate} Hz): "
            "take fewer bands or a longer window"
        )
    if norm == "area":
        filters = filters * (2.0 / (right - left))
    return filters.float()


def power_spectrogram(
    wave: torch.Tensor, window: torch.Tensor, hop: int, pad_mode: Literal["constant", "reflect"] = "constant"
) -> torch.Tensor:
    """Power spectrum of whole hops; frame t is centred on sample ``t * hop``.

    Args:
        wave: float32 ``[N]`` or ``[B, N]``.
        window: ``[W]``, W is also the length of the FFT.
        hop: samples per frame.
        pad_mode: what lies beyond the ends. A clip too short to be reflected is first filled up with zeros.

    Returns:
        ``[(B,) N // hop, W // 2 + 1]``.
    """
    num_frames = wave.shape[-1] // hop
    half = len(window) // 2
    if num_frames == 0:
        return wave.new_zeros(*wave.shape[:-1], 0, half + 1)
    if pad_mode == "reflect" and wave.shape[-1] <= half:
        wave = torch.nn.functional.pad(wave, (0, half + 1 - wave.shape[-1]))
    spectrum = torch.stft(wave, len(window), hop, window=window, center=True, pad_mode=pad_mode, return_complex=True)
    # torch.stft lays its result out as [frame, bin] in memory, so this transposition makes rows contiguous again
    spectrum = spectrum.transpose(-1, -2)[..., :num_frames, :]
    return spectrum.real.square() + spectrum.imag.square()


def log_mel(
    wave: torch.Tensor,
    window: torch.Tensor,
    filterbank: torch.Tensor,
    hop: int,
    floor: float = 1e-10,
    pad_mode: Literal["constant", "reflect"] = "constant",
) -> torch.Tensor:
    """log10 of the mel power of one clip or of clips of one length.

    Args:
        wave: float32 ``[N]`` or ``[B, N]``.
        window: ``[W]``; divide a window by half its sum and a full-scale sine reads power 1 in its bin.
        filterbank: ``[W // 2 + 1, num_mels]``, see ``mel_filterbank``.
        hop: samples per frame.
        floor: smallest power told apart.
        pad_mode: see ``power_spectrogram``.

    Returns:
        ``[(B,) N // hop, num_mels]``.
    """
    return (power_spectrogram(wave, window, hop, pad_mode) @ filterbank).clamp(min=floor).log10()


def whisper_log_mel(wave: torch.Tensor, window: torch.Tensor, filterbank: torch.Tensor, hop: int) -> torch.Tensor:
    """Whisper's log-mel of one clip on its own length: clamped to 8 decades below its maximum, about -1 .. 1.

    Args:
        wave: float32 ``[N]``.
        window: ``[W]``.
        filterbank: ``[W // 2 + 1, num_mels]``.
        hop: samples per frame.

    Returns:
        ``[N // hop, num_mels]``.
    """
    power = log_mel(wave, window, filterbank, hop, pad_mode="reflect")
    if not len(power):
        return power
    return (torch.maximum(power, power.max() - 8.0) + 4.0) / 4.0


def whisper_front_end(num_mels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Window and filterbank of transformers' WhisperFeatureExtractor (16 kHz), on the CPU."""
    return torch.hann_window(400, device="cpu"), mel_filterbank(num_mels, 400, 16000, 0.0, 8000.0)
