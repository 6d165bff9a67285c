from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bagpiper.codecs.configs import RvqConfig
from bagpiper.codecs.rvq import RvqCodec
from bagpiper.recipe import registry

RATE = 16000
PITCHES = [261.63, 293.66, 329.63, 392.0, 440.0, 523.25, 587.33, 659.26, 783.99, 880.0, 1046.5, 1318.51]
SMALL = RvqConfig(num_codebooks=3, codebook_size=16, num_mels=40)


def tone(hertz: float, seconds: float = 0.8, decibels: float = -20.0, phase: float = 0.0) -> np.ndarray:
    times = np.arange(int(seconds * RATE)) / RATE
    return (np.sqrt(2.0) * 10 ** (decibels / 20) * np.sin(2 * np.pi * hertz * times + phase)).astype(np.float32)


def noise(seconds: float, seed: int = 0, scale: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(int(seconds * RATE)) * scale).astype(np.float32)


def clicks(count: int, level: float = 0.5) -> np.ndarray:
    wave = np.zeros(int((0.3 * count + 0.3) * RATE), dtype=np.float32)
    for number in range(count):
        start = int((0.2 + 0.3 * number) * RATE)
        wave[start : start + 800] = level * noise(0.05, number, 1.0).clip(-1, 1) * np.exp(-np.arange(800) / 200.0)
    return wave


@cache
def small_codec() -> RvqCodec:
    return RvqCodec(SMALL).fit([noise(1.0, seed, 0.02 * (seed + 1)) for seed in range(5)], seed=0)


@cache
def quickstart_codec() -> RvqCodec:
    """The default settings, fitted to the sounds that the tests ask for: tones a few cents off, clicks, noise."""
    rng = np.random.default_rng(1)
    tones = [
        tone(pitch * 2 ** (rng.uniform(-10, 10) / 1200), 0.5, rng.uniform(-38, -14), rng.uniform(0, 6))
        for pitch in PITCHES
        for _ in range(4)
    ]
    rests = [np.zeros(3200, dtype=np.float32), noise(2.0), *(clicks(n, a) for n in (2, 3) for a in (0.1, 0.5))]
    return RvqCodec(RvqConfig()).fit(tones + rests, seed=0)


def round_trip(codec: RvqCodec, wave: np.ndarray) -> np.ndarray:
    return codec.decode(codec.encode([torch.from_numpy(wave)]))[0].numpy()


def level_db(wave: np.ndarray) -> float:
    return 10.0 * np.log10(np.mean(np.square(wave, dtype=np.float64)) + 1e-12)


