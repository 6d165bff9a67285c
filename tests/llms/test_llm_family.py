"""An LLM is a part like the others: one that is not of transformers trains, adapts, decodes and is loaded again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runs import tiny_recipe
from torch import nn

import bagpiper
from bagpiper.batch import Spans
from bagpiper.component import Backbone, KeysValues
from bagpiper.llms.configs import LlmConfig, LoraSettings, TokenizerConfig
from bagpiper.ops.attention import attend_packed
from bagpiper.recipe import registry
from bagpiper.recipe.settings import StageSettings
from bagpiper.run import run

HEADS, SIZE = 2, 8


@dataclass
class PlainConfig(LlmConfig):
    """Of ``PlainLlm``."""

    blocks: int = 2


class Block(nn.Module):
    """Attention with learned decay over distance in its query, and a feed-forward layer."""

    def __init__(self, number: int) -> None:
        super().__init__()
        width = HEADS * SIZE
        self.number = number
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden: torch.Tensor, spans: Spans | None, cache: KeysValues | None) -> torch.Tensor:
        width = hidden.shape[-1]
        parts = self.mix(F.layer_norm(hidden, (width,))).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for part in parts)
        if spans is not None:
            mixed = attend_packed(query, key, value, spans, SIZE**-0.5)
        else:
            assert cache is not None
            key, value = cache.update(key, value, self.number)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=cache.visible)
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        return hidden + self.down(F.gelu(self.up(F.layer_norm(hidden, (width,)))))


class PlainLlm(Backbone):
    """Blocks over learned positions."""

    def __init__(self, config: PlainConfig, vocab_size: int | None = None) -> None:
        super().__init__(config)
        assert vocab_size is not None
        self.width, self.text_size, self.tied = HEADS * SIZE, vocab_size, False
        self.positions = nn.Parameter(torch.randn(512, self.width))
        self.blocks = nn.ModuleList(Block(number) for number in range(config.blocks))

    @property
    def body(self) -> nn.Module:
        return self.blocks

    @property
    def layers(self) -> nn.ModuleList:
        return self.blocks

    def forward(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        *,
        spans: Spans | None = None,
        cache: KeysValues | None = None,
    ) -> torch.Tensor:
        hidden = embeds + self.positions[positions]
        for block in self.blocks:
            hidden = block(hidden, spans, cache)
        return F.layer_norm(hidden, (self.width,))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> PlainConfig:
    """The config, known to the registry while the test runs."""
    entry = registry.Entry(f"{__name__}:PlainConfig", f"{__name__}:PlainLlm")
    monkeypatch.setitem(registry._ENTRIES["llm"], "plain", entry)
    return PlainConfig(tokenizer=TokenizerConfig(vocab_size=300))


@pytest.mark.parametrize("quantize", [None, "none", "nf4"])
def test_an_llm_of_ones_own_makes_the_whole_way(
    tmp_path: Path, shared_parts: Any, plain: PlainConfig, quantize: Any
) -> None:
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=2)
    recipe.model.llm = replace(plain)
    recipe.parity.at_end = True
    if quantize is not None:
        recipe.stage = StageSettings(name="sft", lora=LoraSettings(rank=2, quantize=quantize))
    finished = run(recipe)
    assert finished.parity is not None and finished.parity.passed
    piper = bagpiper.load(finished.folder, "cpu")
    assert isinstance(piper.model.llm, PlainLlm)
    samples, rate = piper.render("a bell", think=False, max_seconds=0.4)
    assert 0 < len(samples) <= 0.4 * rate
