"""Requests in, answers out: who asks need not know what answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bagpiper.data.audio import resampled_length
from bagpiper.inference.generate import Answer, generate, rows_for
from bagpiper.language.conversation import Clip, Conversation, Modality
from bagpiper.recipe.settings import GenerationSettings

if TYPE_CHECKING:
    from bagpiper.model import Bagpiper


@dataclass(frozen=True)
class Request:
    """Something to be answered.

    Attributes:
        conversation: every message in it is part of the prompt.
        seed: the same seed gives the same answer, whatever is asked beside it (ties within rounding aside).
        plan: modalities of the answer's first segments; empty leaves them to the model.
    """

    conversation: Conversation
    seed: int
    plan: tuple[Modality, ...] = ()


class Answerer(Protocol):
    """A model that answers: one that is loaded (``LoadedModel``), or another behind the same methods.

    Attributes:
        generation: how it samples unless it is told otherwise.
    """

    generation: GenerationSettings

    @property
    def sample_rate(self) -> int:
        """Of the sounds in its answers, in Hz."""

    def can_hear(self, clip: Clip) -> bool:
        """Whether a clip is long enough to be heard."""

    def rows_of_text(self, text: str) -> int:
        """Rows that a text takes, for limits."""

    def rows_of_audio(self, seconds: float) -> int:
        """Rows that a sound of this length takes, for limits."""

    def answer(self, requests: Sequence[Request], generation: GenerationSettings | None = None) -> list[Answer]:
        """Answer requests.

        Args:
            requests: what is asked.
            generation: how to sample; None takes its own.

        Returns:
            One answer each, in order.

        Raises:
            UserError: settings that cannot work, or a clip that cannot be read.
        """


class LoadedModel:
    """A model in this process; see ``Answerer``."""

    def __init__(self, model: Bagpiper, generation: GenerationSettings) -> None:
        """Args: model: left as it is, modes and random state too; generation: how it samples."""
        self.model = model
        self.generation = generation

    @property
    def sample_rate(self) -> int:
        """See ``Answerer``."""
        return int(self.model.settings.codec.sample_rate)

    def can_hear(self, clip: Clip) -> bool:
        """See ``Answerer``; a file is read when it is heard."""
        if clip.samples is None:
            return True
        assert clip.sample_rate is not None, "samples come with their rate"
        encoder = self.model.settings.encoder
        return encoder.num_frames(resampled_length(len(clip.samples), clip.sample_rate, encoder.sample_rate)) > 0

    def rows_of_text(self, text: str) -> int:
        """See ``Answerer``."""
        return len(self.model.tokenizer.encode(text))

    def rows_of_audio(self, seconds: float) -> int:
        """See ``Answerer``.

        Raises:
            UserError: that is less than one frame.
        """
        return rows_for(self.model, seconds)

    def answer(self, requests: Sequence[Request], generation: GenerationSettings | None = None) -> list[Answer]:
        """See ``Answerer``; requests of one plan are decoded together."""
        answers: dict[int, Answer] = {}
        for plan in dict.fromkeys(request.plan for request in requests):
            numbers = [number for number, request in enumerate(requests) if request.plan == plan]
            given = generate(
                self.model,
                [requests[number].conversation for number in numbers],
                generation or self.generation,
                seeds=[requests[number].seed for number in numbers],
                plan=plan or None,
            )
            answers.update(zip(numbers, given, strict=True))
        return [answers[number] for number in range(len(requests))]
