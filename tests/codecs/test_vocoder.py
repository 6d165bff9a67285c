from __future__ import annotations

import numpy as np
import pytest
import torch

from bagpiper.codecs.vocoder import MelVocoder, start_angles


@pytest.fixture(scope="module")
def vocoder() -> MelVocoder:
    return MelVocoder(16000, 80, 1024, 160)


def sine(hertz: float, amplitude: float = 0.2) -> torch.Tensor:
    return amplitude * torch.sin(2 * np.pi * hertz * torch.arange(16000) / 16000)


def pitch_of(wave: torch.Tensor) -> float:
    middle = wave[2000:14000].numpy() * np.hanning(12000)
    return float(np.abs(np.fft.rfft(middle, 1 << 17)).argmax() * 16000 / (1 << 17))


def test_bands_sum_to_the_mean_square(vocoder: MelVocoder) -> None:
    """Whole seconds of sines and noise: the sum over bands is the power of the waveform."""
    generator = torch.Generator().manual_seed(0)
    for wave in (sine(440.0), sine(3000.0), 0.1 * torch.randn(16000, generator=generator)):
        inner = vocoder.analyse(wave)[10:-10].sum(dim=1).mean()
        assert abs(float(10 * torch.log10(inner / wave.square().mean()))) < 0.2


def test_frames_are_centred_in_their_hops(vocoder: MelVocoder) -> None:
    wave = torch.zeros(3200)
    wave[10 * 160 + 80] = 1.0
    power = vocoder.analyse(wave).sum(dim=1)
    assert int(power.argmax()) == 10
    assert torch.allclose(power[10 - 3 : 10], power[11:14].flip(0), rtol=1e-3)


@pytest.mark.parametrize("hertz", [262.0, 311.1, 440.0, 787.0, 1319.0])
def test_steady_tones_come_back(vocoder: MelVocoder, hertz: float) -> None:
    wave = vocoder.synthesise(vocoder.analyse(sine(hertz)), 12)
    assert abs(1200 * np.log2(pitch_of(wave) / hertz)) < 25
    assert abs(float(20 * torch.log10(wave[2000:14000].std() / (0.2 / 2**0.5)))) < 0.6


def test_start_angles_turn_with_the_peak() -> None:
    """From one frame to the next the phase of a 700.5 Hz peak and of its neighbours advances by 160 samples."""
    spectra = torch.fft.rfft(sine(700.5).unfold(0, 1024, 160) * torch.hann_window(1024))
    angles = start_angles(spectra.abs(), 160)
    near = slice(44, 47)  # 700.5 Hz lies at bin 44.8
    step = (angles[1:, near] * angles[:-1, near].conj()).angle()
    truth = (spectra[1:, near] * spectra[:-1, near].conj()).angle()
    assert torch.allclose(step, truth, atol=0.05)
    sign = (angles[:, 44] * angles[:, 45].conj()).real
    assert torch.allclose(sign, -torch.ones_like(sign), atol=1e-3)


def test_more_iterations_come_nearer(vocoder: MelVocoder) -> None:
    generator = torch.Generator().manual_seed(0)
    target = vocoder.analyse(0.1 * torch.randn(16000, generator=generator) + sine(500.0))

    def error(iterations: int) -> float:
        return float((vocoder.analyse(vocoder.synthesise(target, iterations)).log() - target.log()).abs().mean())

    errors = [error(iterations) for iterations in (0, 4, 16)]
    assert errors[0] > errors[1] > errors[2]


def test_silence_gives_silence(vocoder: MelVocoder) -> None:
    wave = vocoder.synthesise(torch.zeros(20, 80), 4)
    assert wave.shape == (3200,) and float(wave.abs().max()) < 1e-5
