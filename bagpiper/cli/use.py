"""Verbs that use a trained model: describe, render, ask, eval, parity."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bagpiper.errors import UserError, brief, shown
from bagpiper.overheard import overheard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Run = Annotated[Path, typer.Argument(help="A run folder (its final model or newest checkpoint) or a model folder.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the most probable; default: as the model says.")]
TopK = Annotated[int | None, typer.Option(help="Ids kept, 0 for all; default: as the model says.")]
Channel = Annotated[
    str | None, typer.Option(help="Of clips that have several: first, mean or loudest; default: as the model says.")
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same answer.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]

FORMATS = {".wav": "WAV", ".flac": "FLAC"}


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    for name, verb in (
        ("describe", describe),
        ("render", render),
        ("ask", ask),
        ("eval", evaluate),
        ("parity", parity),
    ):
        app.command(name)(verb)


def describe(
    run: Run,
    clips: Annotated[list[Path], typer.Argument(help="Audio files.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per clip and line.")] = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    channel: Channel = None,
    seed: Seed = 42,
    device: Device = "auto",
) -> None:
    """Write a caption of each clip."""
    _check_run(run)
    _check_files(clips)
    with overheard():
        from bagpiper.api import load

        texts = load(run, device).describe([*clips], temperature=temperature, top_k=top_k, channel=channel, seed=seed)
    for clip, text in zip(clips, texts, strict=True):
        if as_json:
            typer.echo(json.dumps({"clip": str(clip), "text": text}, ensure_ascii=False))
        else:
            typer.echo(text if len(clips) == 1 else f"{clip}: {text}")


def render(
    run: Run,
    caption: Annotated[str, typer.Argument(help="What the sound is to be.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The sound, .wav or .flac; it must not exist.")],
    cfg: Annotated[float | None, typer.Option(help="Guidance scale, 1 is off; default: as the model says.")] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    max_seconds: Annotated[float | None, typer.Option(help="Longest sound; default: as the model says.")] = None,
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="Text before the sound; default: for sft models.")
    ] = None,
    seed: Seed = 42,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    device: Device = "auto",
) -> None:
    """Make the sound that a caption tells of."""
    _check_run(run)
    _check_target(out, force)
    with overheard():
        from bagpiper.api import load

        samples, sample_rate = load(run, device).render(
            caption, cfg=cfg, temperature=temperature, top_k=top_k, max_seconds=max_seconds, think=think, seed=seed
        )
    _write_sound(out, samples, sample_rate)


def ask(
    run: Run,
    clip: Annotated[Path, typer.Argument(help="An audio file.")],
    question: Annotated[str, typer.Argument(help="A question about it.")],
    temperature: Temperature = None,
    top_k: TopK = None,
    channel: Channel = None,
    seed: Seed = 42,
    device: Device = "auto",
) -> None:
    """Answer a question about a clip."""
    _check_run(run)
    _check_files([clip])
    with overheard():
        from bagpiper.api import load

        answer = load(run, device).ask(clip, question, temperature=temperature, top_k=top_k, channel=channel, seed=seed)
    typer.echo(answer)


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or a model folder with --corpus.")],
    clips: Annotated[int | None, typer.Option(min=0, help="Held-out clips per direction, 0 for all.")] = None,
    cycles: Annotated[int | None, typer.Option(min=0, help="Clips of the cycle figures, 0 for none.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps; default: as the recipe says.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Folder of soundscapes; default: the run's own.")] = None,
) -> None:
    """Measure both directions on held-out clips, print the table, write eval.json and eval.txt."""
    _check_run(run)
    with overheard():
        from bagpiper.api import evaluate as evaluate_run
        from bagpiper.evaluation.probe import FILE, TABLE

        evaluate_run(run, clips=clips, cycles=cycles, device=device, corpus=corpus)
    typer.echo(f"written to {run / FILE}, the table to {run / TABLE}")


def parity(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps; default: as the recipe says.")] = None,
) -> None:
    """Compare training, decoding and the exported model on two examples; exit 1 if they differ."""
    _check_run(run)
    with overheard():
        from bagpiper.api import parity as compare
        from bagpiper.parity.report import FILE

        report = compare(run, device=device)
    typer.echo(f"written to {run / FILE}")
    if not report.passed:
        raise typer.Exit(1)


def _check_run(run: Path) -> None:
    """Before torch is imported, which takes seconds."""
    if not run.is_dir():
        raise UserError(f"there is no folder {shown(str(run), 200)}; give a run folder or a model folder")


def _check_files(clips: list[Path]) -> None:
    """Before the model is loaded, which takes seconds."""
    missing = [brief(clip) for clip in clips if not os.path.isfile(clip)]
    if missing:
        raise UserError(f"no such audio file: {brief(', '.join(missing), 1000)}")


def _check_target(out: Path, force: bool) -> None:
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"{brief(out)}: the name must end in {' or '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise UserError(f"{brief(out)}: there is no folder {shown(str(out.parent), 200)}; make it first")
    if out.is_dir() or (out.exists() and not force):
        raise UserError(f"{brief(out)} exists already; choose another name, or replace it with --force")


def _write_sound(out: Path, samples: NDArray[np.float32], sample_rate: int) -> None:
    """Write 16 bits; samples outside [-1, 1] are clipped and counted."""
    import io

    import numpy as np
    import soundfile

    from bagpiper.files import write_for_user

    clipped = int((np.abs(samples) > 1.0).sum())
    buffer = io.BytesIO()
    soundfile.write(
        buffer, np.clip(samples, -1.0, 1.0), sample_rate, format=FORMATS[out.suffix.lower()], subtype="PCM_16"
    )
    write_for_user(out, buffer.getvalue())
    note = f", {clipped} samples clipped" if clipped else ""
    typer.echo(f"{out}: {len(samples) / sample_rate:.2f} s at {sample_rate} Hz{note}")
