"""Files whose headers say less than is there: all of them is read, or the message says how much is not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from sound_files import (
    APE,
    ID3V1,
    ID3V2,
    TAGS,
    chunk,
    encoded,
    first_page,
    flac_total,
    mp3,
    noise,
    page,
    pages,
    pcm,
    position,
    wav,
    without_count,
)

from bagpiper.data import audio
from bagpiper.data.audio import BadAudio, inspect_clip, read_clip

Read = Callable[..., np.ndarray]
Refuse = Callable[..., BadAudio]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The first channel of a file, at its own rate; both ways of reading agree on its length."""

    def read(data: bytes, name: str = "clip") -> np.ndarray:
        path = tmp_path / name
        path.write_bytes(data)
        clip = inspect_clip(path)
        wave = read_clip(path, clip.sample_rate)
        assert len(wave) == clip.num_samples
        return wave

    return read


@pytest.fixture
def refuse(tmp_path: Path) -> Refuse:
    """The refusal of a file by both ways of reading."""

    def refuse(data: bytes, name: str = "clip") -> BadAudio:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(BadAudio) as first:
            inspect_clip(path)
        with pytest.raises(BadAudio) as second:
            read_clip(path, 16000)
        assert str(first.value) == str(second.value)
        return first.value

    return refuse


def in_part(error: BadAudio, there: float, read: float) -> None:
    """The refusal names both lengths and the way out."""
    assert error.reason == "read in part"
    assert f"holds {there:.1f} s of sound, of which {read:.1f} s can be read" in str(error)
    assert "ffmpeg" in str(error) and "take its line out" in str(error)


# -- MPEG --------------------------------------------------------------------------------------------------------------

