"""The parallel head against a plain double-precision loss (spec section 5)."""

import pytest
import torch
import torch.nn.functional as F

from bagpiper.heads.configs import ParallelConfig
from bagpiper.heads.parallel import ParallelHead
from bagpiper.language.vocabulary import Vocabulary
from bagpiper.token_rows import TokenRows

VOCABULARY = Vocabulary(text_size=20, num_codebooks=3, codebook_size=4)


def setup(**options):
    torch.manual_seed(1)
    rows = TokenRows(VOCABULARY, 8).double()
    head = ParallelHead(ParallelConfig(**options), width=8, num_streams=3).double()
    torch.nn.init.normal_(head.streams)
    hidden = torch.randn(9, 8, dtype=torch.float64)
    targets = torch.stack([VOCABULARY.audio_pad(s) + torch.randint(0, 5, (9,)) for s in range(3)], 1)
    weights = torch.full((9, 3), 1 / 3, dtype=torch.float64)
    targets[:4, 0], targets[:4, 1:] = torch.tensor([260, 2, 0, 270]), 0
    weights[:4, 0], weights[:4, 1:] = 1.0, 0.0
    weights[6] = 0.0
    return head, rows, hidden, targets, weights


@pytest.mark.parametrize("softmax", ["joint", "per_codebook"])
def test_plain_loss(softmax):
    head, rows, hidden, targets, weights = setup(audio_softmax=softmax, z_loss=1e-2)
    matrix = torch.cat([rows.special, rows.text, rows.audio])
    expected = torch.tensor(0.0, dtype=torch.float64)
    each = {}
    for row in range(9):
        for stream in range(3):
            if weights[row, stream] == 0 or (stream == 0 and targets[row, 0] == 0):
                continue
            state = hidden[row] + (head.streams[stream] if stream else 0)
            start, stop = 0, VOCABULARY.size
            if stream:
                start = VOCABULARY.audio_start if softmax == "joint" else VOCABULARY.audio_pad(stream)
                stop = VOCABULARY.size if softmax == "joint" else start + VOCABULARY.interval
            logits = matrix[start:stop] @ state
            nll = F.cross_entropy(logits[None], targets[row, stream][None] - start)
            each[row, stream] = float(nll)
            expected = expected + weights[row, stream] * nll + 1e-2 * logits.logsumexp(0) ** 2
    total, counted = head(hidden, targets, weights, rows)
    assert torch.allclose(total, expected, rtol=1e-6)
    assert [len(counted[name].nll) for name in ("text", "codebook0", "codebook2")] == [3, 4, 4]
    found = {
        (int(row), group.stream): float(nll)
        for group in counted.values()
        for row, nll in zip(group.rows, group.nll, strict=True)
    }
    assert found == pytest.approx(each, rel=1e-6), "every target is counted once, with its row and stream"


def test_logits_agree_with_the_loss():
    head, rows, hidden, targets, weights = setup()
    logits = head.logits(hidden, rows)
    assert logits.shape == (9, 3, VOCABULARY.size) and logits.dtype == torch.float32
    nll = F.cross_entropy(logits[:, 0], targets[:, 0], reduction="none").double()
    only_first = weights.clone()
    only_first[:, 1:] = 0
    expected = (nll * weights[:, 0])[targets[:, 0] != 0].sum()
    assert torch.allclose(head(hidden, targets, only_first, rows)[0], expected, rtol=1e-5)


def test_row_0_of_the_stream_embedding_is_never_used():
    head, rows, hidden, targets, weights = setup()
    before = head.logits(hidden, rows)
    head(hidden, targets, weights, rows).total.backward()
    assert not head.streams.grad[0].any() and head.streams.grad[1:].any()
    with torch.no_grad():
        head.streams[0] = 7.0
    assert torch.equal(before, head.logits(hidden, rows))
