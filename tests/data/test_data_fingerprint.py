"""What a checkpoint remembers of the data, and what of it may be another when a run goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from bagpiper.data.examples import Example
from bagpiper.data.layout import Layout
from bagpiper.data.module import PackDataModule
from bagpiper.errors import UserError
from bagpiper.language.conversation import Message
from bagpiper.recipe.settings import DataSettings

Make = Callable[..., PackDataModule]


@pytest.fixture
def examples(folder: Any, rows: Any) -> list[Example]:
    """Heard and spoken clips in turn, and texts of one length."""
    clips = [folder.clip(f"{number}.wav") for number in range(2)]
    made = [rows["heard" if n % 2 else "spoken"](f"e{n}", clips[n % 2], f"tone number {n}") for n in range(6)]
    return folder.read(folder.manifest(made))


@pytest.fixture
def make(folder: Any, examples: list[Example]) -> Make:
    """Builds data modules; what they tell is appended to ``said``."""
    cache = folder.cache(examples)

    def build(train: Sequence[Example] = examples, said: list[str] | None = None, **changes: Any) -> PackDataModule:
        layout = Layout(folder.template, folder.encoder, folder.adaptor, folder.codec, cache)
        arguments = {"valid": examples[:2], "seed": 5, **changes}
        tell = said.append if said is not None else None
        settings = DataSettings(token_budget=160, workers=0)
        return PackDataModule(train, layout=layout, settings=settings, tell=tell, **arguments)

    return build


def with_message(example: Example, number: int, **changes: Any) -> Example:
    """An example with one message changed."""
    messages = list(example.conversation.messages)
    messages[number] = replace(messages[number], **changes)
    return replace(example, conversation=replace(example.conversation, messages=tuple(messages)))


def with_clip(example: Example, number: int) -> Example:
    """An example whose clip has another content and the same length."""
    changed = replace(example.clips[number], sha256="0" * 64)
    return replace(example, clips={**example.clips, number: changed})


def as_two_messages(example: Example) -> Example:
    """The same letters in two messages as in one before."""
    (first, reply) = example.conversation.messages
    halves = [Message("user", "text", first.text[:4]), Message("user", "text", first.text[4:])]
    return replace(
        example,
        conversation=replace(example.conversation, messages=(*halves, reply)),
        clips={number + 1: clip for number, clip in example.clips.items()},
    )


CHANGES: dict[str, Callable[[list[Example]], list[Example]]] = {
    "a caption of equal length": lambda e: [*e[:1], with_message(e[1], 1, content="tone number 9"), *e[2:]],
    "two captions exchanged": lambda e: [
        with_message(e[0], 0, content="tone number 2"),
        e[1],
        with_message(e[2], 0, content="tone number 0"),
        *e[3:],
    ],
    "the case of a letter": lambda e: [*e[:1], with_message(e[1], 1, content="Tone number 1"), *e[2:]],
    "a role": lambda e: [with_message(e[0], 0, role="system"), *e[1:]],
    "a loss flag": lambda e: [with_message(e[0], 0, loss=True), *e[1:]],
    "a loss flag that says what the recipe says": lambda e: [with_message(e[0], 1, loss=True), *e[1:]],
    "one message cut in two": lambda e: [as_two_messages(e[0]), *e[1:]],
    "a clip that is heard": lambda e: [*e[:1], with_clip(e[1], 0), *e[2:]],
    "a clip that is spoken": lambda e: [with_clip(e[0], 1), *e[1:]],
    "an id": lambda e: [replace(e[0], conversation=replace(e[0].conversation, id="x")), *e[1:]],
    "the order": lambda e: e[::-1],
    "the weight of a source": lambda e: [replace(e[0], weight=2.0), *e[1:]],
    "an example less": lambda e: e[1:],
    "an example twice": lambda e: [*e, e[0]],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_other_training_data(
    change: str, make: Make, examples: list[Example], folder: Any
) -> None:
    """Texts, roles and loss flags were left out once: captions changed to others of equal length went through."""
    state = make().state_dict()
    changed = CHANGES[change](list(examples))
    folder.cache(changed)
    with pytest.raises(UserError, match=r"training data is not that of the checkpoint.*start_from="):
        make(changed).load_state_dict(state)


def test_what_no_step_follows_from_may_change(make: Make, examples: list[Example]) -> None:
    state = make().state_dict()
    moved = [
        replace(
            example,
            source="renamed",
            where="elsewhere:1",
            conversation=replace(example.conversation, meta={"licence": "CC0"}),
            clips={n: replace(clip, path=f"/moved{clip.path}") for n, clip in example.clips.items()},
        )
        for example in examples
    ]
    said: list[str] = []
    make(moved, said).load_state_dict(state)
    assert said == []


def test_checkpoints_of_before_go_on_by_the_first_fingerprint(make: Make, examples: list[Example]) -> None:
    """Which knew ids and clips alone; from the next checkpoint on the run has the second."""
    state = make().state_dict()
    old = {
        "position": 3,
        "world": 1,
        "starts": state["starts"],
        # as the release of before wrote it for these very examples, but for the folder's clips
        "fingerprint": make()._first_fingerprint(),
    }
    module = make()
    module.load_state_dict(old)
    assert module.position == 3 and module.state_dict()["fingerprint"] == state["fingerprint"] != old["fingerprint"]
    with pytest.raises(UserError, match="not that of the checkpoint"):
        make([*examples[:1], with_clip(examples[1], 0), *examples[2:]]).load_state_dict(old)


def test_the_first_fingerprint_is_what_it_was(make: Make, examples: list[Example]) -> None:
    import hashlib

    module = make()
    digest = hashlib.sha256(f"{module._stream.fingerprint()} soxr".encode())
    for example in examples:
        digest.update(repr((example.conversation.id, [clip.sha256 for clip in example.clips.values()])).encode())
    assert module._first_fingerprint() == digest.hexdigest()


def test_other_validation_data_are_allowed_and_told(make: Make, examples: list[Example]) -> None:
    """Nothing is trained on them; only their losses are others from here on."""
    state = make().state_dict()
    for valid in (examples[:1], [with_message(examples[0], 0, content="tone number 7"), examples[1]], []):
        said: list[str] = []
        make(said=said, valid=valid).load_state_dict(state)
        assert len(said) == 1 and "validation examples are not those of before" in said[0]
    del state["valid_fingerprint"]  # a checkpoint of before
    said = []
    make(said=said, valid=[]).load_state_dict(state)
    assert said == []


def test_another_number_of_ranks_is_allowed_and_told(make: Make) -> None:
    one = make(accumulate=2)
    one.position = 5
    said: list[str] = []
    ranks = [make(said=said, accumulate=2, rank=rank, world=2) for rank in range(2)]
    for module in ranks:
        module.load_state_dict(one.state_dict())
    assert said == [
        "ranks: 2 instead of 1; packs in a step: 4 instead of 2; "
        "packs of the last step that are trained on once more: 1"
    ]
    said.clear()
    make(said=said, accumulate=2, rank=0, world=2).load_state_dict(ranks[0].state_dict())
    assert said == []


def test_the_state_still_loads_without_pickle(make: Make, tmp_path: Any) -> None:
    torch.save(make().state_dict(), tmp_path / "state.pt")
    make().load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
