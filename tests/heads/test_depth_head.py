"""The depth head against a plain double-precision transformer and its own drawing, and what it is there for."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bagpiper.component import Head, metrics_of
from bagpiper.heads.configs import DepthConfig, ParallelConfig
from bagpiper.heads.depth import DepthHead
from bagpiper.heads.streams import pick
from bagpiper.language.vocabulary import EOS, Vocabulary
from bagpiper.recipe import registry
from bagpiper.token_rows import TokenRows

WIDTH, STREAMS = 8, 4
VOCABULARY = Vocabulary(text_size=20, num_codebooks=STREAMS, codebook_size=5)
PADS = torch.tensor([VOCABULARY.audio_pad(stream) for stream in range(STREAMS)])


def build(config, vocabulary=VOCABULARY, seed=1) -> tuple[Head, TokenRows]:
    """A head and output rows, in double precision."""
    torch.manual_seed(seed)
    rows = TokenRows(vocabulary, WIDTH, std=0.5).double()
    streams, size = vocabulary.num_codebooks, vocabulary.codebook_size
    head = registry.build("head", config, width=WIDTH, num_streams=streams, codebook_size=size).double()
    if isinstance(head, DepthHead):
        torch.nn.init.normal_(head.outputs, std=0.5)
    return head, rows


def small(**options) -> DepthConfig:
    return DepthConfig(**{"width": 12, "layers": 2, "heads": 3, "chunk": 0, **options})


def batch(count=10, seed=2):
    """States, targets and weights: rows of text first, then of audio, one of them without weight."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, WIDTH, dtype=torch.float64, generator=generator)
    targets = PADS + torch.randint(0, VOCABULARY.interval, (count, STREAMS), generator=generator)
    weights = torch.full((count, STREAMS), 1 / STREAMS, dtype=torch.float64)
    targets[:4, 0], targets[:4, 1:] = torch.tensor([260, EOS, 0, 270]), 0
    weights[:4, 0], weights[:4, 1:] = 1.0, 0.0
    weights[5, 2] = 0.0
    weights[6] = 0.0
    return hidden, targets, weights


def slow_logits(head, state, local, stream):
    """Logits of one stream of one row, by loops over positions and heads; ``local`` are places in the codebooks."""

    def rms(vector, norm):
        return vector / (vector.square().mean() + torch.finfo(vector.dtype).eps).sqrt() * norm.weight

    size = head.config.width // head.config.heads
    table = head.codes.view(STREAMS - 1, head.interval, -1)
    states = [head.project.weight @ state + table[j, local[j]] for j in range(stream)]
    for layer in head.layers:
        triples = [(layer.qkv.weight @ rms(x, layer.attention_norm)).view(3, layer.heads, size) for x in states]
        mixed = []
        for position, (query, _, _) in enumerate(triples):
            parts = []
            for number in range(layer.heads):
                past = triples[: position + 1]
                scores = torch.stack([query[number] @ key[number] / math.sqrt(size) for _, key, _ in past])
                shares = scores.softmax(0)
                parts.append(sum(share * value[number] for share, (_, _, value) in zip(shares, past, strict=True)))
            mixed.append(torch.cat(parts))
        states = [x + layer.out.weight @ part for x, part in zip(states, mixed, strict=True)]
        states = [x + layer.down.weight @ F.gelu(layer.up.weight @ rms(x, layer.feed_norm)) for x in states]
    return head.outputs[stream - 1] @ rms(states[-1], head.norm)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_equals_the_slow_obvious_one(z_loss):
    head, rows = build(small(z_loss=z_loss))
    hidden, targets, weights = batch()
    matrix = torch.cat([rows.special, rows.text, rows.audio])
    expected, each = torch.zeros((), dtype=torch.float64), {}
    for row, (state, ids, row_weights) in enumerate(zip(hidden, targets, weights, strict=True)):
        local = (ids - PADS).tolist()
        for stream in range(STREAMS):
            if row_weights[stream] == 0 or (stream == 0 and ids[0] == 0):
                continue
            logits = slow_logits(head, state, local, stream) if stream else matrix @ state
            wanted = torch.tensor([local[stream]]) if stream else ids[:1]
            nll = F.cross_entropy(logits[None], wanted)
            each[row, stream] = float(nll.detach())
            expected = expected + row_weights[stream] * nll
            expected = expected + z_loss * logits.logsumexp(0) ** 2
    total, counted = head(hidden, targets, weights, rows)
    assert torch.allclose(total, expected, rtol=1e-5)
    assert [len(counted[name].nll) for name in ("text", "codebook0", "codebook1", "codebook2")] == [3, 5, 5, 4]
    assert set(counted) == set(build(ParallelConfig())[0](hidden, targets, weights, rows).counted)
    found = {
        (int(row), group.stream): float(nll)
        for group in counted.values()
        for row, nll in zip(group.rows, group.nll, strict=True)
    }
    assert found == pytest.approx(each, rel=1e-5), "every target is counted once, with its row and stream"


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_chunks_change_neither_loss_nor_gradients(chunk):
    results = []
    for size in (0, chunk):
        head, rows = build(small(chunk=size, z_loss=1e-3))
        total, counted = head(*batch(), rows)
        total.backward()
        results.append((total, metrics_of(counted), {name: p.grad for name, p in head.named_parameters()}))
    (total, metrics, gradients), (other, other_metrics, other_gradients) = results
    assert torch.allclose(total, other)
    assert all(torch.allclose(value, other_metrics[name]) for name, value in metrics.items())
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, other_gradients[name], atol=1e-6), name


