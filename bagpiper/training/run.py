"""The run: one path from a recipe to a trained model, for every recipe."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from bagpiper.callbacks.checkpoint import Checkpoints, Stopped
from bagpiper.callbacks.clock import Clock
from bagpiper.callbacks.listening import Heard, Listening, make_prompts
from bagpiper.callbacks.metrics import JsonLines, MetricsLog, Row, Sink
from bagpiper.callbacks.mlflow_store import MlflowStore, flatten
from bagpiper.callbacks.parity import ParityCheck
from bagpiper.callbacks.progress import ProgressReport
from bagpiper.callbacks.randomness import KeyedRandomness
from bagpiper.component import Codec
from bagpiper.data.codes import CodeCache
from bagpiper.data.module import PackDataModule
from bagpiper.evaluation.parity_report import ParityReport
from bagpiper.model import Bagpiper
from bagpiper.model_folder import load_model, write_model
from bagpiper.ops.precision import matmul_precision
from bagpiper.settings import Recipe
from bagpiper.training import run_folder
from bagpiper.training.assemble import build_model, make_ready, start_model
from bagpiper.training.checkpoints import Checkpoint, StateFile, list_checkpoints, publish
from bagpiper.training.parallel import placement
from bagpiper.training.prepare import (
    Examples,
    calibrate_encoder,
    codec_on_disk,
    keep_tokenizer,
    prepare_codec,
    prepare_codes,
    prepare_examples,
    prepare_tokenizer,
    told,
)
from bagpiper.training.stages import count_parameters

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


def run(recipe: Recipe, resume: bool = False, console: Console | None = None) -> Finished:
    """Train.

    Args:
        recipe: checked.
        resume: continue the run in ``recipe.run_folder`` from its newest checkpoint.
        console: where progress is told; None is the standard output.

    Returns:
        What the run leaves.

    Raises:
        UserError: the folder, the data or the device do not allow it; nothing of an earlier run was changed.
        Stopped: a signal came; a checkpoint is written, and ``resume=True`` continues.
    """
    console = console or Console()
    folder = Path(recipe.run_folder)
    with _threads(recipe.trainer.threads), _quiet_lightning():
        trainer_arguments = placement(recipe)
        start = _check(recipe, folder, resume)
        model = _resumed_model(recipe, folder, start) if start else None
        if _is_main():
            run_folder.write_records(folder, recipe)
        examples = prepare_examples(recipe, folder, console)
        if model is None:
            model = _new_model(recipe, folder, examples, console)
        trainer, parts = _assemble(recipe, folder, trainer_arguments, examples, console)
        cache = prepare_codes(recipe, folder, _codec(model), examples, trainer.strategy.root_device, console)
        data = _data_module(recipe, model, examples, cache, trainer)
        _tell(model, data, examples, console)
        return _fit(recipe, folder, start, model, trainer, data, examples, parts, console)


def _is_main() -> bool:
    """Whether this process writes the run folder; known from the environment before any process group exists."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _check(recipe: Recipe, folder: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint to continue from; None for a new run."""
    if not resume:
        run_folder.check_new(folder, recipe)
        return None
    run_folder.check_resume(folder, recipe)
    return list_checkpoints(folder)[-1]


def _resumed_model(recipe: Recipe, folder: Path, start: Checkpoint) -> Bagpiper:
    """The checkpoint's model, after comparing it with the files that lie about: nothing has been written yet."""
    model = load_model(start.model)
    codec = codec_on_disk(recipe, folder) or _codec(model)
    run_folder.check_fingerprint(folder, _fingerprint(model, codec.weights_hash()))
    return make_ready(model, recipe)


def _new_model(recipe: Recipe, folder: Path, examples: Examples, console: Console) -> Bagpiper:
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
    record = _fingerprint(model, _codec(model).weights_hash())
    run_folder.check_fingerprint(folder, record)
    run_folder.write_fingerprint(folder, record)
    if origin is not None and _is_main():
        keep_tokenizer(folder, model.tokenizer)
        run_folder.write_origin(folder, origin)
    return make_ready(model, recipe)


def _codec(model: Bagpiper) -> Codec:
    assert isinstance(model.codec, Codec)
    return model.codec


def _fingerprint(model: Bagpiper, codec_hash: str) -> dict[str, str]:
    return {"layout": model.fingerprint(), "tokenizer": model.tokenizer.hash(), "codec": codec_hash}


@dataclass
class _Parts:
    """The callbacks that the end of a run needs."""

    listening: Listening
    metrics: MetricsLog
    store: MlflowStore | None
    parity: ParityCheck


