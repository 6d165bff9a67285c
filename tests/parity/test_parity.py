"""Parity of every head, codec and pattern on tiny random models; and each comparison fails where it must."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import TEXTS, noise, tiny_codec, tiny_settings
from tiny_codecs import tiny

from bagpiper.component import Codec
from bagpiper.data.audio import inspect_clip
from bagpiper.data.codes import CodeCache, fill_codes
from bagpiper.data.examples import Example, distinct_clips
from bagpiper.data.layout import Layout, Measured
from bagpiper.errors import UserError
from bagpiper.heads.configs import DepthConfig, ParallelConfig
from bagpiper.inference.masks import PatternRules
from bagpiper.language.conversation import Clip, Conversation, Message
from bagpiper.language.patterns import PATTERNS
from bagpiper.llms import lora as lora_module
from bagpiper.llms.cache import KeyValueCache
from bagpiper.llms.configs import LoraSettings
from bagpiper.llms.lora import add_lora
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.model import Bagpiper
from bagpiper.parity import compare as parity
from bagpiper.parity.report import AUTOCAST, BATCH, LIMITS, MERGED, RELOADED, STEP, Comparison, ParityReport
from bagpiper.recipe import registry
from bagpiper.recipe.settings import GenerationSettings

HEADS = {
    "joint": ParallelConfig(),
    "per_codebook": ParallelConfig(audio_softmax="per_codebook"),
    "depth": DepthConfig(width=16, layers=2, heads=2),
}
LORA = LoraSettings(rank=4)


@cache
def codec_of(name: str) -> Codec:
    return tiny_codec(tiny_settings().codec) if name == "rvq" else tiny(name)


@cache
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train_bpe(TEXTS, 300)


def build(
    head: str = "joint", codec: str = "rvq", pattern: str = "delay", lora: LoraSettings | None = None
) -> Bagpiper:
    """A random model whose distributions are far from flat and whose adaptors do something."""
    made = codec_of(codec)
    # with LoRA, matrices that hold several blocks of 4-bit weights (64) in both directions
    llm = {} if lora is None else {"hidden_size": 64, "head_dim": 16, "intermediate_size": 192}
    settings = tiny_settings(head=HEADS[head], codec=made.config, pattern=pattern, llm=llm)
    torch.manual_seed(0)
    model = Bagpiper.build(settings, tokenizer(), codec=copy.deepcopy(made)).eval()
    with torch.no_grad():
        for rows in (model.output_rows.text, model.output_rows.new):
            rows.normal_(std=0.3)
        for name, parameter in model.head.named_parameters():
            if name in ("streams", "outputs"):
                parameter.normal_(std=0.3)
        if lora is not None:
            for name in add_lora(model.llm, lora):
                model.llm.get_parameter(name).normal_(std=0.1)
    return model


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """A clip described, a clip rendered after a thought, and the same with more turns, which parity leaves out."""
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for number, seconds in enumerate((0.31, 0.26)):
        path = folder / f"{number}.wav"
        soundfile.write(path, noise(seconds, number), 16000)
        clip = Message("user", "audio", Clip(path=str(path)))
        spoken = Message("assistant", "audio", Clip(path=str(path)))
        told, asked = Message("assistant", "text", TEXTS[number]), Message("user", "text", TEXTS[number + 1])
        messages = (clip, told, asked, told) if number == 0 else (asked, told, spoken)
        conversation = Conversation(f"example{number}", messages)
        clips = {n: inspect_clip(path) for n, message in enumerate(messages) if message.modality == "audio"}
        made.append(Example(conversation, clips, "test", f"test:{number}"))
    return made


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@dataclasses.dataclass
class Checker:
    """Runs the check on a model."""

    examples: list[Example]
    cache: Path
    workspace: Path

    def layout(self, model: Bagpiper) -> Layout:
        codes = CodeCache(self.cache, model.codec.weights_hash())

        def encode(waves: list[np.ndarray]) -> list[np.ndarray]:
            with torch.no_grad():
                return [c.numpy() for c in model.codec.encode([torch.from_numpy(wave) for wave in waves])]

        fill_codes(codes, distinct_clips(self.examples, spoken=True), model.settings.codec, encode)
        settings = model.settings
        return Layout(model.template, settings.encoder, settings.adaptor, settings.codec, codes)

    def chosen(self, model: Bagpiper) -> tuple[Layout, list[Measured]]:
        layout = self.layout(model)
        return layout, parity.choose_examples(layout, [], self.examples)

    def __call__(
        self, model: Bagpiper, *, lora: LoraSettings | None = None, precision: str = "32-true"
    ) -> ParityReport:
        layout, chosen = self.chosen(model)
        generation = GenerationSettings()
        return parity.check_parity(
            model, layout, chosen, generation=generation, lora=lora, precision=precision, workspace=self.workspace
        )


@pytest.fixture
def check(examples: list[Example], cache_folder: Path, tmp_path: Path) -> Iterator[Checker]:
    workspace = tmp_path / "workspace"
    yield Checker(examples, cache_folder, workspace)
    assert not workspace.exists()


def failed(report: ParityReport) -> list[str]:
    return [comparison.way for comparison in report.comparisons if not comparison.passed]


# flatten has one stream for all codebooks, which the other heads refuse
CASES = [(head, "rvq", pattern) for head in HEADS for pattern in PATTERNS if pattern != "flatten" or head == "joint"]
CASES += [
    ("depth", "encodec", "delay"),
    ("depth", "encodec", "parallel"),
    ("joint", "encodec", "flatten"),
    ("per_codebook", "encodec", "coarse_first"),
    ("joint", "xcodec", "delay"),
    ("depth", "xcodec", "parallel"),
    ("per_codebook", "dac", "delay"),
    ("depth", "dac", "parallel"),
    ("joint", "mimi", "flatten"),
    ("depth", "mimi", "delay"),
]


def test_everything_that_ships_is_a_case() -> None:
    heads, codecs, patterns = (set(column) for column in zip(*CASES, strict=True))
    assert {registry.name_of("head", HEADS[head]) for head in heads} == set(registry.names("head"))
    assert codecs == set(registry.names("codec"))
    assert patterns == set(PATTERNS)
    assert heads == set(HEADS)


@pytest.mark.parametrize(("head", "codec", "pattern"), CASES)
def test_parity_holds(check: Checker, head: str, codec: str, pattern: str) -> None:
    model = build(head, codec, pattern)
    report = check(model)
    assert report.passed, report.as_json()
    assert report.numbers == "float32"
    assert [c.way for c in report.comparisons if c.skipped is None] == [STEP, BATCH, RELOADED]
    assert all(c.differing == 0 for c in report.comparisons)
    _, chosen = check.chosen(model)
    answers = [m.example.conversation.messages[len(m.example.conversation.prompt().messages) :] for m in chosen]
    assert [[m.modality for m in answer] for answer in answers] == [["text"], ["text", "audio"]]
    frames, streams = chosen[1].frames[2], model.template.num_streams
    rows = model.template.pattern.rows(frames, model.vocabulary.num_codebooks)
    texts = [len(tokenizer().encode(answer[0].text)) for answer in answers]
    assert report.ids == sum(texts) + 2 + rows * streams + 1  # one END per segment


@pytest.mark.parametrize("head", ["joint", "depth"])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_parity_holds_with_adaptors(check: Checker, head: str, quantize: str) -> None:
    settings = dataclasses.replace(LORA, quantize=quantize)
    report = check(build(head, lora=settings), lora=settings)
    assert report.passed, report.as_json()
    assert report.numbers == ("float32" if quantize == "none" else "nf4")
    assert [c.way for c in report.comparisons] == [STEP, BATCH, MERGED, RELOADED]
    assert report.comparisons[-1].difference == 0.0  # packed weights are saved as they are
    assert not any(c.skipped for c in report.comparisons)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_bfloat16_weights_and_training_in_bfloat16(check: Checker) -> None:
    report = check(build(), precision="bf16-mixed")
    assert report.passed and report.comparisons[-1].way == AUTOCAST
    assert report.comparisons[-1].difference > 10 * report.comparisons[0].difference
    model = build()
    for part in (model.llm, model.input_rows, model.output_rows, model.head):
        part.bfloat16()
    report = check(model)
    assert report.passed and report.numbers == "bfloat16", report.as_json()


def test_masks_of_the_official_code(check: Checker) -> None:
    model = build()
    layout, chosen = check.chosen(model)
    official = GenerationSettings(enforce_pads=False, unused_text_ids=True)
    report = parity.check_parity(
        model, layout, chosen, generation=official, lora=None, precision="32-true", workspace=check.workspace
    )
    assert report.passed, report.as_json()


def test_the_model_is_left_as_it_was(check: Checker) -> None:
    model = build(lora=LORA).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    check(model, lora=LORA)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any("forward" in vars(module) for module in model.llm.modules())


# -- each comparison can fail ------------------------------------------------------------------------------------------


def test_a_position_off_by_one_in_the_cache(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = KeyValueCache.begin

    def late(self: KeyValueCache, new_lengths: torch.Tensor, width: int) -> torch.Tensor:
        positions = begin(self, new_lengths, width)
        return positions + 1 if width == 1 else positions

    model = build()  # first: the probe of a new LLM would notice as well
    monkeypatch.setattr(KeyValueCache, "begin", late)
    assert failed(check(model)) == [STEP, BATCH]


def test_a_cache_that_forgets_who_is_who(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations that stay are given the keys of those that leave; one alone never notices."""
    select = KeyValueCache.select
    monkeypatch.setattr(
        KeyValueCache, "select", lambda self, rows: select(self, rows.flip(0) if len(self) > 1 else rows)
    )
    assert failed(check(build())) == [BATCH]


