"""The model that a run begins with: new, started from another model, or resumed."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bagpiper.console import told
from bagpiper.model import Bagpiper
from bagpiper.recipe.settings import Recipe
from bagpiper.training import run_folder
from bagpiper.training.assemble import build_model, make_ready, start_model
from bagpiper.training.checkpoints import Checkpoint
from bagpiper.training.prepare import (
    Examples,
    calibrate_encoder,
    codec_on_disk,
    keep_tokenizer,
    prepare_codec,
    prepare_tokenizer,
)
from bagpiper.weights.model_folder import load_model


def resumed_model(recipe: Recipe, folder: Path, start: Checkpoint) -> Bagpiper:
    """The checkpoint's model, after comparing it with the files that lie about: nothing has been written yet.

    Raises:
        UserError: the checkpoint is damaged, or what ids mean has changed since.
    """
    model = load_model(start.model)
    codec = codec_on_disk(recipe, folder) or model.codec
    run_folder.check_fingerprint(folder, _fingerprint(model, codec.weights_hash()))
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