def test_rows_of_text_do_not_pass_through_the_transformer():
    head, rows = build(small())
    hidden, targets, weights = batch()
    seen = []
    head.project.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    head(hidden, targets, weights, rows)
    assert seen == [5]
    seen.clear()
    total, counted = head(hidden[:4], targets[:4], weights[:4], rows)  # a pack without spoken audio
    assert seen == [0]
    assert not len(counted["codebook1"].nll)
    total.backward()
    assert not head.outputs.grad.any()


def drawn_logits(head, rows, hidden, ids):
    """Logits ``[N, S, interval]`` of own ids, as a decoder asks for them when it draws ``ids``."""
    count = ids.shape[1]
    candidates = PADS[:, None] + torch.arange(VOCABULARY.interval)
    state = head.start(hidden, rows, count)
    parts = []
    for streams in head.blocks(count):
        before = ids[:, : streams.start] if streams.start else None
        parts.append(head.next_logits(state, streams, candidates[streams], before))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("config", [small(), ParallelConfig(), ParallelConfig(audio_softmax="per_codebook")])
def test_teacher_forced_logits_are_those_of_drawing_stream_by_stream(config):
    head, rows = build(config)
    hidden, targets, _ = batch()
    hidden, ids = hidden[4:], targets[4:]
    forced = head.logits(hidden, rows, ids=ids)
    assert forced.shape == (6, STREAMS, VOCABULARY.size) and forced.dtype == torch.float32
    own = pick(forced, PADS[:, None] + torch.arange(VOCABULARY.interval))
    torch.testing.assert_close(own, drawn_logits(head, rows, hidden, ids), atol=1e-5, rtol=1e-5)


def test_logits_agree_with_the_loss():
    head, rows = build(small())
    hidden, targets, weights = batch()
    hidden, targets, weights = hidden[7:], targets[7:], weights[7:]
    logits = head.logits(hidden, rows, ids=targets).double()
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(weights)
    assert torch.allclose(head(hidden, targets, weights, rows)[0], (nll * weights).sum(), rtol=1e-5)