def _assemble(
    recipe: Recipe, folder: Path, arguments: dict[str, Any], examples: Examples, console: Console
) -> tuple[Trainer, _Parts]:
    """The Trainer and its callbacks; at the end of a step they act in the order of the list, the checkpoint last."""
    settings, clock = recipe.trainer, Clock()
    main = _is_main()
    store = _store(recipe, folder) if main and recipe.tracking.enabled else None
    progress = ProgressReport(console, settings.max_steps, settings.accumulate)
    sinks: list[Sink] = [JsonLines(folder / "metrics.jsonl"), progress, *([store] if store else [])] if main else []
    metrics = MetricsLog(sinks, settings.log_every, settings.accumulate, clock)
    listening = Listening(
        folder,
        make_prompts(recipe.listening, [example.conversation for example in examples.valid]),
        recipe.sampling,
        every=recipe.listening.every,
        accumulate=settings.accumulate,
        seed=recipe.seed,
        clock=clock,
        publish=store.artifact if store else None,
    )
    validates = settings.validate_every if examples.valid else 0
    checkpoints = Checkpoints(
        folder,
        lambda module, target: _save(module, target, recipe, folder),
        every=settings.checkpoint_every,
        keep=settings.keep_checkpoints,
        accumulate=settings.accumulate,
        validate_every=validates,
        clock=clock,
        before=[metrics.flush],
    )
    parity = ParityCheck(
        folder, recipe, examples.valid, examples.train, console, publish=store.artifact if store else None
    )
    callbacks = [KeyedRandomness(recipe.seed), metrics, *([progress] if main else []), listening, checkpoints]
    if recipe.parity.at_end:
        callbacks.append(parity)  # after the checkpoint: from here on nothing is lost
    world = settings.devices * settings.nodes
    trainer = Trainer(
        **arguments,
        callbacks=callbacks,
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
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    return trainer, _Parts(listening, metrics, store, parity)


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


def _data_module(
    recipe: Recipe, model: Bagpiper, examples: Examples, cache: CodeCache, trainer: Trainer
) -> PackDataModule:
    return PackDataModule(
        examples.train,
        examples.valid,
        replace(model.template, loss_region=recipe.data.loss_region),
        model.settings.encoder,
        model.settings.adaptor,
        model.settings.codec,
        cache,
        recipe.data,
        recipe.seed,
        accumulate=recipe.trainer.accumulate,
        rank=trainer.global_rank,
        world=trainer.world_size,
        ledger=examples.ledger,
    )


def _tell(model: Bagpiper, data: PackDataModule, examples: Examples, console: Console) -> None:
    trainable, total = count_parameters(model)
    console.print(examples.ledger.summary(), highlight=False, soft_wrap=True)
    console.print(data.describe(), highlight=False, soft_wrap=True)
    console.print(f"model: {total / 1e6:.2f} M parameters, {trainable / 1e6:.2f} M train", highlight=False)


def _fit(
    recipe: Recipe,
    folder: Path,
    start: Checkpoint | None,
    model: Bagpiper,
    trainer: Trainer,
    data: PackDataModule,
    examples: Examples,
    parts: _Parts,
    console: Console,
) -> Finished:
    status = "FAILED"
    try:
        counts = data.ledger.as_metrics()
        if start is None:
            parts.metrics.write(Row(0, "data", _without_split(counts)))
        if start is None or start.step < recipe.trainer.max_steps:
            with matmul_precision(recipe.trainer.matmul_precision):
                trainer.fit(model, datamodule=data, ckpt_path=start.state if start else None, weights_only=True)
        if data.ledger.as_metrics() != counts:  # examples were lost while training
            parts.metrics.write(Row(recipe.trainer.max_steps, "data", _without_split(data.ledger.as_metrics())))
            console.print(data.ledger.summary(), highlight=False, soft_wrap=True)
        heard = []
        if trainer.is_global_zero:
            publish(list_checkpoints(folder)[-1], folder / "model")
            heard = _listen_at_the_end(recipe, examples, model.to(trainer.strategy.root_device), parts)
        status = "FINISHED"
    except Stopped:
        status = "KILLED"
        raise
    finally:
        complaint = parts.store.close(status) if parts.store else None
        if complaint:
            console.print(complaint, style="yellow", highlight=False, soft_wrap=True)
    return Finished(folder, heard, parts.store.page() if parts.store else None, parts.parity.report)


def _listen_at_the_end(recipe: Recipe, examples: Examples, model: Bagpiper, parts: _Parts) -> list[Heard]:
    settings = replace(recipe.listening, from_valid=max(SHOWN, recipe.listening.from_valid))
    parts.listening.prompts = make_prompts(settings, [example.conversation for example in examples.valid])
    if not parts.listening.prompts:
        return []
    return parts.listening.listen(model, recipe.trainer.max_steps)


def _without_split(metrics: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("data/"): value for name, value in metrics.items()}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's banners, and without its warning that frozen parts are in eval mode, which they must be."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
