"""Whether a run may go on under a recipe, compared with the one that its checkpoint was written under.

The recipe in the run folder is a file that may have been edited since, and the command line lays keys over it; neither
says what the weights were trained with. Each checkpoint keeps its own copy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bagpiper.errors import UserError
from bagpiper.recipe.load import RecipeError, recipe_from_dict
from bagpiper.recipe.settings import Recipe
from bagpiper.training.checkpoints import Checkpoint, check_whole, list_checkpoints
from bagpiper.training.optimizer import hidden_share, learning_rate, plan_end
from bagpiper.training.run_folder import RECIPE, as_dict, read_recipe, read_yaml

HARMLESS = (
    "name",
    "run_dir",
    "device",
    "trainer.validate_every",
    "trainer.validate_packs",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.log_every",
    "trainer.threads",
    "trainer.strategy",
    "data.on_bad_example",
    "data.workers",
    "data.cache",
    "listening",
    "tracking",
    "generation",
    "eval",
    "parity",
)
"""Keys that may change between a run and its continuation: what they change is not the training itself.

With another ``data.on_bad_example`` the examples may be others; the data's fingerprint says so."""

TOLD = ("trainer.devices", "trainer.nodes", "data.valid_sources")
"""Keys that may change because the run tells what comes of it (``PackDataModule.load_state_dict``)."""

_MAX_STEPS, _END = "trainer.max_steps", "optimizer.decay_end_step"
_SHOWN = 200
"""Characters of a value that a message shows."""


@dataclass(frozen=True)
class Change:
    """A key with two values."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} ({_shown(self.old)} -> {_shown(self.new)})"


@dataclass(frozen=True)
class Resumption:
    """A run that may go on.

    Attributes:
        start: the checkpoint.
        rule: a line for the user: what learning rate and frame dropout follow from here on.
        replanned: whether that is another plan than the checkpoint's.
    """

    start: Checkpoint
    rule: str
    replanned: bool

    def __str__(self) -> str:
        return self.rule


def check_resume(folder: Path, recipe: Recipe) -> Resumption:
    """Check that a run may be continued with this recipe.

    Raises:
        UserError: no run or no checkpoint here, or a key changed that decides what is trained.
    """
    stored = read_recipe(folder)
    complete = list_checkpoints(folder)
    if not complete:
        if (folder / "model").is_dir():  # it has ended, and then lost its checkpoints
            raise UserError(
                f"{folder} has no complete checkpoint to resume from, only its model: start a new run with it "
                f"(start_from={folder / 'model'}) in another run_dir"
            )
        raise UserError(
            f"{folder} has no complete checkpoint to resume from; start it again with `bagpiper train {folder} "
            f"run_dir={folder}`, which keeps what was prepared"
        )
    start = complete[-1]
    check_whole(start, complete[:-1])
    old = with_defaults(_written_under(start, folder) if start.recipe.is_file() else stored)
    new = as_dict(recipe)
    changed = differences(old, new, (*HARMLESS, *TOLD, _MAX_STEPS, _END))
    if new["start_from"] is None:  # the weights come from the checkpoint
        changed = [change for change in changed if change.key != "start_from"]
    old_end = old.get("optimizer", {}).get("decay_end_step")
    old_steps = old.get("trainer", {}).get("max_steps", recipe.trainer.max_steps)
    if old_end is not None and old_end != recipe.optimizer.decay_end_step:
        changed.append(Change(_END, old_end, recipe.optimizer.decay_end_step))
    if changed:
        raise UserError(
            f"{folder}: a resumed run cannot change {', '.join(map(str, changed))}. The first value is what "
            f"{start.folder.name} was trained with, the second stands in {folder / RECIPE} or on the command "
            "line: put the first one back, or start a new run with another run_dir. Keys that may change: "
            f"{', '.join((*HARMLESS, *TOLD))}; {_MAX_STEPS}, if {_END} is set."
        )
    _check_plan(folder, recipe, old_end, old_steps)
    former = replace(
        recipe,
        optimizer=replace(recipe.optimizer, decay_end_step=old_end),
        trainer=replace(recipe.trainer, max_steps=old_steps),
    )
    return Resumption(start, _rule(start.step, former, recipe), plan_end(former) != plan_end(recipe))


def _written_under(start: Checkpoint, folder: Path) -> Mapping[str, Any]:
    """The recipe in a checkpoint; those of the first releases have none."""
    try:
        return read_yaml(start.recipe)
    except UserError as error:
        raise UserError(f"{error}; remove this file, and {folder / RECIPE} is compared with instead") from None


def _check_plan(folder: Path, recipe: Recipe, old_end: int | None, old_steps: int) -> None:
    """Refuse another length for a run whose plan ends with it.

    Raises:
        UserError: names what keeps the plan and what moves its end.
    """
    steps, warmup = recipe.trainer.max_steps, recipe.optimizer.warmup_steps
    if old_end is not None or recipe.optimizer.decay_end_step is not None or steps == old_steps:
        return
    keep, move = max(old_steps, warmup), max(steps, warmup)  # the schedule cannot end before its warm-up
    raise UserError(
        f"{folder}: {_MAX_STEPS} was {old_steps} and is to be {steps}, but the learning rate falls until the last "
        f"step where {_END} is null, so another length is another plan. Say which: {_END}={keep} keeps it (from step "
        f"{keep} on the rate stays at its floor), {_END}={move} moves its end (the rate jumps to the new curve); or "
        f"leave {_MAX_STEPS} at {old_steps}."
    )


def _rule(step: int, former: Recipe, now: Recipe) -> str:
    """What the run follows from here on, and what it followed."""
    key = _MAX_STEPS if now.optimizer.decay_end_step is None else _END
    end = plan_end(now)
    text = (
        f"resumed at step {step} of {now.trainer.max_steps}: learning rate {learning_rate(step, now):.3g} here, "
        f"{learning_rate(end, now):.3g} from step {end} on ({key})"
    )
    share = now.data.frame_dropout
    if share:
        text += f"; {hidden_share(step, share, end):.0%} of the frames hidden here, none from step {end} on"
    if end != plan_end(former):
        text += (
            f". Its plan ended at step {plan_end(former)} until here: learning rate {learning_rate(step, former):.3g}"
            + (f", {hidden_share(step, share, plan_end(former)):.0%} hidden" if share else "")
        )
    if step >= now.trainer.max_steps:
        text += ". There is nothing left to train"
    return text


def with_defaults(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored recipe with the keys that the release which wrote it did not have yet.

    A recipe that this release cannot read, such as one with a key that is gone, is compared as it is.
    """
    try:
        # what a recipe starts from is not looked at: the folder may be gone, or hold another model by now
        complete = as_dict(recipe_from_dict({**stored, "start_from": None}))
    except RecipeError:
        return stored
    return {**complete, "start_from": stored.get("start_from")}


def differences(old: Any, new: Any, allowed: Sequence[str], prefix: str = "") -> list[Change]:
    """Dotted keys whose values differ.

    Args:
        old, new: plain recipes, or parts of them.
        allowed: keys that are passed over, with all below them.
        prefix: key of the parts.
    """
    if prefix in allowed or old == new:
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = {key: f"{prefix}.{key}" if prefix else str(key) for key in (*old, *new)}
        pairs = [(old.get(key), new.get(key), dotted) for key, dotted in keys.items()]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(one, other, f"{prefix}[{index}]") for index, (one, other) in enumerate(zip(old, new, strict=True))]
    else:
        return [Change(prefix, old, new)]
    return [change for one, other, dotted in pairs for change in differences(one, other, allowed, dotted)]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
