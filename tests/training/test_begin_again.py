"""Whether a new run may have a folder that is not empty."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_settings

from bagpiper.codecs.configs import RvqConfig
from bagpiper.errors import UserError
from bagpiper.recipe.settings import OptimizerSettings, Recipe, SoundscapesSettings, TrainerSettings
from bagpiper.training import run_folder
from bagpiper.training.begin_again import check_new


def a_recipe(folder: Path, **changes) -> Recipe:
    return replace(Recipe(name="tiny", run_dir=str(folder), model=tiny_settings()), **changes)


def begin(folder: Path, **changes) -> Recipe:
    recipe = a_recipe(folder, **changes)
    assert check_new(folder, recipe) is None
    run_folder.write_records(folder, recipe)
    return recipe


def record(folder: Path, *steps: int) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": step, "split": "train" if step else "data"}) + "\n" for step in steps)


def complete(folder: Path, step: int) -> None:
    checkpoint = folder / "checkpoints" / f"step-{step:06d}"
    (checkpoint / "model").mkdir(parents=True)
    (checkpoint / "resume").mkdir()
    (checkpoint / "resume" / "state.pt").write_bytes(b"x")


def prepare(folder: Path) -> None:
    """All that a run leaves before its first step."""
    for name in ("tokenizer", "cache", "corpus", "checkpoints/frozen"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text("x")
    (folder / "corpus" / "corpus.json").write_text("{}")
    for name in ("codec.safetensors", "fingerprint.json", "started_from.json", "mlflow_run.json", "mlflow.db"):
        (folder / name).write_text("x")
    record(folder, 0)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


OTHER = OptimizerSettings(lr=3e-4)


def test_the_same_recipe_keeps_what_was_prepared(tmp_path):
    recipe = begin(tmp_path)
    prepare(tmp_path)
    assert check_new(tmp_path, recipe) is None
    longer = replace(recipe, trainer=TrainerSettings(max_steps=7, log_every=3))
    assert check_new(tmp_path, longer) is None


def test_another_recipe_may_begin_where_nothing_was_trained(tmp_path):
    """`data.on_bad_example=skip`, which our own message advises, was refused: "the run of another recipe"."""
    recipe = begin(tmp_path)
    prepare(tmp_path)
    before = snapshot(tmp_path)
    attempt = check_new(tmp_path, replace(recipe, seed=7, optimizer=OTHER))
    assert snapshot(tmp_path) == before, "looking changes nothing"
    assert "nothing was trained here yet" in str(attempt)
    assert "seed (42 -> 7)" in str(attempt) and "optimizer.lr (0.0001 -> 0.0003)" in str(attempt)
    attempt.remove()
    assert names(tmp_path) == {"recipe.yaml", "environment.json", "cache", "corpus", "mlflow.db"}
    gone = ("tokenizer", "codec.safetensors", "fingerprint.json", "started_from.json", "mlflow_run.json")
    assert all(name in str(attempt) for name in (*gone, "metrics.jsonl"))


def test_a_corpus_of_other_settings_is_made_anew_and_folders_of_the_users_stay(tmp_path):
    recipe = begin(tmp_path, seed=1)
    recipe.data.soundscapes = SoundscapesSettings(train=5)
    run_folder.write_records(tmp_path, recipe)
    prepare(tmp_path)
    (tmp_path / "notes").mkdir()
    for train, seed, stays in ((5, 2, True), (6, 1, False)):
        changed = replace(recipe, seed=seed, data=replace(recipe.data, soundscapes=SoundscapesSettings(train=train)))
        attempt = check_new(tmp_path, changed)
        assert (tmp_path / "corpus" in attempt.prepared) != stays
    (tmp_path / "corpus" / "corpus.json").unlink()  # not one of ours
    assert tmp_path / "corpus" not in check_new(tmp_path, changed).prepared
    assert tmp_path / "notes" not in attempt.prepared


def test_a_codec_that_the_recipe_names_stays_though_it_lies_in_the_folder(tmp_path):
    recipe = begin(tmp_path)
    prepare(tmp_path)
    recipe.model.codec = RvqConfig(path=str(tmp_path / "codec.safetensors"))
    assert tmp_path / "codec.safetensors" not in check_new(tmp_path, recipe).prepared


def test_what_another_start_prepared_is_not_taken_over(tmp_path):
    """``start_from`` once counted as harmless here too: the tokenizer of the other model was kept."""
    recipe = begin(tmp_path, start_from="one")
    prepare(tmp_path)
    assert tmp_path / "tokenizer" in check_new(tmp_path, replace(recipe, start_from="two")).prepared


def test_an_unreadable_recipe_where_nothing_was_trained(tmp_path):
    recipe = begin(tmp_path)
    for content in ("", "[1]", "{", "\xff"):
        (tmp_path / "recipe.yaml").write_text(content, "latin-1")
        check_new(tmp_path, recipe).remove()
    record(tmp_path, 3)
    with pytest.raises(UserError, match=r"recipe\.yaml is not readable.*run_dir="):
        check_new(tmp_path, recipe)


TRACES = {
    "a record": lambda folder: record(folder, 0, 2),
    "a damaged record": lambda folder: (folder / "metrics.jsonl").write_text("{"),
    "a listening": lambda folder: (folder / "listening").mkdir(),
    "half a checkpoint": lambda folder: (folder / "checkpoints" / "step-000004" / "model").mkdir(parents=True),
}


@pytest.mark.parametrize("trace", TRACES)
def test_once_steps_were_trained_only_the_same_training_starts_again(tmp_path, trace):
    recipe = begin(tmp_path)
    prepare(tmp_path)
    TRACES[trace](tmp_path)
    before = snapshot(tmp_path)
    assert check_new(tmp_path, recipe) is None
    assert check_new(tmp_path, replace(recipe, trainer=TrainerSettings(log_every=3))) is None
    with pytest.raises(UserError, match=r"no checkpoint was reached.*optimizer\.lr \(0\.0001 -> 0\.0003\).*run_dir="):
        check_new(tmp_path, replace(recipe, optimizer=OTHER))
    # it would begin at step 0 again, with other rates, and its first records are there already
    with pytest.raises(UserError, match=r"trainer\.max_steps \(1000 -> 7\)"):
        check_new(tmp_path, replace(recipe, trainer=TrainerSettings(max_steps=7)))
    assert snapshot(tmp_path) == before


def test_another_length_is_the_same_training_where_the_plan_has_its_own_end(tmp_path):
    recipe = begin(tmp_path, optimizer=OptimizerSettings(decay_end_step=500))
    record(tmp_path, 3)
    assert check_new(tmp_path, replace(recipe, trainer=TrainerSettings(max_steps=7))) is None


def test_the_run_of_another_recipe_is_refused_untouched(tmp_path):
    recipe = begin(tmp_path)
    complete(tmp_path, 3)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"another recipe.*optimizer\.lr.*run_dir="):
        check_new(tmp_path, replace(recipe, optimizer=OTHER))
    assert snapshot(tmp_path) == before


def test_the_second_start_of_a_run_says_how_to_resume(tmp_path):
    recipe = begin(tmp_path)
    complete(tmp_path, 3)
    with pytest.raises(UserError, match=f"--resume {tmp_path}"):
        check_new(tmp_path, recipe)


def test_a_folder_with_a_model_or_records_but_no_recipe_is_refused(tmp_path):
    for name, make in (("a model", lambda f: (f / "model").mkdir()), ("records", lambda f: record(f, 5))):
        folder = tmp_path / name
        folder.mkdir()
        assert check_new(folder, a_recipe(folder)) is None
        make(folder)
        with pytest.raises(UserError, match=f"holds .*{name}.*run_dir="):
            check_new(folder, a_recipe(folder))


def test_keys_that_an_older_release_did_not_know_are_no_difference(tmp_path):
    import yaml

    recipe = begin(tmp_path)
    stored = run_folder.read_recipe(tmp_path)
    del stored["data"]["resampler"], stored["parity"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(stored))
    complete(tmp_path, 3)
    with pytest.raises(UserError, match="a run of this recipe already"):
        check_new(tmp_path, recipe)
