from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from rough import check_within_rounding

from bagpiper.errors import UserError
from bagpiper.inference.generate import Answer, Step, generate
from bagpiper.language.conversation import Clip, Conversation, Message
from bagpiper.language.patterns import PATTERNS, apply
from bagpiper.language.vocabulary import ASSISTANT, AUDIO, EOS, EOT, PAD, TEXT
from bagpiper.model import Bagpiper
from bagpiper.recipe.settings import DecodeSettings, GenerationSettings
from bagpiper.token_rows import TokenRows

IMAGE, VIDEO, TOOLCALL = 9, 10, 11
Build = Callable[..., Bagpiper]


def decode_settings(temperature: float = 0.0, cfg: float = 1.0, **others: object) -> GenerationSettings:
    made = GenerationSettings(
        text=DecodeSettings(temperature=temperature, max_rows=9, min_rows=1),
        audio=DecodeSettings(temperature=temperature, cfg=cfg, max_rows=12, min_rows=3),
    )
    return dataclasses.replace(made, **others)  # type: ignore[arg-type]


def ask(text: str, number: int = 0) -> Conversation:
    return Conversation(f"ask{number}", (Message("user", "text", text),))


@pytest.fixture
def requests(tone: np.ndarray) -> list[Conversation]:
    """Prompts of many lengths, some heard."""
    clip = Message("user", "audio", Clip(samples=tone, sample_rate=16000))
    short = Message("user", "audio", Clip(samples=tone[:3000], sample_rate=16000))
    return [
        ask("a long request, is it not?", 0),
        Conversation("heard", (clip, Message("user", "text", "what is it?"))),
        ask("x", 1),
        Conversation("short", (short,)),
        Conversation("system", (Message("system", "text", "be brief"), Message("user", "text", "hm"))),
    ]


class Watch:
    """Keeps the masked logits of every conversation."""

    def __init__(self) -> None:
        self.logits: dict[int, list[torch.Tensor]] = {}
        self.steps: list[Step] = []

    def __call__(self, step: Step) -> None:
        self.steps.append(step)
        for conversation, logits in zip(step.conversations, step.logits, strict=True):
            self.logits.setdefault(conversation, []).append(logits)


