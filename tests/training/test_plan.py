"""What the steps of a run follow when it goes on with another length: learning rate and frame dropout."""

import json
from dataclasses import replace

import pytest
from rich.console import Console
from runs import tiny_recipe

from bagpiper.errors import UserError
from bagpiper.files import remove_tree
from bagpiper.model import Bagpiper
from bagpiper.recipe.load import load_recipe
from bagpiper.run import run
from bagpiper.training.checkpoints import list_checkpoints
from bagpiper.training.optimizer import hidden_share, learning_rate, plan_end

SHARE = 0.6


@pytest.fixture
def shares(monkeypatch):
    """The share of hidden frames at every micro-batch that was trained on."""
    seen = []
    original = Bagpiper.training_step

    def step(self, batch, batch_idx):
        seen.append(self.frame_dropout)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Bagpiper, "training_step", step)
    return seen


def recipe_of(folder, shared_parts, steps, end=None, name="adamw"):
    recipe = tiny_recipe(folder, shared_parts, max_steps=steps, accumulate=1, log_every=1)
    recipe.optimizer = replace(recipe.optimizer, name=name, warmup_steps=1, decay_end_step=end)
    recipe.data.frame_dropout = SHARE
    return recipe


def rates(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return pytest.approx([record["learning_rate"] for record in records if record["split"] == "train"], rel=1e-6)


def expected(recipe, steps):
    """Rates and shares of the first steps under a recipe."""
    planned = [learning_rate(step, recipe) for step in range(steps)]
    return planned, [hidden_share(step, SHARE, plan_end(recipe)) for step in range(steps)]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_rates_of_a_whole_run_are_those_of_its_plan(tmp_path, shared_parts, shares, name):
    recipe = recipe_of(tmp_path / "run", shared_parts, 6, name=name)
    run(recipe)
    assert (rates(tmp_path / "run"), shares) == expected(recipe, 6)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("end", [3, 6], ids=["plan kept", "end moved"])
def test_a_longer_resume_follows_the_plan_that_was_chosen_from_its_first_step_on(
    tmp_path, shared_parts, shares, end, name
):
    """The former plan's rate was used for one more step, and then the new one's without a word."""
    folder = tmp_path / "run"
    run(recipe_of(folder, shared_parts, 3, name=name))
    longer = recipe_of(folder, shared_parts, 6, name=name)
    with pytest.raises(UserError, match=r"decay_end_step=3 keeps it.*decay_end_step=6 moves its end"):
        run(longer, resume=True)
    heard = Console(record=True, width=400)
    chosen = recipe_of(folder, shared_parts, 6, end, name)
    run(chosen, resume=True, console=heard)
    began, new = expected(recipe_of(folder, shared_parts, 3, name=name), 3), expected(chosen, 6)
    assert rates(folder) == began[0] + new[0][3:]
    assert shares == began[1] + new[1][3:]
    said = heard.export_text()
    assert f"resumed at step 3 of 6: learning rate {new[0][3]:.3g} here" in said
    assert ("Its plan ended at step 3 until here" in said) == (end == 6)
    # from now on the end of the plan is fixed, and the length is free
    again = load_recipe(str(folder), ["trainer.max_steps=8"])
    assert again.optimizer.decay_end_step == end
    run(again, resume=True)
    assert rates(folder) == began[0] + expected(chosen, 8)[0][3:]
    assert list_checkpoints(folder)[-1].step == 8


def test_records_of_steps_that_come_again_by_another_plan_are_replaced(tmp_path, shared_parts):
    """They stayed: ``metrics.jsonl`` held rates at which the run was never trained."""
    folder = tmp_path / "run"
    recipe = recipe_of(folder, shared_parts, 4)
    recipe.trainer.checkpoint_every = 2
    run(recipe)
    remove_tree(list_checkpoints(folder)[-1].folder)
    chosen = recipe_of(folder, shared_parts, 6, 6)
    run(chosen, resume=True)
    assert rates(folder) == expected(recipe, 2)[0] + expected(chosen, 6)[0][2:]


def test_a_plan_that_ends_before_the_run_hides_no_frames_afterwards(tmp_path, shared_parts, shares):
    """The dropout fell over ``trainer.max_steps`` whatever the schedule did."""
    run(recipe_of(tmp_path / "run", shared_parts, 5, end=2))
    assert shares == [SHARE, SHARE / 2, 0.0, 0.0, 0.0]


def test_a_run_that_is_longer_than_asked_for_says_so_and_keeps_its_step(tmp_path, shared_parts):
    folder = tmp_path / "run"
    run(recipe_of(folder, shared_parts, 3, end=3))
    heard = Console(record=True, width=400)
    run(recipe_of(folder, shared_parts, 2, end=3), resume=True, console=heard)
    assert "There is nothing left to train" in heard.export_text()
    assert [path.name for path in (folder / "listening").iterdir()] == ["step-000003"]


def test_shipped_recipes_hide_frames_as_ever():
    """None of them sets the end of the schedule, so that frame dropout falls over the run as before."""
    from bagpiper.recipe.source import shipped

    for name in shipped():
        recipe = load_recipe(name, ready=False)
        assert recipe.optimizer.decay_end_step is None and plan_end(recipe) == recipe.trainer.max_steps, name
