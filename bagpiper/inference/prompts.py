"""Conversations as the LLM's input: clips read and heard, rows embedded, ``<|assistant|>`` at the end."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from bagpiper.data.audio import BadAudio, decode_clip, resample
from bagpiper.data.sound import Sound, sound_of
from bagpiper.errors import Notice, UserError, brief
from bagpiper.language.conversation import Clip, Conversation, Message
from bagpiper.language.vocabulary import ASSISTANT, PAD, IntArray

if TYPE_CHECKING:
    from bagpiper.codecs.configs import CodecConfig
    from bagpiper.encoders.configs import EncoderConfig
    from bagpiper.model import Bagpiper
    from bagpiper.recipe.settings import Channel, GenerationSettings


def with_system_prompt(conversation: Conversation, system_prompt: str | None) -> Conversation:
    """Put the system prompt first, unless there is none or the conversation brings its own."""
    if not system_prompt or any(message.role == "system" for message in conversation.messages):
        return conversation
    return replace(conversation, messages=(Message("system", "text", system_prompt), *conversation.messages))


def embed_prompts(
    model: Bagpiper, conversations: Sequence[Conversation], settings: GenerationSettings, device: torch.device
) -> list[torch.Tensor]:
    """Embed conversations, with the row of ``<|assistant|>`` that asks for an answer.

    Clips that occur in several places are heard once for each.

    Args:
        model: in eval mode.
        conversations: at least one; audio of the assistant becomes codes, other audio is heard.
        settings: longest clip allowed, how clips are resampled, and which of their channels is used.
        device: of the model.

    Returns:
        ``[P, H]`` each.

    Raises:
        UserError: a clip cannot be read, is too long, or too short to be heard.

    Warns:
        UserWarning: the first channel of a clip is used, which is silent while another is not.
    """
    heard_at: list[tuple[int, int]] = []
    spoken_at: list[tuple[int, int]] = []
    for number, conversation in enumerate(conversations):
        for index, message in enumerate(conversation.messages):
            if message.modality == "audio":
                (spoken_at if message.is_spoken else heard_at).append((number, index))

    silent: dict[str, None] = {}

    def waves(places: list[tuple[int, int]], promises: EncoderConfig | CodecConfig) -> list[torch.Tensor]:
        return [_wave(conversations[n].messages[i].clip, promises, settings, device, silent) for n, i in places]

    heard = model.hear(waves(heard_at, model.settings.encoder))
    codes = model.codec.encode(waves(spoken_at, model.settings.codec)) if spoken_at else []
    if silent:
        warnings.warn(
            f"{', '.join(silent)}: the first channel is silent while another is not, and the first is used; "
            "channel=loudest takes the other (--channel loudest, or generation.channel in a recipe)",
            Notice,
            stacklevel=2,
        )
    prompts = []
    for number, conversation in enumerate(conversations):
        states = {i: states for (n, i), states in zip(heard_at, heard, strict=True) if n == number}
        spoken = {i: clip.cpu().numpy() for (n, i), clip in zip(spoken_at, codes, strict=True) if n == number}
        prompts.append(_embed(model, conversation, states, spoken, device))
    return prompts


def _embed(
    model: Bagpiper,
    conversation: Conversation,
    heard: dict[int, torch.Tensor],
    codes: dict[int, IntArray],
    device: torch.device,
) -> torch.Tensor:
    grid = model.template.grid(
        conversation,
        codes=codes,
        states={index: len(states) for index, states in heard.items()},
        next_role="assistant",
    )
    request = np.full((1, model.template.num_streams), PAD, dtype=np.int64)
    request[0, 0] = ASSISTANT
    embeds = model.embed_rows(torch.from_numpy(np.concatenate([grid.ids, request])).to(device))
    for slot in grid.slots:
        embeds[slot.start : slot.start + slot.length] = heard[slot.message].to(embeds.dtype)
    return embeds


def _wave(
    clip: Clip,
    promises: EncoderConfig | CodecConfig,
    settings: GenerationSettings,
    device: torch.device,
    silent: dict[str, None],
) -> torch.Tensor:
    """Samples of a clip as a part wants them, float32 ``[N]``; ``silent`` gets its name if they are by mistake."""
    name = brief(clip.path or "a clip in memory")
    channel = settings.channel or "first"
    sound = _decode(clip, name, settings.max_seconds, channel)
    samples = resample(sound.wave, sound.sample_rate, promises.sample_rate, settings.resampler or "soxr")
    if promises.num_frames(len(samples)) < 1:
        raise UserError(f"{name}: {len(samples)} samples at {promises.sample_rate} Hz are too short for one frame")
    if sound.first_is_silent and channel == "first":
        silent[name] = None
    return torch.from_numpy(np.ascontiguousarray(samples)).to(device)


def _decode(clip: Clip, name: str, max_seconds: float, channel: Channel) -> Sound:
    """One channel of a clip, at its own rate."""
    too_long = UserError(f"{name}: longer than {max_seconds:g} s; cut it, or raise generation.max_seconds")
    if clip.path is not None:
        try:
            return decode_clip(clip.path, max_seconds, channel)
        except BadAudio as error:
            if error.reason == "too long":
                raise too_long from None
            raise
    sound = sound_of(clip.samples, clip.sample_rate, channel, name)
    if len(sound.wave) > max_seconds * sound.sample_rate:
        raise too_long
    return sound
