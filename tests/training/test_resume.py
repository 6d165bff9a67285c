"""Whether a run may go on under a recipe, and what it then follows."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_settings

from bagpiper.errors import UserError
from bagpiper.recipe import registry
from bagpiper.recipe.load import dump_recipe, load_recipe
from bagpiper.recipe.settings import (
    DataSettings,
    OptimizerSettings,
    ParitySettings,
    Recipe,
    SourceSettings,
    TrainerSettings,
)
from bagpiper.training import run_folder
from bagpiper.training.checkpoints import checkpoint_at
from bagpiper.training.resume import Change, check_resume, differences


def begin(folder: Path, **changes) -> Recipe:
    """A run of 100 steps with a checkpoint at step 40."""
    recipe = replace(
        Recipe(name="tiny", run_dir=str(folder), model=tiny_settings(), trainer=TrainerSettings(max_steps=100)),
        **{"optimizer": OptimizerSettings(lr=1e-3, warmup_steps=10), **changes},
    )
    run_folder.write_records(folder, recipe)
    write_checkpoint(folder, recipe, 40)
    return recipe


def write_checkpoint(folder: Path, recipe: Recipe, step: int) -> None:
    checkpoint = checkpoint_at(folder, step)
    checkpoint.model.mkdir(parents=True)
    checkpoint.state.parent.mkdir()
    torch.save(
        dict.fromkeys(("PackDataModule", "loops", "global_step", "metrics", "optimizer_states")), checkpoint.state
    )
    checkpoint.recipe.write_text(run_folder.recipe_text(recipe))


def edit(folder: Path, **changes) -> Recipe:
    """Edit the recipe in the folder by hand, as ``section={key: value}``, and load it as ``--resume`` does."""
    stored = run_folder.read_recipe(folder)
    for section, values in changes.items():
        stored[section] = {**stored[section], **values} if isinstance(values, dict) else values
    (folder / "recipe.yaml").write_text(yaml.safe_dump(stored))
    return load_recipe(str(folder), ready=False)


def refusal(folder: Path, recipe: Recipe) -> str:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as refused:
        check_resume(folder, recipe)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return str(refused.value)


def of_length(recipe: Recipe, steps: int, end: int | None = None) -> Recipe:
    return replace(
        recipe,
        trainer=replace(recipe.trainer, max_steps=steps),
        optimizer=replace(recipe.optimizer, decay_end_step=end),
    )


# -- keys ----------------------------------------------------------------------------------------------------------


def test_an_edited_recipe_is_compared_with_that_of_the_checkpoint(tmp_path):
    """The folder's file was compared with itself: an edited rate was ignored, an edited `accumulate` obeyed."""
    begin(tmp_path)
    edited = edit(tmp_path, optimizer={"lr": 5e-3}, trainer={"accumulate": 3})
    message = refusal(tmp_path, edited)
    assert "optimizer.lr (0.001 -> 0.005)" in message and "trainer.accumulate (1 -> 3)" in message
    assert "step-000040" in message and "run_dir" in message
    check_resume(tmp_path, edit(tmp_path, optimizer={"lr": 1e-3}, trainer={"accumulate": 1}))


def test_every_key_that_differs_is_named_with_both_values(tmp_path):
    recipe = begin(tmp_path, data=DataSettings(sources=[SourceSettings("a.jsonl"), SourceSettings("b.jsonl")]))
    changed = replace(
        recipe,
        seed=7,
        plugins=["json"],
        data=replace(
            recipe.data, sources=[SourceSettings("a.jsonl", weight=2.0), SourceSettings("c.jsonl")], cfg_dropout=0.5
        ),
        optimizer=replace(recipe.optimizer, betas=(0.9, 0.99), clip_norm=0.5),
        trainer=replace(recipe.trainer, precision="bf16-mixed"),
    )
    message = refusal(tmp_path, changed)
    for change in (
        "seed (42 -> 7)",
        'plugins ([] -> ["json"])',
        "data.sources[0].weight (1.0 -> 2.0)",
        'data.sources[1].path ("b.jsonl" -> "c.jsonl")',
        "data.cfg_dropout (0.05 -> 0.5)",
        "optimizer.betas[1] (0.95 -> 0.99)",
        "optimizer.clip_norm (1.0 -> 0.5)",
        'trainer.precision ("32-true" -> "bf16-mixed")',
    ):
        assert change in message, change