MODES = ["CONSTANT", "VARIABLE", "AVERAGE"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (16000, 1), (8000, 1)])
def test_mp3_without_a_count_is_read_to_its_end(mode: str, rate: int, channels: int, read: Read) -> None:
    """A third of it was read, and where the guess was too long it was refused as cut off."""
    data = mp3(3.0, rate, channels, mode)
    whole, bare = read(data), without_count(data)
    for found in (read(bare), read(ID3V2 * 200 + bare)):
        assert 0 <= len(found) - 3 * rate < 2400, "with the encoder's delay, which nothing tells"
        # the same sound at the end, where a third of the file did not reach
        tail = whole[-rate // 2 :]
        offsets = [len(found) - len(tail) - shift for shift in range(len(found) - len(whole) + 1)]
        assert min(np.abs(found[at : at + len(tail)] - tail).max() for at in offsets) < 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("between", ["nothing", *TAGS])
def test_joined_mp3_files_are_read_one_after_another(mode: str, between: str, read: Read) -> None:
    one, two = mp3(1.5, mode=mode), mp3(1.0, mode=mode)
    joined = read(one + TAGS.get(between, b"") + two + TAGS.get(between, b""))
    np.testing.assert_array_equal(joined, np.concatenate([read(one), read(two)]))


def test_joined_mp3_files_without_counts_are_read_to_the_end(read: Read) -> None:
    one, two = mp3(1.5), mp3(1.0)
    for data in (one + without_count(two), without_count(one) + without_count(two), without_count(one) + two):
        assert len(read(data)) / 44100 == pytest.approx(2.5, abs=0.12)


def test_joined_mp3_files_of_two_kinds_are_refused_with_both_lengths(refuse: Refuse) -> None:
    error = refuse(mp3(2.0) + mp3(1.0, 22050))
    in_part(error, 3.0, 2.0)
    assert "44100 Hz with 2 channels, 22050 Hz with 2 channels" in str(error)
    in_part(refuse(mp3(2.0) + mp3(1.0, 44100, 1)), 3.0, 2.0)


@pytest.mark.parametrize(("layer", "kbps"), [(1, {3: 96, 9: 288}), (2, {3: 56, 9: 160})])
def test_layers_without_counts_are_refused_where_the_guess_is_short(
    layer: int, kbps: dict[int, int], read: Read, refuse: Refuse
) -> None:
    """libsndfile cannot be told how many frames there are: such files have no frame for that."""

    def frame(bit_rate: int) -> bytes:
        head = bytes([0xFF, 0xE0 | 3 << 3 | (4 - layer) << 1 | 1, bit_rate << 4, 0xC0])
        bits = kbps[bit_rate] * 1000
        length = 12 * bits // 44100 * 4 if layer == 1 else 144 * bits // 44100
        return head + bytes(length - 4)  # without sound

    low, high = frame(3), frame(9)
    assert len(read(low * 100)) == len(read(low * 5 + high * 95)) == 100 * (384 if layer == 1 else 1152)
    error = refuse(high * 5 + low * 95)
    assert error.reason == "read in part" and "shorter than its frames are" in str(error)


@pytest.mark.parametrize("mode", MODES)
def test_mp3_in_the_clothes_of_wav_is_read_to_its_end(mode: str, read: Read, refuse: Refuse) -> None:
    form = struct.pack("<HHIIHHH", 0x55, 2, 44100, 16000, 1, 0, 12) + struct.pack("<HIHHH", 1, 2, 400, 1, 1393)
    bare = without_count(mp3(2.0, mode=mode))
    for frames in (bare, mp3(2.0, mode=mode)):
        body = b"WAVE" + chunk(b"fmt ", form) + chunk(b"data", frames) + NOTES["LIST"]
        np.testing.assert_array_equal(read(b"RIFF" + struct.pack("<I", len(body)) + body), read(frames))
    body = b"WAVE" + chunk(b"fmt ", form) + chunk(b"data", bare[: len(bare) // 2 * 2])
    less = body.replace(struct.pack("<I", len(bare) // 2 * 2), struct.pack("<I", len(bare) // 4 * 2))
    assert refuse(b"RIFF" + struct.pack("<I", len(less)) + less).reason == "read in part"


def test_junk_around_mp3_frames_does_no_harm(read: Read) -> None:
    data = mp3(1.0)
    junk = np.random.default_rng(0).bytes(4000)
    for tagged in (junk + data, bytes(5000) + data, data + junk, data + b"".join(APE) * 300, ID3V2 + data + ID3V1):
        np.testing.assert_array_equal(read(tagged, "clip.mp3"), read(data))


def test_mp3_with_frames_missing_in_the_middle_is_refused(refuse: Refuse) -> None:
    data = mp3(2.0, mode="CONSTANT")
    hole = slice(len(data) // 3, len(data) // 2)
    for holed in (data, without_count(data)):
        assert refuse(holed[: hole.start] + bytes(hole.stop - hole.start) + holed[hole.stop :]).reason in (
            "truncated",
            "read in part",
        )


def test_mp3_cut_off_by_a_few_frames_is_refused(refuse: Refuse) -> None:
    data = mp3(1.0, 8000, 1)
    assert refuse(data[:-300]).reason == "truncated"


# -- Ogg ---------------------------------------------------------------------------------------------------------------

OGG = [("VORBIS", 44100, 2), ("VORBIS", 16000, 1), ("OPUS", 48000, 2), ("OPUS", 16000, 1)]


@pytest.mark.parametrize(("codec", "rate", "channels"), OGG)
def test_chained_ogg_files_are_read_one_after_another(codec: str, rate: int, channels: int, read: Read) -> None:
    one, two = (encoded(noise(seconds, rate, channels), "OGG", rate, codec) for seconds in (1.5, 1.0))
    chained = read(one + two + one)
    assert len(chained) == 4 * rate
    np.testing.assert_array_equal(chained, np.concatenate([read(one), read(two), read(one)]))


def test_chains_of_two_kinds_are_refused_with_both_lengths(refuse: Refuse) -> None:
    one = encoded(noise(3.0, 44100, 2), "OGG", 44100)
    in_part(refuse(one + encoded(noise(2.0), "OGG")), 5.0, 3.0)
    in_part(refuse(one + encoded(noise(2.0, 44100, 1), "OGG", 44100)), 5.0, 3.0)


@pytest.mark.parametrize(("codec", "rate", "channels"), OGG)
def test_an_end_before_the_last_pages_is_noticed(
    codec: str, rate: int, channels: int, read: Read, refuse: Refuse
) -> None:
    own = pages(encoded(noise(3.0, rate, channels), "OGG", rate, codec))
    error = refuse(b"".join([*own[:-1], page(own[-1], position=position(own[-1]) // 2)]))
    assert error.reason == "read in part" and "of which 1.5 s can be read" in str(error)
    later = [page(one, position=position(one) + 10**6) if position(one) > 0 else one for one in own]
    assert len(read(b"".join(later))) == 3 * rate, "a recording of radio that began long ago"


@pytest.mark.parametrize(("codec", "rate", "channels"), OGG)
def test_missing_and_half_pages_are_noticed(codec: str, rate: int, channels: int, refuse: Refuse) -> None:
    """libsndfile filled the gap of a missing Vorbis page with sound from elsewhere, and the length was right."""
    data = encoded(noise(3.0, rate, channels), "OGG", rate, codec)
    own = pages(data)
    damaged = own[3][:80] + bytes([own[3][80] ^ 1]) + own[3][81:]
    for cut in (b"".join(own[:3] + own[4:]), b"".join([*own[:3], damaged, *own[4:]]), data[: len(data) * 2 // 3]):
        assert refuse(cut).reason == "truncated"
    assert refuse(data[: len(data) * 2 // 3] + data).reason == "truncated", "in the first of two"


def test_a_second_sound_at_the_same_time_is_refused_and_other_streams_pass(read: Read, refuse: Refuse) -> None:
    one = pages(encoded(noise(3.0), "OGG"))
    two = [page(own, serial=77) for own in pages(encoded(noise(2.0), "OGG"))]
    error = refuse(b"".join([one[0], two[0], *one[1:3], *two[1:], *one[3:]]))
    assert error.reason == "read in part" and "2 sounds run at the same time" in str(error)
    skeleton = first_page(78, b"fishead\0" + bytes(56))
    for own in ([skeleton, *one], [one[0], skeleton, *one[1:]]):
        assert len(read(b"".join(own))) == 3 * 16000


def test_tags_and_junk_around_ogg_pages_do_no_harm(read: Read) -> None:
    data = encoded(noise(2.0), "OGG")
    own = pages(data)
    junk = np.random.default_rng(0).bytes(3000)
    for tagged in (ID3V2 + data, data + ID3V1, data + bytes(3000), b"".join([*own[:3], junk, *own[3:]])):
        np.testing.assert_array_equal(read(tagged), read(data))


# -- FLAC --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("length", [1, 4096, 9001])
@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_flac_is_read_to_its_last_frame_whatever_the_header_says(
    subtype: str, length: int, channels: int, read: Read
) -> None:
    """A header that says less was believed; one that says nothing (from a pipe) was taken for a truncated file's."""
    data = encoded(noise(length / 16000, 16000, channels), "FLAC", subtype=subtype)
    whole = read(data)
    assert len(whole) == length
    for declared in (0, 1, length // 2):
        for behind in (b"", *TAGS.values()):
            np.testing.assert_array_equal(read(flac_total(data, declared) + behind), whole)
    np.testing.assert_array_equal(read(ID3V2 + flac_total(data, 0)), whole)


def test_joined_flac_files_are_refused_with_both_lengths(refuse: Refuse) -> None:
    one, two = encoded(noise(3.0), "FLAC"), encoded(noise(2.0), "FLAC")
    in_part(refuse(one + two), 5.0, 3.0)
    in_part(refuse(flac_total(one, 0) + ID3V1 + flac_total(two, 0)), 5.0, 3.0)
    in_part(refuse(one + two + one), 8.0, 3.0)


def test_flac_that_is_cut_off_is_refused(refuse: Refuse) -> None:
    data = encoded(noise(3.0), "FLAC")
    for cut in (data[: len(data) // 2], flac_total(data, 0)[: len(data) // 2], flac_total(data, 50000)):
        assert refuse(cut).reason == "truncated"


# -- WAV and its kin ---------------------------------------------------------------------------------------------------

SOUND = pcm(noise(3.0))
NOTES = {
    "LIST": chunk(b"LIST", b"INFOISFT\x04\0\0\0abc\0"),
    "bext and odd id3": chunk(b"bext", bytes(602)) + chunk(b"id3 ", ID3V2 + b"x"),
    "cut off": chunk(b"LIST", b"INFO" + bytes(500))[:-200],
    "padding": bytes(1999),
}


@pytest.mark.parametrize("notes", NOTES)
@pytest.mark.parametrize("size", [len(SOUND), len(SOUND) - 1, len(SOUND) - 3])
def test_notes_behind_the_sound_of_a_wav_file_are_no_fault(notes: str, size: int, read: Read) -> None:
    assert len(read(wav(SOUND[:size], behind=NOTES[notes]))) == size // 2
    assert len(read(wav(SOUND[:size], behind=NOTES[notes], width=1))) == size


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("notes", ["", "LIST", "bext and odd id3", "cut off"])
def test_wav_whose_header_says_less_is_refused_with_both_lengths(
    notes: str, share: float, order: str, refuse: Refuse
) -> None:
    behind = NOTES.get(notes, b"") if order == "<" else b""  # big-endian notes are another family
    size = round(48000 * share) * 2
    error = refuse(wav(pcm(noise(3.0), f"{order}i2"), behind=behind, data_size=size, order=order))
    digits = 1 if share < 0.95 else 3
    assert error.reason == "read in part"
    assert f"of which {share * 3:.{digits}f} s can be read" in str(error)
    assert f"holds {3.0 if digits == 1 else 3:.1f}" in str(error)


@pytest.mark.parametrize("riff_size", [0, 8, 36, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("data_size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_wav_of_a_writer_that_could_not_go_back_is_read_to_its_end(riff_size: int, data_size: int, read: Read) -> None:
    """With a size of 0 it was taken for empty."""
    data = wav(SOUND, riff_size=riff_size, data_size=data_size)
    np.testing.assert_array_equal(read(data), read(wav(SOUND)))


def test_wav_without_sound_is_empty(refuse: Refuse) -> None:
    for behind in (b"", *NOTES.values()):
        assert refuse(wav(b"", behind=behind)).reason == "empty"


@pytest.mark.parametrize("between", [b"", ID3V1, bytes(100)])
def test_joined_wav_files_are_refused_with_both_lengths(between: bytes, refuse: Refuse) -> None:
    """They were refused for a missing marker, or, if written to a pipe, the second header was heard as a click."""
    in_part(refuse(wav(SOUND) + between + wav(SOUND[:64000])), 5.0, 3.0)
    streamed = wav(SOUND, riff_size=0xFFFFFFFF, data_size=0xFFFFFFFF)
    if not between:
        in_part(refuse(streamed + streamed), 6.0, 3.0)
        in_part(refuse(wav(SOUND) * 3), 9.0, 3.0)


@pytest.mark.parametrize(("kind", "other"), list(permutations(["WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF"], 2)))
def test_files_of_two_formats_joined_are_refused(kind: str, other: str, refuse: Refuse) -> None:
    error = refuse(encoded(noise(3.0), kind) + encoded(noise(2.0), other))
    assert error.reason == "read in part"
    assert "holds 5." in str(error) and "of which 3.0 s can be read" in str(error)


SIZES = {
    # format: (how the size of the sound is written, what is counted in it beside the samples)
    "AU": (">I", 0),
    "AIFF": (">I", 8),
    "CAF": (">Q", 4),
    "RF64": ("<Q", 0),
    "WAV": ("<I", 0),
    "WAVEX": ("<I", 0),
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_that_say_less_are_noticed_in_every_format(kind: str, refuse: Refuse) -> None:
    data = encoded(noise(3.0), kind, subtype="PCM_16")
    form, extra = SIZES[kind]
    at = data.rindex(struct.pack(form, 96000 + extra), 0, 5000)
    error = refuse(data[:at] + struct.pack(form, 32000 + extra) + data[at + struct.calcsize(form) :])
    in_part(error, 3.0, 1.0)


@pytest.mark.parametrize("subtype", ["PCM_16", "ULAW", "GSM610"])
def test_notes_behind_the_sound_of_w64_are_not_heard(subtype: str, read: Read) -> None:
    """libsndfile takes them for more sound."""
    data = encoded(noise(1.0, 8000), "W64", 8000, subtype)
    guid = b"list\x2f\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
    notes = guid + struct.pack("<Q", 24 + 800) + bytes(range(200)) * 4
    np.testing.assert_array_equal(read(data + notes), read(data))


@pytest.mark.parametrize("subtype", ["GSM610", "IMA_ADPCM", "MS_ADPCM", "ULAW"])
@pytest.mark.parametrize("tag", TAGS)
def test_tags_behind_coded_sound_are_no_fault(tag: str, subtype: str, read: Read) -> None:
    """The GSM decoder reads its last block from beyond the end of the sound."""
    for length in (1, 777, 8000):
        data = encoded(noise(length / 8000, 8000), "WAV", 8000, subtype)
        assert len(read(data + TAGS[tag])) == len(read(data))


def test_unreadable_bytes_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "clip.ogg"
    path.write_bytes(encoded(noise(1.0), "OGG"))
    monkeypatch.setattr(audio, "find_streams", broken)
    with pytest.raises(BadAudio, match=r"clip\.ogg: cannot be read \(Input/output error\)"):
        inspect_clip(path)
