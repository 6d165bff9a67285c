"""Any text as a recipe or an override: settings, or short mistakes with their places; never a traceback or a flood."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import MINIMAL

from bagpiper.recipe.load import RecipeError, check_recipe, load_recipe
from bagpiper.recipe.summary import summarise

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)

HARD: dict[str, tuple[str | bytes, str]] = {
    "a number of 5,000 digits": (MINIMAL + "seed: " + "1" * 5000, ":10: seed: a whole number of 5,000 digits; at most"),
    "hexadecimal digits": (MINIMAL + "seed: 0x" + "f" * 5000, ":10: seed: a whole number of 5,002 digits; at most"),
    "a number beyond 64 bits": (MINIMAL + "seed: " + "1" * 90, ":10: seed: must be a whole number, not 1111"),
    "a float for a number": (MINIMAL + "seed: 1e300", "not 1e+300; at most 18446744073709551615"),
    "a billion laughs": (MINIMAL + LAUGHS, "made of more than 10,000 values"),
    "an alias of itself": (MINIMAL + "a: &a [*a]", ":10: nested more than 20 deep"),
    "lists in lists": (MINIMAL + "a: " + "[" * 30_000, "nested more than 20 deep"),
    "keys in keys": (MINIMAL + "".join(" " * n + "a:\n" for n in range(400)), "nested more than 20 deep"),
    "a key twice": (MINIMAL + "seed: 1\nseed: 2", ":11: not YAML: found duplicate key seed"),
    "a long key twice": (MINIMAL + f"{'k' * 900}: 1\n" * 2, ":11: not YAML: found duplicate key 'kkk"),
    "a number as a key twice": (MINIMAL + "x: {1: 2, 1: 3}", ":10: not YAML: found duplicate key 1"),
    "a list as a key": (MINIMAL + "? [a]\n: 1", ":10: not YAML for a recipe: a key must be a word"),
    "no key": (MINIMAL + "~: 1", "not YAML: KeyValidationError"),
    "a tab": (MINIMAL + "seed:\n\t1", ":11: not YAML: found character '\\t' that cannot start any token"),
    "a tag": (MINIMAL + "seed: !!bool x", "not YAML: KeyError"),
    "a NUL": (MINIMAL + "name: a\0b", "not YAML: the character #x0000 is not allowed in it"),
    "a NUL in a folder's name": (MINIMAL + 'run_dir: "a\\0b"', ":10: run_dir: no folder can be called 'a\\x00b'"),
    "a NUL in the name": (MINIMAL + 'name: "a\\0b"', ":10: name: no folder can be called 'runs/a\\x00b'"),
    "half a surrogate pair": (MINIMAL + 'name: "\\ud83d"', ":10: name: '\\ud83d' holds half a surrogate pair"),
    "an escape sequence": (MINIMAL + '"\\e[31mred": 1', ":10: '\\x1b[31mred': unknown key"),
    "another user's home": (MINIMAL + "start_from: ~nobody-here/run", "~nobody-here/run does not exist"),
    "a name that no file has": (MINIMAL + f"listening: {{clips: [{'x' * 5000}]}}", "no such file: 'xxx"),
    "a long value": (MINIMAL + "device: " + "x" * 5000, "xxxxx' (5,002 characters) is not a choice; allowed: auto"),
    "bytes": (bytes(range(256)), "cannot be read as UTF-8 text"),
    "another encoding": (MINIMAL.encode("utf-16"), "cannot be read as UTF-8 text"),
    "another file": ("x" * (1 << 19), "holds more than 256 kB; is it a recipe?"),
    "a manifest": ('{"id": 1, "messages": []}\n{"id": 2}\n', ":2: not YAML"),
}


def assert_short(message: str) -> None:
    assert len(message) < 1000 and message.isprintable()


@pytest.mark.parametrize("case", HARD)
def test_a_hard_recipe_is_told_in_short_lines(case: str, tmp_path: Path) -> None:
    text, words = HARD[case]
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    problems = [str(problem) for problem in check_recipe(str(path))]
    assert any(words in problem for problem in problems), problems
    for problem in problems:
        assert_short(problem)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=" + "1" * 5000, "the value is a whole number of 5,000 digits"),
        ("name=" + "[" * 30_000, "the value is nested more than 20 deep"),
        ("name=[&a [*a]]", "the value is nested more than 20 deep"),
        ("name=&a [*a", "the value is not YAML"),
        ("seed=!!bool x", "the value is not YAML: KeyError"),
        ("x" * 100_000 + "=1", "unknown key"),
        ("data.sources[" + "1" * 5000 + "]=1", "data.sources: must be a list"),
        ("data.sources[²]=1", "data.sources: must be a list"),
        ("model.llm.config" + ".x" * 5000 + "=1", "an override is written key=value"),
        ("data.max_seconds=1e308", "must be at most 86400, got 1e+308"),
        ("data.max_seconds=-1e308", "must be above 0, got -1e+308"),
        ('name="\\0"', "no folder can be called 'runs/\\x00'"),
        ('name="\\ud83d"', "the value is '\\ud83d' holds half"),
        ("name=\udcff", "the character #xdcff is not allowed in it"),
    ],
    ids=range(14),
)
def test_a_hard_override_is_told_in_a_short_line(override: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(MINIMAL)
    (tmp_path / "a.jsonl").touch()
    sources = [] if override.startswith("data.sources") else [f"data.sources=[{tmp_path}/a.jsonl]"]
    (problem,) = map(str, check_recipe(str(tmp_path / "r.yaml"), [*sources, override]))
    assert words in problem
    assert_short(problem)


def test_a_name_that_is_no_recipe_is_told_in_a_short_line() -> None:
    for name in ("x" * 100_000, "~nobody-here/x.yaml", "a\0b", "~\0", "~\ud83d", "\x1b[31m.yaml"):
        (problem,) = check_recipe(name)
        assert_short(str(problem))
        with pytest.raises(RecipeError) as caught:
            load_recipe(name)
        assert len(str(caught.value)) < 1000


def test_of_many_mistakes_twenty_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(MINIMAL + "".join(f"k{n}: 1\n" for n in range(100)))
    with pytest.raises(RecipeError, match="has 100 mistakes") as caught:
        load_recipe(str(tmp_path / "r.yaml"))
    assert len(str(caught.value).splitlines()) == 22 and str(caught.value).endswith("and 80 more")
    assert len(caught.value.problems) == 100


@pytest.mark.parametrize("field", ["sources", "valid_sources"])
def test_one_file_under_two_names_is_named_once(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, it would count double in silence; that is what the weight is for."""
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").touch()
    Path("b.jsonl").touch()
    os.symlink("a.jsonl", "link.jsonl")
    os.link("a.jsonl", "hard.jsonl")
    Path("r.yaml").write_text(MINIMAL)
    for name in ("a.jsonl", "./a.jsonl", str(tmp_path / "a.jsonl"), "link.jsonl", "hard.jsonl"):
        given = ["data.sources=[b.jsonl]", f"data.{field}=[a.jsonl, {{path: {name}, weight: 2}}]"]
        (problem,) = check_recipe("r.yaml", given)
        assert f"data.{field}[1].path: the same file as data.{field}[0], 'a.jsonl'; name it once" in str(problem)
    assert not check_recipe("r.yaml", [f"data.{field}=[a.jsonl, b.jsonl]"])


