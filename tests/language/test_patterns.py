"""Codebook patterns: revert(apply(x)) == x and where the pads are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bagpiper.language.patterns import PATTERNS, apply, get_pattern, revert
from bagpiper.language.vocabulary import Vocabulary


@given(st.sampled_from(sorted(PATTERNS)), st.integers(0, 40), st.integers(1, 8), st.integers(1, 50), st.randoms())
def test_round_trip(name, num_frames, num_codebooks, codebook_size, random):
    vocabulary = Vocabulary(11, num_codebooks, codebook_size)
    codes = np.array(
        [[random.randrange(codebook_size) for _ in range(num_codebooks)] for _ in range(num_frames)], dtype=np.int64
    ).reshape(num_frames, num_codebooks)
    pattern = get_pattern(name)
    ids = apply(pattern, codes, vocabulary)
    assert ids.shape == (pattern.rows(num_frames, num_codebooks), pattern.streams(num_codebooks))
    assert np.array_equal(revert(pattern, ids, vocabulary), codes)
    # every id lies in the audio block, and exactly the cells without a code hold a pad
    frames, _ = pattern.layout(num_frames, num_codebooks)
    is_pad = (ids - vocabulary.audio_start) % vocabulary.interval == 0
    assert np.array_equal(is_pad, frames < 0)


@given(st.sampled_from(sorted(PATTERNS)), st.integers(1, 30), st.integers(1, 8))
def test_open_cells_agree_with_the_layout(name, num_frames, num_codebooks):
    """While the clip goes on, the cells that hold a code are those of the layout of a longer clip."""
    pattern = get_pattern(name)
    frames, _ = pattern.layout(num_frames, num_codebooks)
    for row in range(num_frames):
        assert np.array_equal(pattern.open_cells(row, num_codebooks), frames[row] >= 0)


@pytest.mark.parametrize("num_frames", [1, 7, 50])
def test_delay_of_the_released_model(num_frames):
    vocabulary = Vocabulary(151_936, 8, 1024)
    codes = np.arange(num_frames)[:, None] + np.zeros(8, dtype=np.int64)
    ids = apply(get_pattern("delay"), codes, vocabulary)
    assert ids.shape == (num_frames + 7, 8)
    for stream in range(8):
        column = ids[:, stream]
        assert (column[stream : stream + num_frames] == vocabulary.audio_pad(stream) + 1 + np.arange(num_frames)).all()
        outside = np.r_[column[:stream], column[stream + num_frames :]]
        assert (outside == vocabulary.audio_pad(stream)).all()


def test_truncated_rows_lose_only_unfinished_frames():
    vocabulary = Vocabulary(5, 4, 16)
    codes = np.arange(24).reshape(6, 4) % 16
    ids = apply(get_pattern("delay"), codes, vocabulary)
    assert np.array_equal(revert(get_pattern("delay"), ids[:7], vocabulary), codes[:4])
    assert revert(get_pattern("delay"), ids[:3], vocabulary).shape == (0, 4)


def test_wrong_codes_are_refused():
    vocabulary = Vocabulary(5, 4, 16)
    with pytest.raises(ValueError, match="4 codebooks"):
        apply(get_pattern("delay"), np.zeros((3, 5), dtype=np.int64), vocabulary)
    with pytest.raises(ValueError, match="a codebook has 16"):
        apply(get_pattern("delay"), np.full((3, 4), 16), vocabulary)
    with pytest.raises(ValueError, match="allowed: delay"):
        get_pattern("delayed")
