"""A tiny model whose parts are real but for the LLM, the codec and the tokenizer, so that no library is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from bagpiper.adaptors.configs import LinearConfig
from bagpiper.adaptors.linear import LinearAdaptor
from bagpiper.batch import Spans
from bagpiper.codecs.configs import CodecConfig
from bagpiper.component import Backbone, Codec, KeysValues
from bagpiper.encoders.configs import MelConfig
from bagpiper.encoders.mel import MelEncoder
from bagpiper.heads.configs import ParallelConfig
from bagpiper.heads.parallel import ParallelHead
from bagpiper.language.patterns import get_pattern
from bagpiper.model import Bagpiper
from bagpiper.recipe.settings import ModelSettings

WIDTH = 32


class LetterTokenizer:
    """One id per character of a short alphabet; the model's text block has 8 rows more than there are tokens."""

    letters = "abcdefghijklmnopqrstuvwxyz ,.?"
    size = len(letters)

    def encode(self, text: str) -> list[int]:
        return [self.letters.index(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.letters[index] for index in ids)


class TinyLlm(Backbone):
    """Two layers of attention with sinusoidal positions, with or without a cache."""

    width = WIDTH
    text_size = LetterTokenizer.size + 8
    tied = False

    def __init__(self) -> None:
        super().__init__(None)
        self.mix = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        *,
        spans: Spans | None = None,
        cache: KeysValues | None = None,
    ) -> torch.Tensor:
        rates = torch.exp(-math.log(1000.0) * torch.arange(WIDTH) / WIDTH)
        hidden = embeds + torch.sin(positions[..., None] * rates)
        for number, (mix, out) in enumerate(zip(self.mix, self.out, strict=True)):
            query, key, value = (
                part.unflatten(-1, (2, -1)).transpose(1, 2) for part in mix(F.layer_norm(hidden, (WIDTH,))).chunk(3, -1)
            )
            if cache is None:
                mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            else:
                key, value = cache.update(key, value, number)
                mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=cache.visible)
            hidden = hidden + out(mixed.transpose(1, 2).flatten(2))
        return F.layer_norm(hidden, (WIDTH,))


class CountingCodec(Codec):
    """Samples are the codes of codebook 0, held for a hop; encoding reads them back."""

    def encode(self, waves: list[torch.Tensor]) -> list[torch.Tensor]:
        config = self.config
        found = []
        for wave in waves:
            frames = wave[: len(wave) // config.hop * config.hop].view(-1, config.hop).mean(1)
            codes = (frames * config.codebook_size).long().clamp(0, config.codebook_size - 1)
            found.append(codes[:, None].expand(-1, config.num_codebooks).contiguous())
        return found

    def decode(self, codes: list[torch.Tensor]) -> list[torch.Tensor]:
        return [(clip[:, 0].float() / self.config.codebook_size).repeat_interleave(self.config.hop) for clip in codes]


def make_model(pattern: str = "delay", num_codebooks: int = 3, codebook_size: int = 7, seed: int = 0) -> Bagpiper:
    """A random model; its rows are large, so that distributions are far from flat."""
    torch.manual_seed(seed)
    encoder = MelConfig(num_mels=16, channels=16, heads=2)
    codec = CodecConfig(num_codebooks=num_codebooks, codebook_size=codebook_size)
    settings = ModelSettings(
        encoder=encoder, adaptor=LinearConfig(), codec=codec, head=ParallelConfig(), pattern=pattern
    )
    head = ParallelHead(settings.head, width=WIDTH, num_streams=get_pattern(pattern).streams(num_codebooks))
    model = Bagpiper(
        settings,
        LetterTokenizer(),  # type: ignore[arg-type]
        encoder=MelEncoder(encoder),
        adaptor=LinearAdaptor(settings.adaptor, width_in=encoder.width, width_out=WIDTH),
        llm=TinyLlm(),
        codec=CountingCodec(codec),
        head=head,
    )
    with torch.no_grad():
        for rows in (model.input_rows, model.output_rows):
            for parameter in rows.parameters():
                parameter.normal_()
        head.streams.normal_()
    return model.eval()
