"""Every way out that a message names is tried: the message comes, its advice is followed to the letter, it works.

Here are those of runs; of recipes in ``recipe/test_recipe_ways_out.py``, of verbs in ``cli/test_verbs_ways_out.py``, of
the lock of a run folder in ``training/test_run_lock.py``, of the plan of a longer run in ``training/test_plan.py``, of
a full disk in ``test_run.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from desk import Desk, make_desk
from runs import Shared
from tiny import tiny_codec

from bagpiper.data.codes import CodeCache
from bagpiper.errors import Diverged
from bagpiper.model import Bagpiper
from bagpiper.recipe.settings import DataSettings, SourceSettings
from bagpiper.training.checkpoints import list_checkpoints


@pytest.fixture
def desk(tmp_path: Path, shared_parts: Shared) -> Desk:
    return make_desk(tmp_path, shared_parts)


@pytest.fixture
def lines(desk: Desk) -> list[dict[str, Any]]:
    """Lines of a manifest that the desk's recipe trains on; ``save`` writes them after a change."""
    found = []
    for number in range(6):
        wave = 0.1 * np.random.default_rng(number).standard_normal(8000).astype(np.float32)
        soundfile.write(desk.path / f"{number}.wav", wave, 16000)
        turns = [said("user", f"{number}.wav"), {"role": "assistant", "content": f"noise number {number}"}]
        found.append(
            {"id": f"e{number}", "messages": turns if number % 2 else [turns[1] | {"role": "user"}, spoken(number)]}
        )
    data = desk.recipe.data
    desk.recipe.data = DataSettings(sources=[], token_budget=300, max_seconds=1.0, workers=0, cache=data.cache)
    save(desk, found)
    return found


def said(role: str, file: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "audio", "audio": file}]}


def spoken(number: int) -> dict[str, Any]:
    return said("assistant", f"{number}.wav")


