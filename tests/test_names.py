"""Names for MLflow: legal, and one for each text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

from bagpiper.names import distinct_names

texts = st.lists(st.text("ab1_-. /:#%é训\n") | st.text(min_size=200, max_size=300), min_size=1, max_size=8)


@given(texts)
@example(["..1", "a/..1", "__1"])
def test_mlflow_takes_every_name_and_no_two_are_alike(texts: list[str]) -> None:
    names = distinct_names(texts)
    assert set(names) == set(texts) and len(set(names.values())) == len(names)
    for name in names.values():
        _validate_metric_name(name)
        assert len(name) <= MAX_ENTITY_KEY_LENGTH


@given(texts, texts)
def test_names_once_given_stay(first: list[str], then: list[str]) -> None:
    known = distinct_names(first)
    names = distinct_names(then, known)
    assert known.items() <= names.items() and len(set(names.values())) == len(names)


@pytest.mark.parametrize("text", ["train/loss", "训练", "a b", "lr-AdamW/pg1", "x:y", ".a"])
def test_a_text_that_is_a_name_is_its_own(text: str) -> None:
    assert distinct_names(["a#b", text, "a?b"])[text] == text


def test_without_parts_a_name_is_one_word() -> None:
    assert distinct_names(["a b/c:d", "a_b_c_d", "测试"], parts=False) == {
        "a b/c:d": "a_b_c_d-2",
        "a_b_c_d": "a_b_c_d",
        "测试": "测试",
    }
