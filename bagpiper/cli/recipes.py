"""Verbs about recipes: ls, cat, cp, diff, check."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from bagpiper.errors import UserError, shown
from bagpiper.redact import redact_tree

_HEADER_KEYS = ("What", "Needs", "Reached", "Note")


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    for name, verb in (("ls", ls), ("cat", cat), ("cp", cp), ("diff", diff), ("check", check)):
        app.command(name)(verb)


def ls() -> None:
    """List the shipped recipes.

    What each is, needs and reached comes from the comment at its top; `bagpiper cat` shows the rest.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from bagpiper.recipe.source import read, shipped

    table = Table("recipe", "what", "needs", "reached", show_lines=True)
    table.columns[0].no_wrap = True
    for name in shipped():
        header = read_header(read(name).text)
        table.add_row(name, *(escape(header.get(key, "")) for key in _HEADER_KEYS[:3]))
    Console().print(table)


def cat(name: str = typer.Argument(help="A shipped recipe, a file or a run folder.")) -> None:
    """Print a recipe."""
    from bagpiper.recipe.source import read

    typer.echo(read(name).text, nl=False)


def cp(
    name: str = typer.Argument(help="A shipped recipe, a file or a run folder."),
    file: Path = typer.Argument(help="The new file; it must not exist."),
) -> None:
    """Copy a recipe into a file of your own."""
    from bagpiper.recipe.source import read

    text = read(name).text
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError as error:
        raise UserError(f"{shown(str(file), 200)} exists already; choose another name or remove it first") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"there is no folder {shown(str(file.parent), 200)}; make it first") from error
    typer.echo(f"{file}: a copy of {name}; try `bagpiper check {file}`")


def diff(
    first: str = typer.Argument(help="A shipped recipe, a file or a run folder."),
    second: str = typer.Argument(help="What it is compared with."),
) -> None:
    """Show what two recipes set differently.

    Key by key, defaults included, so that order and spelled-out defaults make no difference.
    """
    from bagpiper.recipe.load import load_recipe, recipe_to_dict

    sides = [dict(flatten(recipe_to_dict(load_recipe(name, ready=False)))) for name in (first, second)]
    keys = [key for key in {**sides[0], **sides[1]} if key != "name"]
    changed = [key for key in keys if sides[0].get(key, _ABSENT) != sides[1].get(key, _ABSENT)]
    for key in changed:
        typer.echo(f"{key}: {_shown(key, sides[0])} -> {_shown(key, sides[1])}")
    if not changed:
        typer.echo(f"{first} and {second} set the same")


def check(
    name: str = typer.Argument(help="A shipped recipe, a file or a run folder."),
    overrides: list[str] = typer.Argument(None, metavar="KEY=VALUE", help="Laid over the recipe."),
) -> None:
    """Check a recipe and tell what it amounts to.

    Nothing is loaded or built; all mistakes come at once.
    """
    from bagpiper.recipe.load import load_recipe
    from bagpiper.recipe.summary import summarise

    recipe = load_recipe(name, overrides or [])
    for subject, text in summarise(recipe):
        typer.echo(f"{subject + ':':8}{text}")
    typer.echo(f"{name} is fine")


def read_header(text: str) -> dict[str, str]:
    """The paragraphs ``# Key: ...`` of the comment that a recipe starts with."""
    header: dict[str, str] = {}
    current = ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        words = line.lstrip("# ").strip()
        key, colon, rest = words.partition(":")
        if colon and key in _HEADER_KEYS:
            current, words = key, rest.strip()
        header[current] = f"{header.get(current, '')} {words}".strip()
    return header


def flatten(plain: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings; lists are values."""
    if isinstance(plain, dict) and plain:
        for name, item in plain.items():
            yield from flatten(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, plain


_ABSENT = object()


def _shown(key: str, side: Mapping[str, Any]) -> str:
    if key not in side:
        return "(no such key)"
    return json.dumps(redact_tree({key: side[key]})[key], ensure_ascii=False)
