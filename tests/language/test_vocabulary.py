"""The joint vocabulary against the numbers of the released checkpoints (spec sections 1 and 12)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bagpiper.language.vocabulary import Vocabulary

RELEASED = Vocabulary(text_size=151_936, num_codebooks=8, codebook_size=1024)


def test_released_layout():
    assert RELEASED.size == 160_392
    assert RELEASED.audio_start == 152_192
    pads = [RELEASED.audio_pad(n) for n in range(8)]
    assert pads == [152192, 153217, 154242, 155267, 156292, 157317, 158342, 159367]
    assert int(RELEASED.text_to_ids(np.array([151_667]))[0]) == 151_923  # <think>
    assert RELEASED.token_weights((0.125,) * 8).sum() == 153_217.0
    assert RELEASED.name_of(152_193 + 1025) == "<codec_layer1_0>"
    assert RELEASED.name_of(152_192) == "<codec_layer0_pad>"


def test_text_id_zero_is_not_lost_to_pad():
    """The official preprocessing leaves text id 0 (``!``) at 0, which is pad, and never trains it."""
    assert RELEASED.text_to_ids(np.array([0, 5])).tolist() == [256, 261]
    official = Vocabulary(text_size=151_936, num_codebooks=8, codebook_size=1024, text_zero_is_pad=True)
    assert official.text_to_ids(np.array([0, 5])).tolist() == [0, 261]


def test_fingerprint_sees_everything():
    """A vocabulary that moved with the key order of a YAML file trained at a loss of 55.73 instead of 2.10."""
    base = {"tokenizer": "t", "codec": "c", "pattern": "delay", "stream_weights": (0.125,) * 8}
    prints = {RELEASED.fingerprint(**base)}
    for change in ({"tokenizer": "u"}, {"codec": "d"}, {"pattern": "parallel"}, {"stream_weights": (0.1,) * 8}):
        prints.add(RELEASED.fingerprint(**{**base, **change}))
    prints.add(Vocabulary(151_936, 8, 1023).fingerprint(**base))
    prints.add(Vocabulary(151_936, 8, 1024, text_zero_is_pad=True).fingerprint(**base))
    assert len(prints) == 7


@given(st.integers(1, 500), st.integers(1, 9), st.integers(1, 300), st.data())
def test_codes_round_trip(text_size, num_codebooks, codebook_size, data):
    vocabulary = Vocabulary(text_size, num_codebooks, codebook_size)
    codebooks = np.array(data.draw(st.lists(st.integers(0, num_codebooks - 1), min_size=1, max_size=20)))
    codes = np.array([data.draw(st.integers(0, codebook_size - 1)) for _ in codebooks])
    ids = vocabulary.codes_to_ids(codes, codebooks)
    assert ids.max() < vocabulary.size
    assert np.array_equal(vocabulary.ids_to_codes(ids, codebooks), codes)
    assert not len(vocabulary.ids_to_text(ids))


@given(st.integers(1, 50), st.integers(1, 4), st.integers(1, 30), st.data())
def test_no_id_is_made_beyond_its_block(text_size, num_codebooks, codebook_size, data):
    """A tokenizer with more tokens than the LLM has rows once turned text into codes: it trained as sound, exit 0."""
    vocabulary = Vocabulary(text_size, num_codebooks, codebook_size)
    beyond = st.one_of(st.integers(-300, -1), st.integers(0, 300))
    token, code, codebook = data.draw(beyond), data.draw(beyond), data.draw(beyond)
    kind_of = vocabulary.name_of
    if 0 <= token < text_size:
        assert kind_of(int(vocabulary.text_to_ids(np.array([token]))[0])) == f"text:{token}"
    else:
        with pytest.raises(
            ValueError, match=f"tokens from {token} to {token} do not fit: the text block has {text_size}"
        ):
            vocabulary.text_to_ids(np.array([token]))
    if 0 <= code < codebook_size and 0 <= codebook < num_codebooks:
        made = vocabulary.codes_to_ids(np.array([code]), np.array([codebook]))
        assert kind_of(int(made[0])) == f"<codec_layer{codebook}_{code}>"
    else:
        with pytest.raises(ValueError, match="do not fit"):
            vocabulary.codes_to_ids(np.array([code]), np.array([codebook]))


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="codebook_size must be at least 1"):
        Vocabulary(10, 1, 0)
