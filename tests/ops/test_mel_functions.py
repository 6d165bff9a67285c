"""Mel filterbank and log-mel, against transformers' numpy code and against known signals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from bagpiper.ops.mel import hz_to_mel, log_mel, mel_filterbank, mel_to_hz, power_spectrogram


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("norm", ["area", "peak"])
def test_filterbank_equals_transformers(scale: str, norm: str) -> None:
    ours = mel_filterbank(40, 512, 16000, 50.0, 7600.0, scale, norm)
    theirs = mel_filter_bank(257, 40, 50.0, 7600.0, 16000, norm="slaney" if norm == "area" else None, mel_scale=scale)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_mel_scale_round_trip(scale: str) -> None:
    hz = torch.linspace(0.0, 12000.0, 500, dtype=torch.float64)
    torch.testing.assert_close(mel_to_hz(hz_to_mel(hz, scale), scale), hz, rtol=0, atol=1e-6)


def test_impossible_filterbanks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mel bands hold no FFT bin \(window 256 at 16000 Hz\)"):
        mel_filterbank(128, 256, 16000)
    with pytest.raises(ValueError, match="do not fit a sample rate of 16000"):
        mel_filterbank(40, 512, 16000, 0.0, 9000.0)


@pytest.mark.parametrize("num_samples", [0, 1, 159, 160, 161, 199, 200, 201, 320, 1000])
@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
def test_frames_are_whole_hops(num_samples: int, pad_mode: str) -> None:
    power = power_spectrogram(torch.randn(num_samples), torch.hann_window(400), 160, pad_mode)
    assert power.shape == (num_samples // 160, 201)


def test_power_of_a_sine_and_of_silence() -> None:
    window = torch.hann_window(800)
    window = window * (2.0 / window.sum())
    wave = torch.sin(2 * math.pi * 1000.0 * torch.arange(16000) / 16000.0)
    power = power_spectrogram(wave, window, 160)[50]
    assert int(power.argmax()) == 50  # 20 Hz a bin
    assert float(power.max()) == pytest.approx(1.0, abs=1e-3)
    filterbank = mel_filterbank(80, 800, 16000)
    assert torch.equal(log_mel(torch.zeros(1600), window, filterbank, 160), torch.full((10, 80), -10.0))


def test_batch_equals_single() -> None:
    waves = torch.randn(3, 3000)
    window, filterbank = torch.hann_window(400), mel_filterbank(40, 400, 16000)
    together = log_mel(waves, window, filterbank, 160)
    for wave, frames in zip(waves, together, strict=True):
        torch.testing.assert_close(log_mel(wave, window, filterbank, 160), frames, rtol=0, atol=1e-5)
