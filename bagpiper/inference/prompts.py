"""Conversations as the LLM's input: clips read and heard, rows embedded, ``<|assistant|>`` at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from bagpiper.data.audio import BadAudio, read_clip, resample
from bagpiper.errors import UserError
from bagpiper.language.conversation import Clip, Conversation, Message
from bagpiper.language.vocabulary import ASSISTANT, PAD, IntArray

if TYPE_CHECKING:
    from bagpiper.codecs.configs import CodecConfig
    from bagpiper.encoders.configs import EncoderConfig
    from bagpiper.model import Bagpiper
    from bagpiper.recipe.settings import GenerationSettings


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
        settings: longest clip allowed, and how clips are resampled.
        device: of the model.

    Returns:
        ``[P, H]`` each.

    Raises:
        UserError: a clip cannot be read, is too long, or too short to be heard.
    """
    heard_at: list[tuple[int, int]] = []
    spoken_at: list[tuple[int, int]] = []
    for number, conversation in enumerate(conversations):
        for index, message in enumerate(conversation.messages):
            if message.modality == "audio":
                (spoken_at if message.is_spoken else heard_at).append((number, index))

    def waves(places: list[tuple[int, int]], promises: EncoderConfig | CodecConfig) -> list[torch.Tensor]:
        return [_wave(conversations[n].messages[i].clip, promises, settings, device) for n, i in places]

    heard = model.hear(waves(heard_at, model.settings.encoder))
    codes = model.codec.encode(waves(spoken_at, model.settings.codec)) if spoken_at else []
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
    clip: Clip, promises: EncoderConfig | CodecConfig, settings: GenerationSettings, device: torch.device
) -> torch.Tensor:
    """Samples of a clip as a part wants them, float32 ``[N]``."""
    max_seconds, resampler = settings.max_seconds, settings.resampler or "soxr"
    name = clip.path or "a clip in memory"
    too_long = UserError(f"{name}: longer than {max_seconds:g} s; cut it, or raise generation.max_seconds")
    if clip.path is not None:
        try:
            samples = read_clip(clip.path, promises.sample_rate, max_seconds, resampler)
        except BadAudio as error:
            if error.reason == "too long":
                raise UserError(
                    f"{name}: longer than {max_seconds:g} s; cut it, or raise generation.max_seconds"
                ) from None
            raise
    else:
        assert clip.samples is not None, "a clip has a path or samples"
        assert clip.sample_rate is not None, "samples come with their rate"
        if clip.samples.ndim != 1 or not np.isfinite(clip.samples).all():
            raise UserError(f"{name}: samples must be a vector of finite numbers, got shape {clip.samples.shape}")
        if len(clip.samples) > max_seconds * clip.sample_rate:
            raise too_long
        samples = resample(clip.samples.astype(np.float32), clip.sample_rate, promises.sample_rate, resampler)
    if promises.num_frames(len(samples)) < 1:
        raise UserError(f"{name}: {len(samples)} samples at {promises.sample_rate} Hz are too short for one frame")
    return torch.from_numpy(np.ascontiguousarray(samples)).to(device)
