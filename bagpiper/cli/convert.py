"""Verbs that turn weights into other formats: ``bagpiper convert import / export / merge``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bagpiper.errors import UserError, shown
from bagpiper.overheard import overheard

Out = Annotated[Path, typer.Option("--out", "-o", help="What to write; it must not exist.")]
Run = Annotated[Path, typer.Argument(help="A run folder or a model folder.")]
Dtype = Annotated[
    Literal["bfloat16", "float32"] | None,
    typer.Option(help="Of the numbers; default: the imported file's, else bfloat16 (--backbone: as they are)."),
]


def add_verbs(app: typer.Typer) -> None:
    """Add the group ``convert``."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Turn weights into other formats. A killed conversion continues when run again.",
    )
    group.command("import")(import_checkpoint)
    group.command("export")(export)
    group.command("merge")(merge)
    app.add_typer(group, name="convert")


def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="base.pt or model.pt, as published.")],
    config: Annotated[Path, typer.Option(help="The training YAML published beside it.")],
    out: Out,
    llm: Annotated[
        Path | None, typer.Option(help="Folder with config.json and tokenizer.json of the LLM; default: the hub.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder with tokenizer.json; default: as for --llm.")] = None,
    tower: Annotated[
        Path | None, typer.Option(help="Folder with config.json of the audio tower; default: the published sizes.")
    ] = None,
    codec: Annotated[
        Path | None, typer.Option(help="Folder with config.json of the codec; default: the published sizes.")
    ] = None,
    stage: Annotated[
        Literal["pretrain", "sft"] | None,
        typer.Option(help="What the model was trained for; default: by the names."),
    ] = None,
    system_prompt_from: Annotated[
        Path | None,
        typer.Option(help="JSON lines of SFT data; sounds are asked for with their system prompt."),
    ] = None,
) -> None:
    """Make a model folder of an official checkpoint."""
    for path in (checkpoint, config, *(p for p in (llm, tokenizer, tower, codec, system_prompt_from) if p)):
        if not path.exists():
            raise UserError(f"there is no {shown(str(path), 200)}")
    stage = stage or ("sft" if _names_sft(checkpoint, config) else "pretrain")
    with overheard(), _bars() as progress:
        from bagpiper.interop.espnet import PartFolders, import_espnet
        from bagpiper.interop.system_prompt import find_system_prompt

        prompt = find_system_prompt(system_prompt_from) if system_prompt_from else None
        model = import_espnet(
            checkpoint,
            config,
            out,
            folders=PartFolders(llm, tokenizer, tower, codec),
            stage=stage,
            system_prompt=prompt,
            progress=progress,
        )
    total = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{out}: {total / 1e6:.1f} M parameters, stage {stage}, {model.vocabulary.size} ids")
    typer.echo("system prompt: " + (f"{len(prompt)} characters from {system_prompt_from}" if prompt else "none"))


def _names_sft(checkpoint: Path, config: Path) -> bool:
    names = f"{checkpoint.resolve().parent.name} {config.name}".lower()
    return any(word in names for word in ("sft", "stage3", "tts"))


def export(
    run: Run,
    out: Out,
    backbone: Annotated[
        bool, typer.Option("--backbone", help="The text-only LLM as a folder of transformers, with its own ids.")
    ] = False,
    dtype: Dtype = None,
) -> None:
    """Write the official checkpoint format, or the LLM by itself."""
    _check_run(run)
    with overheard(), _bars() as progress:
        import torch

        from bagpiper.interop.backbone import export_backbone
        from bagpiper.interop.espnet_export import export_espnet
        from bagpiper.recipe.model_config import find_model

        wanted = getattr(torch, dtype) if dtype else None
        verb: Callable[..., Any] = export_backbone if backbone else export_espnet
        written = verb(find_model(run), out, dtype=wanted, progress=progress)
    typer.echo(f"{out}: {len(written)} tensors")


def merge(run: Run, out: Out) -> None:
    """Fold LoRA adaptors into the weights."""
    _check_run(run)
    with overheard(), _bars() as progress:
        from bagpiper.interop.merge import merge_folder
        from bagpiper.recipe.model_config import find_model

        count = merge_folder(find_model(run), out, progress=progress)
    typer.echo(f"{out}: {count} layers merged")


def _check_run(run: Path) -> None:
    if not run.is_dir():
        raise UserError(f"there is no folder {shown(str(run), 200)}; give a run folder or a model folder")


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for every step, in a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description:>8}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield tell
