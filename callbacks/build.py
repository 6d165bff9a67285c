"""The callbacks of a run, put together from what the run has made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning import Callback
from rich.console import Console

from bagpiper.callbacks.checkpoint import Checkpoints, SaveModel
from bagpiper.callbacks.clock import Clock
from bagpiper.callbacks.frame_dropout import FrameDropout
from bagpiper.callbacks.listening import Listening, make_prompts
from bagpiper.callbacks.metrics import MetricsLog
from bagpiper.callbacks.parity import ParityCheck
from bagpiper.callbacks.progress import ProgressReport
from bagpiper.callbacks.randomness import KeyedRandomness
from bagpiper.callbacks.still_ours import StillOurs
from bagpiper.data.examples import Example
from bagpiper.recipe.settings import Recipe
from bagpiper.tracking.records import Sink
from bagpiper.training.optimizer import plan_end
from bagpiper.training.run_folder import recipe_text


@dataclass(frozen=True)
class Context:
    """What callbacks are built from.

    Attributes:
        recipe: of the run.
        folder: of the run.
        console: where progress is told.
        train, valid: examples.
        save_model: see ``Checkpoints``.
        sinks: where records go; empty on ranks that write nothing, which show no progress either.
        still_ours: raises a UserError when another process has taken the run folder.
        counts: of the data; they change when examples are lost while training.
        extra: the user's own callbacks.
    """

    recipe: Recipe
    folder: Path
    console: Console
    train: Sequence[Example]
    valid: Sequence[Example]
    save_model: SaveModel
    sinks: Sequence[Sink]
    still_ours: Callable[[], None] = lambda: None
    counts: Callable[[], dict[str, float]] = dict
    extra: Sequence[Callback] = ()


@dataclass(frozen=True)
class RunCallbacks:
    """The callbacks, and those among them that the end of a run needs."""

    all: list[Callback]
    metrics: MetricsLog
    listening: Listening
    parity: ParityCheck


def build_callbacks(context: Context) -> RunCallbacks:
    """Build them; at the end of a step they act in the order of the list, and the checkpoint is the last."""
    recipe, folder, clock = context.recipe, context.folder, Clock()
    settings = recipe.trainer
    progress = ProgressReport(context.console, settings.max_steps) if context.sinks else None
    sinks = [*context.sinks, *([progress] if progress else [])]
    metrics = MetricsLog(sinks, settings.log_every, clock, context.counts)
    listening = Listening(
        folder,
        make_prompts(recipe.listening, [example.conversation for example in context.valid]),
        recipe.sampling,
        every=recipe.listening.every,
        seed=recipe.seed,
        clock=clock,
    )
    checkpoints = Checkpoints(
        folder,
        context.save_model,
        recipe_text(recipe),
        every=settings.checkpoint_every,
        keep=settings.keep_checkpoints,
        validate_every=settings.validate_every if context.valid else 0,
        clock=clock,
        before=[context.still_ours, metrics.flush],
    )
    parity = ParityCheck(folder, recipe, context.valid, context.train, context.console)
    watching = [metrics, *([progress] if progress else []), listening, *context.extra, checkpoints]
    # parity after the checkpoint: from here on nothing is lost
    ending = [parity] if recipe.parity.at_end else []
    setting = [
        KeyedRandomness(recipe.seed),
        FrameDropout(recipe.data.frame_dropout, plan_end(recipe)),
        StillOurs(context.still_ours),
    ]
    return RunCallbacks(
        [*setting, *watching, *ending],
        metrics,
        listening,
        parity,
    )
