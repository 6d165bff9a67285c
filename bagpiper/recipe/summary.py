"""What a recipe amounts to, in a few lines, from the promises of its parts: nothing is built."""

from __future__ import annotations

from bagpiper.errors import brief
from bagpiper.language.patterns import get_pattern
from bagpiper.recipe import registry
from bagpiper.recipe.settings import ModelSettings, Recipe

_SECONDS = 10
"""Length of the clip that rates are measured on."""


def summarise(recipe: Recipe) -> list[tuple[str, str]]:
    """Pairs (subject, what about it) of a recipe that passed its check."""
    model = recipe.model
    return [
        ("parts", ", ".join(f"{kind} {_part(model, kind)}" for kind in registry.KINDS)),
        ("hears", _hears(model)),
        ("speaks", _speaks(model)),
        ("trains", _trains(recipe)),
        ("data", _data(recipe)),
        ("run", _run(recipe)),
        ("eval", evaluation(recipe)),
    ]


def _part(model: ModelSettings, kind: str) -> str:
    config = getattr(model, kind)
    source = getattr(config, "source", None) or getattr(config, "path", None)
    return registry.name_of(kind, config) + (f" ({brief(source, 200)})" if source else "")


def _hears(model: ModelSettings) -> str:
    encoder = model.encoder
    states = encoder.num_frames(_SECONDS * encoder.sample_rate)
    rows = model.adaptor.num_frames(states)
    return (
        f"{states / _SECONDS:g} encoder states/s of width {encoder.width} at {encoder.sample_rate} Hz, "
        f"{rows / _SECONDS:g} rows/s of audio in"
    )


def _speaks(model: ModelSettings) -> str:
    codec, pattern = model.codec, get_pattern(model.pattern)
    frames = codec.num_frames(_SECONDS * codec.sample_rate)
    rows = pattern.rows(frames, codec.num_codebooks)
    return (
        f"{frames / _SECONDS:g} code frames/s x {codec.num_codebooks} codebooks of {codec.codebook_size} at "
        f"{codec.sample_rate} Hz, {rows / _SECONDS:g} rows/s of audio out (pattern {pattern.name}, {_SECONDS} s clip)"
    )


def _trains(recipe: Recipe) -> str:
    stage = recipe.stage
    parts = ["adaptor", "head", "rows of specials and audio"]
    frozen = ["codec"]
    (parts if stage.train_encoder else frozen).append("encoder")
    if stage.lora is not None:
        base = "LLM in 4 bits" if stage.lora.quantize == "nf4" else "LLM"
        parts.append(f"LoRA of rank {stage.lora.rank} on {brief(', '.join(stage.lora.targets), 200)}")
        frozen += [base, "text rows"]
    else:
        (frozen if stage.name == "warmup" else parts).extend(["LLM", "text rows"])
    return f"stage {stage.name}: {', '.join(parts)}; frozen: {', '.join(frozen)}"


def _data(recipe: Recipe) -> str:
    data, scapes = recipe.data, recipe.data.soundscapes
    if data.sources:
        text = f"{len(data.sources)} file{'s' if len(data.sources) > 1 else ''}"
    else:
        assert scapes is not None
        text = f"{scapes.train} soundscapes ({scapes.variety}{', with speech' if scapes.speech else ''})"
    return f"{text}, packs of {data.token_budget} rows, clips up to {data.max_seconds:g} s"


def _run(recipe: Recipe) -> str:
    trainer, optimizer = recipe.trainer, recipe.optimizer
    processes = trainer.devices * trainer.nodes
    rows = recipe.data.token_budget * trainer.accumulate * processes
    return (
        f"{trainer.max_steps} steps of up to {rows} rows ({processes} process{'es' if processes > 1 else ''} x "
        f"{trainer.accumulate} packs), {trainer.precision}, peak learning rate {optimizer.lr:g}, "
        f"in {brief(recipe.run_folder, 200)}"
    )


def evaluation(recipe: Recipe) -> str:
    """What is evaluated when training ends."""
    settings, scapes = recipe.eval, recipe.data.soundscapes
    if not settings.at_end:
        return "none at the end (eval.at_end)"
    if not recipe.can_evaluate:
        return (
            "none at the end: it compares with known facts, and data.sources takes the place of the soundscapes; "
            "`bagpiper eval RUN --corpus FOLDER` evaluates on those of another run"
        )
    if recipe.data.sources or scapes is None:
        return f"at the end, on the soundscapes in {brief(str(recipe.corpus_folder), 200)}"
    return f"at the end, on {min(settings.clips or scapes.test, scapes.test)} soundscapes"