def test_ragged_rows_that_see_padding(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shorter prompt of a batch keeps its padding."""

    def careless(self: KeyValueCache) -> None:
        self.lengths = self.lengths + self._new_lengths.max()  # type: ignore[union-attr]
        self._longest = int(self.lengths.max())
        self._new_lengths = self._positions = self.visible = None

    monkeypatch.setattr(KeyValueCache, "commit", careless)
    assert failed(check(build())) == [BATCH]


def test_a_merge_that_is_slightly_wrong(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    merged_layer = lora_module.merged_layer

    def wrong(layer: torch.nn.Module) -> torch.nn.Linear:
        linear = merged_layer(layer)
        linear.weight.data[0, 0] += 0.01
        return linear

    monkeypatch.setattr(lora_module, "merged_layer", wrong)
    assert failed(check(build(lora=LORA), lora=LORA)) == [MERGED]


@pytest.mark.parametrize("name", ["llm.model.norm.weight", "output_rows.new", "adaptor.hidden.weight", "head.outputs"])
def test_an_export_that_loses_something(check: Checker, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    load_model = parity.load_model

    def forgetful(folder: Path, device: torch.device) -> Bagpiper:
        model = load_model(folder, device)
        with torch.no_grad():
            model.get_parameter(name).mul_(1.01)
        return model

    monkeypatch.setattr(parity, "load_model", forgetful)
    assert failed(check(build("depth"))) == [RELOADED]


def test_training_whose_precision_is_lower_than_it_says(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_states = Bagpiper.hidden_states

    def coarse(self: Bagpiper, batch: object) -> torch.Tensor:
        hidden = hidden_states(self, batch)  # type: ignore[arg-type]
        return (hidden * 2).round() / 2 if torch.is_autocast_enabled("cpu") else hidden

    monkeypatch.setattr(Bagpiper, "hidden_states", coarse)
    assert failed(check(build(), precision="bf16-mixed")) == [AUTOCAST]


def test_a_depth_head_that_sees_the_wrong_code(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step it is given the codes of stream 0 for every stream."""
    model = build("depth", "encodec")
    embed = model.head._embed
    monkeypatch.setattr(model.head, "_embed", lambda local, first: embed(local, first=0))
    assert failed(check(model)) == [STEP, BATCH]


def test_masks_that_forbid_what_the_data_holds(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip that may not close where it closes: training would teach what can never be drawn."""
    allowed = PatternRules.allowed

    def stubborn(self: PatternRules, row: int) -> torch.Tensor:
        mask = allowed(self, row).clone()
        mask[..., 0, 0] = False  # the pad of stream 0
        return mask

    monkeypatch.setattr(PatternRules, "allowed", stubborn)
    report = check(build())
    assert failed(report) == [STEP, BATCH]
    assert report.comparisons[0].difference == float("inf")


def test_ids_that_differ_fail_and_ties_do_not() -> None:
    reference = [[torch.tensor([[1.0, 1.0 - 5e-5, -torch.inf]])]]
    judge = parity._Judge(reference, LIMITS["float32"])
    other = judge.forward(STEP, [[torch.tensor([[1.0 - 4e-5, 1.0, -torch.inf]])]])
    assert other.difference < other.limit and other.differing == 1 and not other.passed
    tie = parity._Judge([[torch.tensor([[1.0, 1.0 - 5e-6]])]], LIMITS["float32"])
    assert tie.forward(STEP, [[torch.tensor([[1.0 - 5e-6, 1.0]])]]).passed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2.0])
def test_no_odd_number_passes(value: float) -> None:
    judge = parity._Judge([[torch.tensor([[1.0, 0.0]])] * 3], LIMITS["float32"])
    rows = [torch.tensor([[1.0, 0.0]]) for _ in range(3)]
    assert judge.forward(STEP, [rows]).passed
    rows[1][0, 0] = value
    assert not judge.forward(STEP, [rows]).passed
    assert not judge.forward(STEP, [rows[:1]]).passed


def test_a_model_that_has_diverged_is_not_judged(check: Checker) -> None:
    model = build()
    with torch.no_grad():
        model.llm.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"logits are not finite.*take an earlier checkpoint"):
        check(model)


def test_skipped_ways_are_told_and_do_not_fail() -> None:
    report = ParityReport(
        ("a",), "float32", 3, 1.0, (Comparison(STEP, 1e-7, 1e-4), Comparison(MERGED, skipped="no LoRA"))
    )
    assert report.passed and report.as_json()["comparisons"][1]["skipped"] == "no LoRA"
    assert json.dumps(report.as_json())
    assert "1 ways" in report.summary()


# -- which examples ----------------------------------------------------------------------------------------------------


def test_the_shortest_of_each_direction_validation_first(check: Checker, examples: list[Example]) -> None:
    layout = check.layout(build())
    told, rendered = examples
    longer = dataclasses.replace(told, where="longer")
    words = Message("assistant", "text", " ".join(TEXTS))
    longer = dataclasses.replace(
        longer, conversation=dataclasses.replace(told.conversation, messages=(told.conversation.messages[0], words))
    )
    wheres = [m.example.where for m in parity.choose_examples(layout, [longer, told], [rendered])]
    assert wheres == ["test:0", "test:1"]
    assert [m.example.where for m in parity.choose_examples(layout, [longer], [told, rendered])] == ["longer", "test:1"]
    assert [m.example.where for m in parity.choose_examples(layout, [], [longer, told])] == ["test:0", "longer"]


def test_data_without_answers(check: Checker, examples: list[Example]) -> None:
    layout = check.layout(build())
    question = dataclasses.replace(examples[1].conversation, messages=examples[1].conversation.messages[:1])
    silent = dataclasses.replace(examples[1], conversation=question, clips={})
    with pytest.raises(UserError, match="no|none"):
        parity.choose_examples(layout, [], [silent])


def test_a_run_that_hears_through_the_official_resampler_is_compared_too(tmp_path, shared_parts):
    """The verb once laid examples out with another resampler than their codes were made with, and died of it."""
    from runs import tiny_recipe

    from bagpiper.api import parity as compare_run
    from bagpiper.run import run

    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=1)
    recipe.data.resampler = "official"
    assert compare_run(run(recipe).folder).passed


def test_a_run_that_hears_the_loudest_channel_is_compared_and_sampled_so(tmp_path, shared_parts):
    """The comparison at the end of training read clips by the defaults, not as the run did, and found a difference."""
    from runs import tiny_recipe

    from bagpiper.recipe.settings import SourceSettings
    from bagpiper.run import run
    from bagpiper.weights.model_folder import generation_of

    tone = 0.3 * np.sin(np.arange(24000) * 0.2)
    soundfile.write(tmp_path / "right.wav", np.stack([0 * tone, tone], axis=1), 24000)
    clip = [{"type": "audio", "audio": "right.wav"}]
    lines = [
        {"messages": [{"role": "user", "content": clip}, {"role": "assistant", "content": "a tone"}]},
        {"messages": [{"role": "user", "content": "a tone"}, {"role": "assistant", "content": clip}]},
    ]
    (tmp_path / "own.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=1, accumulate=1)
    recipe.data = dataclasses.replace(
        recipe.data, sources=[SourceSettings(str(tmp_path / "own.jsonl"))], soundscapes=None, channel="loudest"
    )
    recipe.data.resampler, recipe.parity.at_end = "official", True
    finished = run(recipe)
    assert finished.parity is not None and finished.parity.passed
    assert generation_of(finished.folder / "model").channel == "loudest"
