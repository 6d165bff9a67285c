"""From an example to its rows: how long it will be, and what stands in them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bagpiper.adaptors.configs import AdaptorConfig
from bagpiper.codecs.configs import CodecConfig
from bagpiper.data.audio import ClipInfo, read_clip
from bagpiper.data.codes import CodeCache
from bagpiper.data.examples import Example
from bagpiper.draws import uniform
from bagpiper.encoders.configs import EncoderConfig
from bagpiper.errors import UserError
from bagpiper.language.conversation import Template, TokenGrid, drop_condition
from bagpiper.recipe.settings import Channel, Resampler


class BadExample(UserError):  # noqa: N818
    """An example that cannot be trained on; the message names manifest, line, fault and way out.

    Attributes:
        reason: the fault in a few words, for counting.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Measured:
    """An example and its size.

    Attributes:
        example: the example.
        rows: length of its token grid.
        frames: message number -> codec frames, for audio of the assistant.
        states: message number -> embeddings after the adaptor, for other audio.
    """

    example: Example
    rows: int
    frames: dict[int, int]
    states: dict[int, int]


@dataclass(frozen=True)
class LaidOut:
    """A token grid with the audio for its slots.

    Attributes:
        grid: ids, weights, slots.
        waves: float32 ``[N_i]`` at the encoder's rate, one per slot.
        seconds: of audio in and out.
    """

    grid: TokenGrid
    waves: list[NDArray[np.float32]]
    seconds: float


_REFILL = "remove the cache folder and start again, with --resume if there is a checkpoint"


