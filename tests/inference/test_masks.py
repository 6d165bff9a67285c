from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bagpiper.errors import UserError
from bagpiper.inference.masks import END_IDS, AudioRules, PatternRules, Rules, TextRules, segment_rules
from bagpiper.language.patterns import PATTERNS, apply, get_pattern, revert
from bagpiper.language.vocabulary import EOS, EOT, PAD, Vocabulary
from bagpiper.recipe.settings import DecodeSettings, GenerationSettings

CPU = torch.device("cpu")
Pick = Callable[[list[int]], int]


def allowed_ids(rules: Rules, row: int, clip: int = 0) -> list[list[int]]:
    """Ids that may be drawn in each stream."""
    candidates = rules.candidates(row)
    masks = rules.allowed(row)
    mask = masks.expand(max(clip + 1, masks.shape[0] if masks.dim() == 3 else 1), *candidates.shape)[clip]
    return [ids[keep].tolist() for ids, keep in zip(candidates, mask, strict=True)]


def decode(rules: Rules, pick: Pick, num_clips: int = 1) -> list[np.ndarray]:
    """Rows of every clip up to its END or the limit, as the decoder would draw them."""
    rows: list[list[np.ndarray]] = [[] for _ in range(num_clips)]
    ended = [False] * num_clips
    for row in range(rules.limit):
        drawn = torch.tensor([[pick(ids) for ids in allowed_ids(rules, row, clip)] for clip in range(num_clips)])
        settled = rules.settle(row, drawn, drawn[:, 0].tolist())
        for clip in range(num_clips):
            if not ended[clip]:
                rows[clip].append(settled[clip].numpy())
                ended[clip] = int(drawn[clip, 0]) in END_IDS
        if all(ended):
            break
    return [np.stack(clip) for clip in rows]


def content(rows: np.ndarray) -> np.ndarray:
    return rows[:-1] if rows[-1, 0] in END_IDS else rows


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(sorted(PATTERNS)),
    num_codebooks=st.integers(1, 4),
    max_rows=st.integers(1, 18),
    min_rows=st.integers(0, 12),
    num_clips=st.integers(1, 3),
    data=st.data(),
)
def test_what_is_drawn_under_a_pattern_always_reverts_without_clipping(
    name: str, num_codebooks: int, max_rows: int, min_rows: int, num_clips: int, data: st.DataObject
) -> None:
    pattern = get_pattern(name)
    vocabulary = Vocabulary(text_size=10, num_codebooks=num_codebooks, codebook_size=2)
    decode_settings = DecodeSettings(max_rows=max_rows, min_rows=min_rows)
    if pattern.frames_in(max_rows, num_codebooks) == 0:
        with pytest.raises(UserError, match="no room for one frame"):
            PatternRules(vocabulary, pattern, decode_settings, num_clips, CPU)
        return
    rules = PatternRules(vocabulary, pattern, decode_settings, num_clips, CPU)
    chooser = data.draw(st.randoms(use_true_random=False))
    for rows in decode(rules, chooser.choice, num_clips):
        ids = content(rows)
        codes = revert(pattern, ids, vocabulary)
        assert len(codes) >= 1
        assert np.array_equal(apply(pattern, codes, vocabulary), ids)
        if rows[-1, 0] in END_IDS:
            assert (rows[-1, 1:] == PAD).all()
            assert len(rows) - 1 >= min_rows
        else:
            assert len(codes) == pattern.frames_in(max_rows, num_codebooks)


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_every_clip_length_can_be_reached(name: str) -> None:
    pattern = get_pattern(name)
    vocabulary = Vocabulary(text_size=10, num_codebooks=3, codebook_size=4)
    for frames in range(1, 6):
        rng = np.random.default_rng(frames)
        truth = apply(pattern, rng.integers(0, 4, (frames, 3)), vocabulary)
        rules = PatternRules(vocabulary, pattern, DecodeSettings(max_rows=40, min_rows=0), 1, CPU)
        for row, wanted in enumerate(truth):
            allowed = allowed_ids(rules, row)
            assert wanted[0] in allowed[0]
            drawn = [token if token in ids else ids[0] for token, ids in zip(wanted.tolist(), allowed, strict=True)]
            settled = rules.settle(row, torch.tensor([drawn]), drawn[:1])
            assert settled[0].tolist() == wanted.tolist()
        assert set(END_IDS) <= set(allowed_ids(rules, len(truth))[0])


def test_delay_pads_are_forced_from_the_closing_row_on() -> None:
    vocabulary = Vocabulary(text_size=10, num_codebooks=3, codebook_size=4)
    rules = PatternRules(vocabulary, get_pattern("delay"), DecodeSettings(max_rows=40, min_rows=0), 1, CPU)
    pad = vocabulary.audio_pad(0)
    codes = [pad + 1, vocabulary.audio_pad(1) + 1, vocabulary.audio_pad(2) + 1]
    assert pad not in allowed_ids(rules, 0)[0]  # a clip has at least one frame
    rules.settle(0, torch.tensor([codes]), codes[:1])
    assert pad in allowed_ids(rules, 1)[0]
    assert not set(END_IDS) & set(allowed_ids(rules, 1)[0])
    rules.settle(1, torch.tensor([[pad, *codes[1:]]]), [pad])
    assert allowed_ids(rules, 2)[0] == [pad]
    settled = rules.settle(2, torch.tensor([[pad, *codes[1:]]]), [pad])
    assert settled[0].tolist() == [pad, vocabulary.audio_pad(1), codes[2]]
    assert allowed_ids(rules, 3)[0] == [EOS, EOT]


