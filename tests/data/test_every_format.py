"""Every format that libsndfile writes: read whole or refused, however long, with tags, joined, patched and cut off."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sound_files import TAGS, encoded, noise

from bagpiper.data.audio import BadAudio, inspect_clip

NOT_HERE = {
    "SD2": "its header is a file of its own",
    "RAW": "it has no header",
    "DWVW_16": "libsndfile cannot seek in what it writes, which soundfile does behind each block",
    "DWVW_24": "as DWVW_16",
    "SDS": "libsndfile does not decode the last samples of some lengths that it writes",
    "PAF PCM_24": "libsndfile decodes fewer samples of what it writes than it promises",
}


def is_written(kind: str, subtype: str) -> bool:
    """Whether libsndfile writes it; some it only reads."""
    try:
        return bool(encoded(noise(0.1, 8000), kind, 8000, subtype))
    except soundfile.LibsndfileError:
        return False


FORMATS = [
    (kind, subtype)
    for kind in soundfile.available_formats()
    for subtype in soundfile.available_subtypes(kind)
    if not {kind, subtype, f"{kind} {subtype}"} & set(NOT_HERE) and is_written(kind, subtype)
]
WITHOUT_LENGTH = {"AVR", "MAT5", "MPC2K", "PAF", "PVF", "IRCAM", "NIST", "XI"}
"""They are read to the file's end: libsndfile looks at no length in them."""
TAKE_NO_TAGS = WITHOUT_LENGTH | {"HTK", "VOC", "WVE", "SVX", "W64"}
"""Their bytes are all taken for sound, or for damage."""
BLOCK = 4200
"""Samples that a coder may fill up."""

pytestmark = pytest.mark.slow
each = pytest.mark.parametrize(("kind", "subtype"), FORMATS)
thorough = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
lengths = st.integers(200, 40000)
rates = st.sampled_from([8000, 16000, 22050, 44100])
channels = st.sampled_from([1, 1, 2, 6])


def make(kind: str, subtype: str, length: int, rate: int, channels: int) -> bytes:
    rate = 8000 if kind == "WVE" else rate
    try:
        return encoded(noise(length / rate, rate, channels)[:length], kind, rate, subtype)
    except soundfile.LibsndfileError:
        assume(False)  # this many channels, or this rate, it does not take
        raise


def result(data: bytes, folder: Path) -> int | BadAudio:
    """Samples that are read, or the refusal."""
    path = folder / "clip"
    path.write_bytes(data)
    try:
        return inspect_clip(path).num_samples
    except BadAudio as error:
        return error


@each
@thorough
@given(length=lengths, rate=rates, channels=channels)
def test_ordinary_files_are_read_whole(
    kind: str, subtype: str, length: int, rate: int, channels: int, tmp_path: Path
) -> None:
    data = make(kind, subtype, length, rate, channels)
    found = result(data, tmp_path)
    assert isinstance(found, int), found
    assert 0 <= found - length < BLOCK
    if kind not in TAKE_NO_TAGS and not subtype.startswith("G72"):
        for name, tag in TAGS.items():
            assert result(data + tag, tmp_path) == found, name


@each
@thorough
@given(length=lengths, second=lengths, rate=rates, channels=channels)
def test_joined_files_are_read_whole_or_refused_with_both_lengths(
    kind: str, subtype: str, length: int, second: int, rate: int, channels: int, tmp_path: Path
) -> None:
    one, two = make(kind, subtype, length, rate, channels), make(kind, subtype, second, rate, channels)
    found = result(one + two, tmp_path)
    apart = [result(data, tmp_path) for data in (one, two)]
    assert all(isinstance(samples, int) for samples in apart)
    if isinstance(found, int):
        assert found == sum(apart)  # type: ignore[arg-type]
    elif kind == "HTK":
        assert found.reason == "not audio", "its length is a part of what it is known by"
    else:
        assert found.reason == "read in part", found
        there, read = map(float, re.findall(r"(\d+\.\d+) s", str(found))[:2])
        rate = 8000 if kind == "WVE" else rate
        if kind != "XI":  # which does not know its rate
            assert read == pytest.approx(apart[0] / rate, abs=0.11)  # type: ignore[operator]
            assert there == pytest.approx(sum(apart) / rate, abs=0.11)  # type: ignore[arg-type]


def sizes(data: bytes, samples: int) -> Iterator[tuple[int, str, int]]:
    """Fields of the header that say how long the sound is: (place, how it is written, value)."""
    for at in range(0, min(len(data) - 8, 4300)):
        for form in ("<I", ">I", "<Q", ">Q"):
            (value,) = struct.unpack_from(form, data, at)
            bodies = [samples * width for width in (1, 2, 3, 4, 8)]
            if (
                value == samples
                or any(0 <= value - body <= 300 for body in bodies)
                or value in (len(data), len(data) - 8)
            ):
                yield at, form, value


@each
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_header_that_says_less_is_never_believed_in_silence(
    kind: str, subtype: str, share: float, tmp_path: Path
) -> None:
    data = make(kind, subtype, 30130, 16000, 1)
    whole = result(data, tmp_path)
    assert isinstance(whole, int)
    for at, form, value in sizes(data, 30130):
        patched = bytearray(data)
        struct.pack_into(form, patched, at, int(value * share) & ~1)
        found = result(bytes(patched), tmp_path)
        assert isinstance(found, BadAudio) or found >= whole, f"{found} of {whole}: {form} at {at} patched"


@each
@thorough
@given(length=st.integers(20000, 40000), rate=rates, channels=channels, share=st.floats(0.3, 0.9))
def test_files_cut_off_are_refused(
    kind: str, subtype: str, length: int, rate: int, channels: int, share: float, tmp_path: Path
) -> None:
    data = make(kind, subtype, length, rate, channels)
    found = result(data[: int(len(data) * share)], tmp_path)
    if kind not in WITHOUT_LENGTH:
        assert isinstance(found, BadAudio), f"{found} samples"
        assert found.reason in ("truncated", "not audio")


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["MP3", "OGG", "FLAC", "WAV", "AIFF", "CAF", "AU", "W64", "RF64"])
@thorough
@given(data=st.data())
def test_damage_of_any_kind_ends_in_samples_or_in_a_refusal(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(encoded(noise(1.0), kind))
    for _ in range(data.draw(st.integers(1, 20))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=5))
    found = result(bytes(content), tmp_path)
    assert isinstance(found, BadAudio) or found > 0


def test_real_recordings_are_read_whole(real_audio: Path) -> None:
    paths = sorted(real_audio.rglob("*.flac"))
    assert paths
    for path in paths:
        assert inspect_clip(path).num_samples == soundfile.info(path).frames, path
