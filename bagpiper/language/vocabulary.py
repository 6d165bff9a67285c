"""The joint vocabulary: which ids are special, text and audio.

The order of the blocks (special, text, audio) is fixed here and nowhere else. In the official code it follows the key
order of a YAML file, and a re-sorted file trains a silently permuted model (loss 55.73 instead of 2.10).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

NUM_SPECIAL = 256
"""Slots kept for special tokens, as in the released checkpoints; 12..255 are unused."""

SPECIAL_NAMES = (
    "<|pad|>",
    "<|bos|>",
    "<|eos|>",
    "<|eot|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|text|>",
    "<|audio|>",
    "<|image|>",
    "<|video|>",
    "<|toolcall|>",
)
PAD, BOS, EOS, EOT, SYSTEM, USER, ASSISTANT, TEXT, AUDIO = range(9)
ROLE_IDS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
MODALITY_IDS = {"text": TEXT, "audio": AUDIO}

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Vocabulary:
    """Ids of one model.

    Attributes:
        text_size: rows of the text block; the LLM config's ``vocab_size``, not the tokenizer's length.
        num_codebooks: K, codebooks of the codec that are used.
        codebook_size: codes per codebook, without the pad that each codebook's interval starts with.
        text_zero_is_pad: reproduce the official preprocessing, which loses text id 0 (``!`` in Qwen's BPE) to pad.
    """

    text_size: int
    num_codebooks: int
    codebook_size: int
    text_zero_is_pad: bool = False

    def __post_init__(self) -> None:
        for name in ("text_size", "num_codebooks", "codebook_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"vocabulary: {name} must be at least 1, got {getattr(self, name)}")

    @property
    def text_start(self) -> int:
        """First joint id of the text block."""
        return NUM_SPECIAL

    @property
    def audio_start(self) -> int:
        """First joint id of the audio block (the pad of codebook 0)."""
        return NUM_SPECIAL + self.text_size

    @property
    def audio_size(self) -> int:
        """Rows of the audio block: K intervals of (pad + codes)."""
        return self.num_codebooks * self.interval

    @property
    def interval(self) -> int:
        """Ids per codebook, its pad included."""
        return self.codebook_size + 1

    @property
    def size(self) -> int:
        """Number of joint ids."""
        return self.audio_start + self.audio_size

    @property
    def num_new(self) -> int:
        """Rows that no text LLM brings along: specials and audio."""
        return NUM_SPECIAL + self.audio_size

    def audio_pad(self, codebook: int) -> int:
        """Joint id of a codebook's pad."""
        assert 0 <= codebook < self.num_codebooks, codebook
        return self.audio_start + codebook * self.interval

    def codes_to_ids(self, codes: IntArray, codebooks: IntArray) -> IntArray:
        """Joint ids of ``codes`` in ``codebooks`` (arrays of one shape).

        Raises:
            ValueError: a code or a codebook that the vocabulary does not have; its id would be another codebook's.
        """
        _check_inside(codes, self.codebook_size, "codes", "a codebook has")
        _check_inside(codebooks, self.num_codebooks, "codebooks", "there are")
        return self.audio_start + codebooks * self.interval + 1 + codes

    def ids_to_codes(self, ids: IntArray, codebooks: IntArray) -> IntArray:
        """Codes of joint ``ids``; an id outside its codebook's codes (its pad, say) is clipped to the nearest code."""
        return np.clip(ids - self.audio_start - codebooks * self.interval - 1, 0, self.codebook_size - 1)

    def text_to_ids(self, tokens: IntArray) -> IntArray:
        """Joint ids of the tokenizer's ``tokens``.

        Raises:
            ValueError: a token that the text block has no row for; its id would be a code's.
        """
        tokens = np.asarray(tokens, dtype=np.int64)
        _check_inside(tokens, self.text_size, "tokens", "the text block has")
        ids = tokens + NUM_SPECIAL
        if self.text_zero_is_pad:
            ids[ids == NUM_SPECIAL] = PAD
        return ids

    def ids_to_text(self, ids: IntArray) -> IntArray:
        """Tokenizer ids of those joint ``ids`` that are text; the others are left out."""
        ids = np.asarray(ids, dtype=np.int64)
        return ids[(ids >= self.text_start) & (ids < self.audio_start)] - NUM_SPECIAL

    def token_weights(self, stream_weights: tuple[float, ...]) -> NDArray[np.float32]:
        """Loss weight of every id ``[V]``: 1 for specials and text, the codebook's weight for audio (pads too)."""
        weights = np.ones(self.size, dtype=np.float32)
        for codebook, weight in enumerate(stream_weights):
            start = self.audio_pad(codebook)
            weights[start : start + self.interval] = weight
        return weights

    def name_of(self, joint_id: int) -> str:
        """Readable name of an id, for messages and pages that show batches."""
        if joint_id < NUM_SPECIAL:
            return SPECIAL_NAMES[joint_id] if joint_id < len(SPECIAL_NAMES) else f"<|unused_{joint_id}|>"
        if joint_id < self.audio_start:
            return f"text:{joint_id - NUM_SPECIAL}"
        codebook, code = divmod(joint_id - self.audio_start, self.interval)
        return f"<codec_layer{codebook}_{'pad' if code == 0 else code - 1}>"

    def fingerprint(self, *, tokenizer: str, codec: str, pattern: str, stream_weights: tuple[float, ...]) -> str:
        """Hash of everything that decides what an id means; every artefact carries it and loading compares it.

        Args:
            tokenizer: hash of the text tokenizer's files.
            codec: hash of the codec's weights.
            pattern: name of the codebook pattern.
            stream_weights: loss weight of each codebook.
        """
        record = {
            "layout": {"special": NUM_SPECIAL, **asdict(self)},
            "tokenizer": tokenizer,
            "codec": codec,
            "pattern": pattern,
            "stream_weights": list(stream_weights),
        }
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _check_inside(numbers: IntArray, size: int, what: str, holder: str) -> None:
    """Refuse numbers outside ``[0, size)``: added to the start of a block, they would be ids of another one."""
    if numbers.size and not (0 <= numbers.min() and numbers.max() < size):
        raise ValueError(f"{what} from {numbers.min()} to {numbers.max()} do not fit: {holder} {size}, from 0")
