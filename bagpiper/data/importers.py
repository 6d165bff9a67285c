"""Importers: other projects' manifests become files of conversations.

Every line either becomes conversations or a fault with its line number; nothing is dropped in silence. Paths are
written relative to the new file, and tried.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bagpiper.data.audio import BadAudio, inspect_clip
from bagpiper.data.lines import read_lines
from bagpiper.data.parquet import SUFFIX, read_parquet
from bagpiper.data.paths import path_from, same_file
from bagpiper.data.split import SplitLine, check_targets, held_out, valid_file
from bagpiper.errors import UserError, brief, shown
from bagpiper.files import at_home, write_together
from bagpiper.language.conversation import (
    MODALITIES,
    ROLES,
    Clip,
    Conversation,
    Message,
    Role,
    refuse_inline_audio,
    to_json,
)
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
class _Converted:
    """What became of a line.

    Attributes:
        conversations: clips by paths from the working folder.
        key: what draws its side of the split, as the manifest spells it.
        text: what may not stand on both sides, in place of the clips.
        is_longer: its clip is longer than what was asked for, so it is not written; it still ties others together.
    """

    conversations: list[Conversation]
    key: str
    text: str | None = None
    is_longer: bool = False

    def clips(self) -> tuple[str, ...]:
        """The files, each path once."""
        messages = (message for conversation in self.conversations for message in conversation.messages)
        return tuple(dict.fromkeys(message.clip.path or "" for message in messages if message.modality == "audio"))

    def tied(self) -> SplitLine:
        """The line as the split sees it."""
        return SplitLine(self.key, () if self.text else self.clips(), self.text)


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
            found = f"no text under {shown(key)} (found {shown(value)})"
            raise UserError(f"{self.where}: {found}; add it or take the line out")
        return value

    def clip(self, value: Any) -> Clip:
        """The audio file ``value``, which must exist.

        Raises:
            UserError: it does not, or cannot be read.
        """
        refuse_inline_audio(value, self.where)
        if not isinstance(value, str) or not value:
            raise UserError(f"{self.where}: no audio file (found {shown(value)}); its path belongs under 'audio'")
        path = os.path.join(self.folder, at_home(value))
        if not os.path.isfile(path):
            fault = f"{brief(value)}: no such file"
            raise UserError(f"{self.where}: {fault}; paths are relative to the folder of the manifest")
        if not os.access(path, os.R_OK):
            raise UserError(f"{self.where}: {brief(value)}: cannot be read; check its permissions")
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
        valid_share: share of the pairs that goes to the validation file (``split.valid_file``), chosen by hash.
        split_by: what may not stand on both sides of the split: the same clip, or the same text (``split.held_out``).
        max_seconds: lines with longer clips are left out and counted; the others stay on their side of the split.

    Raises:
        UserError: the manifest cannot be read, ``out`` cannot be written, or no line could be imported.
    """
    if max_seconds is not None and not max_seconds > 0:
        raise UserError(f"max seconds {max_seconds:g}; it must be more than 0")

    def convert(line: _Line) -> _Converted:
        key = text_key or ("caption" if line.data.get("caption") else "text")
        text, clip = line.text(key), line.clip(line.data.get("audio"))
        conversations = _pair(line, clip, text, line.rest("audio", key), task, question)
        is_longer = max_seconds is not None and _seconds(clip, line.where) > max_seconds
        if split_by == "text":
            return _Converted(conversations, text.strip().lower(), text, is_longer)
        return _Converted(conversations, str(line.data["audio"]), None, is_longer)

    return _import(manifest, out, convert, valid_share)


def import_dialogues(manifest: Path, out: Path, *, valid_share: float = 0.0) -> Imported:
    """ESPnet's dialogues ``{"example_id", "messages": [[role, modality, content], ...]}`` -> conversations.

    Args:
        manifest: JSON lines, or a Parquet file as on the Hub; audio content is a path relative to its folder.
        out: the file to write.
        valid_share: share of the dialogues that goes to the validation file, by hash of the first audio file or,
            without audio, of the id; dialogues that share a clip stay together.

    Raises:
        UserError: as ``import_pairs``.
    """

    def convert(line: _Line) -> _Converted:
        turns = line.data.get("messages")
        if not isinstance(turns, list) or not turns:
            raise UserError(f"{line.where}: 'messages' must be a list of [role, modality, content]")
        messages = tuple(_espnet_message(line, turn, f"{line.where}, message {n}") for n, turn in enumerate(turns, 1))
        audio = [turn[2] for turn in turns if turn[1] == "audio"]
        conversation = Conversation(line.id, messages, line.rest("example_id"))
        return _Converted([conversation], audio[0] if audio else line.id)

    return _import(manifest, out, convert, valid_share)