WORDS = (
    "1" * 5000,
    "0x" + "f" * 5000,
    "1e999",
    ".nan",
    "!!int",
    "!!bool x",
    "!!binary a",
    "!!set {a}",
    "<<",
    "*a",
    "&a",
)
SNIPPETS = (
    *"{}[]:,-?&*!|>%@`'\"# \n\t~=",
    *WORDS,
    "---",
    "...",
    "\0",
    "\x1b",
    "\\0",
    "~nobody/x",
    "a" * 3000,
    "${x}",
    "???",
)
KEYS = ("seed", "run_dir", "name", "device", "plugins", "start_from", "model", "stage", "trainer", "tracking", "x")
written = st.lists(st.sampled_from(SNIPPETS) | st.sampled_from(KEYS), max_size=8).map("".join)
recipes = (
    st.text(max_size=80)
    | written
    | written.map(lambda text: MINIMAL + text)
    | st.builds(lambda key, text: f"{MINIMAL}{key}: {text}", st.sampled_from(KEYS), written)
)
overrides = st.builds(
    lambda key, text: f"{key}={text}", st.sampled_from((*KEYS, "model.llm", "data.sources", "")), written
)


@settings(max_examples=300, deadline=None)
@given(recipes, st.lists(overrides, max_size=2))
def test_any_text_is_a_recipe_or_told(tmp_path_factory: pytest.TempPathFactory, text: str, changes: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    problems = check_recipe(str(path), changes)
    for problem in problems:
        assert_short(str(problem))
    if not problems:
        assert summarise(load_recipe(str(path), changes))
