"""The template, the loss mask and condition dropout, by hand (tests/golden holds them against the official code)."""

import json

import numpy as np
import pytest

from bagpiper.language.conversation import Clip, Conversation, Message, Template, drop_condition, from_json, to_json
from bagpiper.language.patterns import get_pattern
from bagpiper.language.vocabulary import ASSISTANT, AUDIO, BOS, EOS, EOT, SYSTEM, TEXT, USER, Vocabulary

VOCABULARY = Vocabulary(text_size=300, num_codebooks=2, codebook_size=8)
TEMPLATE = Template(VOCABULARY, get_pattern("delay"), lambda text: list(text.encode()), (0.5, 0.5))

CLIP = Clip(path="a.wav")
DIALOGUE = Conversation(
    "d",
    (
        Message("system", "text", "s"),
        Message("user", "audio", CLIP),
        Message("user", "text", "ab"),
        Message("assistant", "text", "c"),
        Message("assistant", "audio", CLIP),
    ),
)


def test_ends_and_length():
    """<|eot|> where the same role goes on, <|eos|> elsewhere; length 1 + sum of (3 + content)."""
    codes = np.array([[1, 2], [3, 4], [5, 6]])
    grid = TEMPLATE.grid(DIALOGUE, codes={4: codes}, states={1: 4})
    first = grid.ids[:, 0].tolist()
    t = VOCABULARY.text_start
    head = [BOS, SYSTEM, TEXT, t + ord("s"), EOS, USER, AUDIO, 0, 0, 0, 0, EOT, USER, TEXT, t + 97, t + 98, EOS]
    a = VOCABULARY.audio_start
    assert first == [*head, ASSISTANT, TEXT, t + 99, EOT, ASSISTANT, AUDIO, a + 2, a + 4, a + 6, a, EOS]
    assert grid.slots[0].start == 7 and grid.slots[0].length == 4 and grid.slots[0].message == 1
    length = TEMPLATE.length(DIALOGUE, text_lengths={0: 1, 2: 2, 3: 1}, frames={4: 3}, states={1: 4})
    assert len(grid) == length == 1 + 5 * 3 + 1 + 4 + 2 + 1 + 4


def test_mask_sums():
    """A row of the assistant weighs 1, be it a text token, a special or a frame; other rows weigh nothing."""
    grid = TEMPLATE.grid(DIALOGUE, codes={4: np.zeros((3, 2), dtype=np.int64)}, states={1: 4})
    start = grid.message_rows[3][0]
    assert (grid.weights[:start] == 0).all()
    assert np.allclose(grid.weights[start:].sum(1), 1.0)
    assert (grid.weights[grid.ids[:, 0] < VOCABULARY.audio_start][:, 1] == 0).all()
    assert grid.num_targets == len(grid) - start


def test_message_loss_overrides_the_region():
    conversation = Conversation(
        "x", (Message("user", "text", "a", loss=True), Message("assistant", "text", "b", loss=False))
    )
    grid = TEMPLATE.grid(conversation)
    assert grid.weights[:, 0].tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 0]


def test_missing_codes_are_named():
    with pytest.raises(ValueError, match="codes of message 5"):
        TEMPLATE.grid(DIALOGUE, states={1: 4})


def test_condition_dropout_keeps_one_message_and_the_length():
    grid = TEMPLATE.grid(DIALOGUE, codes={4: np.ones((3, 2), dtype=np.int64)}, states={1: 4})
    dropped = drop_condition(grid, 4)
    start, stop = grid.message_rows[4]
    assert len(dropped) == len(grid) and dropped.slots == ()
    assert np.array_equal(dropped.ids[start:stop], grid.ids[start:stop])
    assert not dropped.ids[:start].any() and not dropped.weights[:start].any()


def test_condition_dropout_drops_codes_of_other_messages():
    """The official code writes the codes of dropped audio back into its input."""
    two = Conversation("t", (Message("assistant", "audio", CLIP), Message("assistant", "audio", CLIP)))
    codes = {0: np.ones((3, 2), dtype=np.int64), 1: np.ones((3, 2), dtype=np.int64)}
    dropped = drop_condition(TEMPLATE.grid(two, codes=codes), 1)
    assert not dropped.ids[: dropped.message_rows[1][0]].any()


def test_json_round_trip():
    rows = [
        to_json(DIALOGUE),
        {"id": "m", "messages": [{"role": "user", "content": "hi", "loss": True}], "facts": {"a": 1}},
    ]
    for row in rows:
        conversation = from_json(json.loads(json.dumps(row)))
        assert from_json(to_json(conversation)) == conversation
    assert from_json(rows[1]).meta == {"facts": {"a": 1}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": "a.wav", "caption": "x"}, "import-pairs"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "assitant", "content": "x"}]}, "allowed: system, user, assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]}, "a part must be"),
        ({"messages": [{"role": "user"}]}, "string or a list of parts"),
        ({"messages": [{"role": "user", "content": "x", "loss": 1}]}, "true or false"),
        ({"messages": ["hello"]}, "must be an object"),
    ],
)
def test_bad_rows_say_what_and_where(row, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_json(row, "file.jsonl:7")
    assert "file.jsonl:7" in str(caught.value)


BASE64 = "UklGRiQAAABXQVZF" * 10_000
INLINE = {
    "OpenAI": {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
    "an address": {"type": "audio_url", "audio_url": {"url": "https://host/a.wav"}},
    "a data URI": {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{BASE64}"}},
    "a data URI as the path": {"type": "audio", "audio": f"data:audio/wav;base64,{BASE64}"},
    "a short data URI": {"type": "audio", "audio": " DATA:,x"},
    "base64 as the path": {"type": "audio", "audio": BASE64},
    "an address as the path": {"type": "audio", "audio": "S3://bucket/a.wav"},
    "a file's address": {"type": "audio", "audio": "file:///a.wav"},
    "bytes": {"type": "audio", "audio": {"bytes": BASE64, "path": None}},
    "samples": {"type": "audio", "audio": {"array": [0.0] * 10_000, "sampling_rate": 16000}},
    "samples in a list": {"type": "audio", "audio": [0.0] * 10_000},
    "under another key": {"type": "audio", "url": "https://host/a.wav"},
}


@pytest.mark.parametrize("case", INLINE)
def test_inline_audio_is_refused_in_one_short_line(case):
    row = {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, INLINE[case]]}]}
    with pytest.raises(ValueError, match="file.jsonl:7, message 1: audio inside a line, or at an address") as caught:
        from_json(row, "file.jsonl:7")
    assert str(caught.value).endswith("write it to a file and give its path under 'audio'")
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


@pytest.mark.parametrize("path", ["a.wav", "data/a.wav", "C:/a.wav", "c:\\a.wav", "a:b//c.wav", "data", "x" * 4000, ""])
def test_what_may_be_a_path_is_taken_for_one(path):
    (message,) = from_json({"messages": [{"role": "user", "content": [{"type": "audio", "audio": path}]}]}).messages
    assert message.clip.path == path


@pytest.mark.parametrize(
    "part",
    [{"type": "audio"}, {"type": "audio", "audio": None}, {"type": "audio", "audio": 5}, {"type": "x" * 5000}, 3],
)
def test_what_is_no_audio_at_all_is_a_part_that_must_be_otherwise(part):
    with pytest.raises(ValueError, match="a part must be") as caught:
        from_json({"messages": [{"role": "user", "content": [part]}]}, "file.jsonl:7")
    assert len(str(caught.value)) < 300
