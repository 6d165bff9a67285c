"""Importers: other projects' manifests become files of conversations.

Every line either becomes conversations or a fault with its line number; nothing is dropped in silence. Paths are
written relative to the new file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bagpiper.data.audio import inspect_clip
from bagpiper.data.examples import read_lines
from bagpiper.data.parquet import SUFFIX, read_parquet
from bagpiper.draws import uniform
from bagpiper.errors import UserError
from bagpiper.files import write_for_user
from bagpiper.language.conversation import MODALITIES, ROLES, Clip, Conversation, Message, Role, to_json
from bagpiper.recipe.settings import SourceSettings

Task = Literal["both", "audio_to_text", "text_to_audio"]
SplitBy = Literal["audio", "text"]

UNDERSTANDING_PROMPT = "You are an audio understanding assistant."
"""System prompt of the official understanding data (spec section 2.5)."""

CAPTION_PREFIX = "Caption of the audio:"
"""What an understanding answer begins with (spec section 2.5)."""


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        lines: read.
        train: conversations written.
        valid: conversations written to ``valid_path``.
        path, valid_path: the files; ``valid_path`` is None if nothing was split off.
        faults: lines that could not be imported, with their line numbers.
        longer: lines left out because their clip is longer than what was asked for.
    """

    lines: int
    train: int
    valid: int
    path: Path
    valid_path: Path | None
    faults: tuple[str, ...]
    longer: int = 0


@dataclass(frozen=True)
class _Line:
    """A line of a manifest: the object, where it stands, its id, the manifest's folder."""

    data: dict[str, Any]
    where: str
    id: str
    folder: Path

    def text(self, key: str) -> str:
        """A text that must be there.

        Raises:
            UserError: it is not.
        """
        value = self.data.get(key)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{self.where}: no text under '{key}' (found {value!r}); add it or take the line out")
        return value

    def clip(self, value: Any) -> Clip:
        """The audio file ``value``, which must exist.

        Raises:
            UserError: it does not.
        """
        if not isinstance(value, str) or not value:
            raise UserError(f"{self.where}: no audio file (found {value!r}); its path belongs under 'audio'")
        path = os.path.abspath(self.folder / Path(value).expanduser())
        if not os.path.isfile(path):
            raise UserError(f"{self.where}: {value}: no such file; paths are relative to the folder of the manifest")
        return Clip(path=path)

    def rest(self, *used: str) -> dict[str, Any]:
        """What else the line says: kept beside the messages."""
        return {key: value for key, value in self.data.items() if key not in ("id", "messages", *used)}


def import_pairs(
    manifest: Path,
    out: Path,
    *,
    task: Task = "both",
    text_key: str | None = None,
    question: str | None = None,
    valid_share: float = 0.0,
    split_by: SplitBy = "audio",
    max_seconds: float | None = None,
) -> Imported:
    """Pairs (audio, text) -> conversations in one or both directions.

    Args:
        manifest: JSON lines with ``audio`` and ``caption`` or ``text``.
        out: the file to write.
        task: which directions.
        text_key: where the text stands; None takes ``caption`` where there is one and ``text`` otherwise.
        question: put after the clip in audio -> text.
        valid_share: share of the pairs that goes to ``<out>.valid.jsonl``, chosen by hash.
        split_by: what may not stand on both sides of the split: the same file, or the same text.
        max_seconds: lines with longer clips are left out and counted; the others stay on their side of the split.

    Raises:
        UserError: the manifest cannot be read, ``out`` cannot be written, or no line could be imported.
    """
    if max_seconds is not None and not max_seconds > 0:
        raise UserError(f"max seconds {max_seconds:g}; it must be more than 0")

    def convert(line: _Line) -> tuple[list[Conversation], str]:
        key = text_key or ("caption" if line.data.get("caption") else "text")
        text, clip = line.text(key), line.clip(line.data.get("audio"))
        if max_seconds is not None and inspect_clip(clip.path or "").seconds > max_seconds:
            return [], ""
        conversations = _pair(line, clip, text, line.rest("audio", key), task, question)
        return conversations, str(line.data["audio"]) if split_by == "audio" else text.strip().lower()

    return _import(manifest, out, convert, valid_share)


