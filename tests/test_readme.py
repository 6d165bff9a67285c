"""What the README and the docs say is true: verbs, options, recipes, examples of data, names of the Python API."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

import bagpiper
from bagpiper.cli.main import build_app
from bagpiper.language.conversation import from_json
from bagpiper.recipe.load import load_recipe
from bagpiper.recipe.source import shipped

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    """Code blocks of a language in all pages."""
    for page in PAGES:
        yield from re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands():
    """Every ``bagpiper ...`` command of the pages, as words."""
    for block in blocks("bash"):
        for line in block.splitlines():
            for part in line.split("#")[0].split("&&"):
                if part.strip().startswith("bagpiper "):
                    yield shlex.split(part)[1:]


COMMANDS = list(commands())


def test_there_are_commands():
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words)[:60] for words in COMMANDS])
def test_command_exists_with_its_options(words):
    command = typer.main.get_command(build_app())
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"no verb {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    for word in words:
        if word.startswith("-"):
            assert word.split("=")[0] in known, f"no option {word}"


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipe_is_right_as_it_stands(name):
    """Nothing is wrong but what the user has to bring: data, and weights that come as packages."""
    assert load_recipe(name, ready=False).name == name


def test_recipes_named_in_the_pages_exist():
    for words in COMMANDS:
        if words[0] in ("train", "cat", "check") and words[1:] and not words[1].startswith("-"):
            name = words[1]
            assert name.endswith((".yaml", ".jsonl")) or name in shipped(), name


def test_data_examples_are_conversations():
    rows = [json.loads(line) for block in blocks("json") for line in block.splitlines() if line.strip()]
    assert rows
    for row in rows:
        assert from_json(row).messages


def test_python_names_exist():
    for block in blocks("python"):
        for name in re.findall(r"\bbagpiper\.(\w+)\(", block):
            assert name in bagpiper.__all__, name
            assert callable(getattr(bagpiper, name))
