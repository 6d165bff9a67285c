"""The text tokenizer: lossless, never cuts, never parses content as control tokens."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from bagpiper.llms.tokenizer import TextTokenizer

TEXTS = ["a low hum, then a short bright tone", "a dog barks twice; rain in the background"] * 5
TRAINED = TextTokenizer.train_bpe(TEXTS, 300)


def with_added_tokens(**extra: object) -> TextTokenizer:
    """The trained tokenizer with Qwen's kind of added tokens: two special, one ordinary."""
    folder_json = json.loads(TRAINED._json)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for token, special in (("<|im_start|>", True), ("<|im_end|>", True), ("<think>", False)):
        number = TRAINED.size + len(folder_json["added_tokens"])
        folder_json["added_tokens"].append({"id": number, "content": token, "special": special, **flags})
    return TextTokenizer(json.dumps({**folder_json, **extra}))


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_round_trip_of_any_text(text: str) -> None:
    assert TRAINED.decode(TRAINED.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<|im_start|>", "<|im_end|>", "<think>", "x", " ", "é", "\n"])).map("".join))
def test_round_trip_of_texts_that_spell_added_tokens(text: str) -> None:
    tokenizer = with_added_tokens()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_in_content_are_text_but_think_is_one_token() -> None:
    """The official preprocessing parses ``<|im_end|>`` inside a caption as the control token."""
    tokenizer = with_added_tokens()
    assert tokenizer.size == TRAINED.size + 3
    control = {TRAINED.size, TRAINED.size + 1}
    assert not control & set(tokenizer.encode("say <|im_start|>user<|im_end|> now"))
    assert tokenizer.encode("<think>") == [TRAINED.size + 2]
    # the model may still produce them, and then they show
    assert tokenizer.decode([TRAINED.size, *tokenizer.encode("hi"), TRAINED.size + 1]) == "<|im_start|>hi<|im_end|>"


def test_long_texts_are_never_cut_or_padded() -> None:
    """Past defect (spec section 2.1): the official preprocessing tokenises with truncation on."""
    limits = {
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
    }
    tokenizer = with_added_tokens(**limits)
    text = "a low hum " * 500
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("a") == TRAINED.encode("a")
    assert tokenizer.hash() == with_added_tokens().hash()


def test_ids_without_a_token_show_by_name() -> None:
    ids = [*TRAINED.encode("so"), TRAINED.size + 7, *TRAINED.encode(" é")]
    assert TRAINED.decode(ids) == f"so<unused_{TRAINED.size + 7}> é"
    assert TRAINED.decode([]) == ""
    assert TRAINED.decode(np.asarray(TRAINED.encode("numpy"))) == "numpy"


def test_training_is_deterministic_and_keeps_all_bytes() -> None:
    assert {TextTokenizer.train_bpe(TEXTS, 300).hash() for _ in range(5)} == {TRAINED.hash()}
    assert TRAINED.size == 300
    assert TextTokenizer.train_bpe([], 256).size == 256
    assert len(TRAINED.encode("a low hum")) < len("a low hum")
    with pytest.raises(ValueError, match="at least 256"):
        TextTokenizer.train_bpe(TEXTS, 100)


def test_save_load_and_pickle_keep_the_hash(tmp_path: Path) -> None:
    tokenizer = with_added_tokens()
    tokenizer.save(tmp_path)
    for copy in (TextTokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.hash() == tokenizer.hash()
        assert copy.encode("<think> hum <|im_end|>") == tokenizer.encode("<think> hum <|im_end|>")
    assert tokenizer.hash() != TRAINED.hash()


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        TextTokenizer.load(tmp_path)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        TRAINED.encode("half \ud800 of a pair")


def test_a_caller_cannot_change_the_cache() -> None:
    TRAINED.encode("cached text").clear()
    assert TRAINED.decode(TRAINED.encode("cached text")) == "cached text"


@pytest.mark.golden
def test_ids_equal_the_official_preprocessing(golden: Path) -> None:
    """Every text-only example; ``<think>`` and ``</think>`` are single ids there too."""
    tokenizer = TextTokenizer.from_transformers(str(golden / "llm"))
    added = json.loads((golden / "llm" / "tokenizer.json").read_text())["added_tokens"]
    ids_of = {token["content"]: token["id"] for token in added}
    assert tokenizer.encode("<think></think>") == [ids_of["<think>"], ids_of["</think>"]]
    recorded = np.load(golden / "preprocess.npz")
    compared = 0
    for line in (golden / "dialogues.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["task"] != "text_only":
            continue
        ids = recorded[f"ex/{row['example_id']}/sequence"][3:-1, 0] - 256
        assert tokenizer.encode(row["text1"]) == ids.tolist()
        assert tokenizer.decode(ids) == row["text1"]
        compared += 1
    assert compared


def test_the_same_text_has_the_same_ids_though_the_tokenizer_drops_merges() -> None:
    """With BPE dropout lengths changed with every start, and a resumed run was refused."""
    record = json.loads(TRAINED._json)
    record["model"]["dropout"] = 0.5
    tokenizer = TextTokenizer(json.dumps(record))
    assert [tokenizer._encode(TEXTS[0]) for _ in range(20)] == [tokenizer._encode(TEXTS[0])] * 20


def test_a_text_that_has_no_ids_is_told() -> None:
    """A word tokenizer without a token for unknown words raised a bare Exception."""
    words = Tokenizer(models.WordLevel({"rain": 0}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="the tokenizer has no ids for 'snow'"):
        TextTokenizer(words.to_str()).encode("snow")
