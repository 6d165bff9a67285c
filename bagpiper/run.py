"""The composing room: data, model, callbacks and the Trainer put together, one path for every recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from bagpiper.callbacks.build import Context, RunCallbacks, build_callbacks
from bagpiper.callbacks.checkpoint import Stopped
from bagpiper.callbacks.listening import Heard, make_prompts
from bagpiper.console import say
from bagpiper.data.module import PackDataModule
from bagpiper.evaluation.probe import evaluate
from bagpiper.model import Bagpiper
from bagpiper.ops.precision import matmul_precision
from bagpiper.parity.report import ParityReport
from bagpiper.recipe.settings import Recipe
from bagpiper.tracking.json_lines import JsonLines
from bagpiper.tracking.logger import SinkLogger
from bagpiper.tracking.mlflow_store import MlflowStore, flatten
from bagpiper.tracking.records import Record, Sink
from bagpiper.training import run_folder
from bagpiper.training.assemble import build_layout
from bagpiper.training.begin import new_model, resumed_model
from bagpiper.training.checkpoints import Checkpoint, StateFile, list_checkpoints, publish
from bagpiper.training.parallel import placement
from bagpiper.training.prepare import Examples, prepare_codes, prepare_examples
from bagpiper.training.process import is_main, quiet_lightning, threads
from bagpiper.training.stages import count_parameters
from bagpiper.weights.model_folder import write_model

SHOWN = 3
"""Held-out examples of each direction that a finished run shows."""


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
        UserError: the folder, the data or the device do not allow it; nothing of an earlier run was changed.
        Stopped: a signal came; a checkpoint is written, and ``resume=True`` continues.
    """
    console = console or Console()
    with threads(recipe.trainer.threads), quiet_lightning():
        made = _make(recipe, resume, console, callbacks)
        finished = _fit(made)
    if recipe.eval.at_end and made.trainer.is_global_zero:
        evaluate(made.folder, console=console)
    return finished


@dataclass(frozen=True)
class _Run:
    """All that a run consists of.

    Attributes:
        start: the checkpoint to continue from; None for a new run.
        store: MLflow, on the rank that writes to it.
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


def _make(recipe: Recipe, resume: bool, console: Console, extra: Sequence[Callback]) -> _Run:
    folder, main = Path(recipe.run_folder), is_main()
    trainer_arguments = placement(recipe)
    start = run_folder.check_start(folder, recipe, resume)
    model = resumed_model(recipe, folder, start) if start else None
    if main:
        run_folder.write_records(folder, recipe)
    examples = prepare_examples(recipe, folder, console)
    if model is None:
        model = new_model(recipe, folder, examples, console, is_main=main)
    store = _store(recipe, folder) if main and recipe.tracking.enabled else None
    sinks: list[Sink] = [JsonLines(folder / "metrics.jsonl"), *([store] if store else [])] if main else []
    callbacks = build_callbacks(
        Context(
            recipe=recipe,
            folder=folder,
            console=console,
            train=examples.train,
            valid=examples.valid,
            save_model=lambda module, target: _save(module, target, recipe, folder),
            sinks=sinks,
            publish=store.artifact if store else None,
            extra=extra,
        )
    )
    trainer = _trainer(recipe, trainer_arguments, callbacks, SinkLogger(sinks, folder), bool(examples.valid))
    data = _data(recipe, folder, model, examples, trainer, console)
    return _Run(recipe, folder, console, start, examples, model, trainer, callbacks, data, store)


def _store(recipe: Recipe, folder: Path) -> MlflowStore:
    git = run_folder.git_state(Path.cwd()) or {}
    tags = {"mlflow.source.git.commit": git["commit"]} if git.get("commit") else {}
    params = flatten(run_folder.as_dict(recipe))
    store = MlflowStore(folder, recipe.tracking, run_name=recipe.name, params=params, tags=tags)
    for name in (run_folder.RECIPE, run_folder.ENVIRONMENT):
        store.artifact(folder / name)
    return store


def _save(module: LightningModule, target: Path, recipe: Recipe, folder: Path) -> None:
    assert isinstance(module, Bagpiper)
    write_model(
        module,
        target,
        generation=recipe.sampling,
        lora=recipe.stage.lora,
        stage=recipe.stage.name,
        provenance={"recipe": recipe.name, "run": str(folder), **run_folder.read_origin(folder)},
        store=folder / "checkpoints" / "frozen",
    )


def _trainer(
    recipe: Recipe, arguments: dict[str, Any], callbacks: RunCallbacks, logger: SinkLogger, can_validate: bool
) -> Trainer:
    settings = recipe.trainer
    validates = settings.validate_every if can_validate else 0
    world = settings.devices * settings.nodes
    return Trainer(
        **arguments,
        callbacks=callbacks.all,
        logger=logger,
        log_every_n_steps=settings.log_every,
        plugins=[StateFile()],
        precision=settings.precision,
        max_epochs=-1,
        max_steps=settings.max_steps,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=recipe.optimizer.clip_norm or None,
        gradient_clip_algorithm="norm",
        # the training stream has no end and no epochs, so validations are counted in micro-batches
        check_val_every_n_epoch=None,
        val_check_interval=max(1, validates * settings.accumulate),
        limit_val_batches=(-(-settings.validate_packs // world) or 1.0) if validates else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=logger.save_dir,
    )


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


def _fit(made: _Run) -> Finished:
    recipe, folder, trainer, data = made.recipe, made.folder, made.trainer, made.data
    status = "FAILED"
    try:
        counts = data.ledger.as_metrics()
        if made.start is None:
            made.callbacks.metrics.write(Record(0, "data", counts))
        if made.start is None or made.start.step < recipe.trainer.max_steps:
            checkpoint = made.start.state if made.start else None
            with matmul_precision(recipe.trainer.matmul_precision):
                trainer.fit(made.model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if data.ledger.as_metrics() != counts:  # examples were lost while training
            made.callbacks.metrics.write(Record(recipe.trainer.max_steps, "data", data.ledger.as_metrics()))
            say(made.console, data.ledger.summary())
        heard = []
        if trainer.is_global_zero:
            publish(list_checkpoints(folder)[-1], folder / "model")
            heard = _listen(made)
        status = "FINISHED"
    except Stopped:
        status = "KILLED"
        raise
    finally:
        complaint = made.store.close(status) if made.store else None
        if complaint:
            say(made.console, complaint, style="yellow")
    return Finished(folder, heard, made.store.page() if made.store else None, made.callbacks.parity.report)


def _listen(made: _Run) -> list[Heard]:
    """Listen once more, to at least ``SHOWN`` held-out examples of each direction."""
    recipe, listening = made.recipe, made.callbacks.listening
    settings = replace(recipe.listening, from_valid=max(SHOWN, recipe.listening.from_valid))
    listening.prompts = make_prompts(settings, [example.conversation for example in made.examples.valid])
    model = made.model.to(made.trainer.strategy.root_device)
    return listening.listen(model, recipe.trainer.max_steps) if listening.prompts else []