def import_dialogues(manifest: Path, out: Path, *, valid_share: float = 0.0) -> Imported:
    """ESPnet's dialogues ``{"example_id", "messages": [[role, modality, content], ...]}`` -> conversations.

    Args:
        manifest: JSON lines, or a Parquet file as on the Hub; audio content is a path relative to its folder.
        out: the file to write.
        valid_share: share of the dialogues that goes to ``<out>.valid.jsonl``, by hash of the first audio file or,
            without audio, of the id.

    Raises:
        UserError: as ``import_pairs``.
    """

    def convert(line: _Line) -> tuple[list[Conversation], str]:
        turns = line.data.get("messages")
        if not isinstance(turns, list) or not turns:
            raise UserError(f"{line.where}: 'messages' must be a list of [role, modality, content]")
        messages = tuple(_espnet_message(line, turn, f"{line.where}, message {n}") for n, turn in enumerate(turns, 1))
        audio = [turn[2] for turn in turns if turn[1] == "audio"]
        conversation = Conversation(line.id, messages, line.rest("example_id"))
        return [conversation], audio[0] if audio else line.id

    return _import(manifest, out, convert, valid_share)


def import_demo(manifest: Path, out: Path, *, valid_share: float = 0.0) -> Imported:
    """Lines of the official demo -> conversations in caption-then-process form (spec section 2.5).

    Pretraining lines become pairs in both directions; understanding lines answer "caption, think, answer" after clip
    and question; generation lines answer a request with "think, caption" and then the clip.

    Args:
        manifest: JSON lines with ``split``, ``task``, ``audio``, ``caption`` and the texts of the turn.
        out: the file to write.
        valid_share: share of the lines that goes to ``<out>.valid.jsonl``, by hash of the audio file.

    Raises:
        UserError: as ``import_pairs``.
    """

    def convert(line: _Line) -> tuple[list[Conversation], str]:
        return _demo(line), str(line.data["audio"])

    return _import(manifest, out, convert, valid_share)


def soundscape_sources(folder: Path) -> tuple[list[SourceSettings], list[SourceSettings]]:
    """Training and validation sources of a soundscapes corpus.

    The pairs of every split become conversations in both directions in ``<split>.conversations.jsonl`` beside them,
    with the facts kept; files that already say so are left alone.

    Args:
        folder: what ``make_corpus`` wrote.

    Returns:
        Sources of ``train`` and of ``valid`` (empty if that split has no clips).
    """
    sources: dict[str, list[SourceSettings]] = {}
    for split in ("train", "valid", "test"):
        manifest = folder / f"{split}.jsonl"
        sources[split] = []
        if not manifest.exists() or not manifest.stat().st_size:
            continue
        out = folder / f"{split}.conversations.jsonl"
        imported = import_pairs(manifest, out)
        if imported.faults:
            raise UserError(f"{folder}: the corpus is damaged; remove it to make it anew:\n  {imported.faults[0]}")
        sources[split] = [SourceSettings(path=str(out), name=f"soundscapes-{split}")]
    return sources["train"], sources["valid"]


def _import(
    manifest: Path, out: Path, convert: Callable[[_Line], tuple[list[Conversation], str]], valid_share: float
) -> Imported:
    """Convert every line and write the file(s).

    ``convert`` gives conversations, none for a clip that is too long, and the key of the split.
    """
    if not 0 <= valid_share < 1:
        raise UserError(f"valid share {valid_share:g}; it must be at least 0 and less than 1")
    if out.resolve() == manifest.resolve():
        raise UserError(f"{out}: this is the manifest itself; write the conversations to another file")
    valid_path = out.with_suffix(".valid.jsonl")
    lines: dict[bool, list[str]] = {False: [], True: []}
    faults: list[str] = []
    seen: dict[str, int] = {}
    read = longer = 0
    for number, data, fault in read_parquet(manifest) if manifest.suffix == SUFFIX else read_lines(manifest):
        read += 1
        where = f"{manifest}:{number}"
        try:
            if fault is not None or not isinstance(data, dict):
                raise UserError(f"{where}: {fault or 'a line must be a JSON object'}")
            name = str(data.get("id") or data.get("example_id") or f"{manifest.stem}:{number}")
            if name in seen:
                raise UserError(f"{where}: id '{name}' was used in line {seen[name]}; ids must differ")
            conversations, key = convert(_Line(data, where, name, manifest.parent))
            written = [_dump(conversation, out, where) for conversation in conversations]
        except UserError as error:
            faults.append(str(error))
            continue
        seen[name] = number
        longer += not written
        lines[uniform("split", key) < valid_share].extend(written)
    if not lines[False]:
        others = "every clip is longer than asked for" if longer else "the share for validation took all of them"
        detail = "\n  ".join(faults[:20]) if faults else others
        raise UserError(f"{manifest}: none of {read} lines could be imported for training:\n  {detail}")
    _write(out, lines[False])
    if lines[True]:
        _write(valid_path, lines[True])
    kept = valid_path if lines[True] else None
    return Imported(read, len(lines[False]), len(lines[True]), out, kept, tuple(faults), longer)


