"""Tiny runs for tests: recipes of a few thousand parameters on a few seconds of soundscapes."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from tiny import tiny_settings

from bagpiper.encoders.configs import MelConfig
from bagpiper.recipe.settings import (
    DataSettings,
    DecodeSettings,
    GenerationSettings,
    ListeningSettings,
    OptimizerSettings,
    ParitySettings,
    Recipe,
    SoundscapesSettings,
    StageSettings,
    TrackingSettings,
    TrainerSettings,
)

STEPS = 6

MINIMAL = """\
version: 1
model:
  encoder: {name: mel}
  adaptor: {name: mlp}
  llm: {name: hf, config: {model_type: qwen3}}
  codec: {name: rvq}
  head: {name: parallel}
data:
  soundscapes: {train: 10}
"""
"""A recipe that says what it must and nothing more."""


@dataclass(frozen=True)
class Shared:
    """What tiny runs have in common, so that each of them need not make it again.

    Attributes:
        corpus: soundscapes.
        cache: codes and inspected clips.
        codec: a fitted codec.
    """

    corpus: Path
    cache: Path
    codec: Path | None = None


def tiny_recipe(run_dir: Path, shared: Shared, **trainer) -> Recipe:
    """A recipe that trains in a second or two: dropout, accumulation and two workers are on.

    Args:
        run_dir: of the run.
        shared: corpus, cache and codec.
        trainer: changes of the trainer's settings.
    """
    model = tiny_settings(llm={"attention_dropout": 0.1})
    model.encoder = MelConfig(num_mels=20, channels=16, strides=(2, 2), layers=1, heads=2, dropout=0.1)
    if shared.codec:
        model.codec = replace(model.codec, path=str(shared.codec))
    short = {"temperature": 0.7, "top_k": 5}
    return Recipe(
        name="tiny",
        run_dir=str(run_dir),
        device="cpu",
        model=model,
        data=DataSettings(
            soundscapes=SoundscapesSettings(train=24, valid=6, test=4, folder=str(shared.corpus)),
            token_budget=400,
            workers=2,
            cfg_dropout=0.2,
            cache=str(shared.cache),
        ),
        stage=StageSettings(name="pretrain", train_encoder=True),
        optimizer=OptimizerSettings(lr=3e-3, warmup_steps=2),
        trainer=TrainerSettings(**{"max_steps": STEPS, "accumulate": 2, "log_every": 2, **trainer}),
        listening=ListeningSettings(from_valid=1),
        tracking=TrackingSettings(enabled=False),
        parity=ParitySettings(at_end=False),
        generation=GenerationSettings(
            text=DecodeSettings(max_rows=12, **short), audio=DecodeSettings(max_rows=12, min_rows=4, cfg=2.0, **short)
        ),
    )


def use_template(run_dir: Path, template: Path) -> None:
    """Give a run a finished database: making one takes MLflow seconds."""
    run_dir.mkdir(parents=True, exist_ok=True)
    shutil.copy(template, run_dir / "mlflow.db")


def make_template(path: Path) -> Path:
    """An MLflow database without experiments of ours."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def make_shared(folder: Path) -> Shared:
    """Make the corpus and fit the codec."""
    from rich.console import Console

    from bagpiper.training.prepare import prepare_codec, prepare_examples

    shared = Shared(folder / "corpus", folder / "cache")
    recipe = tiny_recipe(folder, shared)
    quiet = Console(quiet=True)
    examples = prepare_examples(recipe, folder, quiet)
    prepare_codec(recipe, folder, examples.train, quiet)
    return replace(shared, codec=folder / "codec.safetensors")
