"""Mel power of a waveform, and a waveform from mel power."""

from __future__ import annotations

import math

import torch
from torch import nn

from bagpiper.ops.mel import mel_filterbank

# Multiplicative updates that spread mel bands over FFT bins, each factor raised to 1.5 so that fewer will do. Tones
# are off by 12, 8 and 7 cents on average after 4, 8 and 16 of them, and STOI of speech is 0.959, 0.963 and 0.967.
_SPREADING_STEPS = 8
_MOMENTUM = 0.99


class MelVocoder(nn.Module):
    """Whole hops of mel power, frame t centred in samples ``[t * hop, (t + 1) * hop)``, and the way back.

    The bands are triangles evenly spaced on an arcsinh scale (19.8 Hz apart at the bottom for 80 bands at 16 kHz, where
    HTK mel has 31 and Slaney mel 37): steady tones from 262 to 1319 Hz come back within 21 cents, 8 on average (HTK
    mel, in the same trial with more iterations: 34 and 15). Heights sum to 1, so the bands of a frame sum to its mean
    square; tones come back within 0.4 dB, noise 0.2 dB too soft.
    """

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, sample_rate: int, num_mels: int, window: int, hop: int) -> None:
        super().__init__()
        self.sample_rate, self.num_mels, self.size, self.hop = sample_rate, num_mels, window, hop
        for name, value in self._constants().items():
            self.register_buffer(name, value, persistent=False)

    def reset_buffers(self, device: torch.device) -> None:
        """Compute the buffers again, after a build on the meta device."""
        for name, value in self._constants().items():
            setattr(self, name, value.to(device))

    def _constants(self) -> dict[str, torch.Tensor]:
        filters = mel_filterbank(self.num_mels, self.size, self.sample_rate, scale="asinh", norm="peak")
        return {"window": torch.hann_window(self.size, device="cpu"), "filters": filters.to("cpu")}

    def analyse(self, wave: torch.Tensor) -> torch.Tensor:
        """Mel power.

        Args:
            wave: float32 ``[N]``.

        Returns:
            ``[N // hop, num_mels]``; the sum over bands is about the frame's mean square.
        """
        spectrum = self._spectra(wave[: len(wave) // self.hop * self.hop])
        power = spectrum.real.square() + spectrum.imag.square()
        return (power @ self.filters) * self._power_scale()

    def synthesise(self, mel_power: torch.Tensor, iterations: int) -> torch.Tensor:
        """A waveform with about this mel power; phases by fast Griffin-Lim from a start that follows peaks.

        Steady tones start with the right phases: with a random start they come out up to twice as far off in pitch,
        and 12 iterations come near to 32 (STOI of speech 0.965 and 0.972).

        Args:
            mel_power: ``[T, num_mels]`` as from ``analyse``.
            iterations: of Griffin-Lim.

        Returns:
            float32 ``[T * hop]``.
        """
        if len(mel_power) == 0:
            return mel_power.new_zeros(0)
        magnitude = (self._spread(mel_power) / self._power_scale()).sqrt()
        coverage = self._overlap_add(self.window.expand(len(magnitude), -1)).clamp(min=1e-3)
        angles = start_angles(magnitude, self.hop)
        # Perraudin, Balazs and Sondergaard 2013, "A fast Griffin-Lim algorithm", with torchaudio's form of momentum
        ahead = _MOMENTUM / (1.0 + _MOMENTUM)
        previous = torch.zeros_like(angles)
        for _ in range(iterations):
            wave = self._overlap_add(torch.fft.irfft(angles.mul_(magnitude), self.size)) / coverage
            spectrum = self._spectra(wave)
            angles = spectrum - previous.mul_(ahead)
            # three times as fast as dividing by abs()
            angles *= (angles.real.square() + angles.imag.square()).clamp_(min=1e-24).rsqrt_()
            previous = spectrum
        return self._overlap_add(torch.fft.irfft(angles.mul_(magnitude), self.size)) / coverage

    def _power_scale(self) -> float:
        """Turns one-sided power of a windowed frame into mean square (the sum of Hann squared is 3/8 of its length)."""
        return 2.0 / (self.size * 0.375 * self.size)

    def _lead(self) -> int:
        """Samples of a window before the first sample of its hop."""
        return (self.size - self.hop) // 2

    def _spectra(self, wave: torch.Tensor) -> torch.Tensor:
        """Spectra ``[T, bins]`` of whole hops ``[T * hop]``; silence lies beyond the ends."""
        if len(wave) == 0:
            return torch.zeros(0, self.size // 2 + 1, dtype=torch.complex64, device=wave.device)
        padded = nn.functional.pad(wave, (self._lead(), self.size))
        frames = padded.unfold(0, self.size, self.hop)[: len(wave) // self.hop]
        return torch.fft.rfft(frames * self.window)

    def _overlap_add(self, frames: torch.Tensor) -> torch.Tensor:
        """Windowed frames ``[T, size]`` laid over one another: ``[T * hop]``."""
        num_frames, pieces = len(frames), math.ceil(self.size / self.hop)
        frames = nn.functional.pad(frames * self.window, (0, pieces * self.hop - self.size))
        frames = frames.view(num_frames, pieces, self.hop)
        total = frames.new_zeros(num_frames + pieces, self.hop)
        for piece in range(pieces):
            total[piece : piece + num_frames] += frames[:, piece]
        return total.view(-1)[self._lead() : self._lead() + num_frames * self.hop]

    def _spread(self, mel_power: torch.Tensor) -> torch.Tensor:
        """Power per bin ``[T, bins]`` >= 0 whose mel power is nearly the given one.

        Multiplicative updates for non-negative least squares (Lee and Seung 2001). They keep peaks narrow: with
        a clipped pseudo-inverse STOI of speech is 0.03 lower and tones are off by 24 cents, not 15 (HTK bands).
        """
        target = mel_power @ self.filters.T
        power = target / (self.filters @ self.filters.sum(dim=0)).clamp(min=1e-3)
        for _ in range(_SPREADING_STEPS):
            factor = target / ((power @ self.filters) @ self.filters.T).clamp_(min=1e-16)
            power = power * factor * factor.sqrt()
        return power


def start_angles(magnitude: torch.Tensor, hop: int) -> torch.Tensor:
    """Unit phasors that let every spectral peak turn at its own frequency from frame to frame.

    As in single pass spectrogram inversion (Beauregard, Harish and Wyse 2015): the frequency of a peak is interpolated
    by a parabola through the log magnitudes, the bins around it turn with it, and neighbours in a lobe of a Hann window
    that starts at its frame's first sample have opposite signs. No loop over frames.

    Args:
        magnitude: ``[T, bins]``.
        hop: samples between frames.

    Returns:
        complex64 ``[T, bins]``.
    """
    num_bins = magnitude.shape[1]
    bins = torch.arange(num_bins, device=magnitude.device)
    log = (magnitude + 1e-7).log()
    left, middle, right = log[:, :-2], log[:, 1:-1], log[:, 2:]
    is_peak = torch.zeros_like(magnitude, dtype=torch.bool)
    is_peak[:, 1:-1] = (middle > left) & (middle >= right)
    offset = torch.zeros_like(magnitude)
    offset[:, 1:-1] = (0.5 * (left - right) / (left - 2.0 * middle + right).clamp(max=-1e-6)).clamp(-0.5, 0.5)
    far = 4 * num_bins
    below = torch.where(is_peak, bins, -far).cummax(dim=1).values
    above = torch.where(is_peak, bins, far).flip(1).cummin(dim=1).values.flip(1)
    peak = torch.where(bins - below <= above - bins, below, above)
    peak = torch.where((peak >= 0) & (peak < num_bins), peak, bins)  # a frame without any peak
    frequency = (peak + offset.gather(1, peak)) / (2 * (num_bins - 1))  # cycles per sample
    turns = frequency * hop % 1.0  # whole turns would only cost digits of the sum
    angle = 2.0 * math.pi * ((turns.cumsum(dim=0) + 0.5 * ((bins - peak) % 2)) % 1.0)
    return torch.polar(torch.ones_like(angle), angle)