def bias(model: Bagpiper, monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Add to the logits of ids in stream 0."""
    plain = model.head.logits

    def biased(
        hidden: torch.Tensor, rows: TokenRows, num_streams: int | None = None, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits = plain(hidden, rows, num_streams, ids)
        for token, value in values.items():
            logits[:, 0, token] += value
        return logits

    monkeypatch.setattr(model.head, "logits", biased)


def balance(model: Bagpiper, monkeypatch: pytest.MonkeyPatch, requests: Sequence[Conversation]) -> None:
    """Shift the score of text so that some of these text requests are answered in audio, and none within rounding."""
    scores = torch.stack([full_logits(model, sequence(model, request))[-1, 0] for request in requests])
    leads = (scores[:, AUDIO] - scores[:, TEXT]).sort().values
    place = int(leads.diff().argmax())
    bias(model, monkeypatch, {TEXT: float(leads[place : place + 2].mean())})


def full_logits(model: Bagpiper, rows: np.ndarray) -> torch.Tensor:
    """Logits ``[T, S, V]`` of a whole sequence in one forward pass, without a cache."""
    with torch.no_grad():
        embeds = model.embed_rows(torch.from_numpy(rows))[None]
        return model.logits(model.llm(embeds, torch.arange(len(rows))[None])[0])


def sequence(model: Bagpiper, request: Conversation) -> np.ndarray:
    """Rows of a text request, ``<|assistant|>`` included."""
    grid = model.template.grid(request, next_role="assistant")
    return np.concatenate([grid.ids, control(model, ASSISTANT)])


def control(model: Bagpiper, token: int) -> np.ndarray:
    row = np.full((1, model.template.num_streams), PAD, dtype=np.int64)
    row[0, 0] = token
    return row


def check_logits(step: Step, place: int, expected: torch.Tensor) -> None:
    """Compare a step's logits with raw ones ``[S, V]`` where they are not masked."""
    found = step.logits[place]
    wanted = torch.stack([expected[stream, ids] for stream, ids in enumerate(step.candidates)])
    kept = found > -torch.inf
    assert kept.any(-1).all()
    check_within_rounding(found[kept], wanted[kept])


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("plan", [("text", "audio"), ("audio",), None])
def test_an_answer_does_not_depend_on_its_batch_mates(
    model: Bagpiper,
    monkeypatch: pytest.MonkeyPatch,
    requests: list[Conversation],
    temperature: float,
    plan: Sequence[str] | None,
) -> None:
    balance(model, monkeypatch, [requests[0], requests[2], requests[4]])
    settings = decode_settings(temperature, cfg=3.0)
    seeds = [3, 1, 4, 1, 5]
    together = Watch()
    batch = generate(model, requests, settings, seeds=seeds, plan=plan, on_step=together)  # type: ignore[arg-type]
    if plan is None:
        assert {answer.segments[0].modality for answer in batch} == {"text", "audio"}
    for number, request in enumerate(requests):
        alone = Watch()
        single = generate(model, [request], settings, seeds=[seeds[number]], plan=plan, on_step=alone)[0]  # type: ignore[arg-type]
        assert [s.stop for s in batch[number].segments] == [s.stop for s in single.segments]
        for mine, its in zip(batch[number].segments, single.segments, strict=True):
            assert np.array_equal(mine.rows, its.rows)
        for mine_logits, its_logits in zip(together.logits[number], alone.logits[0], strict=True):
            check_within_rounding(mine_logits, its_logits)


def test_batches_of_any_size_give_the_same_answers(model: Bagpiper, requests: list[Conversation]) -> None:
    settings = decode_settings(1.0, cfg=2.0)
    whole = generate(model, requests, settings, seeds=range(5), plan=["audio"])
    for size in (1, 2, 3):
        parts = generate(
            model, requests, dataclasses.replace(settings, batch_size=size), seeds=range(5), plan=["audio"]
        )
        assert [a.segments[0].rows.tolist() for a in parts] == [a.segments[0].rows.tolist() for a in whole]


def test_conversations_that_end_leave_the_batch(
    model: Bagpiper, monkeypatch: pytest.MonkeyPatch, requests: list[Conversation]
) -> None:
    """The batch shrinks, and the rest of it goes on as if nothing had happened."""
    settings = decode_settings(1.0, cfg=3.0, batch_size=30)
    settings.audio.max_rows = 80
    bias(model, monkeypatch, {model.vocabulary.audio_pad(0): -3.0})  # which would close a clip
    many = [requests[number % 5] for number in range(20)]
    sizes: list[int] = []
    plain = model.extend
    monkeypatch.setattr(model, "extend", lambda cache, *rest: sizes.append(len(cache)) or plain(cache, *rest))
    answers = generate(model, many, settings, seeds=range(20), plan=["audio"])
    lengths = [len(answer.segments[0].rows) for answer in answers]
    assert min(lengths) < max(lengths) / 2
    assert max(sizes) == 40  # two branches
    assert sizes[-1] <= 10
    for number in np.argsort(lengths)[-4:]:
        alone = generate(model, [many[number]], settings, seeds=[number], plan=["audio"])[0]
        assert np.array_equal(alone.segments[0].rows, answers[number].segments[0].rows)


def test_the_seed_decides_a_sampled_answer(model: Bagpiper) -> None:
    settings = decode_settings(1.0)
    settings.audio.max_rows = settings.audio.min_rows = 12
    answers = generate(model, [ask("again")] * 3, settings, seeds=[1, 2, 1], plan=["audio"])
    rows = [answer.segments[0].rows.tolist() for answer in answers]
    assert rows[0] == rows[2] != rows[1]


# -- against the plain forward pass ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_cached_decoding_equals_the_whole_forward_pass(build_model: Build, pattern: str) -> None:
    model = build_model(pattern)
    settings = decode_settings(1.0)
    request = ask("make a sound")
    watch = Watch()
    answer = generate(model, [request], settings, seeds=[0], plan=["text", "audio"], on_step=watch)[0]
    text, audio = answer.segments
    rows = np.concatenate(
        [
            sequence(model, request),
            control(model, TEXT),
            text.rows,
            control(model, ASSISTANT),
            control(model, AUDIO),
            audio.rows,
        ]
    )
    expected = full_logits(model, rows)
    first_text = len(sequence(model, request)) + 1
    first_audio = first_text + len(text.rows) + 2
    assert {step.segment for step in watch.steps} == {0, 1}
    for step in watch.steps:
        start = first_text if step.segment == 0 else first_audio
        check_logits(step, 0, expected[start + step.row - 1])


@pytest.mark.parametrize("keeps_assistant", [True, False])
def test_guidance_mixes_with_a_branch_that_sees_padding(model: Bagpiper, keeps_assistant: bool) -> None:
    """Official code hides ``<|assistant|>`` from the branch without condition although training shows it (spec 4.6)."""
    settings = decode_settings(1.0, cfg=3.0, cfg_keeps_assistant=keeps_assistant)
    request = ask("make a sound")
    watch = Watch()
    answer = generate(model, [request], settings, seeds=[0], plan=["text", "audio"], on_step=watch)[0]
    text, audio = answer.segments
    before = np.concatenate([sequence(model, request), control(model, TEXT), text.rows, control(model, ASSISTANT)])
    said = np.concatenate([control(model, AUDIO), audio.rows])
    empty = np.zeros_like(before)
    if keeps_assistant:
        empty[-1] = before[-1]
    with_condition = full_logits(model, np.concatenate([before, said]))
    without = full_logits(model, np.concatenate([empty, said]))
    steps = [step for step in watch.steps if step.segment == 1]
    assert len(steps) >= 3
    for step in steps:
        place = len(before) + step.row
        check_logits(step, 0, 3.0 * with_condition[place] - 2.0 * without[place])


def test_masks_hold_after_guidance(model: Bagpiper) -> None:
    """-inf mixed by ``3 * cond - 2 * uncond`` is not a number; the masks come after the mix."""
    watch = Watch()
    generate(model, [ask("hm")], decode_settings(1.0, cfg=3.0), seeds=[0], plan=["audio"], on_step=watch)
    pad = model.vocabulary.audio_pad(1)
    for step in watch.steps:
        assert not step.logits.isnan().any()
        forbidden = step.candidates[1] == pad
        assert (step.logits[:, 1, forbidden] == -torch.inf).all()


def test_the_conditional_cache_alone_survives_guidance(model: Bagpiper) -> None:
    """Two audio segments in a row: the second one sees the first under its condition."""
    settings = decode_settings(1.0, cfg=3.0)
    request = ask("two sounds")
    watch = Watch()
    answer = generate(model, [request], settings, seeds=[2], plan=["audio", "text"], on_step=watch)[0]
    audio, text = answer.segments
    said = np.concatenate([control(model, AUDIO), audio.rows])
    before = np.concatenate([sequence(model, request), said, control(model, ASSISTANT), control(model, TEXT)])
    expected = full_logits(model, np.concatenate([before, text.rows]))
    for step in (step for step in watch.steps if step.segment == 1):
        check_logits(step, 0, expected[len(before) + step.row - 1])


# -- how segments end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [("text", "audio"), ("audio", "text")])
@pytest.mark.parametrize("official", [False, True])
def test_a_cut_segment_gets_an_end_row(
    model: Bagpiper, monkeypatch: pytest.MonkeyPatch, plan: tuple[str, str], official: bool
) -> None:
    """Official code feeds the last row of a cut segment again with stream 0 only and writes no END (spec 11.8)."""
    bias(model, monkeypatch, {EOS: -1e3, EOT: -1e3})
    settings = decode_settings(1.0, end_cut_segments=not official, enforce_pads=False)
    request = ask("go")
    watch = Watch()
    answer = generate(model, [request], settings, seeds=[0], plan=plan, on_step=watch)[0]  # type: ignore[arg-type]
    first, second = answer.segments
    limit = getattr(settings, plan[0]).max_rows
    assert first.stop == second.stop == "max_rows"
    if official:
        assert len(first.rows) == limit
        fed = first.rows.copy()
        fed[-1, 1:] = PAD
    else:
        assert first.rows[limit:].tolist() == control(model, EOT).tolist()
        assert second.rows[-1].tolist() == control(model, EOS)[0].tolist()
        fed = first.rows
    tokens = [control(model, TEXT if modality == "text" else AUDIO) for modality in plan]
    before = np.concatenate([sequence(model, request), tokens[0], fed, control(model, ASSISTANT), tokens[1]])
    expected = full_logits(model, np.concatenate([before, second.rows]))
    for step in (step for step in watch.steps if step.segment == 1):
        check_logits(step, 0, expected[len(before) + step.row - 1])


def test_no_end_before_min_rows_and_none_after_max_rows(model: Bagpiper, monkeypatch: pytest.MonkeyPatch) -> None:
    bias(model, monkeypatch, {EOS: 1e3})
    settings = decode_settings()
    settings.text.min_rows = 4
    segment = generate(model, [ask("go")], settings, seeds=[0], plan=["text"])[0].segments[0]
    assert (len(segment.rows), segment.stop) == (5, "eos")
    assert segment.text is not None
    assert len(segment.text) == 4
    settings.text.min_rows = 100
    segment = generate(model, [ask("go")], settings, seeds=[0], plan=["text"])[0].segments[0]
    assert segment.stop == "max_rows"
    assert len(segment.text or "") == 9


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_clips_cut_by_max_rows_hold_whole_frames(
    build_model: Build, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """Without enforced pads a stop in the tail loses frames, or half a clip with coarse_first (spec 4.6)."""
    model = build_model(pattern)
    bias(model, monkeypatch, {EOS: -1e3, EOT: -1e3})
    settings = decode_settings(1.0)
    settings.audio.min_rows = 100
    segment = generate(model, [ask("go")], settings, seeds=[0], plan=["audio"])[0].segments[0]
    assert segment.stop == "max_rows"
    assert segment.codes is not None
    assert len(segment.codes) == model.template.pattern.frames_in(12, 3)
    assert np.array_equal(apply(model.template.pattern, segment.codes, model.vocabulary), segment.rows[:-1])


def test_the_end_row_of_official_masks_keeps_what_was_drawn(model: Bagpiper, monkeypatch: pytest.MonkeyPatch) -> None:
    bias(model, monkeypatch, {EOS: 1e3})
    settings = decode_settings(1.0, enforce_pads=False)
    rows = generate(model, [ask("go")], settings, seeds=[0], plan=["audio"])[0].segments[0].rows
    assert rows[-1, 0] == EOS
    assert (rows[-1, 1:] >= model.vocabulary.audio_start).all()


# -- which modality ----------------------------------------------------------------------------------------------------


def test_free_choice_never_picks_image_video_or_toolcall(model: Bagpiper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Official code takes the arg-max of five modality tokens and has masks for two of them (golden quirk 7)."""
    requests = [ask(letter, number) for number, letter in enumerate("abcdefgh")]
    balance(model, monkeypatch, requests)
    settings = decode_settings(max_segments=1)
    chosen = [answer.segments[0].modality for answer in generate(model, requests, settings, seeds=range(8))]
    for request, modality in zip(requests, chosen, strict=True):
        scores = full_logits(model, sequence(model, request))[-1, 0]
        assert modality == ("audio" if scores[AUDIO] > scores[TEXT] else "text")
    assert set(chosen) == {"text", "audio"}
    bias(model, monkeypatch, {IMAGE: 1e3, VIDEO: 1e3, TOOLCALL: 1e3})
    tempted = generate(model, requests, settings, seeds=range(8))
    assert [answer.segments[0].modality for answer in tempted] == chosen


def test_an_answer_goes_on_after_eot_and_stops_after_eos(model: Bagpiper, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        bias(model, patch, {EOT: 1e3})
        assert len(generate(model, [ask("go")], decode_settings(), seeds=[0])[0].segments) == 8
        assert len(generate(model, [ask("go")], decode_settings(max_segments=3), seeds=[0])[0].segments) == 3
        beyond = generate(model, [ask("go")], decode_settings(max_segments=3), seeds=[0], plan=["text"])[0]
        assert [segment.stop for segment in beyond.segments] == ["eot"] * 3
        assert len(generate(model, [ask("go")], decode_settings(), seeds=[0], plan=["text"])[0].segments) == 1
    bias(model, monkeypatch, {EOS: 1e3})
    assert len(generate(model, [ask("go")], decode_settings(), seeds=[0])[0].segments) == 1
    planned = generate(model, [ask("go")], decode_settings(), seeds=[0], plan=["text", "audio", "text"])[0]
    assert [segment.modality for segment in planned.segments] == ["text", "audio", "text"]
    assert [segment.stop for segment in planned.segments] == ["eos"] * 3


# -- answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_is_a_conversation(model: Bagpiper) -> None:
    request = ask("go")
    answer = generate(model, [request], decode_settings(), seeds=[0], plan=["text", "audio"])[0]
    assert isinstance(answer, Answer)
    assert answer.conversation.messages[:1] == request.messages
    text, audio = answer.conversation.messages[1:]
    assert (text.role, text.text) == ("assistant", answer.text)
    assert text.text == answer.segments[0].text
    assert audio.is_spoken
    codes = answer.segments[1].codes
    assert codes is not None
    assert audio.clip.sample_rate == 16000
    assert audio.clip.samples is not None
    assert np.array_equal(audio.clip.samples, np.repeat(codes[:, 0] / 7, 640).astype(np.float32))
    # the next turn of the same conversation: what was said is part of the prompt
    more = dataclasses.replace(
        answer.conversation, messages=(*answer.conversation.messages, Message("user", "text", "and now?"))
    )
    assert len(generate(model, [more], decode_settings(), seeds=[0], plan=["text"])[0].conversation.messages) == 5


def test_the_system_prompt_comes_first_but_never_twice(model: Bagpiper, requests: list[Conversation]) -> None:
    settings = decode_settings(system_prompt="you are a bagpipe")
    plain, own = requests[2], requests[4]
    answers = generate(model, [plain, own], settings, seeds=[0, 1], plan=["text"])
    assert answers[0].conversation.messages[0] == Message("system", "text", "you are a bagpipe")
    assert answers[1].conversation.messages[:2] == own.messages
    by_hand = Conversation("x", (Message("system", "text", "you are a bagpipe"), *plain.messages))
    expected = generate(model, [by_hand], decode_settings(), seeds=[0], plan=["text"])[0]
    assert np.array_equal(answers[0].segments[0].rows, expected.segments[0].rows)


def test_generating_changes_nothing(model: Bagpiper, requests: list[Conversation]) -> None:
    model.train()
    model.adaptor.eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(7)
    np.random.seed(7)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    generate(model, requests, decode_settings(1.0, cfg=2.0), seeds=range(5))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_nothing_asked_nothing_answered(model: Bagpiper) -> None:
    assert generate(model, [], decode_settings(), seeds=[]) == []


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1, 2]}, "1 conversations need as many seeds, got 2"),
        ({"seeds": [-1]}, "seeds must not be negative, got -1"),
        ({"plan": ["image"]}, r"plan \['image'\] may hold text, audio only"),
        ({"cfg": 0.5}, "audio.cfg must be at least 1"),
        ({"temperature": -1.0}, "temperature and top_k must not be negative"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_segments": 0}, "max_segments must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work(model: Bagpiper, change: dict[str, object], message: str) -> None:
    arguments = {"seeds": [0], "plan": None} | {key: change.pop(key) for key in ("seeds", "plan") if key in change}
    with pytest.raises(UserError, match=message):
        generate(model, [ask("go")], decode_settings(**change), **arguments)  # type: ignore[arg-type]


def test_clips_that_cannot_be_heard(model: Bagpiper, tone: np.ndarray) -> None:
    def hear(samples: np.ndarray, rate: int = 16000) -> None:
        request = Conversation("bad", (Message("user", "audio", Clip(samples=samples, sample_rate=rate)),))
        generate(model, [request], decode_settings(), seeds=[0], plan=["text"])

    with pytest.raises(UserError, match="too short"):
        hear(tone[:1])
    with pytest.raises(UserError, match="longer than 30 s; cut it, or raise generation.max_seconds"):
        hear(np.zeros(30 * 16000 + 1, dtype=np.float32))
    with pytest.raises(UserError, match="finite"):
        hear(np.full(8000, np.nan, dtype=np.float32))
    with pytest.raises(UserError, match="one clip at a time"):
        hear(np.zeros((2, 2, 8000), dtype=np.float32))
    hear(np.repeat(tone, 3), 48000)