def test_a_changed_part_of_the_model_is_named(tmp_path):
    recipe = begin(tmp_path)
    recipe.model.adaptor = replace(recipe.model.adaptor, output_rms=0.5)
    assert "model.adaptor.output_rms (1.0 -> 0.5)" in refusal(tmp_path, recipe)


PLUGIN = """
from dataclasses import dataclass
from bagpiper.adaptors.configs import AdaptorConfig
from bagpiper.recipe import registry

@dataclass
class Config(AdaptorConfig):
    slope: float = 0.5

registry.register("adaptor", "resume_test", config="my_resume_parts:Config", component="my_resume_parts:Config")
"""


def test_a_changed_key_of_a_plugins_part_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(registry, "_ENTRIES", {kind: dict(entries) for kind, entries in registry._ENTRIES.items()})
    (tmp_path / "my_resume_parts.py").write_text(PLUGIN)
    plain = yaml.safe_load(dump_recipe(Recipe(model=tiny_settings())))
    plain |= {"plugins": ["my_resume_parts"], "run_dir": "run"}
    plain["model"]["adaptor"] = {"name": "resume_test", "slope": 0.5}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(plain))
    folder = tmp_path / "run"
    recipe = load_recipe(str(tmp_path / "mine.yaml"), ready=False)
    run_folder.write_records(folder, recipe)
    write_checkpoint(folder, recipe, 3)
    check_resume(folder, load_recipe(str(folder), ready=False))
    edited = load_recipe(str(folder), ["model.adaptor.slope=0.25"], ready=False)
    assert "model.adaptor.slope (0.5 -> 0.25)" in refusal(folder, edited)


def test_harmless_keys_may_change(tmp_path):
    recipe = begin(tmp_path)
    changed = replace(
        recipe,
        name="other",
        run_dir="elsewhere",
        device="cpu",
        parity=ParitySettings(at_end=False),
        data=replace(recipe.data, on_bad_example="skip", workers=0, cache="elsewhere"),
        trainer=replace(recipe.trainer, log_every=1, checkpoint_every=5, validate_every=2, devices=2, nodes=2),
    )
    assert not check_resume(tmp_path, changed).replanned


def test_only_a_start_from_nothing_may_replace_what_a_run_started_from(tmp_path):
    """`--resume RUN start_from=OTHER` was obeyed in silence by nobody: the weights come from the checkpoint."""
    recipe = begin(tmp_path, start_from="one")
    check_resume(tmp_path, recipe)
    check_resume(tmp_path, replace(recipe, start_from=None))
    assert 'start_from ("one" -> "two")' in refusal(tmp_path, replace(recipe, start_from="two"))


def test_the_newest_checkpoint_decides(tmp_path):
    """A run whose plan was given on the way has two checkpoints of two recipes."""
    recipe = begin(tmp_path)
    write_checkpoint(tmp_path, of_length(recipe, 200, end=200), 60)
    assert "optimizer.decay_end_step (200 -> null)" in refusal(tmp_path, recipe)
    check_resume(tmp_path, of_length(recipe, 300, end=200))


def test_a_checkpoint_without_a_recipe_is_compared_with_the_folders(tmp_path):
    recipe = begin(tmp_path)
    checkpoint_at(tmp_path, 40).recipe.unlink()
    check_resume(tmp_path, recipe)
    assert "seed (42 -> 1)" in refusal(tmp_path, replace(recipe, seed=1))


def test_keys_that_an_older_release_did_not_know_have_their_default(tmp_path):
    recipe = begin(tmp_path)
    path = checkpoint_at(tmp_path, 40).recipe
    stored = yaml.safe_load(path.read_text())
    del stored["data"]["resampler"], stored["model"]["text_zero_is_pad"], stored["parity"]
    path.write_text(yaml.safe_dump(stored))
    check_resume(tmp_path, recipe)
    changed = replace(recipe, data=replace(recipe.data, resampler="official"))
    assert 'data.resampler ("soxr" -> "official")' in refusal(tmp_path, changed)


def test_keys_that_are_gone_are_compared_as_they_are(tmp_path):
    recipe = begin(tmp_path)
    path = checkpoint_at(tmp_path, 40).recipe
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "mood": "good"}))
    assert 'mood ("good" -> null)' in refusal(tmp_path, recipe)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff\xfe"])
def test_a_damaged_recipe_in_a_checkpoint_says_what_to_do(tmp_path, content):
    recipe = begin(tmp_path)
    path = checkpoint_at(tmp_path, 40).recipe
    path.write_text(content, "latin-1")
    assert f"{path}" in refusal(tmp_path, recipe)
    assert "remove this file" in refusal(tmp_path, recipe)
    path.unlink()
    check_resume(tmp_path, recipe)