def test_clips_of_a_batch_close_on_their_own() -> None:
    vocabulary = Vocabulary(text_size=10, num_codebooks=2, codebook_size=4)
    rules = PatternRules(vocabulary, get_pattern("delay"), DecodeSettings(max_rows=9, min_rows=0), 3, CPU)
    pad, code, other = vocabulary.audio_pad(0), vocabulary.audio_pad(0) + 2, vocabulary.audio_pad(1) + 2
    rules.settle(0, torch.tensor([[code, other]] * 3), [code] * 3)
    rules.settle(1, torch.tensor([[code, other], [pad, other], [code, other]]), [code, pad, code])
    assert [allowed_ids(rules, 2, clip)[0] == [EOS, EOT] for clip in range(3)] == [False, True, False]
    rules.select(torch.tensor([1, 2]))
    assert [allowed_ids(rules, 2, clip)[0] == [EOS, EOT] for clip in range(2)] == [True, False]


def test_official_audio_masks_allow_pads_anywhere() -> None:
    vocabulary = Vocabulary(text_size=10, num_codebooks=3, codebook_size=4)
    rules = AudioRules(vocabulary, get_pattern("delay"), DecodeSettings(max_rows=9, min_rows=2), CPU)
    assert rules.limit == 9
    for row in range(4):
        ends = [EOS, EOT] if row >= 2 else []
        assert allowed_ids(rules, row) == [
            [*range(vocabulary.audio_pad(k), vocabulary.audio_pad(k) + 5), *(ends if k == 0 else [])] for k in range(3)
        ]


def test_a_stop_inside_the_tail_loses_frames_under_the_official_masks_only() -> None:
    """Upstream does not enforce the delay's pads: END may come before the tail is complete (spec 4.6, 11.8)."""
    vocabulary = Vocabulary(text_size=10, num_codebooks=3, codebook_size=4)
    delay, settings = get_pattern("delay"), DecodeSettings(max_rows=40, min_rows=0)
    assert GenerationSettings().enforce_pads, "the better behaviour is the default"
    codes = np.random.default_rng(0).integers(0, 4, (5, 3))
    truth = apply(delay, codes, vocabulary)
    official = AudioRules(vocabulary, delay, settings, CPU)
    ours = PatternRules(vocabulary, delay, settings, 1, CPU)
    for row, wanted in enumerate(truth):
        if row > len(codes):  # the clip's first pad is drawn: the tail has begun
            assert EOS in allowed_ids(official, row)[0]
            assert len(revert(delay, truth[:row], vocabulary)) == row - 2 < len(codes)
            assert EOS not in allowed_ids(ours, row)[0]
        ours.settle(row, torch.from_numpy(wanted[None]), [int(wanted[0])])
    assert allowed_ids(ours, len(truth))[0] == [EOS, EOT]
    assert np.array_equal(revert(delay, truth, vocabulary), codes)


def test_official_masks_of_a_flattened_grid_follow_the_codebook_of_the_row() -> None:
    vocabulary = Vocabulary(text_size=10, num_codebooks=3, codebook_size=4)
    rules = AudioRules(vocabulary, get_pattern("flatten"), DecodeSettings(max_rows=9, min_rows=9), CPU)
    for row in range(7):
        first = vocabulary.audio_pad(row % 3)
        assert allowed_ids(rules, row) == [[*range(first, first + 5)]]


def test_text_ids_without_a_token_are_never_drawn() -> None:
    """The official mask allows the whole text block (spec section 4.6): 267 of the released ids have no token."""
    vocabulary = Vocabulary(text_size=10, num_codebooks=2, codebook_size=4)
    common = {"num_tokens": 7, "num_clips": 1, "device": CPU}
    for unused, count in ((False, 7), (True, 10)):
        decode_settings = GenerationSettings(unused_text_ids=unused)
        decode_settings.text.min_rows = 1
        rules = segment_rules("text", vocabulary, get_pattern("delay"), decode_settings, **common)
        assert allowed_ids(rules, 0) == [[*range(256, 256 + count)]]
        assert allowed_ids(rules, 1) == [[*range(256, 256 + count), EOS, EOT]]


def test_text_rows_hold_padding_in_the_other_streams() -> None:
    vocabulary = Vocabulary(text_size=10, num_codebooks=3, codebook_size=4)
    rules = TextRules(vocabulary, 7, 3, DecodeSettings(), CPU)
    assert rules.settle(0, torch.tensor([[257], [EOT]]), [257, EOT]).tolist() == [[257, 0, 0], [EOT, 0, 0]]


def test_the_pattern_rules_are_the_default() -> None:
    vocabulary = Vocabulary(text_size=10, num_codebooks=3, codebook_size=4)
    common = {"num_tokens": 7, "num_clips": 1, "device": CPU}
    enforced = segment_rules("audio", vocabulary, get_pattern("delay"), GenerationSettings(), **common)
    official = GenerationSettings(enforce_pads=False)
    assert isinstance(enforced, PatternRules)
    assert type(segment_rules("audio", vocabulary, get_pattern("delay"), official, **common)) is AudioRules