@hypothesis_settings(deadline=None, max_examples=60)
@given(stream=st.integers(0, STREAMS - 1), code=st.integers(0, 5), seed=st.integers(0, 5))
def test_no_stream_sees_itself_or_what_comes_after_it(stream, code, seed):
    head, rows = build(small())
    hidden, ids, _ = batch(seed=seed)
    hidden, ids = hidden[4:], ids[4:]
    changed = ids.clone()
    changed[:, stream] = PADS[stream] + code
    before, after = (head.logits(hidden, rows, ids=each) for each in (ids, changed))
    assert torch.equal(before[:, : stream + 1], after[:, : stream + 1])
    rows_changed = (changed != ids).any(1)
    finite = before[:, stream + 1 :].isfinite()
    differ = ((before[:, stream + 1 :] != after[:, stream + 1 :]) & finite).flatten(1).any(1)
    assert torch.equal(differ, rows_changed & (stream < STREAMS - 1))


def test_an_end_token_in_stream_0_breaks_nothing():
    """Rows of a batch end at different times; the others go on, and what the ended ones get is masked out."""
    head, rows = build(small())
    hidden, ids, _ = batch()
    ids = ids[4:6].clone()
    expected = drawn_logits(head, rows, hidden[4:6], ids)
    ids[1, 0] = EOS
    found = drawn_logits(head, rows, hidden[4:6], ids)
    assert torch.equal(found[0], expected[0]) and found[1].isfinite().all()


def test_candidates_outside_the_codebook_are_impossible():
    head, rows = build(small())
    hidden, ids, _ = batch()
    state = head.start(hidden[4:], rows, STREAMS)
    head.next_logits(state, slice(0, 1), torch.tensor([[EOS]]), None)
    candidates = torch.tensor([[int(PADS[1]), EOS, int(PADS[2])]])
    logits = head.next_logits(state, slice(1, 2), candidates, ids[4:, :1])
    assert logits[..., 0].isfinite().all() and (logits[..., 1:] == -torch.inf).all()


def train(head, rows, hidden, targets, steps=150):
    """Loss per row of codebook 1 after a few steps on one batch."""
    weights = torch.ones(targets.shape, dtype=hidden.dtype)
    optimizer = torch.optim.Adam([*head.parameters(), *rows.parameters()], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        total, counted = head(hidden, targets, weights, rows)
        total.backward()
        optimizer.step()
    return float(counted["codebook1"].nll.mean())


def test_it_learns_what_no_parallel_head_can():
    """Codebook 1 is a permutation of codebook 0, which is uniform and has nothing to do with the state.

    With one state for all rows a parallel head gives every row the same distribution of codebook 1. Over a batch in
    which each of Q codes occurs equally often its mean loss is at least log Q (Gibbs' inequality), whatever its
    weights.
    """
    vocabulary = Vocabulary(text_size=20, num_codebooks=2, codebook_size=6)
    codes = torch.arange(6).repeat(4)
    permuted = torch.tensor([3, 5, 0, 1, 2, 4])[codes]
    targets = torch.stack([vocabulary.audio_pad(0) + 1 + codes, vocabulary.audio_pad(1) + 1 + permuted], dim=1)
    hidden = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0)).double().expand(len(codes), -1)
    floor = math.log(6)
    for softmax in ("joint", "per_codebook"):
        assert train(*build(ParallelConfig(audio_softmax=softmax), vocabulary), hidden, targets) >= floor - 1e-6
    head, rows = build(small(), vocabulary)
    assert train(head, rows, hidden, targets) < 0.02
    # drawn stream by stream, the pairs are right as well
    state = head.start(hidden, rows, 2)
    first = head.next_logits(state, slice(0, 1), vocabulary.audio_pad(0) + torch.arange(7)[None], None)
    assert first.softmax(-1)[0, 0, 1:].min() > 0.1  # codebook 0 is as uniform as it was
    second = head.next_logits(state, slice(1, 2), vocabulary.audio_pad(1) + torch.arange(7)[None], targets[:, :1])
    assert torch.equal(second[:, 0].argmax(-1), permuted + 1)


def test_one_stream_is_refused():
    with pytest.raises(ValueError, match="only one stream"):
        DepthHead(small(), width=WIDTH, num_streams=1, codebook_size=5)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="width a multiple of heads"):
        DepthConfig(width=10, heads=4)
