"""Samples from users: what is scaled, what is refused; and which channel is used."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model

from bagpiper.data import audio
from bagpiper.data.audio import decode_clip, inspect_clip, read_clip
from bagpiper.data.codes import CodeCache, fill_codes
from bagpiper.data.examples import distinct_clips
from bagpiper.data.layout import Layout
from bagpiper.data.ledger import Ledger
from bagpiper.data.module import PackDataModule
from bagpiper.data.sound import rate_of, samples_of, sound_of
from bagpiper.errors import UserError
from bagpiper.inference.prompts import embed_prompts
from bagpiper.language.conversation import Clip, Conversation, Message
from bagpiper.recipe.load import generation_from_dict, recipe_from_dict
from bagpiper.recipe.settings import DataSettings, GenerationSettings, Recipe

TONE = (0.5 * np.sin(np.arange(4000) * 0.1)).astype(np.float32)

# -- what users hand over ----------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[Callable[[np.ndarray], Any], float]] = {
    # name: (from floats, largest error)
    "int8": (lambda x: np.round(x * 2**7).astype(np.int8), 0.5 / 2**7),
    "uint8": (lambda x: np.round(x * 2**7 + 128).astype(np.uint8), 0.5 / 2**7),
    "int16": (lambda x: np.round(x * 2**15).astype(np.int16), 0.5 / 2**15),
    "int16 of the other order": (lambda x: np.round(x * 2**15).astype(">i2"), 0.5 / 2**15),
    "int32": (lambda x: np.round(x.astype(np.float64) * 2**31).astype(np.int32), 1e-7),
    "float16": (lambda x: x.astype(np.float16), 3e-4),
    "float64": (lambda x: x.astype(np.float64), 0.0),
    "float32 of the other order": (lambda x: x.astype(">f4"), 0.0),
    "every other sample": (lambda x: np.repeat(x, 2)[::2], 0.0),
    "list": (lambda x: x.tolist(), 0.0),
    "torch float32": (torch.from_numpy, 0.0),
    "torch with gradient": (lambda x: torch.from_numpy(x).requires_grad_(), 0.0),
    "torch float64": (lambda x: torch.from_numpy(x).double(), 0.0),
    "torch bfloat16": (lambda x: torch.from_numpy(x).bfloat16(), 2e-3),
    "torch int16": (lambda x: torch.from_numpy(np.round(x * 2**15).astype(np.int16)), 0.5 / 2**15),
    "torch uint8": (lambda x: torch.from_numpy(np.round(x * 2**7 + 128).astype(np.uint8)), 0.5 / 2**7),
}


@pytest.mark.parametrize("form", FORMS)
def test_samples_of_every_type_become_the_same_floats(form: str) -> None:
    """int16 was cast: the model heard it 32,768 times too loud, and wrote nonsense."""
    make, error = FORMS[form]
    samples = samples_of(make(TONE))
    assert samples.dtype == np.float32 and samples.dtype.isnative and samples.shape == TONE.shape
    assert np.abs(samples - TONE).max() <= error
    np.testing.assert_array_equal(samples_of(samples), samples)


def test_full_scale_is_what_wav_files_mean_by_it(tmp_path: Path) -> None:
    for dtype, subtype in ((np.int16, "PCM_16"), (np.int32, "PCM_32")):
        limits = np.iinfo(dtype)
        samples = np.array([limits.min, -1, 0, 1, limits.max], dtype=dtype)
        soundfile.write(tmp_path / "clip.wav", samples, 16000, subtype=subtype)
        np.testing.assert_array_equal(samples_of(samples), read_clip(tmp_path / "clip.wav", 16000))
    assert samples_of(np.array([0, 128, 255], dtype=np.uint8)).tolist() == [-1.0, 0.0, 127 / 128]
    assert samples_of(np.array([-128, 0, 127], dtype=np.int8)).tolist() == [-1.0, 0.0, 127 / 128]


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_channels_may_come_first_or_last(make: Callable[[np.ndarray], Any]) -> None:
    for count in (2, 6, 8):
        frames = np.stack([TONE / (number + 1) for number in range(count)], axis=1)
        for given_ in (frames, np.ascontiguousarray(frames.T)):
            np.testing.assert_array_equal(samples_of(make(given_)), frames)
    for one in (TONE[None], TONE[:, None]):
        np.testing.assert_array_equal(samples_of(make(one)), TONE)


BAD: dict[str, tuple[Any, str]] = {
    "int64": (np.arange(100), "type int64 have no known scale; give floats"),
    "list of integers": ([1, 2, 3], "no known scale"),
    "uint16": (np.zeros(100, dtype=np.uint16), "type uint16 have no known scale"),
    "uint32": (np.zeros(100, dtype=np.uint32), "no known scale"),
    "bool": (np.zeros(100, dtype=bool), "type bool have no known scale"),
    "complex": (np.zeros(100, dtype=complex), "type complex128 have no known scale"),
    "torch int64": (torch.zeros(100, dtype=torch.long), "no known scale"),
    "torch bool": (torch.zeros(100, dtype=torch.bool), "no known scale"),
    "object": (np.array([None] * 100), "type object have no known scale"),
    "texts": (["a", "b"], "no known scale"),
    "ragged": ([[0.1], [0.2, 0.3]], "are no array"),
    "without data": (torch.zeros(100, device="meta"), "are no array"),
    "nothing": (None, r"shape \[\]; give one clip at a time"),
    "a number": (0.5, r"shape \[\]"),
    "empty": (np.zeros(0, dtype=np.float32), r"no samples \(shape \[0\]\)"),
    "empty channels": (np.zeros((2, 0), dtype=np.float32), "no samples"),
    "NaN": (np.array([0.0, 0.1, np.nan]), "sample 2 is not a finite number"),
    "infinity in a channel": (np.array([[0.0, 0.0], [0.0, -np.inf], [0.0, 0.0]]), "sample 1 is not a finite number"),
    "too large for float32": (np.array([0.0, 1e300]), "look like integers kept as floats"),
    "16 bits kept as floats": (np.array([0.0, 20000.0, -31000.5]), r"divide them by their full scale \(32768 for 16"),
    "soft 16 bits kept as floats": (np.array([0.0, 3.0, -7.0]), "look like integers kept as floats"),
    "as many channels as samples": (np.zeros((3, 3)), "does not tell channels"),
    "many channels": (np.zeros((9, 100)), r"channels \(up to 8\) from samples"),
    "a batch": (np.zeros((1, 1, 100)), "give one clip at a time"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("case", BAD)
def test_what_is_no_sound_is_refused_in_one_line(case: str) -> None:
    samples, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        samples_of(samples, "a clip in memory")
    assert str(caught.value).startswith("a clip in memory: ") and "\n" not in str(caught.value)


def test_floats_somewhat_beyond_full_scale_are_taken_as_they_are() -> None:
    for samples in (TONE * 3, np.array([1.0, -1.0, 0.0]), np.array([31.5, 0.0])):
        np.testing.assert_array_equal(samples_of(samples), samples.astype(np.float32))


@pytest.mark.parametrize("rate", [16000, 16000.0, np.int64(16000), np.float32(16000), torch.tensor(16000)])
def test_rates_of_every_numeric_type(rate: Any) -> None:
    assert rate_of(rate) == 16000 and type(rate_of(rate)) is int


@pytest.mark.parametrize(
    "rate", [0, -16000, 44100.5, float("nan"), float("inf"), None, True, "16000", [16000], np.zeros(4), 16000 + 0j]
)
def test_rates_that_cannot_be(rate: Any) -> None:
    with pytest.raises(UserError, match=r"positive whole number, got .*; give \(samples, sample_rate\)"):
        rate_of(rate)


@given(st.integers(1, 300), st.integers(1, 8), st.booleans())
def test_channels_are_told_from_samples_by_the_shorter_axis(length: int, count: int, first: bool) -> None:
    frames = np.random.default_rng(length).uniform(-1, 1, (length, count)).astype(np.float32)
    if length == count:
        with pytest.raises(UserError, match="does not tell channels"):
            samples_of(frames)
    elif length > count:
        expected = frames[:, 0] if count == 1 else frames
        np.testing.assert_array_equal(samples_of(frames.T if first else frames), expected)


# -- which channel is used ---------------------------------------------------------------------------------------------

LEFT, RIGHT = np.stack([TONE, -0.25 * TONE], axis=1), np.stack([0 * TONE, TONE], axis=1)


def write(path: Path, frames: np.ndarray, rate: int = 16000, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, frames, rate, subtype=subtype)
    return path


@pytest.mark.parametrize("block", [1 << 20, 777])
def test_first_mean_or_loudest_in_blocks_of_any_size(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "_BLOCK", block)
    frames = np.stack([0.1 * TONE, TONE, -0.5 * TONE], axis=1)
    frames[:1000, 2] = 0.9  # the loudest at first, but not over the whole clip
    frames[:1000, 1] = 0.0
    frames[2000:, 1] *= 1.9
    path = write(tmp_path / "clip.wav", frames)
    np.testing.assert_array_equal(read_clip(path, 16000), frames[:, 0])
    np.testing.assert_array_equal(read_clip(path, 16000, channel="first"), frames[:, 0])
    expected = frames.mean(axis=1, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(read_clip(path, 16000, channel="mean"), expected)
    power = np.square(frames, dtype=np.float64).mean(axis=0)
    np.testing.assert_array_equal(read_clip(path, 16000, channel="loudest"), frames[:, power.argmax()])
    assert power.argmax() == 2 or power.argmax() == 1
    for channel in ("first", "mean", "loudest"):
        assert len(read_clip(path, 24000, channel=channel)) == 6000
        own = sound_of(frames, 16000, channel).wave
        np.testing.assert_array_equal(own, decode_clip(path, channel=channel).wave)


def test_one_channel_is_the_same_whatever_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.wav", TONE)
    for channel in ("first", "mean", "loudest"):
        np.testing.assert_array_equal(read_clip(path, 16000, channel=channel), TONE)
    assert not inspect_clip(path).first_is_silent


DITHER = np.random.default_rng(0).integers(-2, 3, len(TONE)) / 2**15
FIRST_IS_SILENT = {
    "digital silence": (np.stack([0 * TONE, TONE], 1), True),
    "dither": (np.stack([DITHER, TONE], 1), True),
    "the third of three": (np.stack([0 * TONE, 0 * TONE, TONE], 1), True),
    "a soft recording": (np.stack([0.001 * TONE, TONE], 1), False),
    "both are": (np.stack([0 * TONE, DITHER], 1), False),
    "the second is": (np.stack([TONE, 0 * TONE], 1), False),
    "it is at first": (np.stack([np.where(np.arange(4000) < 3900, 0, TONE), TONE], 1), False),
}


@pytest.mark.parametrize("block", [1 << 20, 777])
@pytest.mark.parametrize("case", FIRST_IS_SILENT)
def test_a_silent_first_channel_is_noticed_where_another_is_not(
    case: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "_BLOCK", block)
    frames, is_silent = FIRST_IS_SILENT[case]
    for subtype in ("PCM_16", "FLOAT"):
        path = write(tmp_path / "clip.wav", frames, subtype=subtype)
        assert inspect_clip(path).first_is_silent == is_silent
        assert decode_clip(path, channel="loudest").first_is_silent == is_silent
    assert sound_of(frames.astype(np.float32), 16000).first_is_silent == is_silent


@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_coders_keep_a_silent_channel_silent(kind: str, subtype: str | None, tmp_path: Path) -> None:
    """Not all of them: MP3 at a low constant bit rate leaves traces of the other channel at -50 dB."""
    path = tmp_path / "clip"
    soundfile.write(path, np.tile(RIGHT, (4, 1)), 16000, format=kind, subtype=subtype)
    assert inspect_clip(path).first_is_silent
    soundfile.write(path, np.tile(RIGHT[:, ::-1], (4, 1)), 16000, format=kind, subtype=subtype)
    assert not inspect_clip(path).first_is_silent


def test_not_a_number_in_any_channel_is_refused(tmp_path: Path) -> None:
    frames = LEFT.copy()
    frames[70, 1] = np.nan
    with pytest.raises(audio.BadAudio, match="sample 70 is not a finite number"):
        inspect_clip(write(tmp_path / "clip.wav", frames))


# -- where the choice arrives ------------------------------------------------------------------------------------------


def test_the_ledger_counts_clips_with_a_silent_first_channel_once(folder: Any, rows: Any) -> None:
    for name in ("a.wav", "b.wav"):
        write(folder.path / name, RIGHT, subtype="PCM_16" if name == "a.wav" else "PCM_24")
    write(folder.path / "left.wav", LEFT)
    source = folder.manifest(
        [rows["heard"](str(n), name) for n, name in enumerate(["a.wav", "a.wav", "b.wav", "left.wav"])]
    )
    ledger, cache = Ledger(), folder.path / "cache" / "clips.json"
    folder.read(source, ledger=ledger, clip_cache=cache)
    assert "2 clips whose first channel is silent while another is not (data.channel=loudest takes" in ledger.summary()
    assert ledger.as_metrics()["train/first_channel_silent"] == 2
    again = Ledger()
    folder.read(source, ledger=again, clip_cache=cache)
    assert again.summary() == ledger.summary(), "the clip cache remembers it"
    for channel, words in (("mean", "mean of the channels of 3 clips"), ("loudest", "loudest channel only of 3 clips")):
        other = Ledger()
        folder.read(source, ledger=other, clip_cache=cache, channel=channel)
        assert words in other.summary() and "silent" not in other.summary()


def test_a_clip_cache_of_before_is_not_believed(folder: Any, rows: Any) -> None:
    write(folder.path / "a.wav", RIGHT)
    source, cache = folder.manifest([rows["heard"]("h", "a.wav")]), folder.path / "clips.json"
    folder.read(source, clip_cache=cache)
    ((place, known),) = json.loads(cache.read_text()).items()
    cache.write_text(json.dumps({place: known[:-1]}))
    assert folder.read(source, clip_cache=cache)[0].clips[0].first_is_silent
    assert json.loads(cache.read_text()) == {place: known}


def module_of(folder: Any, examples: Any, channel: Any) -> PackDataModule:
    cache = CodeCache(folder.path / "cache", "made-up", channel=channel)
    layout = Layout(folder.template, folder.encoder, folder.adaptor, folder.codec, cache)
    settings = DataSettings(token_budget=400, workers=0, cfg_dropout=0.0)
    module = PackDataModule(
        examples, [], layout, settings, seed=0, accumulate=1, ledger=Ledger(), tell=lambda text: None
    )
    module.setup("fit")
    return module


def test_heard_clips_and_codes_are_of_the_chosen_channel(folder: Any, rows: Any) -> None:
    path = write(folder.path / "a.wav", RIGHT)
    heard = folder.read(folder.manifest([rows["heard"]("a", "a.wav")]))
    (spoken,) = distinct_clips(folder.read(folder.manifest([rows["spoken"]("a", "a.wav")])), spoken=True)
    coded: list[np.ndarray] = []

    def encode(waves: list[np.ndarray]) -> list[np.ndarray]:
        coded.extend(waves)
        return folder.encode(waves)

    folders = set()
    for channel in ("first", "mean", "loudest"):
        expected = read_clip(path, 16000, channel=channel)
        cache = CodeCache(folder.path / "cache", "codec", channel=channel)
        assert fill_codes(cache, [spoken], folder.codec, encode) == 1, "the codes of no other channel are taken"
        np.testing.assert_array_equal(coded[-1], expected)
        folders.add(cache._path("x").parent.parent.name)
        (wave,) = module_of(folder, heard, channel).batch_at(0).waves
        np.testing.assert_array_equal(wave.numpy(), expected)
    assert folders == {"codec", "codec-mean", "codec-loudest"}, "caches of before stay where they are"


def test_a_checkpoint_of_another_channel_is_refused(folder: Any, rows: Any) -> None:
    write(folder.path / "a.wav", RIGHT)
    examples = folder.read(folder.manifest([rows["heard"]("a", "a.wav")]))
    states = {channel: module_of(folder, examples, channel).state_dict() for channel in ("first", "loudest")}
    module_of(folder, examples, "first").load_state_dict(states["first"])
    with pytest.raises(UserError, match="not that of the checkpoint.*channel"):
        module_of(folder, examples, "first").load_state_dict(states["loudest"])


def test_a_model_is_sampled_with_the_channel_of_its_training() -> None:
    assert Recipe().sampling.channel is None, "the first; a run that starts from the model may choose another"
    assert Recipe(data=DataSettings(channel="mean")).sampling.channel == "mean"
    other = Recipe(data=DataSettings(channel="mean"), generation=GenerationSettings(channel="loudest"))
    assert other.sampling.channel == "loudest"
    assert generation_from_dict({}).channel is None, "a model folder of before"
    with pytest.raises(UserError, match="channel"):
        recipe_from_dict({"data": {"channel": "left"}})


def hear(clip: Clip, channel: Any, times: int = 1) -> torch.Tensor:
    requests = [Conversation(str(n), (Message("user", "audio", clip),)) for n in range(times)]
    settings = GenerationSettings(channel=channel)
    return embed_prompts(tiny_model(), requests, settings, torch.device("cpu"))[0]


@pytest.mark.parametrize("in_memory", [True, False])
def test_requests_are_heard_by_the_chosen_channel_and_a_silent_one_is_told(in_memory: bool, tmp_path: Path) -> None:
    """`describe` wrote a caption of the silence on the left."""
    path = write(tmp_path / "right.wav", RIGHT)
    clip = Clip(samples=RIGHT.T, sample_rate=16000) if in_memory else Clip(path=str(path))
    tone = Clip(samples=TONE, sample_rate=16000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(hear(clip, "loudest"), hear(tone, None))
        half = Clip(samples=TONE / 2, sample_rate=16000)
        torch.testing.assert_close(hear(clip, "mean"), hear(half, None))
        hear(Clip(samples=LEFT, sample_rate=16000), None)
    for channel in (None, "first"):
        with pytest.warns(UserWarning, match="first channel is silent.*channel=loudest") as told:
            assert not torch.allclose(hear(clip, channel, times=3), hear(tone, None))
        assert len(told) == 1 and ("a clip in memory" if in_memory else "right.wav") in str(told[0].message)
