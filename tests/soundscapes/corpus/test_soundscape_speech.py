"""Corpora with spoken sentences, and that corpora without them stay what they were."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_voice import FakeVoice

from bagpiper.soundscapes.corpus import lexicon
from bagpiper.soundscapes.corpus.captions import write_caption
from bagpiper.soundscapes.corpus.facts import (
    LOUDNESSES,
    SENTENCES,
    SPOKEN_KINDS,
    VARIETY_KINDS,
    Event,
    Scene,
    allowed_values,
    scene_from_json,
    scene_to_json,
)
from bagpiper.soundscapes.corpus.make import make_corpus, make_example, read_recordings
from bagpiper.soundscapes.corpus.render import render_scene
from bagpiper.soundscapes.corpus.sampling import is_held_out, sample_scene, sample_scene_for
from bagpiper.soundscapes.corpus.voice import TAKES, HibariVoice, Recordings
from bagpiper.soundscapes.scoring import parse

# Taken before there was any speech: seed 7, the first 40 lines of each split.
LINES_WITHOUT_SPEECH = {
    "quick": "ec3470d6c0674e49cc74b247780909622575851f3d759b8a0c75bb5b33b51f10",
    "long": "f18a424a873859a006c845dfbc5eb24122c0c3955469553d52b813b19d857c17",
}
# Variety, split, index, length, where an excerpt begins, and the excerpt in 16 bits.
EXCERPTS_WITHOUT_SPEECH = [
    ("quick", "train", 0, 30080, 21000, [32, 31, 29, 28, 26, 24, 22, 20]),
    ("quick", "valid", 1, 33920, 19000, [24, -77, 26, 46, -23, -27, -86, 32]),
    ("long", "test", 2, 32640, 15000, [-65, -61, -57, -54, -50, -46, -42, -39]),
    ("long", "train", 3, 28160, 12000, [-419, -444, -490, -528, -511, -575, -487, -574]),
]


@pytest.fixture(scope="module")
def recordings() -> Recordings:
    return Recordings.of(FakeVoice())


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech") / "corpus"
    make_corpus(folder, 30, 4, 12, seed=3, voice=FakeVoice())
    return folder


def _voice(words: str, loudness: str = "loud", arrangement: str = "single") -> Scene:
    return Scene((Event("voice", loudness, words=words),), arrangement, "silence")


@pytest.mark.parametrize("variety", ["quick", "long"])
def test_without_speech_facts_and_captions_are_what_they_were(variety: str) -> None:
    examples = [make_example(split, i, 7, variety)[0] for split in ("train", "valid", "test") for i in range(40)]
    text = "\n".join(json.dumps(line, sort_keys=True) for line in examples)
    assert hashlib.sha256(text.encode()).hexdigest() == LINES_WITHOUT_SPEECH[variety]


@pytest.mark.parametrize(("variety", "split", "index", "count", "start", "excerpt"), EXCERPTS_WITHOUT_SPEECH)
def test_without_speech_samples_are_what_they_were(
    variety: str, split: str, index: int, count: int, start: int, excerpt: list[int]
) -> None:
    samples = make_example(split, index, 7, variety)[1]
    assert len(samples) == count
    assert np.max(np.abs(samples[start : start + len(excerpt)] * 32768.0 - excerpt)) <= 1.0


def test_without_speech_the_corpus_says_nothing_of_a_voice(tmp_path: Path) -> None:
    make_corpus(tmp_path / "plain", 1, 0, 0, seed=3)
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == [
        "audio",
        "corpus.json",
        "test.jsonl",
        "train.jsonl",
        "valid.jsonl",
    ]
    assert json.loads((tmp_path / "plain" / "corpus.json").read_text()) == {
        "corpus": "soundscapes",
        "version": 3,
        "seed": 3,
        "variety": "quick",
        "sizes": {"train": 1, "valid": 0, "test": 0},
        "sample_rate": 16000,
    }
    assert read_recordings(tmp_path / "plain") is None
    assert read_recordings(tmp_path) is None


@pytest.mark.parametrize("variety", ["quick", "long"])
def test_a_voice_joins_the_kinds_of_a_variety(variety: str) -> None:
    rng = np.random.default_rng(0)
    seen: set[tuple[str, str]] = set()
    kinds, places = set(), set()
    for _ in range(6000):
        scene = sample_scene_for(rng, variety, held_out=False, speech=True)
        kinds |= {event.kind for event in scene.events}
        for place, event in enumerate(scene.events):
            if event.kind == "voice":
                assert event.words is not None
                seen.add((event.words, event.loudness))
                places.add((scene.arrangement, place))
                assert scene_from_json(scene_to_json(scene)) == scene
    assert kinds == {*VARIETY_KINDS[variety], *SPOKEN_KINDS}
    assert {words for words, _ in seen} == set(SENTENCES)
    assert {("single", 0), ("sequence", 0), ("sequence", 1), ("overlap", 1)} <= places
    assert ("overlap", 0) not in places


def test_some_sentences_at_some_loudness_are_held_out() -> None:
    held = [words for words in SENTENCES for loudness in LOUDNESSES if is_held_out(_voice(words, loudness))]
    assert 1 <= len(held) <= len(SENTENCES) * len(LOUDNESSES) / 5
    assert max(map(held.count, held)) < len(LOUDNESSES)


def test_a_voice_must_say_one_of_the_sentences() -> None:
    facts = scene_to_json(_voice("good morning"))
    with pytest.raises(ValueError, match="words='good evening'.*open the door"):
        scene_from_json({**facts, "events": [{**facts["events"][0], "words": "good evening"}]})
    assert set(allowed_values("voice")) == {"loudness", "words"}


def test_sentences_hold_no_word_that_states_another_fact() -> None:
    words = {word for sentence in SENTENCES for word in sentence.split()}
    cues = [*lexicon.NUMBERS.values(), *(form for nouns in lexicon.NOUNS.values() for pair in nouns for form in pair)]
    for table in (lexicon.LOUDNESS, lexicon.LENGTH, lexicon.DIRECTION, lexicon.QUALITY, lexicon.BACKGROUND_CUES):
        cues += [cue for options in table.values() for cue in options]
    assert not words & set(cues)
    for sentence in SENTENCES:
        assert re.fullmatch(r"[a-z]+( [a-z]+){1,3}", sentence)
        assert not parse._CONNECTOR.search(sentence)
        assert not parse._OVERLAP_CUES.search(sentence)


def test_a_caption_quotes_what_is_said() -> None:
    rng = np.random.default_rng(0)
    captions = {write_caption(_voice("open the door", "soft"), rng, "long") for _ in range(60)}
    assert len(captions) > 20
    assert all(re.search(r'(saying|that says) "open the door"', caption) for caption in captions)
    assert 'One sound: a soft human voice saying "open the door", in silence.' in captions


def test_recordings_are_trimmed_and_survive_a_file(recordings: Recordings, tmp_path: Path) -> None:
    assert set(recordings.samples) == {(sentence, take) for sentence in SENTENCES for take in range(TAKES)}
    recordings.save(tmp_path / "voice")
    again = Recordings.load(tmp_path / "voice", recordings.name)
    for key, samples in recordings.samples.items():
        assert np.array_equal(samples, again.samples[key])
        raw = FakeVoice().speak(*key)
        assert 0.25 < (len(raw) - len(samples)) / 16_000 < 0.45  # 0.4 s of silence around the words
        assert np.max(np.abs(samples[:80])) < 0.5
    (tmp_path / "voice" / "open-the-door-1.flac").unlink()
    with pytest.raises(ValueError, match="open-the-door-1.flac is missing: remove the corpus"):
        Recordings.load(tmp_path / "voice", recordings.name)


def test_a_voice_without_sound_is_refused() -> None:
    class Mute(FakeVoice):
        def speak(self, sentence: str, take: int) -> np.ndarray:
            return np.zeros(16_000, dtype=np.float32)

    with pytest.raises(ValueError, match="no sound for 'good morning' \\(take 0\\)"):
        Recordings.of(Mute())


def test_a_scene_holds_the_recording_on_the_grid_at_its_level(recordings: Recordings) -> None:
    clip = render_scene(_voice("call me later", "moderate"), np.random.default_rng(0), recordings).astype(np.float64)
    heard = np.flatnonzero(np.abs(clip) > 0)
    assert heard[0] >= 4 * 640
    assert len(clip) % 640 == 0
    words = clip[4 * 640 :]
    likeness = [
        np.dot(words[: len(take)], take) / (np.linalg.norm(words) * np.linalg.norm(take) + 1e-12)
        for (sentence, _), take in recordings.samples.items()
        if sentence == "call me later" and len(take) <= len(words)
    ]
    assert max(likeness) > 0.999
    level = 10 * np.log10(np.max(np.convolve(clip**2, np.ones(800) / 800, mode="valid")))
    assert level == pytest.approx(-26.0, abs=0.2)


def test_the_corpus_keeps_the_recordings_that_its_clips_are_made_of(spoken: Path) -> None:
    assert json.loads((spoken / "corpus.json").read_text())["voice"] == "fake 1"
    recordings = read_recordings(spoken)
    assert recordings is not None
    said = 0
    for split, size in (("train", 30), ("valid", 4), ("test", 12)):
        lines = [json.loads(line) for line in (spoken / f"{split}.jsonl").read_text().splitlines()]
        for index in range(size):
            line, samples = make_example(split, index, 3, "quick", recordings)
            assert line == lines[index]
            assert np.max(np.abs(soundfile.read(spoken / line["audio"])[0] - samples)) <= 1.01 / 32768
            said += '"' in line["caption"]
            assert is_held_out(scene_from_json(line["facts"])) == (split == "test" or (split == "valid" and index % 2))
    assert said >= 2


def test_a_corpus_of_another_voice_or_of_none_is_refused(spoken: Path) -> None:
    make_corpus(spoken, 30, 4, 12, seed=3, voice=FakeVoice())
    with pytest.raises(ValueError, match="voice is 'fake 1' there but 'fake 2' here"):
        make_corpus(spoken, 30, 4, 12, seed=3, voice=FakeVoice("fake 2"))
    with pytest.raises(ValueError, match="voice is 'fake 1' there but None here"):
        make_corpus(spoken, 30, 4, 12, seed=3)


def test_speech_leaves_the_rule_of_the_other_kinds_alone() -> None:
    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng, "long") for _ in range(300)]
    assert not any(event.kind in SPOKEN_KINDS or event.words for scene in scenes for event in scene.events)


def test_a_missing_package_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from importlib.metadata import PackageNotFoundError

    from rich.console import Console

    from bagpiper.recipe.settings import DataSettings, Recipe, SoundscapesSettings
    from bagpiper.training.prepare import prepare_examples

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("bagpiper.soundscapes.corpus.voice.version", missing)
    with pytest.raises(ModuleNotFoundError, match="hibari-tts is not installed"):
        HibariVoice()
    recipe = Recipe(run_dir=str(tmp_path), data=DataSettings(soundscapes=SoundscapesSettings(speech=True)))
    with pytest.raises(ValueError, match=r"pip install 'bagpiper\[speech\]'"):
        prepare_examples(recipe, tmp_path, Console(quiet=True))


@pytest.mark.skipif(importlib.util.find_spec("hibari") is None, reason="needs the extra `speech`")
def test_the_real_voice_speaks_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the voice reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HIBARI_HOME", str(tmp_path))
    voice = HibariVoice()
    assert re.fullmatch(r"hibari-tts [0-9.]+ heart", voice.name)
    again = HibariVoice()
    for take in range(TAKES):
        samples = voice.speak("good morning", take)
        assert samples.dtype == np.float32
        assert 0.5 < len(samples) / 16_000 < 2.0
        assert np.array_equal(samples, again.speak("good morning", take))
    assert list(tmp_path.iterdir()) == []
