"""Rows of the vocabulary: the text block an LLM brings along and the block of new rows (specials, audio).

They are two parameters each, on the input and on the output side, so that text rows can be frozen, tied or quantised
while the new rows train. The official single matrix ``[V, H]`` exists only in interop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bagpiper.language.vocabulary import NUM_SPECIAL, Vocabulary

INIT_STD = 0.02
"""Standard deviation of new rows, as in the official code (spec section 4.4)."""

FROM_NOTHING_STD = 1.0
"""Standard deviation of the input rows of an LLM made from nothing.

With 0.02 the layers' first random outputs, some ten times larger, wash out which token a row is. Validation loss of
the quickstart after 300 steps of 512 rows: 1.78 with 0.02 and 1.56 with 0.3 (layers at initializer_range 0.06); 1.37
with 0.3 and 1.34 with 1.0 (at 0.03).
"""


class TokenRows(nn.Module):
    """Two blocks of rows.

    Attributes:
        text: ``[text_size, H]``.
        new: ``[256 + audio_size, H]``, specials first.
    """

    def __init__(
        self, vocabulary: Vocabulary, width: int, text: torch.Tensor | nn.Parameter | None = None, std: float = INIT_STD
    ) -> None:
        """Make the rows.

        Args:
            vocabulary: gives the sizes.
            width: H.
            text: the LLM's rows; a Parameter is shared (tied), None starts from random ones.
            std: standard deviation of random rows, around 0.
        """
        super().__init__()
        self.vocabulary = vocabulary
        if text is None:
            text = torch.randn(vocabulary.text_size, width) * std
        if tuple(text.shape) != (vocabulary.text_size, width):
            raise ValueError(f"text rows of shape {tuple(text.shape)}, expected {(vocabulary.text_size, width)}")
        self.text = text if isinstance(text, nn.Parameter) else nn.Parameter(text)
        self.new = nn.Parameter(torch.randn(vocabulary.num_new, width) * std)

    @property
    def special(self) -> torch.Tensor:
        """Rows of the special tokens ``[256, H]``."""
        return self.new[:NUM_SPECIAL]

    @property
    def audio(self) -> torch.Tensor:
        """Rows of the audio block ``[audio_size, H]``."""
        return self.new[NUM_SPECIAL:]

    def codebook(self, codebook: int) -> torch.Tensor:
        """Rows of one codebook's interval ``[codebook_size + 1, H]``, its pad first."""
        start = NUM_SPECIAL + codebook * self.vocabulary.interval
        return self.new[start : start + self.vocabulary.interval]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed rows of a token grid: the sum over streams.

        Pads of stream 0 use row 0 (which gets no gradient), pads of the other streams add nothing (spec section 4.4).

        Args:
            ids: joint ids ``[..., S]``; text only in stream 0.

        Returns:
            ``[..., H]``.
        """
        flat = ids.reshape(-1, ids.shape[-1])
        first = flat[:, 0]
        is_text = (first >= self.vocabulary.text_start) & (first < self.vocabulary.audio_start)
        text = F.embedding(torch.where(is_text, first - self.vocabulary.text_start, 0), self.text)
        new_ids = torch.where(flat >= self.vocabulary.audio_start, flat - self.vocabulary.text_size, flat)
        new = F.embedding(torch.where(is_text, 0, new_ids[:, 0]), self.new, padding_idx=0)
        summed = torch.where(is_text[:, None], text, new)
        if flat.shape[1] > 1:
            summed = summed + F.embedding_bag(new_ids[:, 1:], self.new, mode="sum", padding_idx=0)
        return summed.reshape(*ids.shape[:-1], -1)
