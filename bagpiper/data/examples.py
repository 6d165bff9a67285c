"""Manifests: files of conversations (JSON lines) and the clips that they name."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from bagpiper.data.audio import BadAudio, ClipInfo, inspect_clip
from bagpiper.data.ledger import (
    CLIP_TRAINED_ON,
    FIRST_CHANNEL,
    LOUDEST_CHANNEL,
    MEAN_OF_CHANNELS,
    READ,
    SEEN_TWICE,
    SILENT_FIRST,
    TRAINED_ON_TOO,
    Faults,
    Ledger,
    OnBad,
)
from bagpiper.data.lines import read_lines
from bagpiper.data.paths import real_path
from bagpiper.errors import UserError, brief, shown
from bagpiper.files import at_home, write_for_user
from bagpiper.language.conversation import Clip, Conversation, Message, from_json
from bagpiper.recipe.settings import Channel, SourceSettings

_THREADS = 2

_STAMP, _FACTS = 3, 5
"""Numbers and texts that the clip cache keeps of a file and of the clip in it."""

_NARROWED: dict[Channel, str] = {"first": FIRST_CHANNEL, "mean": MEAN_OF_CHANNELS, "loudest": LOUDEST_CHANNEL}

_LEAST_WEIGHT = 0.001
"""Smallest weight of a source; with all of them tiny, most epochs would hold nothing."""


@dataclass(frozen=True)
class Example:
    """A conversation of a manifest, with what is known about its clips.

    Attributes:
        conversation: the messages; paths of clips are resolved.
        clips: message number -> clip, for every audio message.
        source: name of the source.
        where: manifest and line, for messages.
        weight: of the source.
    """

    conversation: Conversation
    clips: dict[int, ClipInfo]
    source: str
    where: str
    weight: float = 1.0


def read_sources(
    sources: Sequence[SourceSettings],
    *,
    on_bad: OnBad,
    max_seconds: float | None,
    ledger: Ledger,
    clip_cache: Path | None = None,
    channel: Channel = "first",
) -> list[Example]:
    """Read manifests and inspect every clip in them.

    Args:
        sources: the manifests, read in order.
        on_bad: ``fail`` raises all faults (up to 20) at once; ``skip`` leaves bad examples out and counts them.
        max_seconds: longest clip allowed.
        ledger: counts what was read and left out.
        clip_cache: JSON file that remembers inspected clips by path, size and time of change.
        channel: that will be used of clips of several channels, for the ledger.

    Raises:
        UserError: a manifest is missing or empty, a source's weight is not positive; bad examples in ``fail`` mode.
    """
    faults = Faults(on_bad, ledger)
    parsed = [
        item
        for source, name in zip(sources, _names(sources, ledger.sources), strict=True)
        for item in _parse(source, name, ledger, faults)
    ]
    known = _ClipCache(clip_cache)
    paths = dict.fromkeys(path for example in parsed for path in _clip_paths(example).values())
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            found = dict(zip(paths, pool.map(lambda path: _inspect(path, max_seconds, known), paths), strict=True))
        finally:
            known.save()
    examples = []
    for example in parsed:
        results = {index: found[path] for index, path in _clip_paths(example).items()}
        bad = [result for result in results.values() if isinstance(result, BadAudio)]
        if bad:
            faults.add(example.source, f"audio: {bad[0].reason}", f"{example.where}: {bad[0]}")
            continue
        clips = {index: result for index, result in results.items() if isinstance(result, ClipInfo)}
        examples.append(replace(example, clips=clips))
    faults.raise_if_any()
    count_clips(examples, _NARROWED[channel], lambda clip, _: clip.channels > 1, ledger)
    if channel == "first":
        count_clips(examples, SILENT_FIRST, lambda clip, _: clip.first_is_silent, ledger)
    return examples


def count_clips(
    examples: Iterable[Example], what: str, applies: Callable[[ClipInfo, Message], bool], ledger: Ledger
) -> None:
    """Count the clips of each source that something happens to, each file content once.

    Args:
        examples: the examples.
        what: name of the count.
        applies: (clip, message) -> whether it counts.
        ledger: where it is counted.
    """
    files = {
        (example.source, clip.sha256)
        for example in examples
        for index, clip in example.clips.items()
        if applies(clip, example.conversation.messages[index])
    }
    for source, number in Counter(source for source, _ in sorted(files)).items():
        ledger.count(source, what, number)


def count_shared(train: Iterable[Example], valid: Iterable[Example], ledger: Ledger) -> None:
    """Count examples that stand in the data twice, in whatever files: the same messages, with clips of the same bytes.

    Args:
        train: those that an earlier one equals are counted.
        valid: those that are trained on too are counted; and others, a clip of which is trained on.
        ledger: where they are counted.
    """
    known: set[tuple[tuple[str, str], ...]] = set()
    clips: set[str] = set()
    for example in train:
        content = _content(example)
        if content in known:
            ledger.count(example.source, SEEN_TWICE)
        known.add(content)
        clips.update(clip.sha256 for clip in example.clips.values())
    for example in valid:
        if _content(example) in known:
            ledger.count(example.source, TRAINED_ON_TOO)
        elif any(clip.sha256 in clips for clip in example.clips.values()):
            ledger.count(example.source, CLIP_TRAINED_ON)


def distinct_clips(examples: Iterable[Example], *, spoken: bool) -> list[ClipInfo]:
    """Clips of examples, each file content once, in order of first use.

    Args:
        examples: the examples.
        spoken: those that the model makes (their codes are needed) or those that it hears.
    """
    clips: dict[str, ClipInfo] = {}
    for example in examples:
        for index, clip in example.clips.items():
            if example.conversation.messages[index].is_spoken == spoken:
                clips.setdefault(clip.sha256, clip)
    return list(clips.values())


def _names(sources: Sequence[SourceSettings], taken: Iterable[str]) -> list[str]:
    """Names of sources, no two alike: their own, else the file's stem, else (if another has it) the path, numbered."""
    names = [source.name or Path(source.path).stem for source in sources]
    used = set(taken)
    chosen = []
    for source, name in zip(sources, names, strict=True):
        wanted = source.path if names.count(name) > 1 or name in used else name
        numbered = (wanted if number == 1 else f"{wanted} ({number})" for number in count(1))
        chosen.append(next(free for free in numbered if free not in used))
        used.add(chosen[-1])
    return chosen


