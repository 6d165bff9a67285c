"""Any JSON value, and any text, as a line of a manifest: conversations or one short message, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from bagpiper.data.examples import read_sources
from bagpiper.data.exporters import export_dialogues
from bagpiper.data.importers import import_demo, import_dialogues, import_pairs
from bagpiper.data.ledger import Ledger
from bagpiper.errors import UserError
from bagpiper.interop.system_prompt import find_system_prompt
from bagpiper.recipe.settings import SourceSettings

WORDS = (
    "a.wav",
    "./a.wav",
    "~nobody/a.wav",
    "~\0",
    "..",
    "data:audio/wav;base64,AAAA",
    "https://x/y.wav",
    "\0",
    "\ud83d",
)
LONG = ("b" * 300, "c" * 5000, "\x1b[31m")
ROLES = ("system", "user", "assistant")
KINDS = ("text", "audio", "input_audio", "audio_url", "pretrain", "posttrain", "generation", "understanding")
KEYS = ("id", "example_id", "messages", "role", "content", "type", "audio", "text", "caption", "split", "task", "think")

texts = st.text(max_size=20) | st.sampled_from([*WORDS, *LONG, *ROLES, *KINDS])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | texts, inner, max_size=6),
    max_leaves=20,
)
parts = values | st.fixed_dictionaries({"type": st.sampled_from(KINDS)}, optional={"text": values, "audio": values})
content = texts | st.lists(parts, max_size=3) | values
turns = values | st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": content}, optional={"loss": values})
messages = st.lists(turns | st.lists(texts, min_size=3, max_size=3), max_size=4)
rest = dict.fromkeys(("id", "example_id", "caption", "split", "task", "think", "answer", "question"), values)
objects = st.fixed_dictionaries({"messages": messages}, optional=rest)
pairs = st.fixed_dictionaries({"audio": values, "text": values}, optional=rest)
lines = st.lists((values | objects | pairs).map(json.dumps), min_size=1, max_size=3).map("\n".join)

snippets = st.sampled_from([*'{}[]":,', "1e999", "NaN", "1" * 5000, "\\ud83d", "\\u0000", "\0", "\ufeff", "[" * 3000])
frames = st.sampled_from(['{"audio": "a.wav", "text": %s}', '{"messages": [%s]}', '{"id": %s, "messages": []}', "%s"])
broken = st.builds(lambda frame, inner: frame % "".join(inner), frames, st.lists(snippets, min_size=1, max_size=6))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    soundfile.write(folder / "a.wav", np.zeros(800, np.float32), 16000)
    return folder


def read(path: Path) -> object:
    return read_sources([SourceSettings(path=str(path))], on_bad="fail", max_seconds=30, ledger=Ledger())


def uses(folder: Path) -> Iterator[Callable[[], object]]:
    """Everything that reads a manifest; what it writes can be read again."""
    manifest, out = folder / "m.jsonl", folder / "out.jsonl"

    def imported(verb: Callable[..., Any], **options: Any) -> None:
        for fault in verb(manifest, out, **options).faults:
            assert_short(fault)
        read(out)

    yield lambda: read(manifest)
    yield lambda: imported(import_pairs, max_seconds=10)
    yield lambda: imported(import_pairs, split_by="text", valid_share=0.5)
    yield lambda: imported(import_dialogues, valid_share=0.5)
    yield lambda: imported(import_demo)
    yield lambda: export_dialogues(manifest, out)
    yield lambda: find_system_prompt(manifest)


def assert_short(message: str) -> None:
    assert all(len(line) < 700 and line.isprintable() for line in message.split("\n"))


def assert_told(folder: Path, data: bytes) -> None:
    (folder / "m.jsonl").write_bytes(data)
    for use in uses(folder):
        for name in ("out.jsonl", "out.valid.jsonl"):
            (folder / name).unlink(missing_ok=True)
        try:
            use()
        except UserError as error:
            assert_short(str(error))


@settings(max_examples=150, deadline=None)
@given(lines)
def test_any_json_value_is_read_or_told(place: Path, text: str) -> None:
    assert_told(place, text.encode())


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.lists(broken, min_size=1, max_size=3).map(lambda texts: "\n".join(texts).encode()))
def test_any_text_is_read_or_told(place: Path, data: bytes) -> None:
    assert_told(place, data)
