"""Decoding (spec section 4.6): conversations in, answers out, batched and ragged.

An answer is a list of segments, each in one modality. ``decoder`` draws their rows under the rules of ``masks``, and
here they become text and sound again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from bagpiper.errors import UserError
from bagpiper.inference.decoder import Decoder, Drawn, Step, Stop
from bagpiper.inference.masks import END_IDS
from bagpiper.inference.prompts import with_system_prompt
from bagpiper.language.conversation import Clip, Conversation, Message, Modality
from bagpiper.language.patterns import revert
from bagpiper.language.vocabulary import MODALITY_IDS, IntArray
from bagpiper.recipe.settings import GenerationSettings

if TYPE_CHECKING:
    from bagpiper.model import Bagpiper


@dataclass(frozen=True)
class Segment:
    """One stretch of an answer in one modality.

    Attributes:
        modality: text or audio.
        rows: joint ids ``[n, S]`` as drawn, the END row included if there is one.
        stop: why it ended.
        text: of a text segment.
        codes: of an audio segment, ``[T, K]``.
        samples: of an audio segment, float32 ``[N]`` at the codec's sample rate.
    """

    modality: Modality
    rows: IntArray
    stop: Stop
    text: str | None = None
    codes: IntArray | None = None
    samples: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Answer:
    """What the model said to a conversation.

    Attributes:
        conversation: the request with the new messages of the assistant.
        segments: the same messages in detail.
    """

    conversation: Conversation
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """Its text segments, joined."""
        return "\n".join(segment.text for segment in self.segments if segment.text is not None)

    @property
    def samples(self) -> NDArray[np.float32]:
        """Its audio segments, one after another, float32 ``[N]`` at the codec's sample rate."""
        parts = [segment.samples for segment in self.segments if segment.samples is not None]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    @property
    def cut(self) -> tuple[Modality, ...]:
        """Modalities of segments that the model would have gone on with, at ``max_rows`` or its last position."""
        return tuple(segment.modality for segment in self.segments if segment.stop in ("max_rows", "positions"))


def generate(
    model: Bagpiper,
    conversations: Sequence[Conversation],
    settings: GenerationSettings,
    *,
    seeds: Sequence[int],
    plan: Sequence[Modality] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> list[Answer]:
    """Answer conversations.

    Args:
        model: the model; its modes, gradients and the global random state are left as they are.
        conversations: requests; every message in them is part of the prompt.
        settings: how to decode.
        seeds: one per conversation; the same seed gives the same answer in any batch (ties within rounding aside).
        plan: modalities of the first segments; without one, and after it where ``max_segments`` allows more, the
            model chooses.
        on_step: called after every row.

    Returns:
        One answer per conversation.

    Raises:
        UserError: settings that cannot work, or a clip that cannot be read.
    """
    _check(settings, conversations, seeds, plan)
    asks_for_sound = plan is not None and list(plan)[-1:] == ["audio"]
    prompt = (settings.render_prompt if asks_for_sound else None) or settings.system_prompt
    answers: list[Answer] = []
    with undisturbed(model):
        for start in range(0, len(conversations), settings.batch_size):
            chosen = slice(start, start + settings.batch_size)
            batch = [with_system_prompt(conversation, prompt) for conversation in conversations[chosen]]
            decoder = Decoder(model, settings, seeds[chosen], plan or (), on_step, start)
            segments = _finish(model, decoder.run(batch))
            for conversation, parts in zip(batch, segments, strict=True):
                messages = tuple(_message(model, segment) for segment in parts)
                full = replace(conversation, messages=conversation.messages + messages)
                answers.append(Answer(full, tuple(parts)))
    return answers


def rows_for(model: Bagpiper, seconds: float) -> int:
    """Rows of an audio segment that lasts ``seconds``.

    Raises:
        UserError: that is less than one frame.
    """
    codec = model.settings.codec
    frames = codec.num_frames(int(seconds * codec.sample_rate))
    if frames < 1:
        raise UserError(f"{seconds:g} s is shorter than one frame ({codec.hop / codec.sample_rate:g} s); allow more")
    return int(model.template.pattern.rows(frames, codec.num_codebooks))


def _check(
    settings: GenerationSettings,
    conversations: Sequence[Conversation],
    seeds: Sequence[int],
    plan: Sequence[Modality] | None,
) -> None:
    if len(seeds) != len(conversations):
        raise UserError(f"{len(conversations)} conversations need as many seeds, got {len(seeds)}")
    if any(seed < 0 for seed in seeds):
        raise UserError(f"seeds must not be negative, got {min(seeds)}")
    if any(modality not in MODALITY_IDS for modality in plan or ()):
        raise UserError(f"the plan {list(plan or ())} may hold {', '.join(MODALITY_IDS)} only")
    least = {"batch_size": settings.batch_size}
    if settings.max_segments is not None:
        least["max_segments"] = settings.max_segments
    for name, part in (("text", settings.text), ("audio", settings.audio)):
        least[f"{name}.max_rows"] = part.max_rows
        if part.temperature < 0 or part.top_k < 0:
            raise UserError(f"generation.{name}: temperature and top_k must not be negative")
        if part.cfg < 1:
            raise UserError(f"generation.{name}.cfg must be at least 1 (1 is off), got {part.cfg}")
    for name, value in least.items():
        if value < 1:
            raise UserError(f"generation.{name} must be at least 1, got {value}")


@contextmanager
def undisturbed(model: Bagpiper) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # not inference_mode: what modules keep from here (rotary tables, say) could not be used in training
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


# -- rows back to text and sound ---------------------------------------------------------------------------------------


def _finish(model: Bagpiper, drawn: list[list[Drawn]]) -> list[list[Segment]]:
    """Undo tokenizer, pattern and codec; all audio of a batch is decoded together."""
    num_codebooks = model.vocabulary.num_codebooks
    segments: list[list[Segment]] = []
    spoken: list[tuple[int, int]] = []
    for number, parts in enumerate(drawn):
        segments.append([])
        for part in parts:
            content = part.rows[:-1] if part.rows[-1, 0] in END_IDS else part.rows
            segment = Segment(part.modality, part.rows, part.stop)
            if part.modality == "text":
                tokens = model.vocabulary.ids_to_text(content[:, 0])
                segment = replace(segment, text=model.tokenizer.decode(tokens.tolist()))
            else:
                codes = revert(model.template.pattern, content, model.vocabulary)
                silence = np.zeros(0, dtype=np.float32)
                segment = replace(segment, codes=codes.reshape(-1, num_codebooks), samples=silence)
                if len(codes):
                    spoken.append((number, len(segments[number])))
            segments[number].append(segment)
    if spoken:
        device = next(model.llm.parameters()).device
        clips = [torch.from_numpy(np.ascontiguousarray(segments[n][i].codes)).to(device) for n, i in spoken]
        for (n, i), wave in zip(spoken, model.codec.decode(clips), strict=True):
            segments[n][i] = replace(segments[n][i], samples=wave.float().cpu().numpy())
    return segments


def _message(model: Bagpiper, segment: Segment) -> Message:
    if segment.modality == "text":
        assert segment.text is not None
        return Message("assistant", "text", segment.text)
    return Message("assistant", "audio", Clip(samples=segment.samples, sample_rate=model.settings.codec.sample_rate))
