"""Conversations and the template that turns one into a token grid.

This is the only place that knows the template and the loss mask (spec sections 2.1, 2.2 and 4.5):

    <|bos|>  then for each message:  <|role|> <|modality|> content... END
    END = <|eot|> if the next message has the same role, otherwise <|eos|>
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bagpiper.errors import UserError, shown
from bagpiper.language.patterns import Pattern, apply
from bagpiper.language.vocabulary import BOS, EOS, EOT, MODALITY_IDS, PAD, ROLE_IDS, IntArray, Vocabulary

Role = Literal["system", "user", "assistant"]
Modality = Literal["text", "audio"]
ROLES = ("system", "user", "assistant")
MODALITIES = ("text", "audio")

_ADDRESS = re.compile(r"\s*(data:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_LONGEST_PATH = 4096
"""Characters of a path on Linux, more than elsewhere; what is longer is audio as text."""


@dataclass(frozen=True)
class Clip:
    """A piece of audio: a file, or samples in memory.

    Attributes:
        path: the file, absolute or relative to the working folder; None for samples.
        samples: float32 ``[N]``, or ``[N, C]`` of several channels.
        sample_rate: of ``samples``, in Hz.
    """

    path: str | None = None
    samples: NDArray[np.float32] | None = field(default=None, compare=False)
    sample_rate: int | None = None


@dataclass(frozen=True)
class Message:
    """One turn or part of a turn: a role speaking in one modality.

    Attributes:
        role: system, user or assistant.
        modality: text or audio.
        content: a string, or a clip.
        loss: whether the message is trained on; None leaves it to the recipe's loss region.
    """

    role: Role
    modality: Modality
    content: str | Clip
    loss: bool | None = None

    @property
    def text(self) -> str:
        """The content of a text message."""
        assert isinstance(self.content, str)
        return self.content

    @property
    def clip(self) -> Clip:
        """The content of an audio message."""
        assert isinstance(self.content, Clip)
        return self.content

    @property
    def is_spoken(self) -> bool:
        """Audio that the model makes (codes) rather than hears (encoder states)."""
        return self.modality == "audio" and self.role == "assistant"


@dataclass(frozen=True)
class Conversation:
    """A list of messages: the only form of a training example inside the house.

    Attributes:
        id: name of the example, unique in its file.
        messages: the messages in order.
        meta: anything else the line carried (facts, source, licence...), untouched.
    """

    id: str
    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def prompt(self) -> Conversation:
        """The messages before the first assistant message."""
        for index, message in enumerate(self.messages):
            if message.role == "assistant":
                return replace(self, messages=self.messages[:index])
        return self


def from_json(line: Mapping[str, Any], where: str = "conversation") -> Conversation:
    """Read one JSON object in the chat format of Hugging Face and OpenAI clients.

    ``{"id": ..., "messages": [{"role": "user", "content": "text" | [part, ...], "loss": true}]}`` with parts
    ``{"type": "text", "text": ...}`` and ``{"type": "audio", "audio": "file.wav"}``; every part becomes a message.

    Args:
        line: the object.
        where: file and line, for messages.

    Raises:
        ValueError: the object is not a conversation; the message says what and where.
    """
    if "messages" not in line:
        hint = ""
        if "audio" in line:
            hint = "; this looks like a pair (audio, caption): `bagpiper data import-pairs` makes conversations of it"
        raise ValueError(f"{where}: no 'messages' in this line{hint}")
    if not isinstance(line["messages"], list) or not line["messages"]:
        raise ValueError(f"{where}: 'messages' must be a list with at least one message")
    messages: list[Message] = []
    for number, turn in enumerate(line["messages"], start=1):
        messages.extend(_parse_turn(turn, f"{where}, message {number}"))
    meta = {key: value for key, value in line.items() if key not in ("id", "messages")}
    return Conversation(id=str(line.get("id", where)), messages=tuple(messages), meta=meta)


def _parse_turn(turn: Any, where: str) -> list[Message]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where}: must be an object with 'role' and 'content', got {type(turn).__name__}")
    role = turn.get("role")
    if role not in ROLES:
        raise ValueError(f"{where}: role {shown(role)}; allowed: {', '.join(ROLES)}")
    loss = turn.get("loss")
    if loss is not None and not isinstance(loss, bool):
        raise ValueError(f"{where}: 'loss' must be true or false, got {shown(loss)}")
    content = turn.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts:
        raise ValueError(f"{where}: 'content' must be a string or a list of parts")
    return [Message(role, *_parse_part(part, where), loss=loss) for part in parts]


def _parse_part(part: Any, where: str) -> tuple[Modality, str | Clip]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return "text", part["text"]
    if kind == "audio" and "audio" in part:
        refuse_inline_audio(part["audio"], where)
        if isinstance(part["audio"], str):
            return "audio", Clip(path=part["audio"])
    elif kind in ("audio", "input_audio", "audio_url") and len(part) > 1:
        raise _inline_audio(part, where)
    example = '{"type": "text", "text": ...} or {"type": "audio", "audio": path}'
    raise ValueError(f"{where}: a part must be {example}, got {shown(part)}")


def refuse_inline_audio(value: Any, where: str) -> None:
    """Refuse what stands in the place of a path but is the audio itself, or its address.

    Args:
        value: text (base64, ``data:...``, ``https://...``), or samples or bytes in an object or a list.
        where: file and line, for messages.

    Raises:
        UserError: it is.
    """
    is_text = isinstance(value, str) and (len(value) > _LONGEST_PATH or _ADDRESS.match(value))
    if is_text or isinstance(value, Mapping | list):
        raise _inline_audio(value, where)


def _inline_audio(value: Any, where: str) -> UserError:
    return UserError(
        f"{where}: audio inside a line, or at an address, cannot be read yet, only files (found {shown(value)}); "
        "write it to a file and give its path under 'audio'"
    )


def to_json(conversation: Conversation) -> dict[str, Any]:
    """The JSON object that ``from_json`` reads; clips must have a path."""
    turns = []
    for message in conversation.messages:
        part = (
            {"type": "text", "text": message.text}
            if message.modality == "text"
            else {"type": "audio", "audio": message.clip.path}
        )
        turn: dict[str, Any] = {"role": message.role, "content": [part]}
        if message.loss is not None:
            turn["loss"] = message.loss
        turns.append(turn)
    return {"id": conversation.id, "messages": turns, **conversation.meta}


@dataclass(frozen=True)
class AudioSlot:
    """Rows of a grid that encoder output fills: ``[start, start + length)``, for message number ``message``."""

    start: int
    length: int
    message: int


@dataclass(frozen=True)
class TokenGrid:
    """A conversation as numbers.

    Attributes:
        ids: joint ids ``[T, S]``.
        weights: loss weights ``[T, S]``; the row's own weight as a *target* (row t is predicted from row t - 1).
        slots: rows that encoder output replaces.
        message_rows: rows ``[start, stop)`` of every message, its role, modality and END included.
    """

    ids: IntArray
    weights: NDArray[np.float32]
    slots: tuple[AudioSlot, ...] = ()
    message_rows: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_targets(self) -> int:
        """Target frames: rows after the first whose stream 0 carries loss (spec section 5)."""
        return int(np.count_nonzero(self.weights[1:, 0]))


@dataclass(frozen=True)
class Template:
    """Everything that turning a conversation into a grid depends on.

    Attributes:
        vocabulary: the ids.
        pattern: the codebook pattern.
        encode_text: text -> tokenizer ids, with no added specials, no truncation, control tokens taken as text.
        stream_weights: loss weight of each codebook, ``[K]``; the official 1/K each.
        loss_region: ``assistant`` trains on assistant messages, ``all`` on every text.
    """

    vocabulary: Vocabulary
    pattern: Pattern
    encode_text: Callable[[str], Sequence[int]]
    stream_weights: tuple[float, ...]
    loss_region: Literal["assistant", "all"] = "assistant"

    @property
    def num_streams(self) -> int:
        """S, columns of the grid."""
        return self.pattern.streams(self.vocabulary.num_codebooks)

    def length(
        self,
        conversation: Conversation,
        *,
        text_lengths: Mapping[int, int],
        frames: Mapping[int, int],
        states: Mapping[int, int],
    ) -> int:
        """Rows of the grid, from lengths alone: 1 + sum over messages of (3 + content)."""
        total = 1
        for index, message in enumerate(conversation.messages):
            if message.modality == "text":
                content = text_lengths[index]
            elif message.is_spoken:
                content = self.pattern.rows(frames[index], self.vocabulary.num_codebooks)
            else:
                content = states[index]
            total += 3 + content
        return total

    def grid(
        self,
        conversation: Conversation,
        *,
        codes: Mapping[int, IntArray] | None = None,
        states: Mapping[int, int] | None = None,
        next_role: Role | None = None,
    ) -> TokenGrid:
        """Lay a conversation out.

        Args:
            conversation: the messages.
            codes: message number -> codes ``[T, K]``, for every audio message of the assistant.
            states: message number -> number of encoder states, for every other audio message.
            next_role: role of the message that will follow (decides the last END); None ends with ``<|eos|>``.

        Raises:
            ValueError: codes or states of an audio message are missing.
        """
        ids = [self._control_rows([BOS])]
        weights = [np.zeros((1, self.num_streams), dtype=np.float32)]
        slots: list[AudioSlot] = []
        message_rows: list[tuple[int, int]] = []
        position = 1
        for index, message in enumerate(conversation.messages):
            following = conversation.messages[index + 1].role if index + 1 < len(conversation.messages) else next_role
            trained = self.trains(message)
            content, content_weights = self._content(conversation, index, codes or {}, states or {})
            head = self._control_rows([ROLE_IDS[message.role], MODALITY_IDS[message.modality]])
            end = self._control_rows([EOT if following == message.role else EOS])
            if message.modality == "audio" and not message.is_spoken:
                slots.append(AudioSlot(position + 2, len(content), index))
            block = np.concatenate([head, content, end])
            block_weights = np.concatenate([self._control_weights(2), content_weights, self._control_weights(1)])
            ids.append(block)
            weights.append(block_weights if trained else np.zeros_like(block_weights))
            message_rows.append((position, position + len(block)))
            position += len(block)
        return TokenGrid(np.concatenate(ids), np.concatenate(weights), tuple(slots), tuple(message_rows))

    def trains(self, message: Message) -> bool:
        """Whether a message is a target: its own ``loss``, else the loss region."""
        if message.loss is not None:
            return message.loss
        return self.loss_region == "all" or message.role == "assistant"

    def _control_rows(self, tokens: Sequence[int]) -> IntArray:
        rows = np.full((len(tokens), self.num_streams), PAD, dtype=np.int64)
        rows[:, 0] = tokens
        return rows

    def _control_weights(self, rows: int) -> NDArray[np.float32]:
        weights = np.zeros((rows, self.num_streams), dtype=np.float32)
        weights[:, 0] = 1.0
        return weights

    def _content(
        self, conversation: Conversation, index: int, codes: Mapping[int, IntArray], states: Mapping[int, int]
    ) -> tuple[IntArray, NDArray[np.float32]]:
        message = conversation.messages[index]
        if message.modality == "text":
            tokens = self.vocabulary.text_to_ids(np.asarray(self.encode_text(message.text), dtype=np.int64))
            rows = self._control_rows(list(tokens))
            return rows, self._control_weights(len(rows))
        known: Mapping[int, Any] = codes if message.is_spoken else states
        if index not in known:
            what = "codes" if message.is_spoken else "encoder states"
            raise ValueError(f"{conversation.id}: {what} of message {index + 1} (audio, {message.role}) are missing")
        if not message.is_spoken:
            rows = np.full((states[index], self.num_streams), PAD, dtype=np.int64)
            return rows, np.zeros(rows.shape, dtype=np.float32)
        rows = apply(self.pattern, codes[index], self.vocabulary)
        # every cell counts, pads of the pattern too; with `flatten` the codebook changes from row to row
        table = self.vocabulary.token_weights(self.stream_weights)
        return rows, table[rows]


def drop_condition(grid: TokenGrid, keep: int) -> TokenGrid:
    """Classifier-free-guidance dropout (spec section 4.5): keep one message, turn every other row into padding.

    The length stays. Encoder states and the codes of other audio messages go too (the official code writes the
    latter back into its input).

    Args:
        grid: the grid.
        keep: number of the message that stays, an audio message of the assistant.
    """
    start, stop = grid.message_rows[keep]
    ids = np.full_like(grid.ids, PAD)
    weights = np.zeros_like(grid.weights)
    ids[start:stop], weights[start:stop] = grid.ids[start:stop], grid.weights[start:stop]
    return TokenGrid(ids, weights, (), grid.message_rows)