def test_without_run_or_checkpoint(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        check_resume(tmp_path, Recipe())
    recipe = Recipe(name="tiny", run_dir=str(tmp_path), model=tiny_settings())
    run_folder.write_records(tmp_path, recipe)
    assert "no complete checkpoint" in refusal(tmp_path, recipe)


def test_differences_pass_over_what_is_allowed_with_all_below_it():
    old, new = {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}, "f": [1]}, {"a": {"b": 2, "c": [1, 3]}, "d": {}, "f": [1, 2]}
    assert differences(old, old, ()) == []
    assert [str(change) for change in differences(old, new, ("d",))] == [
        "a.b (1 -> 2)",
        "a.c[1] (2 -> 3)",
        "f ([1] -> [1, 2])",
    ]
    assert differences(old, new, ("a", "f")) == [Change("d.e", 1, None)]
    assert len(str(Change("k", "x" * 1000, None))) < 250


# -- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [200, 50])
def test_another_length_without_an_end_of_the_plan_is_refused_with_two_ways_out(tmp_path, steps):
    """A longer run jumped from 1e-5 to 5e-5, a step late and without a word."""
    recipe = begin(tmp_path)
    message = refusal(tmp_path, of_length(recipe, steps))
    assert f"trainer.max_steps was 100 and is to be {steps}" in message
    ends = [int(part.split()[0]) for part in message.split("optimizer.decay_end_step=")[1:]]
    assert ends == [100, steps]
    kept, moved = (check_resume(tmp_path, of_length(recipe, steps, end)) for end in ends)
    assert not kept.replanned and moved.replanned


def test_the_rule_is_told(tmp_path):
    recipe = begin(tmp_path, data=DataSettings(frame_dropout=0.5))
    same = check_resume(tmp_path, recipe)
    assert same.rule == (
        "resumed at step 40 of 100: learning rate 0.000775 here, 0.0001 from step 100 on (trainer.max_steps); "
        "30% of the frames hidden here, none from step 100 on"
    )
    moved = check_resume(tmp_path, of_length(recipe, 200, 200))
    assert moved.rule == (
        "resumed at step 40 of 200: learning rate 0.000946 here, 0.0001 from step 200 on (optimizer.decay_end_step); "
        "40% of the frames hidden here, none from step 200 on. "
        "Its plan ended at step 100 until here: learning rate 0.000775, 30% hidden"
    )


def test_a_plan_with_an_end_lets_the_length_change_but_not_its_end(tmp_path):
    recipe = begin(tmp_path, optimizer=OptimizerSettings(warmup_steps=10, decay_end_step=80))
    for steps in (41, 100, 1000):
        assert not check_resume(tmp_path, of_length(recipe, steps, 80)).replanned
    assert "optimizer.decay_end_step (80 -> 90)" in refusal(tmp_path, of_length(recipe, 100, 90))
    assert "optimizer.decay_end_step (80 -> null)" in refusal(tmp_path, of_length(recipe, 100))


def test_an_end_that_says_what_was_the_case_changes_nothing(tmp_path):
    recipe = begin(tmp_path)
    assert not check_resume(tmp_path, of_length(recipe, 100, 100)).replanned


def test_both_ways_out_hold_where_the_run_ended_within_its_warm_up(tmp_path):
    """The schedule cannot end before its warm-up does: an end at the old length would be refused by the recipe."""
    from bagpiper.training.optimizer import learning_rate

    recipe = begin(tmp_path, optimizer=OptimizerSettings(warmup_steps=300))
    message = refusal(tmp_path, of_length(recipe, 1000))
    ends = [int(part.split()[0]) for part in message.split("optimizer.decay_end_step=")[1:]]
    assert ends == [300, 1000]
    for end in ends:
        (tmp_path / "recipe.yaml").write_text(dump_recipe(of_length(recipe, 1000, end)))
        check_resume(tmp_path, load_recipe(str(tmp_path), ready=False))
    former = [learning_rate(step, of_length(recipe, 100)) for step in range(1000)]
    assert former == [learning_rate(step, of_length(recipe, 1000, 300)) for step in range(1000)]
    assert all(one < other for one, other in pairwise(former[:300]))


def test_a_length_that_is_reached_already_is_told(tmp_path):
    recipe = begin(tmp_path, optimizer=OptimizerSettings(warmup_steps=10, decay_end_step=80))
    assert check_resume(tmp_path, of_length(recipe, 30, 80)).rule.endswith("There is nothing left to train")
