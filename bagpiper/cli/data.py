"""Verbs that prepare data: ``bagpiper data import-...``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bagpiper.errors import brief

if TYPE_CHECKING:
    from bagpiper.data.importers import Imported


_Out = Annotated[Path, typer.Option("--out", "-o", help="File of conversations to write.")]
_ValidShare = Annotated[
    float,
    typer.Option(help="Share that goes to OUT's name with .valid.jsonl; chosen by hash, the same every time."),
]


def add_verbs(app: typer.Typer) -> None:
    """Add the group ``data``."""
    group = typer.Typer(no_args_is_help=True, help="Make files of conversations from other manifests, and back.")
    group.command("import-pairs")(import_pairs)
    group.command("import-dialogues")(import_dialogues)
    group.command("import-demo")(import_demo)
    group.command("export-dialogues")(export_dialogues)
    app.add_typer(group, name="data")


def import_pairs(
    manifest: Annotated[Path, typer.Argument(help="JSON lines with 'audio' and 'caption' or 'text'.")],
    out: _Out,
    task: Annotated[
        Literal["both", "audio_to_text", "text_to_audio"], typer.Option(help="Directions to write.")
    ] = "both",
    text_key: Annotated[str | None, typer.Option(help="Key of the text; else caption, or text without one.")] = None,
    question: Annotated[str | None, typer.Option(help="Question put after the clip in audio -> text.")] = None,
    valid_share: _ValidShare = 0.0,
    split_by: Annotated[
        Literal["audio", "text"], typer.Option(help="The same clip, or the same text, is never on both sides.")
    ] = "audio",
    max_seconds: Annotated[float | None, typer.Option(help="Leave lines with longer clips out.")] = None,
) -> None:
    """Pairs (audio, caption) become conversations in both directions."""
    from bagpiper.data import importers

    imported = importers.import_pairs(
        manifest,
        out,
        task=task,
        text_key=text_key,
        question=question,
        valid_share=valid_share,
        split_by=split_by,
        max_seconds=max_seconds,
    )
    _report(imported, valid_share)


def import_dialogues(
    manifest: Annotated[Path, typer.Argument(help="JSON lines or Parquet with 'example_id', 'messages'.")],
    out: _Out,
    valid_share: _ValidShare = 0.0,
) -> None:
    """ESPnet's dialogues [role, modality, content] become conversations."""
    from bagpiper.data import importers

    _report(importers.import_dialogues(manifest, out, valid_share=valid_share), valid_share)


def import_demo(
    manifest: Annotated[Path, typer.Argument(help="JSON lines of the official demo page.")],
    out: _Out,
    valid_share: _ValidShare = 0.0,
) -> None:
    """The official demo's lines become conversations that caption first, then think, answer or render."""
    from bagpiper.data import importers

    _report(importers.import_demo(manifest, out, valid_share=valid_share), valid_share)


def export_dialogues(
    conversations: Annotated[Path, typer.Argument(help="File of conversations.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON lines, or Parquet if it ends in .parquet.")],
) -> None:
    """Conversations become ESPnet's dialogues [role, modality, content]."""
    from bagpiper.data.exporters import export_dialogues as export

    exported = export(conversations, out)
    typer.echo(f"{exported.dialogues} dialogues written to {brief(out)}")
    if exported.flags:
        typer.echo(f"left out: {exported.flags} loss flags of messages, for which they have no place", err=True)


def _report(imported: Imported, valid_share: float) -> None:
    for fault in imported.faults:
        typer.echo(f"left out: {fault}", err=True)
    longer = f", {imported.longer} with longer clips left out" if imported.longer else ""
    typer.echo(f"{imported.lines} lines read, {len(imported.faults)} left out{longer}")
    typer.echo(f"{imported.train} conversations written to {brief(imported.path)}")
    if imported.valid_path is not None:
        typer.echo(f"{imported.valid} conversations written to {brief(imported.valid_path)}")
    elif valid_share:
        typer.echo(
            f"nothing was split off: lines that share a clip or text stay together, and a share of {valid_share:g} of "
            "so few is none; raise --valid-share"
        )
