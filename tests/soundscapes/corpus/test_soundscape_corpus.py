"""The corpus on disk: the same bytes from the same seed, whole or absent, never mixed up with another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bagpiper.soundscapes.corpus import make
from bagpiper.soundscapes.corpus.facts import scene_from_json
from bagpiper.soundscapes.corpus.make import make_corpus, make_example
from bagpiper.soundscapes.corpus.sampling import is_held_out


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _lines(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "small"
    make_corpus(folder, 30, 8, 12, seed=3)
    return folder


def test_manifests_and_audio_agree(small: Path) -> None:
    for split, size in (("train", 30), ("valid", 8), ("test", 12)):
        lines = _lines(small, split)
        assert [line["id"] for line in lines] == [f"{split}_{index:06d}" for index in range(size)]
        for index, line in enumerate(lines):
            assert set(line) == {"id", "audio", "caption", "duration", "facts"}
            samples, rate = soundfile.read(small / line["audio"], dtype="float32")
            assert rate == 16_000
            assert len(samples) / rate == pytest.approx(line["duration"], abs=1e-5)
            again, rendered = make_example(split, index, 3, "quick")
            assert again == line
            assert np.max(np.abs(rendered - samples)) <= 1.01 / 32768


def test_held_out_combinations_stay_out_of_train(small: Path) -> None:
    held = {
        split: [is_held_out(scene_from_json(line["facts"])) for line in _lines(small, split)]
        for split in ("train", "valid", "test")
    }
    assert not any(held["train"])
    assert all(held["test"])
    assert sum(held["valid"]) == 4


def test_same_seed_gives_the_same_bytes_and_a_larger_corpus_begins_alike(small: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path / "again", 30, 8, 12, seed=3)
    assert _contents(tmp_path / "again") == _contents(small)
    make_corpus(tmp_path / "larger", 32, 8, 12, seed=3)
    assert _lines(tmp_path / "larger", "train")[:30] == _lines(small, "train")
    make_corpus(tmp_path / "other", 30, 8, 12, seed=4)
    assert _lines(tmp_path / "other", "train") != _lines(small, "train")


def test_an_identical_corpus_is_reused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "make_example", lambda *_: pytest.fail("the corpus was made again"))
    make_corpus(small, 30, 8, 12, seed=3)


def test_another_corpus_is_refused(small: Path, tmp_path: Path) -> None:
    before = _contents(small)
    with pytest.raises(ValueError, match=r"holds another corpus: seed is 3 there but 5 here.*another folder"):
        make_corpus(small, 30, 8, 12, seed=5)
    with pytest.raises(ValueError, match="variety is 'quick' there"):
        make_corpus(small, 30, 8, 12, seed=3, variety="long")
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="no soundscapes corpus"):
        make_corpus(tmp_path, 1, 1, 1, seed=0)
    assert _contents(small) == before
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "corpus.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        make_corpus(broken, 1, 1, 1, seed=0)


def test_an_interrupted_corpus_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 9
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_corpus(tmp_path / "part", 5, 2, 2, seed=0, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_clip_and_empty_folders_are_used(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_corpus(tmp_path, 2, 1, 0, seed=0, variety="long", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (tmp_path / "test.jsonl").read_text() == ""


@pytest.mark.parametrize(("arguments", "message"), [((-1, 0, 0, 0), "num_train is -1"), ((1, 0, 0, -4), "seed .* -4")])
def test_senseless_sizes_are_refused(tmp_path: Path, arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_corpus(tmp_path / "none", *arguments)