def save(desk: Desk, lines: list[dict[str, Any]]) -> None:
    (desk.path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    desk.recipe.data.sources = [SourceSettings(str(desk.path / "mine.jsonl"))]


def missing(desk: Desk, lines: list[dict[str, Any]]) -> None:
    (desk.path / "1.wav").unlink()


def too_long(desk: Desk, lines: list[dict[str, Any]]) -> None:
    soundfile.write(desk.path / "1.wav", np.zeros(32000, np.float32), 16000)


def too_short(desk: Desk, lines: list[dict[str, Any]]) -> None:
    soundfile.write(desk.path / "1.wav", np.zeros(20, np.float32), 16000)


def not_audio(desk: Desk, lines: list[dict[str, Any]]) -> None:
    (desk.path / "1.wav").write_text("no sound")


def too_many_rows(desk: Desk, lines: list[dict[str, Any]]) -> None:
    lines[1]["messages"][1]["content"] = "many words " * 200


def nothing_to_train_on(desk: Desk, lines: list[dict[str, Any]]) -> None:
    lines[1]["messages"] = [*lines[1]["messages"][:1], {"role": "user", "content": "what is this?"}]


def take_out(desk: Desk, lines: list[dict[str, Any]]) -> list[str]:
    del lines[1]
    return []


def another_clip(desk: Desk, lines: list[dict[str, Any]]) -> list[str]:
    shutil.copy(desk.path / "3.wav", desk.path / "1.wav")
    return []


def another_text(desk: Desk, lines: list[dict[str, Any]]) -> list[str]:
    lines[1]["messages"][1] = {"role": "assistant", "content": "few"}
    return []


def the_line(*overrides: str) -> Callable[..., list[str]]:
    return lambda desk, lines: list(overrides)


Mend = Callable[[Desk, list[dict[str, Any]]], list[str]]
BAD_EXAMPLES: list[tuple[Callable[..., None], str, Mend]] = [
    (missing, "correct the path", another_clip),
    (too_long, "cut it into pieces", another_clip),
    (too_long, "raise data.max_seconds", the_line("data.max_seconds=2.5")),
    (too_short, "take its line out", take_out),
    (too_short, "use a longer clip", another_clip),
    (not_audio, "replace it with a WAV", another_clip),
    (not_audio, "take its line out", take_out),
    (too_many_rows, "shorten it", another_text),
    (too_many_rows, "raise data.max_rows", the_line("data.max_rows=3000")),
    (nothing_to_train_on, "add an assistant message", another_text),
    (nothing_to_train_on, "set data.loss_region=all", the_line("data.loss_region=all")),
    *(
        (fault, "set data.on_bad_example=skip", the_line("data.on_bad_example=skip"))
        for fault in (missing, too_long, too_short, not_audio, too_many_rows, nothing_to_train_on)
    ),
]


@pytest.mark.parametrize(
    ("spoil", "advice", "mend"), BAD_EXAMPLES, ids=[f"{s.__name__}: {a}" for s, a, _ in BAD_EXAMPLES]
)
def test_of_bad_examples_in_the_same_folder(
    desk: Desk, lines: list[dict[str, Any]], spoil: Callable[..., None], advice: str, mend: Mend
) -> None:
    """The folder was refused as that of another recipe, though nothing was trained in it."""
    spoil(desk, lines)
    save(desk, lines)
    assert advice in desk.untrained()
    overrides = mend(desk, lines)
    save(desk, lines)
    desk.train(*overrides)
    assert desk.trained(2)


def test_of_a_bad_example_that_a_run_meets_on_its_way(
    desk: Desk, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`data.on_bad_example=skip` once counted as a change of what is trained."""
    desk.train()
    lines.append({"id": "late", "messages": "none"})
    save(desk, lines)
    assert "data.on_bad_example=skip" in desk.unresumed("trainer.max_steps=3")
    desk.resume("trainer.max_steps=3", "data.on_bad_example=skip")
    assert desk.trained(3)


def test_of_a_source_that_leaves_nothing(desk: Desk, lines: list[dict[str, Any]]) -> None:
    for line in lines:
        line["messages"] = line["messages"][:1]
    save(desk, lines)
    assert "data.loss_region=all" in desk.untrained("data.on_bad_example=skip")
    desk.train("data.loss_region=all")


def test_of_a_folder_without_a_checkpoint(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Bagpiper, "training_step", lambda *_: 1 / 0)
        assert isinstance(desk.call("train", desk.write()).exception, ZeroDivisionError)
    tokenizer = (desk.run / "tokenizer").stat().st_mtime_ns
    assert f"start it again with `bagpiper train {desk.run} run_dir={desk.run}`" in desk.unresumed()
    desk.works("train", desk.run, f"run_dir={desk.run}")
    assert desk.trained(2) and (desk.run / "tokenizer").stat().st_mtime_ns == tokenizer


def test_of_a_folder_that_holds_this_run(desk: Desk) -> None:
    desk.train()
    message = desk.untrained()
    assert f"`bagpiper train --resume {desk.run}`" in message and "run_dir=..." in message
    desk.works("train", "--resume", desk.run)
    desk.train(f"run_dir={desk.path / 'another'}")


def test_of_a_folder_that_holds_another_run(desk: Desk) -> None:
    desk.train()
    message = desk.untrained("seed=7")
    assert "run_dir=..." in message and "remove this one" in message
    desk.train("seed=7", f"run_dir={desk.path / 'another'}")
    shutil.rmtree(desk.run)
    desk.train("seed=7")


def test_of_a_folder_that_holds_a_model_of_nobody(desk: Desk) -> None:
    desk.train()
    (desk.run / "recipe.yaml").unlink()
    assert "run_dir=..." in desk.untrained()
    desk.train(f"run_dir={desk.path / 'another'}")


def test_of_a_folder_that_cannot_be_written_to(desk: Desk) -> None:
    (desk.path / "file").write_text("")
    assert "run_dir=..." in desk.untrained(f"run_dir={desk.path / 'file' / 'run'}")
    desk.train(f"run_dir={desk.path / 'another'}")


def test_of_an_edited_recipe(desk: Desk) -> None:
    desk.train()
    file = desk.run / "recipe.yaml"
    text = file.read_text()
    file.write_text(text.replace("lr: 0.003", "lr: 0.005"))
    message = desk.unresumed("trainer.max_steps=3")
    assert "put the first one back" in message and "another run_dir" in message
    desk.works("train", desk.run, f"run_dir={desk.path / 'another'}")
    file.write_text(text)
    desk.resume("trainer.max_steps=3")
    assert desk.trained(3)


def test_of_a_damaged_recipe_in_a_checkpoint(desk: Desk) -> None:
    desk.train()
    stored = list_checkpoints(desk.run)[-1].recipe
    stored.write_text("{")
    assert f"{stored}" in (message := desk.unresumed("trainer.max_steps=3")) and "remove this file" in message
    stored.unlink()
    desk.resume("trainer.max_steps=3")


def test_of_changed_training_data(desk: Desk, lines: list[dict[str, Any]]) -> None:
    """The model folder that the message named is there only when a run has ended."""
    desk.train()
    shutil.rmtree(desk.run / "model")  # a run that was interrupted
    before = (desk.path / "mine.jsonl").read_text()
    (desk.path / "mine.jsonl").write_text(before.replace("number 1", "number 9"))
    message = desk.unresumed("trainer.max_steps=3")
    assert "restore the data" in message and "start_from=<this run folder> and another run_dir" in message
    desk.train(f"start_from={desk.run}", f"run_dir={desk.path / 'another'}")
    (desk.path / "mine.jsonl").write_text(before)
    desk.resume("trainer.max_steps=3")
    assert desk.trained(3)


def test_of_a_codec_that_was_fitted_again(desk: Desk) -> None:
    desk.recipe.model.codec = replace(desk.recipe.model.codec, path=None)
    desk.train()
    codec = desk.run / "codec.safetensors"
    own = codec.read_bytes()
    tiny_codec(desk.recipe.model.codec).save(codec)
    message = desk.unresumed("trainer.max_steps=3")
    assert "Put the run's own files back" in message and "another run_dir" in message
    desk.train(f"run_dir={desk.path / 'another'}")
    codec.write_bytes(own)
    desk.resume("trainer.max_steps=3")
    assert desk.trained(3)


def test_of_a_codec_of_the_recipe_that_changed_before_anything_was_trained(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids did not mean what they meant, although nothing had learned them: the folder was of no use any more."""
    codec = desk.path / "mine.safetensors"
    shutil.copy(str(desk.recipe.model.codec.path), codec)
    desk.recipe.model.codec = replace(desk.recipe.model.codec, path=str(codec))
    with monkeypatch.context() as patch:
        patch.setattr(Bagpiper, "training_step", lambda *_: 1 / 0)
        desk.call("train", desk.write())
    tiny_codec(replace(desk.recipe.model.codec, path=None)).save(codec)
    desk.train()
    assert desk.trained(2)


def test_of_a_codec_file_that_is_not_there(desk: Desk) -> None:
    assert "no such file" in desk.untrained("model.codec.path=nowhere.safetensors")
    desk.train("model.codec.path=null")


def test_of_too_little_audio_for_a_codec(desk: Desk, lines: list[dict[str, Any]]) -> None:
    overrides = ["model.codec.path=null", "model.codec.codebook_size=512"]
    message = desk.untrained(*overrides)
    assert "give it more clips or lower codec.codebook_size" in message
    desk.train("model.codec.path=null", "model.codec.codebook_size=8")


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")


def of_another_shape(file: Path) -> None:
    cache = CodeCache(file.parents[2], file.parents[1].name.partition("-")[0])
    cache._folder = file.parents[1]
    cache.put(file.stem, np.zeros((3, 7), np.int64))


@pytest.mark.parametrize("every", [0, 1], ids=["before a checkpoint", "after one"])
@pytest.mark.parametrize(
    "spoil", [Path.unlink, damage, of_another_shape], ids=["missing", "damaged", "of another shape"]
)
def test_of_codes_that_are_spoiled_on_the_way(
    desk: Desk,
    lines: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    every: int,
) -> None:
    """They said "start again with --resume", which is refused where there is no checkpoint yet."""
    cache = desk.path / "cache"
    overrides = [f"data.cache={cache}", "trainer.max_steps=9", f"trainer.checkpoint_every={every}"]
    original = Bagpiper.training_step

    def step(self: Bagpiper, batch: Any, batch_idx: int) -> Any:
        for file in cache.rglob("*.codes") if batch_idx == 2 else ():
            spoil(file)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Bagpiper, "training_step", step)
        message = desk.untrained(*overrides)
    assert "start again, with --resume if there is a checkpoint" in message
    if "remove the cache folder" in message:
        shutil.rmtree(cache)
    if every:
        desk.resume()
    else:
        desk.train(*overrides)
    assert desk.trained(9)


def test_of_a_run_that_diverges(desk: Desk, lines: list[dict[str, Any]]) -> None:
    """The damaged clip taken out, a lower rate, and the start that the message names."""
    loud = 1e20 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write(desk.path / "1.wav", loud.astype(np.float32), 16000, subtype="FLOAT")
    desk.recipe.stage.train_encoder = False  # which a damaged clip would spoil before the first step
    overrides = ["data.token_budget=60", "trainer.checkpoint_every=1", "trainer.max_steps=9"]
    error = desk.call("train", desk.write(), *overrides).exception
    assert isinstance(error, Diverged) and "take them out" in str(error) and "with a lower optimizer.lr" in str(error)
    start = str(error).partition("(start_from=")[2].partition(")")[0]
    assert Path(start).parent == list_checkpoints(desk.run)[-1].folder
    del lines[1]
    save(desk, lines)
    desk.train(*overrides, f"start_from={start}", "optimizer.lr=1e-4", f"run_dir={desk.path / 'another'}")


def test_of_a_corpus_of_other_settings(desk: Desk, shared_parts: Shared) -> None:
    corpus = desk.path / "corpus"
    shutil.copytree(shared_parts.corpus, corpus)
    here, other = f"data.soundscapes.folder={corpus}", "data.soundscapes.train=12"
    message = desk.untrained(here, other)
    assert "holds another corpus: sizes" in message
    assert "give another folder" in message and "remove this one" in message
    desk.train(f"data.soundscapes.folder={desk.path / 'another'}", other, f"run_dir={desk.path / 'first'}")
    shutil.rmtree(corpus)
    desk.train(here, other)


def test_of_a_damaged_corpus(desk: Desk, shared_parts: Shared) -> None:
    corpus = desk.path / "corpus"
    shutil.copytree(shared_parts.corpus, corpus)
    manifest = corpus / "train.jsonl"
    manifest.write_text("{}\n" + manifest.read_text())
    here = f"data.soundscapes.folder={corpus}"
    assert "remove it to make it anew" in desk.untrained(here)
    shutil.rmtree(corpus)
    desk.train(here)


def test_of_a_device_that_is_not_there(desk: Desk) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert "use device=cpu" in desk.untrained("device=cuda")
    desk.train("device=cpu")


def test_of_a_device_of_apples(desk: Desk) -> None:
    assert "use device=cpu" in desk.untrained("device=mps")
    desk.train("device=cpu")


def test_of_layers_that_lora_does_not_find(desk: Desk) -> None:
    sft = ["stage.name=sft", "stage.lora.rank=2"]
    error = desk.call("train", desk.write(), *sft, "stage.lora.targets=[nothing]").exception
    allowed = str(error).partition("allowed: ")[2].replace(",", "").split()
    assert "q_proj" in allowed and "all-linear" in allowed
    desk.train(*sft, "stage.lora.targets=[q_proj]", f"run_dir={desk.path / 'another'}")


def test_of_a_start_that_is_gone(desk: Desk) -> None:
    """``start_from`` need not be there any more: the weights are the checkpoint's."""
    desk.train()
    second = desk.path / "second"
    desk.train(f"start_from={desk.run}", f"run_dir={second}")
    shutil.rmtree(desk.run)
    message = desk.refused("train", "--resume", second, "trainer.max_steps=3")
    assert "start_from=null" in message
    desk.works("train", "--resume", second, "trainer.max_steps=3", "start_from=null")
    assert list_checkpoints(second)[-1].step == 3


def test_of_a_recipe_that_contradicts_what_it_starts_from(desk: Desk) -> None:
    desk.train()
    start = [f"start_from={desk.run}", f"run_dir={desk.path / 'second'}"]
    assert "leave it out" in desk.untrained(*start, "model.pattern=parallel")
    desk.train(*start)


def test_of_the_verb_train(desk: Desk) -> None:
    file = desk.write()
    assert "`bagpiper train quickstart`" in desk.refused("train")
    desk.works("train", "quickstart", "--dry-run", f"run_dir={desk.path / 'quick'}")
    desk.train()
    assert "leave" in desk.refused("train", "--resume", desk.run, file)
    desk.works("train", "--resume", desk.run)
    assert "not a run folder" in desk.refused("train", "--resume", desk.path)