def _write(path: Path, lines: Sequence[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    if not path.exists() or path.read_bytes() != data:
        write_for_user(path, data)


def _dump(conversation: Conversation, out: Path, where: str) -> str:
    messages = tuple(
        replace(message, content=Clip(path=_relative(message.clip.path or "", out.parent)))
        if message.modality == "audio"
        else message
        for message in conversation.messages
    )
    line = json.dumps(to_json(replace(conversation, messages=messages)), ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a surrogate pair (as in \\ud83d) is not a character") from error
    return line


def _relative(path: str, folder: Path) -> str:
    try:
        return os.path.relpath(path, folder)
    except ValueError:  # another drive, on Windows
        return path


def _pair(
    line: _Line, clip: Clip, text: str, meta: dict[str, Any], task: Task, question: str | None = None
) -> list[Conversation]:
    """One or both directions of a pair; pretraining data carries no system prompt (spec section 2.3)."""
    conversations = []
    if task != "text_to_audio":
        asked = (Message("user", "text", question),) if question else ()
        heard = (Message("user", "audio", clip), *asked, Message("assistant", "text", text))
        conversations.append(Conversation(f"{line.id}.a2t", heard, meta))
    if task != "audio_to_text":
        spoken = (Message("user", "text", text), Message("assistant", "audio", clip))
        conversations.append(Conversation(f"{line.id}.t2a", spoken, meta))
    return conversations


def _demo(line: _Line) -> list[Conversation]:
    clip, caption = line.clip(line.data.get("audio")), line.text("caption")
    split, task = line.data.get("split"), line.data.get("task")
    meta = line.rest("audio", "caption", "request", "question", "think", "answer", "system")
    if split == "pretrain":
        return _pair(line, clip, caption, meta, "both")
    think = f"<think>\n{line.text('think').strip()}\n</think>"
    if (split, task) == ("posttrain", "understanding"):
        answer = f"{CAPTION_PREFIX} {caption.strip()}\n\n{think}\n\n{line.text('answer').strip()}"
        messages = (
            Message("system", "text", UNDERSTANDING_PROMPT),
            Message("user", "audio", clip),
            Message("user", "text", line.text("question")),
            Message("assistant", "text", answer),
        )
    elif (split, task) == ("posttrain", "generation"):
        system = (Message("system", "text", line.text("system")),) if line.data.get("system") else ()
        messages = (
            *system,
            Message("user", "text", line.text("request")),
            Message("assistant", "text", f"{think}\n\n{caption.strip()}"),
            Message("assistant", "audio", clip),
        )
    else:
        raise UserError(
            f"{line.where}: split {split!r} and task {task!r}; known are split pretrain or posttrain and task "
            "understanding or generation"
        )
    return [Conversation(line.id, messages, meta)]


def _espnet_message(line: _Line, turn: Any, where: str) -> Message:
    if not isinstance(turn, list) or len(turn) != 3 or not all(isinstance(part, str) for part in turn):
        raise UserError(f"{where}: must be [role, modality, content] of three strings, got {turn!r}")
    role, modality, content = turn
    if role not in ROLES:
        raise UserError(f"{where}: role {role!r}; allowed: {', '.join(ROLES)}")
    if modality not in MODALITIES:
        raise UserError(f"{where}: modality {modality!r} is not supported; allowed: {', '.join(MODALITIES)}")
    return Message(_role(role), "audio", line.clip(content)) if modality == "audio" else Message(role, "text", content)


def _role(role: str) -> Role:
    assert role in ROLES
    return role  # type: ignore[return-value]
