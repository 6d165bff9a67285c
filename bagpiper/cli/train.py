"""The verb that trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bagpiper.overheard import overheard

if TYPE_CHECKING:
    from rich.console import Console

    from bagpiper.callbacks.listening import Heard
    from bagpiper.recipe.settings import Recipe
    from bagpiper.run import Finished


def add_verbs(app: typer.Typer) -> None:
    """Add ``train``."""
    app.command()(train)


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A shipped recipe or a YAML file; omitted with --resume.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dotted, laid over the recipe.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this folder, from its last checkpoint.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check recipe, folder and device, then stop.")] = False,
) -> None:
    """Train a model, or continue a run."""
    from bagpiper.errors import UserError, brief, shown
    from bagpiper.recipe.load import load_recipe

    changes = list(overrides or [])
    if resume is not None and recipe is not None:
        if "=" not in recipe:
            raise UserError(
                f"--resume {brief(resume)} has its own recipe; leave {shown(recipe)} out (key=value may follow)"
            )
        changes.insert(0, recipe)
    if resume is None and recipe is None:
        raise UserError("name a recipe, for example `bagpiper train quickstart`; `bagpiper ls` lists them")
    if resume is not None and not (resume / "recipe.yaml").is_file():
        raise UserError(f"--resume {brief(resume)}: not a run folder (it has no recipe.yaml)")
    if resume is not None:
        loaded = load_recipe(str(resume), [*changes, f"run_dir={resume}"])
    else:
        assert recipe is not None
        loaded = load_recipe(recipe, changes)
    if dry_run:
        _dry_run(loaded, resume is not None)
    else:
        _train(loaded, resume is not None)


def _dry_run(recipe: Recipe, resume: bool) -> None:
    from bagpiper.training.begin import check_start
    from bagpiper.training.parallel import placement
    from bagpiper.training.run_lock import check_free

    folder = Path(recipe.run_folder)
    placement(recipe)
    check_free(folder)
    found = check_start(folder, recipe, resume)
    if found is not None:
        typer.echo(str(found))
    typer.echo(
        f"{recipe.name} is ready to {'go on' if resume else 'train'} for {recipe.trainer.max_steps} steps in {folder}"
    )


def _train(recipe: Recipe, resume: bool) -> None:
    from rich.console import Console

    from bagpiper.console import say

    with overheard(typer.Exit) as others:
        from bagpiper.callbacks.checkpoint import Stopped
        from bagpiper.run import run
        from bagpiper.training.process import is_main

        console = Console(quiet=not is_main())  # one of several ranks tells what all of them do
        try:
            finished = run(recipe, resume, console)
        except Stopped as stopped:
            say(console, f"{stopped}; go on with:\n  bagpiper train --resume {recipe.run_folder}")
            # as the shell counts: 143 after SIGTERM, 130 after Ctrl-C; saved, not finished, for schedulers and `a && b`
            raise typer.Exit(128 + stopped.signum) from None
    _show(finished, console)
    if others.path() is not None:
        say(console, f"what other libraries said: {others.path()}")
    if finished.parity is not None and not finished.parity.passed:
        say(
            console,
            "The model is trained, but what is decoded or exported is not what was trained: see the table above, "
            f"or {finished.folder / 'parity.json'}",
            style="red",
        )
        raise typer.Exit(1)


def _show(finished: Finished, console: Console) -> None:
    """Three captions, three sounds, and where everything is."""

    from bagpiper.console import say

    told = [heard for heard in finished.heard if heard.wav is None]
    sounds = [heard for heard in finished.heard if heard.wav is not None]
    for heard in told:
        say(console, f"\nheard {heard.asked}\n  {heard.text}{_cut(heard)}")
    for heard in sounds:
        say(console, f"\nrendered {heard.wav}\n  {heard.asked}{_cut(heard)}")
    say(console, f"\nrun: {finished.folder}")
    if finished.heard:
        say(console, f"sounds: {finished.folder / 'listening'}")
    if finished.page:
        say(console, f"MLflow page: {finished.page}")


def _cut(heard: Heard) -> str:
    return " (stopped at max_rows, before the model ended it)" if heard.cut else ""
