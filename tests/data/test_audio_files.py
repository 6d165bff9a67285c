"""Every way a file can be bad, and the lengths that grids are planned with."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from bagpiper.data.audio import BadAudio, inspect_clip, read_clip, resample, resampled_length

TONE = (0.3 * np.sin(np.arange(16000) * 0.1)).astype(np.float32)


def encoded(wave: np.ndarray, kind: str, rate: int = 16000, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def with_nan() -> bytes:
    wave = TONE.copy()
    wave[5000] = np.nan
    return encoded(wave, "WAV", subtype="FLOAT")


def two_hours() -> bytes:
    return encoded(np.zeros(2 * 3600 * 100, dtype=np.float32), "WAV", rate=100, subtype="PCM_U8")


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


BAD: dict[str, tuple[str, Callable[[], bytes], str, str]] = {
    # name: (file, content, reason, words of the message)
    "empty": ("a.wav", lambda: b"", "empty", "0 bytes"),
    "no samples": ("a.wav", lambda: encoded(TONE[:0], "WAV"), "empty", "no samples"),
    "text named wav": ("a.wav", lambda: b"hello, I am a text\n" * 50, "not audio", "not an audio file"),
    "text named raw": ("a.raw", lambda: b"hello, I am a text\n" * 50, "not audio", "not an audio file"),
    "truncated wav": ("a.wav", lambda: half(encoded(TONE, "WAV")), "truncated", "truncated"),
    "truncated flac": ("a.flac", lambda: half(encoded(TONE, "FLAC")), "truncated", "truncated"),
    "truncated aiff": ("a.aiff", lambda: half(encoded(TONE, "AIFF")), "truncated", "truncated"),
    "truncated ogg": ("a.ogg", lambda: half(encoded(TONE, "OGG")), "truncated", "truncated"),
    "truncated mp3": ("a.mp3", lambda: half(encoded(TONE, "MP3")), "truncated", "truncated"),
    "nan": ("a.wav", with_nan, "NaN", "sample 5000"),
    "infinity": ("a.wav", lambda: encoded(TONE / 0.0, "WAV", subtype="FLOAT"), "NaN", "finite"),
    "two hours": ("a.wav", two_hours, "too long", "7200.0 s"),
}


@pytest.mark.filterwarnings("ignore:.*divide by zero.*")
@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_refused_with_its_name_fault_and_way_out(case: str, tmp_path: Path) -> None:
    name, content, reason, words = BAD[case]
    path = tmp_path / name
    with np.errstate(divide="ignore", invalid="ignore"):
        path.write_bytes(content())
    for read in (lambda: inspect_clip(path, 30.0), lambda: read_clip(path, 16000, 30.0)):
        with pytest.raises(BadAudio) as caught:
            read()
        assert caught.value.reason == reason
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and words in message and "; " in message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BadAudio, match="no such file; correct the path") as caught:
        inspect_clip(tmp_path / "nowhere.wav")
    assert caught.value.reason == "missing"
    with pytest.raises(BadAudio, match="this is a folder"):
        inspect_clip(tmp_path)
    with pytest.raises(BadAudio, match="cannot be read"):
        inspect_clip("a\0b.wav")


def test_two_hour_file_is_refused_from_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(two_hours())
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("samples were decoded"))
    with pytest.raises(BadAudio, match=r"clips may have 30 s; cut it into pieces or raise data\.max_seconds"):
        inspect_clip(path, 30.0)


def test_streamed_wav_header_is_not_taken_for_truncation(tmp_path: Path) -> None:
    data = bytearray(encoded(TONE, "WAV"))
    place = data.find(b"data") + 4
    data[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    path = tmp_path / "piped.wav"
    path.write_bytes(data)
    assert inspect_clip(path).num_samples == len(TONE)


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 0.01),
        ("WAV", "PCM_24", 1e-5),
        ("WAV", "FLOAT", 0.0),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", None, 0.1),
    ],
)
def test_formats_are_read_by_content_whatever_their_name(
    kind: str, subtype: str | None, tolerance: float, tmp_path: Path
) -> None:
    for name in ("mislabelled.mp3", "mislabelled.raw", "mislabelled"):
        path = tmp_path / name
        path.write_bytes(encoded(TONE, kind, subtype=subtype))
        wave = read_clip(path, 16000)
        assert wave.dtype == np.float32 and wave.shape == TONE.shape
        assert np.abs(wave - TONE).max() <= tolerance


@pytest.mark.parametrize("kind", ["MP3", "OGG", "FLAC", "AIFF", "AU", "W64", "CAF", "RF64"])
def test_whole_files_of_every_kind_pass(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "clip"
    for seconds in (0.3, 1.0):
        path.write_bytes(encoded(TONE[: int(seconds * 16000)], kind))
        assert inspect_clip(path).seconds == pytest.approx(seconds, abs=0.1)  # MP3 pads to whole frames


def test_stereo_gives_its_first_channel(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([TONE, -0.5 * TONE], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_clip(path, 16000), TONE)
    assert inspect_clip(path).channels == 2


def test_96_khz_is_resampled_truly(tmp_path: Path) -> None:
    path = tmp_path / "fine.wav"
    time = np.arange(96000) / 96000
    soundfile.write(path, (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32), 96000, subtype="FLOAT")
    wave = read_clip(path, 16000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert wave.shape == expected.shape
    assert np.abs(wave - expected)[200:-200].max() < 1e-4


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 44100, 48000, 96000])
@pytest.mark.parametrize("length", [1, 2, 7, 1001, 12345])
def test_length_after_resampling_is_promised_by_the_header(rate: int, length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, TONE[:length], rate)
    for wanted in (16000, 24000):
        assert len(read_clip(path, wanted)) == inspect_clip(path).samples_at(wanted)


@given(st.integers(1, 10**7), st.sampled_from([8000, 16000, 22050, 44100]), st.sampled_from([16000, 24000]))
def test_length_formula_is_the_exact_ceiling(samples: int, rate_in: int, rate_out: int) -> None:
    length = resampled_length(samples, rate_in, rate_out)
    assert (length - 1) * rate_in < samples * rate_out <= length * rate_in


def test_same_rate_is_the_same_samples() -> None:
    assert resample(TONE, 16000, 16000) is TONE


def test_input_is_not_trimmed_by_a_count_at_another_rate(tmp_path: Path) -> None:
    """Defect of the older official code (spec section 9.4): 48 kHz input was cut to its 16 kHz sample count."""
    path = tmp_path / "a.wav"
    wave = np.concatenate([np.zeros(48000), np.full(48000, 0.5)]).astype(np.float32)
    soundfile.write(path, wave, 48000)
    read = read_clip(path, 16000)
    assert len(read) == 32000
    assert read[-1000:].mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.golden
def test_lengths_equal_the_official_ones(golden: Path) -> None:
    lengths = {}
    for path in sorted((golden / "audio").iterdir()):
        clip = inspect_clip(path)
        assert len(read_clip(path, 16000)) == clip.samples_at(16000)
        lengths[path.stem] = clip.samples_at(16000)
    features = np.load(golden / "preprocess.npz")
    # waveforms of spoken clips are stored as [samples, 1]
    official = {len(features[name]) for name in features.files if "/feat" in name and features[name].shape[-1] == 1}
    assert official and official <= set(lengths.values())


def test_the_hash_names_the_content(tmp_path: Path) -> None:
    for name, pitch in (("a.wav", 0.1), ("b.wav", 0.1), ("c.wav", 0.2)):
        soundfile.write(tmp_path / name, np.sin(np.arange(1000) * pitch), 16000)
    first, second, other = (inspect_clip(tmp_path / name).sha256 for name in ("a.wav", "b.wav", "c.wav"))
    assert first == second != other