def import_demo(manifest: Path, out: Path, *, valid_share: float = 0.0) -> Imported:
    """Lines of the official demo -> conversations in caption-then-process form (spec section 2.5).

    Pretraining lines become pairs in both directions; understanding lines answer "caption, think, answer" after clip
    and question; generation lines answer a request with "think, caption" and then the clip.

    Args:
        manifest: JSON lines with ``split``, ``task``, ``audio``, ``caption`` and the texts of the turn.
        out: the file to write.
        valid_share: share of the lines that goes to the validation file, by hash of the audio file.

    Raises:
        UserError: as ``import_pairs``.
    """

    def convert(line: _Line) -> _Converted:
        return _Converted(_demo(line), str(line.data["audio"]))

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


def _import(manifest: Path, out: Path, convert: Callable[[_Line], _Converted], valid_share: float) -> Imported:
    """Convert every line and write the file(s)."""
    if not 0 <= valid_share < 1:
        raise UserError(f"valid share {valid_share:g}; it must be at least 0 and less than 1")
    check_targets(out, splits=valid_share > 0)
    valid_path = valid_file(out)
    if same_file(manifest, out) or same_file(manifest, valid_path):
        raise UserError(
            f"{brief(out)}: this would replace the manifest itself; write the conversations to another file"
        )
    ties: list[SplitLine] = []
    written: list[list[str]] = []
    faults: list[str] = []
    seen: dict[str, int] = {}
    read = longer = 0
    for number, data, fault in read_parquet(manifest) if manifest.suffix == SUFFIX else read_lines(manifest):
        read += 1
        where = f"{brief(manifest)}:{number}"
        try:
            if fault is not None or not isinstance(data, dict):
                raise UserError(f"{where}: {fault or 'a line must be a JSON object'}")
            name = str(data.get("id") or data.get("example_id") or f"{manifest.stem}:{number}")
            if name in seen:
                raise UserError(f"{where}: id {shown(name)} was used in line {seen[name]}; ids must differ")
            converted = convert(_Line(data, where, name, manifest.parent))
            written.append([] if converted.is_longer else _dump(converted, out, where))
        except UserError as error:
            faults.append(str(error))
            continue
        if any(same_file(out, clip) for clip in converted.clips()):
            raise UserError(f"{where}: {brief(out)} is its clip; write the conversations to another file")
        seen[name] = number
        longer += converted.is_longer
        ties.append(converted.tied())
    train, valid = _sides(written, held_out(ties, valid_share))
    if not train:
        others = "every clip is longer than asked for" if longer else "the share for validation took all of them"
        detail = "\n  ".join(faults[:20]) if faults else others
        raise UserError(f"{brief(manifest)}: none of {read} lines could be imported for training:\n  {detail}")
    check_targets(out, splits=bool(valid))
    _write({out: train, valid_path: valid} if valid else {out: train})
    return Imported(read, len(train), len(valid), out, valid_path if valid else None, tuple(faults), longer)


def _sides(written: Sequence[Sequence[str]], validates: Sequence[bool]) -> tuple[list[str], list[str]]:
    """The lines to train on and those to validate on."""
    sides: tuple[list[str], list[str]] = ([], [])
    for lines, side in zip(written, validates, strict=True):
        sides[side].extend(lines)
    return sides


def _write(files: Mapping[Path, Sequence[str]]) -> None:
    """Write files of lines, unless all of them say so already."""
    new = {path: "".join(f"{line}\n" for line in lines).encode() for path, lines in files.items()}
    if not all(path.exists() and path.read_bytes() == data for path, data in new.items()):
        write_together(new)


def _dump(converted: _Converted, out: Path, where: str) -> list[str]:
    """The lines of conversations, as they stand in ``out``."""
    try:
        paths = {clip: path_from(out.parent, clip) for clip in converted.clips()}
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return [_json(conversation, paths) for conversation in converted.conversations]


def _json(conversation: Conversation, paths: Mapping[str, str]) -> str:
    messages = tuple(
        replace(message, content=Clip(path=paths[message.clip.path or ""])) if message.modality == "audio" else message
        for message in conversation.messages
    )
    return json.dumps(to_json(replace(conversation, messages=messages)), ensure_ascii=False)


def _seconds(clip: Clip, where: str) -> float:
    """How long a clip is."""
    try:
        return inspect_clip(clip.path or "").seconds
    except BadAudio as error:
        raise UserError(f"{where}: {error}") from error


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
            f"{line.where}: split {shown(split)} and task {shown(task)}; known are split pretrain or posttrain and "
            "task understanding or generation"
        )
    return [Conversation(line.id, messages, meta)]


def _espnet_message(line: _Line, turn: Any, where: str) -> Message:
    if not isinstance(turn, list) or len(turn) != 3 or not all(isinstance(part, str) for part in turn):
        raise UserError(f"{where}: must be [role, modality, content] of three strings, got {shown(turn)}")
    role, modality, content = turn
    if role not in ROLES:
        raise UserError(f"{where}: role {shown(role)}; allowed: {', '.join(ROLES)}")
    if modality not in MODALITIES:
        raise UserError(f"{where}: modality {shown(modality)} is not supported; allowed: {', '.join(MODALITIES)}")
    return Message(_role(role), "audio", line.clip(content)) if modality == "audio" else Message(role, "text", content)


def _role(role: str) -> Role:
    assert role in ROLES
    return role  # type: ignore[return-value]
