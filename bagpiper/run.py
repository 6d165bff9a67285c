"""The composing room: data, model, callbacks and the Trainer put together, one path for every recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lightning import Callback, Trainer
from rich.console import Console

from bagpiper.callbacks.build import Context, RunCallbacks, build_callbacks
from bagpiper.callbacks.checkpoint import Stopped
from bagpiper.callbacks.listening import LISTENING, Heard, make_prompts
from bagpiper.console import say
from bagpiper.data.module import PackDataModule
from bagpiper.errors import refusals_are_users
from bagpiper.evaluation.probe import FILE as EVAL
from bagpiper.evaluation.probe import TABLE, evaluate, will_evaluate
from bagpiper.model import Bagpiper
from bagpiper.ops.precision import matmul_precision
from bagpiper.overheard import LOG, keep_in, overheard
from bagpiper.parity.report import FILE as PARITY
from bagpiper.parity.report import ParityReport
from bagpiper.recipe.settings import Recipe
from bagpiper.tracking.json_lines import JsonLines
from bagpiper.tracking.logger import SinkLogger
from bagpiper.tracking.mlflow_store import MlflowStore, flatten
from bagpiper.tracking.records import Sink
from bagpiper.training import run_folder
from bagpiper.training.assemble import build_layout
from bagpiper.training.begin import Beginning, begin, new_model
from bagpiper.training.checkpoints import Checkpoint, data_state, list_checkpoints, publish, way_back
from bagpiper.training.parallel import placement
from bagpiper.training.prepare import Examples, prepare_codes, prepare_examples
from bagpiper.training.process import is_main, own_group, quiet_lightning, rank, threads
from bagpiper.training.save import save_weights
from bagpiper.training.stages import count_parameters
from bagpiper.training.trainer import build_trainer

SHOWN = 3
"""Held-out examples of each direction that a finished run shows."""

MIRRORED = (run_folder.RECIPE, run_folder.ENVIRONMENT, LISTENING, PARITY, EVAL, TABLE)
"""What of the run folder MLflow shows beside the metrics."""


@dataclass(frozen=True)
class Finished:
    """What a run leaves.

    Attributes:
        folder: the run folder; ``folder / "model"`` is the trained model.
        heard: answers to held-out examples, with their files.
        page: how to see the run in MLflow, if it is tracked.
        parity: of training, decoding and the exported model; None if they were not compared.
    """

    folder: Path
    heard: list[Heard]
    page: str | None
    parity: ParityReport | None = None


def run(
    recipe: Recipe, resume: bool = False, console: Console | None = None, callbacks: Sequence[Callback] = ()
) -> Finished:
    """Train, and evaluate at the end if the recipe says so.

    Args:
        recipe: checked.
        resume: continue the run in ``recipe.run_folder`` from its newest checkpoint.
        console: where progress is told; None is the standard output.
        callbacks: your own; what they log through Lightning goes where the run's metrics go.

    Returns:
        What the run leaves.

    Raises:
        UserError: the folder (another run or process has it), the data or the device do not allow it; nothing of an
            earlier run was changed.
        Stopped: a signal came; a checkpoint is written, and ``resume=True`` continues.
        Diverged: a loss or gradient is not finite; checkpoints are from before that step.
    """
    console = console or Console(quiet=not is_main())
    with overheard(Stopped), own_group(), ExitStack() as held:
        with threads(recipe.trainer.threads), quiet_lightning(), refusals_are_users():
            made = _make(recipe, resume, console, callbacks, held)
        with _tracked(made):
            with threads(recipe.trainer.threads), quiet_lightning():
                heard = _fit(made)
            if made.evaluates and made.trainer.is_global_zero:
                evaluate(made.folder, console=console)
    page = made.store.page() if made.store else None
    return Finished(made.folder, heard, page, made.callbacks.parity.report)


@dataclass(frozen=True)
class _Run:
    """All that a run consists of.

    Attributes:
        start: the checkpoint to continue from; None for a new run.
        store: MLflow, on the rank that writes to it.
        evaluates: whether the run ends with an evaluation.
    """

    recipe: Recipe
    folder: Path
    console: Console
    start: Checkpoint | None
    examples: Examples
    model: Bagpiper
    trainer: Trainer
    callbacks: RunCallbacks
    data: PackDataModule
    store: MlflowStore | None
    evaluates: bool


def _make(recipe: Recipe, resume: bool, console: Console, extra: Sequence[Callback], held: ExitStack) -> _Run:
    folder, main = Path(recipe.run_folder), is_main()
    trainer_arguments = placement(recipe)
    begun = begin(recipe, folder, resume, console, held, is_main=main)
    keep_in(folder / LOG, prefix="" if main else f"rank {rank()}: ")
    examples = prepare_examples(recipe, folder, console)
    evaluates = will_evaluate(recipe, console)
    model = begun.model
    if model is None:
        model = new_model(recipe, folder, examples, console, is_main=main)
    records = JsonLines(folder / run_folder.METRICS)
    sinks: list[Sink] = [records] if main else []
    callbacks = build_callbacks(
        Context(
            recipe=recipe,
            folder=folder,
            console=console,
            train=examples.train,
            valid=examples.valid,
            save_model=lambda module, target, state: save_weights(module, target, state, recipe, folder),
            sinks=sinks,
            still_ours=begun.still_ours,
            counts=examples.ledger.as_metrics,
            extra=extra,
        )
    )
    trainer = build_trainer(
        recipe, trainer_arguments, callbacks.all, SinkLogger(sinks, folder), can_validate=bool(examples.valid)
    )
    data = _data(recipe, folder, model, examples, trainer, console)
    if begun.start is not None:
        data.check(data_state(begun.start))
    store = _store(recipe, folder, console, begun) if main and recipe.tracking.enabled else None
    if main:
        records.begin()  # a damaged file is told before anything is changed
        begun.commit()
        records.begin()
    return _Run(recipe, folder, console, begun.start, examples, model, trainer, callbacks, data, store, evaluates)


def _store(recipe: Recipe, folder: Path, console: Console, begun: Beginning) -> MlflowStore:
    git = run_folder.git_state(Path.cwd()) or {}
    return MlflowStore(
        folder,
        recipe.tracking,
        run_name=recipe.name,
        params=flatten(run_folder.as_dict(recipe)),
        tags={"mlflow.source.git.commit": git["commit"]} if git.get("commit") else {},
        records=run_folder.METRICS,
        shown=MIRRORED,
        tell=lambda text: say(console, text, style="yellow"),
        still_ours=begun.still_ours,
    )


@contextmanager
def _tracked(made: _Run) -> Iterator[None]:
    """Show the run in MLflow while the block runs, and then how it has ended."""
    if made.store is None:
        yield
        return
    made.store.start()
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (Stopped, KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        complaint = made.store.close(status)
        if complaint:
            say(made.console, complaint, style="yellow")


def _data(
    recipe: Recipe, folder: Path, model: Bagpiper, examples: Examples, trainer: Trainer, console: Console
) -> PackDataModule:
    """Make codes and packs, and tell what there is."""
    cache = prepare_codes(recipe, folder, model.codec, examples, trainer.strategy.root_device, console)
    data = PackDataModule(
        examples.train,
        examples.valid,
        build_layout(model, recipe.data, cache),
        recipe.data,
        recipe.seed,
        accumulate=recipe.trainer.accumulate,
        rank=trainer.global_rank,
        world=trainer.world_size,
        ledger=examples.ledger,
        tell=lambda text: say(console, text),
    )
    trainable, total = count_parameters(model)
    say(console, data.ledger.summary())
    say(console, data.describe())
    say(console, f"model: {total / 1e6:.2f} M parameters, {trainable / 1e6:.2f} M train")
    return data


def _fit(made: _Run) -> list[Heard]:
    """Train, make the model folder and listen."""
    recipe, folder, trainer, data = made.recipe, made.folder, made.trainer, made.data
    counts = data.ledger.as_metrics()
    if made.start is None or made.start.step < recipe.trainer.max_steps:
        checkpoint = made.start.state if made.start else None
        with matmul_precision(recipe.trainer.matmul_precision), way_back(folder):
            trainer.fit(made.model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if data.ledger.as_metrics() != counts:  # examples were lost while training
        say(made.console, data.ledger.summary())
    if trainer.is_global_zero:
        publish(list_checkpoints(folder)[-1], folder / "model")
    return _listen(made)


def _listen(made: _Run) -> list[Heard]:
    """Listen once more, to at least ``SHOWN`` held-out examples of each direction."""
    recipe, listening = made.recipe, made.callbacks.listening
    settings = replace(recipe.listening, from_valid=max(SHOWN, recipe.listening.from_valid))
    listening.prompts = make_prompts(settings, [example.conversation for example in made.examples.valid])
    model = made.model.to(made.trainer.strategy.root_device)
    step = max(recipe.trainer.max_steps, made.start.step if made.start else 0)
    return listening.listen(model, step, answers=made.trainer.is_global_zero)
