"""Splitting a manifest for training and validation: which lines stay together, and which files may be written."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bagpiper.data.paths import contents
from bagpiper.draws import uniform
from bagpiper.errors import UserError, brief

_SUFFIX = ".jsonl"
_VALID = ".valid.jsonl"


@dataclass(frozen=True)
class SplitLine:
    """What decides on which side of a split a line of a manifest stands.

    Attributes:
        key: what the side is drawn by: the clip as the manifest spells it, say.
        clips: files that may not stand on both sides.
        text: a text that may not.
    """

    key: str
    clips: tuple[str, ...] = ()
    text: str | None = None


def held_out(lines: Sequence[SplitLine], share: float) -> list[bool]:
    """Whether each line goes to the validation side.

    Lines that share a clip or a text stay together, also by way of other lines: a dialogue with two clips holds the
    lines of both. Clips are the same if their bytes are, texts if ``_folded`` says so. A group's side is drawn by the
    key of its first line, so that it depends on no other group, and a manifest that spells every clip in one way is
    split as it would be by the keys alone.

    Raises:
        UserError: a clip cannot be read.
    """
    if not share:
        return [False] * len(lines)
    known = contents(clip for line in lines for clip in line.clips)
    tied = [{*map(known.__getitem__, line.clips), *([_folded(line.text)] if line.text else [])} for line in lines]
    return [uniform("split", lines[first].key) < share for first in _first_of_group(tied)]


def _first_of_group(tied: Sequence[Iterable[str]]) -> list[int]:
    """For every line the first line that it is tied to by what they have in common (union-find)."""
    parent = list(range(len(tied)))

    def first_of(line: int) -> int:
        while parent[line] != line:
            parent[line] = parent[parent[line]]
            line = parent[line]
        return line

    holder: dict[str, int] = {}
    for line, names in enumerate(tied):
        for name in names:
            one, other = sorted((first_of(line), first_of(holder.setdefault(name, line))))
            parent[other] = one
    return [first_of(line) for line in range(len(tied))]


def _folded(text: str) -> str:
    """A text without what readers hardly see: case, spacing, and the ways that Unicode has to write a character.

    NFKC, not NFC: full-width letters and ligatures are the same text too. Taking two texts for one costs little (they
    stand on the same side), taking one for two puts it on both.
    """
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def valid_file(out: Path) -> Path:
    """Where what is held out of ``out`` goes: ``pairs.valid.jsonl`` beside ``pairs.jsonl``.

    Any other name is kept whole (``set.v1.valid.jsonl``): without its last part, ``set.v1`` and ``set.v2`` were one.
    """
    name = out.name.removesuffix(_SUFFIX) if out.suffix == _SUFFIX else out.name
    return out.with_name(name + _VALID)


def check_targets(out: Path, *, splits: bool) -> None:
    """Refuse to write ``out`` where it would stand beside a validation file that is not its own, before it is written.

    An older validation file may hold lines that are trained on now. Whether it does is not looked into: clips that
    were changed or moved since would pass for others. So it is either written anew with ``out``, or refused.

    Args:
        out: the file to write.
        splits: whether a validation file is written with it.

    Raises:
        UserError: the names are taken; nothing was changed.
    """
    if os.path.exists(out) and not os.path.isfile(out):
        raise UserError(f"{brief(out)}: this is a folder or a device; name a file of conversations to write")
    valid = valid_file(out)
    owner = next((name for name in _owners(out) if os.path.isfile(name)), None)
    if owner is not None:
        raise UserError(f"{brief(out)}: the validation file of {brief(owner.name)} has this name; choose another name")
    other = _twin(out)
    if splits and os.path.isfile(other):
        raise UserError(
            f"{brief(out)}: its validation file {brief(valid.name)} would be that of {brief(other.name)} too; "
            "choose another name"
        )
    if not os.path.lexists(valid) or (splits and os.path.isfile(out)):
        return
    if os.path.isfile(out):
        raise UserError(
            f"{brief(valid)}: an earlier import to {brief(out.name)} wrote this; its lines may be in the new one, and "
            "this import splits nothing off. Remove it, or give a --valid-share that does; nothing was changed"
        )
    raise UserError(
        f"{brief(valid)}: this lies there already, though there is no {brief(out.name)}; its lines may be in the new "
        "one. Remove or rename it, or choose another name; nothing was changed"
    )


def _owners(out: Path) -> list[Path]:
    """The files whose validation file is called ``out``."""
    if not out.name.endswith(_VALID):
        return []
    name = out.name.removesuffix(_VALID)
    return [out.with_name(name + ending) for ending in (_SUFFIX, "") if name + ending]


def _twin(out: Path) -> Path:
    """The other file whose validation file has the name of this one's: ``a`` and ``a.jsonl``."""
    return out.with_name(out.name.removesuffix(_SUFFIX)) if out.suffix == _SUFFIX else out.with_name(out.name + _SUFFIX)