class Layout:
    """Lays examples out, by the promises of the parts' configs and the code cache; it never runs a part.

    Texts are tokenised once, when they are measured: data threads then never share the tokenizer with the training
    thread (fast tokenizers are not safe for that), at 4 bytes a token.
    """

    def __init__(
        self,
        template: Template,
        encoder: EncoderConfig,
        adaptor: AdaptorConfig,
        codec: CodecConfig,
        cache: CodeCache,
        max_positions: int | None = None,
    ) -> None:
        """Prepare to lay out.

        Args:
            template: of the model.
            encoder, adaptor, codec: promises.
            cache: holds the codes of spoken clips; heard clips are read as these were.
            max_positions: of the LLM; None where there is no limit.
        """
        self.encoder, self.adaptor, self.codec = encoder, adaptor, codec
        self.resampler: Resampler = cache.resampler
        self.channel: Channel = cache.channel
        self.audio_start = template.vocabulary.audio_start
        self._cache = cache
        self._max_positions = max_positions
        self._encode = template.encode_text
        self._tokens: dict[str, array[int]] = {}
        self._template = replace(template, encode_text=self._tokens.__getitem__)

    @property
    def reading(self) -> str:
        """How clips are read, for fingerprints; those of older runs do not name the channel, which was the first."""
        return self.resampler if self.channel == "first" else f"{self.resampler} {self.channel}"

    def measure(self, example: Example, max_rows: int) -> Measured:
        """Rows of an example, from headers and text alone.

        Args:
            example: the example.
            max_rows: longest grid allowed.

        Raises:
            BadExample: a clip is too short for one frame, the grid is too long, nothing in it is trained on.
        """
        messages = example.conversation.messages
        if not any(self._template.trains(message) for message in messages):
            raise BadExample(
                "nothing to train on",
                f"{example.where}: no message is trained on; add an assistant message, or set data.loss_region=all",
            )
        lengths: dict[int, int] = {}
        frames: dict[int, int] = {}
        states: dict[int, int] = {}
        for index, message in enumerate(messages):
            if message.modality == "text":
                lengths[index] = len(self._tokenise(message.text))
            elif message.is_spoken:
                frames[index] = self._promise(example, index, "codec", self.codec.sample_rate)
            else:
                states[index] = self._promise(example, index, "encoder", self.encoder.sample_rate)
        rows = self._template.length(example.conversation, text_lengths=lengths, frames=frames, states=states)
        if self._max_positions is not None and rows > self._max_positions:
            raise BadExample(
                "more rows than positions",
                f"{example.where}: {rows} rows, but the LLM has {self._max_positions} positions; shorten it, or take "
                "an LLM with more (llm.config.max_position_embeddings of one made from nothing)",
            )
        if rows > max_rows:
            text = sum(lengths.values())
            raise BadExample(
                "too many rows",
                f"{example.where}: {rows} rows ({text} of text, {rows - text} of audio and control tokens), but an "
                f"example may have {max_rows}; shorten it, or raise data.max_rows",
            )
        return Measured(example, rows, frames, states)

    def spoken(self, example: Example) -> list[int]:
        """Numbers of the messages that condition dropout may keep: trained audio of the assistant."""
        return [
            index
            for index, message in enumerate(example.conversation.messages)
            if message.is_spoken and self._template.trains(message)
        ]

    def lay_out(self, measured: Measured, keep: int | None = None) -> LaidOut:
        """The grid of an example and the audio for its slots.

        Args:
            measured: the example.
            keep: message that stays when all else is dropped (``drop_condition``); None keeps everything.

        Raises:
            UserError: a clip can no longer be read or has changed, codes are missing or do not fit.
        """
        example = measured.example
        codes = {index: self._codes(measured, index) for index in measured.frames}
        grid = self._template.grid(example.conversation, codes=codes, states=measured.states)
        assert len(grid) == measured.rows, f"{example.where}: {len(grid)} rows, measured {measured.rows}"
        heard = [example.clips[keep]] if keep is not None else list(example.clips.values())
        if keep is not None:
            grid = drop_condition(grid, keep)
        waves = [self._wave(example.clips[slot.message]) for slot in grid.slots]
        return LaidOut(grid, waves, sum(clip.seconds for clip in heard))

    def _tokenise(self, text: str) -> Sequence[int]:
        if text not in self._tokens:
            self._tokens[text] = array("i", self._encode(text))
        return self._tokens[text]

    def _promise(self, example: Example, index: int, part: str, sample_rate: int) -> int:
        clip = example.clips[index]
        samples = clip.samples_at(sample_rate)
        if part == "codec":
            count = self.codec.num_frames(samples)
        else:
            states = self.encoder.num_frames(samples)
            count = self.adaptor.num_frames(states) if states else 0
            if self.encoder.max_frames is not None and states > self.encoder.max_frames:
                raise BadExample(
                    "clip too long",
                    f"{example.where}: {clip.path} is {clip.seconds:.1f} s long and gives {states} states, but the "
                    f"encoder's positions reach {self.encoder.max_frames}; take its line out, or cut the clip",
                )
        if count < 1:
            raise BadExample(
                "clip too short",
                f"{example.where}: {clip.path} is {clip.seconds:.4f} s long ({clip.num_samples} samples), too short "
                f"for one frame of the {part}; take its line out or use a longer clip",
            )
        return count

    def _codes(self, measured: Measured, index: int) -> NDArray[np.int64]:
        clip = measured.example.clips[index]
        codes = self._cache.get(clip.sha256)
        expected = (measured.frames[index], self.codec.num_codebooks)
        if codes.shape != expected:
            raise UserError(
                f"{measured.example.where}: cached codes of {clip.path} have shape {codes.shape}, the codec promises "
                f"{expected}; {_REFILL}"
            )
        if codes.min(initial=0) < 0 or codes.max(initial=0) >= self.codec.codebook_size:
            raise UserError(
                f"{measured.example.where}: cached codes of {clip.path} are not all from 0 to "
                f"{self.codec.codebook_size - 1}, as the codec's are; {_REFILL}"
            )
        return codes

    def _wave(self, clip: ClipInfo) -> NDArray[np.float32]:
        wave = read_clip(clip.path, self.encoder.sample_rate, resampler=self.resampler, channel=self.channel)
        expected = clip.samples_at(self.encoder.sample_rate)
        if len(wave) != expected:
            raise UserError(
                f"{clip.path}: the file has changed since the run began ({len(wave)} samples, then {expected}); "
                "restore it, or start a new run"
            )
        return wave


def condition_to_keep(layout: Layout, example: Example, probability: float, seed: int, epoch: int) -> int | None:
    """The draw of classifier-free-guidance dropout, keyed by (seed, epoch, example).

    Args:
        layout: knows which messages may be kept.
        example: the example.
        probability: that everything but one spoken message is dropped.
        seed: of the run.
        epoch: from 0.

    Returns:
        Number of the message that stays, or None: nothing is dropped (always so if nothing is spoken).
    """
    spoken = layout.spoken(example)
    name = (seed, "cfg", epoch, example.source, example.conversation.id)
    if not spoken or uniform(*name) >= probability:
        return None
    return spoken[int(uniform(*name, "keep") * len(spoken))]


def count_rows(measured: Iterable[Measured]) -> list[int]:
    """Rows of each example."""
    return [item.rows for item in measured]