@given(num_samples=st.integers(0, 6000))
@settings(max_examples=40, deadline=None)
def test_lengths_are_as_promised(num_samples: int) -> None:
    codec = small_codec()
    codes = codec.encode([torch.from_numpy(noise(1.0)[:num_samples])])[0]
    assert codes.shape == (num_samples // 640, 3) and codes.dtype == torch.int64
    assert len(codes) == codec.config.num_frames(num_samples)
    assert codes.numel() == 0 or 0 <= int(codes.min()) <= int(codes.max()) < 16
    wave = codec.decode([codes])[0]
    assert wave.shape == (num_samples // 640 * 640,) and wave.dtype == torch.float32
    assert torch.isfinite(wave).all()


@pytest.mark.parametrize(("hop", "mel_hop", "window"), [(160, 160, 400), (320, 160, 1024), (960, 240, 512)])
def test_lengths_hold_for_other_frames(hop: int, mel_hop: int, window: int) -> None:
    config = RvqConfig(hop=hop, mel_hop=mel_hop, window=window, num_mels=24, num_codebooks=2, codebook_size=8)
    codec = RvqCodec(config).fit([noise(2.0)], seed=0)
    for num_samples in (0, 1, hop - 1, hop, hop + 1, 7 * hop, 7 * hop + 3):
        codes = codec.encode([torch.from_numpy(noise(1.0)[:num_samples])])
        assert codes[0].shape == (num_samples // hop, 2)
        assert codec.decode(codes)[0].shape == (num_samples // hop * hop,)


def test_silence_stays_silent() -> None:
    assert level_db(round_trip(quickstart_codec(), np.zeros(16000, dtype=np.float32))) < -70.0


@pytest.mark.parametrize("pitch", PITCHES)
def test_pitch_and_level_survive(pitch: float) -> None:
    wave = tone(pitch, 1.0, -23.0, phase=1.0)
    decoded = round_trip(quickstart_codec(), wave)[2000:14000]
    spectrum = np.abs(np.fft.rfft(decoded * np.hanning(len(decoded)), 1 << 17))
    found = spectrum.argmax() * RATE / (1 << 17)
    assert abs(1200 * np.log2(found / pitch)) < 40
    assert abs(level_db(decoded) - level_db(wave[2000:14000])) < 2.0


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_clicks_can_be_counted(count: int) -> None:
    decoded = round_trip(quickstart_codec(), clicks(count, 0.3))
    levels = np.array([level_db(part) for part in decoded[: len(decoded) // 480 * 480].reshape(-1, 480)])
    loud = levels > levels.max() - 12.0
    assert int(np.sum(np.diff(np.concatenate([[False], loud]).astype(int)) == 1)) == count


def test_each_clip_is_coded_as_if_alone() -> None:
    codec = small_codec()
    waves = [torch.from_numpy(noise(seconds, 9)) for seconds in (0.5, 1.3, 0.02, 0.9)]
    together, alone = codec.encode(waves), [codec.encode([wave])[0] for wave in waves]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    decoded = codec.decode(together)
    assert all(torch.equal(wave, codec.decode([codes])[0]) for wave, codes in zip(decoded, alone, strict=True))


def test_fit_is_decided_by_waves_and_seed() -> None:
    waves = [noise(1.0, seed) for seed in range(4)]
    fits = [RvqCodec(SMALL).fit(waves, seed) for seed in (3, 3, 4)]
    assert fits[0].weights_hash() == fits[1].weights_hash() != fits[2].weights_hash()


def test_fit_neither_reads_nor_moves_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = RvqCodec(SMALL).fit([noise(2.0)], 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert RvqCodec(SMALL).fit([noise(2.0)], 0).weights_hash() == first.weights_hash()


def test_fit_reads_no_more_than_fit_seconds_and_reports_progress() -> None:
    read, steps = [], []

    def waves():
        for seed in range(9):
            read.append(seed)
            yield noise(1.0, seed)

    codec = RvqCodec(replace(SMALL, fit_seconds=2.5))
    codec.fit(waves(), 0, progress=lambda done, total: steps.append((done, total)))
    assert read == [0, 1, 2]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_all_codes_are_used_when_there_are_more_frames_than_codes() -> None:
    waves = [noise(4.0, seed) for seed in range(2)]
    codec = RvqCodec(SMALL).fit(waves, 0)
    codes = torch.cat(codec.encode([torch.from_numpy(wave) for wave in waves]))
    assert all(len(column.unique()) == 16 for column in codes.T)


def test_finer_codebooks_come_later() -> None:
    """Leaving out the last codebooks may cost quality, never gain it."""
    codec, wave = quickstart_codec(), torch.from_numpy(noise(1.0, 5))
    _, shape, weights = codec._describe(wave)
    codes = codec.encode([wave])[0]
    errors, left = [], shape
    for book, column in zip(codec.shapes, codes[:, 1:].unbind(1), strict=True):
        left = left - book[column]
        errors.append(float((weights * left.square()).mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < float((weights * shape.square()).mean())


def test_save_and_load_give_the_same_codec(tmp_path: Path) -> None:
    codec, path = small_codec(), tmp_path / "codec.safetensors"
    codec.save(path)
    wave = [torch.from_numpy(noise(1.0, 7))]
    for loaded in (RvqCodec.load(path), registry.build("codec", replace(SMALL, path=str(path)))):
        assert loaded.weights_hash() == codec.weights_hash()
        assert torch.equal(loaded.encode(wave)[0], codec.encode(wave)[0])
        assert torch.equal(loaded.decode(codec.encode(wave))[0], codec.decode(codec.encode(wave))[0])
        assert loaded.portable_config() == SMALL


def test_files_that_are_no_such_codec_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    with pytest.raises(ValueError, match="codec.path: there is no file"):
        RvqCodec.load(path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a safetensors file"):
        RvqCodec.load(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not an rvq codec"):
        RvqCodec.load(path)
    small_codec().save(path)
    with pytest.raises(ValueError, match=r"codebook_size 16 \(not 32\)"):
        RvqCodec(replace(SMALL, path=str(path), codebook_size=32))


def test_unfitted_codec_is_refused(tmp_path: Path) -> None:
    codec = RvqCodec(SMALL)
    for use in (lambda: codec.encode([torch.zeros(640)]), lambda: codec.decode([]), lambda: codec.save(tmp_path / "x")):
        with pytest.raises(ValueError, match="not fitted"):
            use()


def test_too_little_audio_to_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 0\.6 s of audio .* got 0\.5 s"):
        RvqCodec(SMALL).fit([noise(0.5), noise(0.03)], 0)
    with pytest.raises(ValueError, match=r"got 0\.0 s"):
        RvqCodec(SMALL).fit([], 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    wave = noise(1.0)
    wave[5000] = bad
    with pytest.raises(ValueError, match="1 of 16000 samples"):
        small_codec().encode([torch.from_numpy(wave)])
    with pytest.raises(ValueError, match="1 of 16000 samples"):
        RvqCodec(SMALL).fit([wave], 0)


def test_other_bad_input_is_refused() -> None:
    codec = small_codec()
    with pytest.raises(ValueError, match="one channel"):
        codec.encode([torch.zeros(2, 640)])
    with pytest.raises(ValueError, match="floating point"):
        codec.encode([torch.zeros(640, dtype=torch.int16)])
    with pytest.raises(ValueError, match=r"\[frames, 3\]"):
        codec.decode([torch.zeros(4, 2, dtype=torch.int64)])
    with pytest.raises(ValueError, match="whole numbers"):
        codec.decode([torch.zeros(4, 3)])
    for code in (-1, 16):
        with pytest.raises(ValueError, match=r"0\.\.15"):
            codec.decode([torch.full((4, 3), code)])


def test_meta_build_filled_from_a_state_dict_equals_the_normal_one() -> None:
    codec = small_codec()
    with torch.device("meta"):
        other = RvqCodec(codec.portable_config())
    other.load_state_dict(codec.state_dict(), assign=True)
    other.reset_buffers()
    there, here = dict(other.named_buffers()), dict(codec.named_buffers())
    assert there.keys() == here.keys() and {"vocoder.window", "vocoder.filters", "levels", "shapes"} < there.keys()
    assert all(torch.equal(there[name], here[name]) for name in here)
    assert {"levels", "shapes", "fitted"} == set(codec.state_dict())
    wave = [torch.from_numpy(noise(1.0, 3))]
    assert torch.equal(other.encode(wave)[0], codec.encode(wave)[0])


def test_codec_stays_in_eval_mode_and_float32() -> None:
    """Upstream's `model.train()` reached the codec and changed 80 % of the target codes (golden README, quirk 6)."""
    codec = copy.deepcopy(small_codec())
    wave = [torch.from_numpy(noise(1.0, 4))]
    before = codec.encode(wave)[0]
    torch.nn.Sequential(codec).train().to(torch.bfloat16)
    assert not any(module.training for module in codec.modules())
    assert codec.levels.dtype == codec.shapes.dtype == codec.vocoder.filters.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.encode(wave)[0], before)
        assert codec.decode([before])[0].dtype == torch.float32


def test_hash_follows_what_codes_mean_and_nothing_else() -> None:
    codec = small_codec()
    other = copy.deepcopy(codec)
    other.config = replace(SMALL, griffin_lim=40, fit_seconds=5.0)
    assert other.weights_hash() == codec.weights_hash()
    other.shapes[0, 0, 0] += 1e-3
    assert other.weights_hash() != codec.weights_hash()
    other = copy.deepcopy(codec)
    other.config = replace(SMALL, mel_hop=320)
    assert other.weights_hash() != codec.weights_hash()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"hop": 250}, "multiple of mel_hop"), ({"window": 200}, "window"), ({"num_codebooks": 1}, "num_codebooks")],
)
def test_impossible_settings_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RvqConfig(), **change)
