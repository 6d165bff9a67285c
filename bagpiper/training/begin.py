"""How a run begins: it takes its folder, and gets a model that is new, started from another one, or resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from bagpiper.console import say, told
from bagpiper.errors import UserError
from bagpiper.model import Bagpiper
from bagpiper.recipe.load import recipe_to_dict
from bagpiper.recipe.settings import Recipe
from bagpiper.redact import masked_keys
from bagpiper.training import run_folder
from bagpiper.training.assemble import build_model, make_ready, start_model
from bagpiper.training.begin_again import Attempt, check_new, trained
from bagpiper.training.checkpoints import Checkpoint
from bagpiper.training.prepare import (
    Examples,
    calibrate_encoder,
    codec_on_disk,
    keep_tokenizer,
    prepare_codec,
    prepare_tokenizer,
)
from bagpiper.training.resume import Resumption, check_resume
from bagpiper.training.run_lock import check_free, hold
from bagpiper.weights.model_folder import load_model

_PATIENCE = 60.0
"""Seconds that other ranks give the main one to clear the folder, which on a disk of their own it never does."""


@dataclass(frozen=True)
class Beginning:
    """A run folder that is taken.

    Attributes:
        start: the checkpoint to continue from; None for a new run.
        model: of that checkpoint.
        still_ours: raises a UserError when another process has taken the folder since.
        commit: writes the run's records; of a run that goes on when its data are known to be those of before, so that
            one that is refused leaves its folder as it was.
    """

    start: Checkpoint | None
    model: Bagpiper | None
    still_ours: Callable[[], None]
    commit: Callable[[], None] = lambda: None


def check_start(folder: Path, recipe: Recipe, resume: bool) -> Resumption | Attempt | None:
    """Look whether a run may begin in a folder, or go on there; nothing is written.

    Returns:
        What it goes on from; or what is left of an earlier attempt; None where a new run has nothing to consider.

    Raises:
        UserError: it may not, see ``check_resume`` and ``check_new``.
    """
    # the tracking takes a login from elsewhere, or does without
    masked = [key for key in masked_keys(recipe_to_dict(recipe)) if not key.startswith("tracking.")]
    if masked:
        raise UserError(f"{folder}: a run folder keeps no secrets; give them again, {'=... '.join(masked)}=...")
    return check_resume(folder, recipe) if resume else check_new(folder, recipe)


def begin(recipe: Recipe, folder: Path, resume: bool, console: Console, held: ExitStack, *, is_main: bool) -> Beginning:
    """Check that the run may have its folder, take it and write the records of a new run.

    Args:
        recipe: of the run.
        folder: of the run.
        resume: continue from the newest checkpoint.
        console: where is told what follows from an earlier run.
        held: keeps the folder locked until it is closed.
        is_main: whether this process writes; others of the same run only look.

    Raises:
        UserError: another run or another process has the folder, or it cannot be written; nothing in it was changed.
    """
    if is_main:
        check_free(folder)
    found = check_start(folder, recipe, resume)
    run_folder.read_origin(folder)
    start = found.start if isinstance(found, Resumption) else None
    model = resumed_model(recipe, folder, start) if start else None
    if not is_main:
        _wait_for_main(folder, recipe, found)
        return Beginning(start, model, lambda: None)
    run_folder.check_writable(folder)
    lock = held.enter_context(hold(folder))
    if check_start(folder, recipe, resume) != found:
        raise UserError(f"{folder}: another process has just trained here; look at it, then start again")
    if found is not None:
        say(console, str(found))
    if isinstance(found, Resumption):
        return Beginning(start, model, lock.check, partial(_commit, folder, recipe, found))
    if isinstance(found, Attempt):
        found.remove()
    if not trained(folder):  # nothing has learned the ids yet: they may mean something else
        (folder / run_folder.FINGERPRINT).unlink(missing_ok=True)
    run_folder.write_records(folder, recipe)
    return Beginning(start, model, lock.check)


def _commit(folder: Path, recipe: Recipe, resumption: Resumption) -> None:
    """Write the records of a run that goes on."""
    if resumption.replanned:
        run_folder.drop_records(folder, resumption.start.step)
    run_folder.write_records(folder, recipe)


def _wait_for_main(folder: Path, recipe: Recipe, found: Resumption | Attempt | None) -> None:
    """Wait until the main process has removed what an earlier attempt left, such as a tokenizer of other ids."""
    until = time.monotonic() + _PATIENCE
    while isinstance(found, Attempt) and time.monotonic() < until:
        time.sleep(0.1)
        found = check_new(folder, recipe)


def resumed_model(recipe: Recipe, folder: Path, start: Checkpoint) -> Bagpiper:
    """The checkpoint's model, after comparing it with the files that lie about: nothing has been written yet.

    Raises:
        UserError: the checkpoint is damaged, or what ids mean has changed since.
    """
    try:
        model = load_model(start.model)
    except UserError as error:
        raise UserError(f"{error} Or remove {start.folder}, and an older checkpoint is resumed from.") from error
    codec = codec_on_disk(recipe, folder) or model.codec
    learned = _fingerprint(model, model.codec.weights_hash())
    run_folder.check_fingerprint(folder, _fingerprint(model, codec.weights_hash()), learned)
    return make_ready(model, recipe)


def new_model(recipe: Recipe, folder: Path, examples: Examples, console: Console, *, is_main: bool) -> Bagpiper:
    """A model for a run that begins.

    Args:
        recipe: of the run.
        folder: of the run; gets the tokenizer and the codec if they are made here, and what ids mean.
        examples: of the run; tokenizer, codec and encoder of a model made from nothing are fitted to them.
        console: where progress is told.
        is_main: whether this process writes the run's records.

    Raises:
        UserError: a part cannot be made, or the folder has begun with another language.
    """
    origin = None
    if recipe.start_from is not None:
        with told(console, "start") as say:
            model, origin = start_model(recipe)
            say(f"weights of {origin['folder']} (stage {origin['stage']})")
    else:
        tokenizer = prepare_tokenizer(recipe, folder, examples.train, console)
        codec = prepare_codec(recipe, folder, examples.train, console)
        model = build_model(recipe, tokenizer, codec)
        if recipe.stage.train_encoder:
            calibrate_encoder(recipe, model.encoder, examples.train)
    record = _fingerprint(model, model.codec.weights_hash())
    run_folder.check_fingerprint(folder, record)
    run_folder.write_fingerprint(folder, record)
    if origin is not None and is_main:
        keep_tokenizer(folder, model.tokenizer)
        run_folder.write_origin(folder, origin)
    return make_ready(model, recipe)


def _fingerprint(model: Bagpiper, codec_hash: str) -> dict[str, str]:
    return {"layout": model.fingerprint(), "tokenizer": model.tokenizer.hash(), "codec": codec_hash}
