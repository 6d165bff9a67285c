"""Exporters: files of conversations become other projects' manifests."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagpiper.data.lines import read_lines
from bagpiper.data.parquet import SUFFIX, write_parquet
from bagpiper.data.paths import path_from, same_file
from bagpiper.errors import UserError, brief
from bagpiper.files import at_home, write_for_user
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
        out: JSON lines, or Parquet if its name ends so; paths of clips are relative to its folder, and tried.

    Raises:
        UserError: a line is no conversation, or has no clip in a file; nothing is written then.
    """
    if os.path.exists(out) and not os.path.isfile(out):
        raise UserError(f"{brief(out)}: this is a folder or a device; name a file of dialogues to write")
    if same_file(out, source):
        raise UserError(f"{brief(out)}: this is the file of conversations itself; write the dialogues to another file")
    dialogues: list[dict[str, Any]] = []
    flags = 0
    for number, data, fault in read_lines(source):
        where = f"{brief(source)}:{number}"
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
    clip = os.path.join(source.parent, at_home(path))
    if not os.path.isfile(clip):
        raise UserError(f"{where}: {brief(path)}: no such file; paths are relative to the folder of {brief(source)}")
    if same_file(out, clip):
        raise UserError(f"{where}: {brief(out)} is its clip; write the dialogues to another file")
    try:
        return path_from(out.parent, clip)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
