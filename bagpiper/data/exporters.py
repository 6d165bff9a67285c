"""Exporters: files of conversations become other projects' manifests."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagpiper.data.examples import read_lines
from bagpiper.data.parquet import SUFFIX, write_parquet
from bagpiper.errors import UserError
from bagpiper.files import write_for_user
from bagpiper.language.conversation import from_json


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        dialogues: written.
        flags: ``loss`` flags of messages that the other format has no place for.
    """

    dialogues: int
    flags: int


def export_dialogues(source: Path, out: Path) -> Exported:
    """Conversations -> ESPnet's dialogues ``{"example_id", "messages": [[role, modality, content], ...]}``.

    Args:
        source: a file of conversations.
        out: JSON lines, or Parquet if its name ends so; paths of clips are relative to its folder.

    Raises:
        UserError: a line is no conversation, or has no clip in a file; nothing is written then.
    """
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: this is the file of conversations itself; write the dialogues to another file")
    dialogues: list[dict[str, Any]] = []
    flags = 0
    for number, data, fault in read_lines(source):
        where = f"{source}:{number}"
        if fault is not None or not isinstance(data, dict):
            raise UserError(f"{where}: {fault or 'a line must be a JSON object'}")
        try:
            conversation = from_json(data, where)
        except ValueError as error:
            raise UserError(str(error)) from None
        messages = []
        for message in conversation.messages:
            flags += message.loss is not None
            content = message.text if message.modality == "text" else _path(message.clip.path, source, out, where)
            messages.append([message.role, message.modality, content])
        dialogues.append({"example_id": conversation.id, "messages": messages, **conversation.meta})
    if out.suffix == SUFFIX:
        write_parquet(out, dialogues)
    else:
        write_for_user(out, "".join(json.dumps(dialogue, ensure_ascii=False) + "\n" for dialogue in dialogues).encode())
    return Exported(len(dialogues), flags)


def _path(path: str | None, source: Path, out: Path, where: str) -> str:
    if path is None:
        raise UserError(f"{where}: a clip without a file cannot be named in a dialogue")
    return os.path.relpath(source.parent / Path(path).expanduser(), out.parent)