def _parse(source: SourceSettings, name: str, ledger: Ledger, faults: Faults) -> Iterator[Example]:
    """Examples of a manifest, their clips not looked at yet."""
    if not source.weight >= _LEAST_WEIGHT:
        raise UserError(
            f"{brief(source.path)}: weight {source.weight:g}; it must be at least {_LEAST_WEIGHT} (or take it out)"
        )
    path = Path(at_home(source.path))
    seen: dict[str, int] = {}
    for number, line, fault in read_lines(path):
        ledger.count(name, READ)
        where = f"{brief(path)}:{number}"
        if fault is not None:
            faults.add(name, "bad line", f"{where}: {fault}")
            continue
        try:
            conversation = _conversation(line, where, f"{name}:{number}", path.parent)
        except ValueError as error:
            faults.add(name, "bad line", str(error))
            continue
        if conversation.id in seen:
            first = f"id {shown(conversation.id)} was used in line {seen[conversation.id]}"
            faults.add(name, "repeated id", f"{where}: {first}; ids must differ")
            continue
        seen[conversation.id] = number
        yield Example(conversation, {}, name, where, source.weight)


def _conversation(line: Any, where: str, default_id: str, folder: Path) -> Conversation:
    if not isinstance(line, dict):
        raise UserError(f"{where}: a line must be a JSON object with 'messages', got {type(line).__name__}")
    turns = line.get("messages")
    if isinstance(turns, list) and turns and isinstance(turns[0], list):
        raise UserError(
            f"{where}: messages are lists [role, modality, content] as in ESPnet; "
            "`bagpiper data import-dialogues` makes conversations of them"
        )
    conversation = from_json(line if line.get("id") is not None else {**line, "id": default_id}, where)
    messages = tuple(
        replace(message, content=Clip(path=str(folder / at_home(message.clip.path or ""))))
        if message.modality == "audio"
        else message
        for message in conversation.messages
    )
    return replace(conversation, messages=messages)


def _clip_paths(example: Example) -> dict[int, str]:
    """Message number -> path, of all audio messages (a manifest has no clips in memory)."""
    messages = enumerate(example.conversation.messages)
    return {index: message.clip.path or "" for index, message in messages if message.modality == "audio"}


def _content(example: Example) -> tuple[tuple[str, str], ...]:
    """Role and text, or role and hash of the clip, of every message."""
    return tuple(
        (message.role, message.text if message.modality == "text" else example.clips[index].sha256)
        for index, message in enumerate(example.conversation.messages)
    )


class _ClipCache:
    """What ``inspect_clip`` found, by path, size and times of change: a resumed run need not decode everything."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._known: dict[str, list[Any]] = {}
        if file is not None and file.exists():
            with suppress(OSError, ValueError, TypeError, RecursionError):  # damaged: only time is lost
                found = json.loads(file.read_text("utf-8"))
                self._known = {path: known for path, known in dict(found).items() if _is_known(known)}

    def find(self, path: str) -> ClipInfo | None:
        """The clip, if the file is still the one that was inspected, and all that is asked of it was looked at."""
        known = self._known.get(real_path(path))
        if known is None or known[:_STAMP] != _stamp(path):
            return None
        return ClipInfo(path, *known[_STAMP:])

    def add(self, clip: ClipInfo) -> None:
        """Remember a clip."""
        facts = [clip.num_samples, clip.sample_rate, clip.sha256, clip.channels, clip.first_is_silent]
        assert len(facts) == _FACTS
        self._known[real_path(clip.path)] = [*_stamp(clip.path), *facts]

    def save(self) -> None:
        """Write the file."""
        if self._file is not None and self._known:
            write_for_user(self._file, json.dumps(self._known).encode())


def _is_known(entry: Any) -> bool:
    """Whether an entry is one of this version; older ones know less of a clip."""
    kinds = (*(int,) * _STAMP, int, int, str, int, bool)
    return isinstance(entry, list) and list(map(type, entry)) == list(kinds)


def _stamp(path: str) -> list[int]:
    """Size and times of the last change, of the content and of the file: one is kept by ``cp -p`` and ``rsync -t``."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return [-1] * _STAMP
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _inspect(path: str, max_seconds: float | None, cache: _ClipCache) -> ClipInfo | BadAudio:
    """The clip at ``path``, or what is wrong with it."""
    known = cache.find(path)
    if known is not None and (max_seconds is None or known.seconds <= max_seconds):
        return known
    try:
        clip = inspect_clip(path, max_seconds)
    except BadAudio as error:
        return error
    cache.add(clip)
    return clip
