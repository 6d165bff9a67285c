from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_voice import FakeVoice
from rich.console import Console

from bagpiper.data.audio import read_clip
from bagpiper.errors import UserError
from bagpiper.evaluation import probe
from bagpiper.evaluation.probe import evaluate, evaluate_soundscapes, read_items
from bagpiper.evaluation.table import probe_table
from bagpiper.inference.answerer import Request
from bagpiper.inference.generate import Answer, Segment
from bagpiper.language.conversation import Clip, Conversation
from bagpiper.recipe.settings import DecodeSettings, GenerationSettings
from bagpiper.soundscapes.corpus.make import make_corpus

CLIPS = 12
GENERATION = GenerationSettings(audio=DecodeSettings(temperature=0.5, top_k=7, cfg=2.0), batch_size=5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "corpus"
    make_corpus(folder, 0, 0, CLIPS, seed=3)
    return folder


class Oracle:
    """An ``Answerer`` that knows every caption and sound of the corpus, and may mix them up.

    Attributes:
        shift: whose caption or sound is given: that of the clip so many lines further on.
        calls: sizes, plans and seeds of the batches.
    """

    generation = GENERATION
    sample_rate = 16000

    def __init__(self, corpus: Path, shift: int = 0, sound: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.items = read_items(corpus, "test", 0)
        self.shift = shift
        self.sound = sound or (lambda samples: samples)
        self.samples = [read_clip(str(item.clip.path), 16000) for item in self.items]
        self.calls: list[tuple[list[str], list[str], list[int]]] = []
        self.settings: GenerationSettings | None = None

    def can_hear(self, clip: Clip) -> bool:
        return clip.samples is None or len(clip.samples) > 160

    def rows_of_text(self, text: str) -> int:
        return len(text.split())

    def rows_of_audio(self, seconds: float) -> int:
        return int(seconds * 25)

    def answer(self, requests: Sequence[Request], generation: GenerationSettings | None = None) -> list[Answer]:
        self.settings = generation
        plan = list(requests[0].plan)
        self.calls.append(([r.conversation.id for r in requests], plan, [r.seed for r in requests]))
        return [self.tell(request.conversation, plan[0]) for request in requests]

    def tell(self, conversation: Conversation, modality: str) -> Answer:
        (message,) = conversation.messages
        told = (self.heard(message.clip) if modality == "text" else self.read(message.text)) + self.shift
        rows = np.zeros((1, 4), dtype=np.int64)
        if modality == "text":
            segment = Segment("text", rows, "eos", text=self.items[told % CLIPS].caption)
        else:
            segment = Segment("audio", rows, "eos", samples=self.sound(self.samples[told % CLIPS]))
        return Answer(conversation, (segment,))

    def heard(self, clip: Clip) -> int:
        if clip.path is not None:
            return [item.clip.path for item in self.items].index(clip.path)
        assert clip.samples is not None
        return next(n for n, samples in enumerate(self.samples) if np.array_equal(samples, clip.samples))

    def read(self, caption: str) -> int:
        return [item.caption for item in self.items].index(caption)


def test_a_model_that_knows_everything_scores_near_one(corpus: Path) -> None:
    done: list[tuple[int, int]] = []
    oracle = Oracle(corpus)
    result = evaluate_soundscapes(oracle, corpus, cycles=4, progress=lambda count, total: done.append((count, total)))
    for name in ("audio_to_caption", "caption_to_audio", "cycle_audio", "cycle_caption"):
        assert result[name]["score"] > 0.85
        assert result[name]["chance"] < result[name]["value"] <= 1
        assert {"kind", "loudness", "background"} <= set(result[name]["facts"])
        assert all(set(figures) == {"value", "chance", "score"} for figures in result[name]["facts"].values())
    assert result["audio_to_caption"]["value"] == 1
    assert (result["split"], result["clips"], result["cycles"], result["seed"]) == ("test", CLIPS, 4, 42)
    assert done[-1] == (2 * CLIPS + 8, 2 * CLIPS + 8)
    json.dumps(result)


def test_answers_about_other_clips_score_near_zero(corpus: Path) -> None:
    result = evaluate_soundscapes(Oracle(corpus, shift=1), corpus, clips=CLIPS)
    for name in ("audio_to_caption", "caption_to_audio"):
        assert result[name]["score"] < 0.3
    assert result["cycle_audio"] is None
    assert result["cycle_caption"] is None


def test_cycles_are_measured_against_the_facts_of_the_original(corpus: Path) -> None:
    """Off by one each time: after two steps the answer is about the clip two lines further on."""
    oracle = Oracle(corpus, shift=1)
    result = evaluate_soundscapes(oracle, corpus, cycles=CLIPS)
    assert result["cycle_audio"]["value"] == _value(oracle, 2, from_audio=True)
    assert result["cycle_caption"]["value"] == _value(oracle, 2, from_audio=False)


def _value(oracle: Oracle, shift: int, from_audio: bool) -> float:
    truths = [item.facts for item in oracle.items]
    others = [(number + shift) % CLIPS for number in range(CLIPS)]
    if from_audio:
        found = [probe.analyse_audio(oracle.samples[other], 16000) for other in others]
    else:
        found = [probe.parse_caption(oracle.items[other].caption) for other in others]
    return float(probe.score_many(truths, found)["value"])


def test_sounds_are_judged_by_their_samples(corpus: Path) -> None:
    silent = evaluate_soundscapes(Oracle(corpus, sound=np.zeros_like), corpus)
    assert silent["audio_to_caption"]["value"] == 1
    assert silent["caption_to_audio"]["facts"]["kind"]["value"] == 0


def test_words_are_found_in_a_corpus_with_speech(tmp_path: Path) -> None:
    """The corpus brings what it is compared with: no voice is needed here."""
    folder = tmp_path / "corpus"
    make_corpus(folder, 0, 0, CLIPS, seed=7, voice=FakeVoice())
    said = [item for item in read_items(folder, "test", 0) if '"' in item.caption]
    assert said
    result = evaluate_soundscapes(Oracle(folder), folder)
    for name in ("audio_to_caption", "caption_to_audio"):
        assert result[name]["facts"]["words"]["value"] == 1
    (folder / "voice" / "pass-the-salt-0.flac").unlink()
    with pytest.raises(UserError, match="pass-the-salt-0.flac is missing: remove the corpus"):
        evaluate_soundscapes(Oracle(folder), folder)


def test_a_sound_too_short_to_be_heard_is_not_described(corpus: Path) -> None:
    oracle = Oracle(corpus, sound=lambda samples: samples[:100])
    result = evaluate_soundscapes(oracle, corpus, cycles=3)
    assert result["cycle_caption"]["facts"]["kind"]["value"] == 0
    assert [call[1] for call in oracle.calls].count(["text"]) == 3  # the captions of the clips themselves


def test_every_answer_has_a_seed_of_its_own(corpus: Path) -> None:
    first, again, other = Oracle(corpus), Oracle(corpus), Oracle(corpus)
    evaluate_soundscapes(first, corpus, cycles=2)
    evaluate_soundscapes(again, corpus, cycles=2)
    evaluate_soundscapes(other, corpus, cycles=2, seed=1)
    seeds = [seed for _, _, batch in first.calls for seed in batch]
    assert len(set(seeds)) == len(seeds) == 2 * CLIPS + 4
    assert first.calls == again.calls
    assert not set(seeds) & {seed for _, _, batch in other.calls for seed in batch}
    assert max(len(batch) for batch, _, _ in first.calls) == GENERATION.batch_size


def test_text_is_greedy_and_audio_as_the_recipe_says(corpus: Path) -> None:
    oracle = Oracle(corpus)
    evaluate_soundscapes(oracle, corpus)
    settings = oracle.settings
    assert settings is not None
    assert (settings.text.temperature, settings.text.min_rows, settings.audio.min_rows) == (0.0, 1, 1)
    assert (settings.audio.temperature, settings.audio.top_k, settings.audio.cfg) == (0.5, 7, 2.0)
    longest = max(item.seconds for item in oracle.items)
    assert settings.audio.max_rows == int(longest * 25)
    assert settings.text.max_rows == 2 * max(len(item.caption.split()) for item in oracle.items)
    assert GENERATION.text.temperature > 0


def test_there_must_be_something_to_evaluate_on(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="test.jsonl does not exist. The evaluation needs a soundscapes corpus"):
        evaluate_soundscapes(Oracle(corpus), tmp_path)
    with pytest.raises(UserError, match="1 clips to evaluate on, at least 2"):
        evaluate_soundscapes(Oracle(corpus), corpus, clips=1)
    with pytest.raises(UserError, match="give 0, or at least 2"):
        evaluate_soundscapes(Oracle(corpus), corpus, cycles=1)
    with pytest.raises(UserError, match="not a run folder: it has no recipe.yaml"):
        evaluate(tmp_path)


def test_the_table_has_a_column_per_direction_and_a_row_per_kind(corpus: Path) -> None:
    result = evaluate_soundscapes(Oracle(corpus), corpus)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(probe_table(result))
    text = console.export_text()
    assert "audio -> caption" in text
    assert "caption -> audio -> caption" not in text
    assert "1.00 (1.00 / " in text
    for kind in result["audio_to_caption"]["facts"]:
        assert f"\n│ {kind} " in text


def test_a_run_is_evaluated_into_its_folder(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    console = Console(width=200, record=True, file=io.StringIO())
    result = evaluate(run, clips=3, cycles=2, device="cpu", console=console)
    assert json.loads((run / "eval.json").read_text()) == result
    table = (run / "eval.txt").read_text()
    assert "score (right / by chance)" in table and "caption -> audio -> caption" in table and "…" not in table
    for name in ("audio_to_caption", "caption_to_audio", "cycle_audio", "cycle_caption"):
        assert 0 <= result[name]["score"] <= 1
    assert (result["clips"], result["cycles"], result["model"]) == (3, 2, "model")
    assert "score (right / by chance)" in console.export_text()
    assert evaluate(run, clips=3, cycles=2, device="cpu", console=console) == result
