"""What codecs refuse."""

from __future__ import annotations

import torch


def check_wave(wave: torch.Tensor) -> torch.Tensor:
    """The waveform as float32.

    Half precision is refused: the official code casts waveforms to bfloat16 before it makes codes of them (spec section
    4.1), and 8 bits of mantissa give other codes than the file has.

    Raises:
        ValueError: it is not one channel of finite numbers in float32 or float64.
    """
    if wave.ndim != 1:
        raise ValueError(f"a waveform must be one channel [samples], got shape {list(wave.shape)}")
    if not wave.is_floating_point():
        raise ValueError(f"a waveform must be floating point from -1 to 1, got {wave.dtype}")
    if wave.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"a waveform must be float32 (rounded ones have other codes), got {wave.dtype}")
    wave = wave.float()
    if not bool(torch.isfinite(wave).all()):
        bad = int((~torch.isfinite(wave)).sum())
        raise ValueError(f"{bad} of {len(wave)} samples of a waveform are NaN or infinite; repair or remove the clip")
    return wave


def check_codes(codes: torch.Tensor, num_codebooks: int, codebook_size: int) -> torch.Tensor:
    """The codes as they are.

    Raises:
        ValueError: they are not whole numbers ``[frames, num_codebooks]`` from 0 to ``codebook_size - 1``.
    """
    if codes.ndim != 2 or codes.shape[1] != num_codebooks:
        raise ValueError(f"codes must be [frames, {num_codebooks}], got shape {list(codes.shape)}")
    if codes.is_floating_point():
        raise ValueError(f"codes must be whole numbers, got {codes.dtype}")
    if codes.numel():
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= codebook_size:
            raise ValueError(f"codes must lie in 0..{codebook_size - 1}, got {low}..{high}; pads are not codes")
    return codes
