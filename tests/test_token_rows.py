"""Embedding rows (spec section 4.4)."""

import torch

from bagpiper.language.vocabulary import Vocabulary
from bagpiper.token_rows import TokenRows

VOCABULARY = Vocabulary(text_size=20, num_codebooks=3, codebook_size=4)


def joint_matrix(rows):
    return torch.cat([rows.special, rows.text, rows.audio])


def test_equals_the_sum_over_streams_of_one_matrix():
    torch.manual_seed(0)
    rows = TokenRows(VOCABULARY, 8)
    audio = [VOCABULARY.audio_pad(stream) + torch.randint(0, 5, (7,)) for stream in range(3)]
    ids = torch.stack(audio, 1)
    text = torch.zeros(4, 3, dtype=torch.int64)
    text[:, 0] = torch.tensor([1, 256, 275, 0])
    ids = torch.cat([text, ids])
    matrix = joint_matrix(rows)
    expected = matrix[ids[:, 0]] + sum(matrix[ids[:, s]] * (ids[:, s] != 0)[:, None] for s in (1, 2))
    assert torch.allclose(rows(ids), expected, atol=1e-6)
    assert rows(ids.reshape(1, 11, 3)).shape == (1, 11, 8)


def test_pad_row_is_used_by_stream_0_and_gets_no_gradient():
    """Pads of stream 0 feed row 0 (the CFG condition is a run of it); other streams' pads add nothing."""
    rows = TokenRows(VOCABULARY, 8)
    pads = torch.zeros(2, 3, dtype=torch.int64)
    assert torch.equal(rows(pads), rows.new[:1].expand(2, 8))
    rows(pads).sum().backward()
    assert not rows.new.grad.any()


def test_codebook_rows():
    rows = TokenRows(VOCABULARY, 8)
    pad = VOCABULARY.audio_pad(1)
    assert torch.equal(rows.codebook(1), joint_matrix(rows)[pad : pad + 5])
