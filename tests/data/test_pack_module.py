"""The data module: batches are a pure function of the position, whatever reads ahead."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from bagpiper.adaptors.configs import MlpConfig
from bagpiper.batch import Batch
from bagpiper.data.layout import Layout, condition_to_keep
from bagpiper.data.module import PackDataModule
from bagpiper.data.packing import PackStream
from bagpiper.errors import UserError
from bagpiper.language.vocabulary import ASSISTANT, AUDIO, PAD
from bagpiper.recipe.settings import DataSettings, SourceSettings

Make = Callable[..., PackDataModule]


def equal(one: Batch, two: Batch) -> bool:
    """Bit-equal in every field."""
    for item in fields(Batch):
        left, right = getattr(one, item.name), getattr(two, item.name)
        if item.name == "waves":
            same = len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
        elif item.name == "spans":
            same = torch.equal(left.cu_seqlens, right.cu_seqlens) and left.lengths == right.lengths
        else:
            same = torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
        if not same:
            return False
    return True


def all_equal(some: Iterable[Batch], others: Iterable[Batch]) -> bool:
    """As many, and bit-equal one by one."""
    return all(equal(one, two) for one, two in zip(some, others, strict=True))


def take(loader: Any, number: int) -> list[Batch]:
    return list(itertools.islice(iter(loader), number))


@pytest.fixture
def sources(folder: Any, rows: Any) -> tuple[SourceSettings, SourceSettings]:
    """24 training and 6 validation examples, half of them spoken, of different lengths and rates."""
    made = []
    for name, number in (("train.jsonl", 24), ("valid.jsonl", 6)):
        lines = []
        for index in range(number):
            rate = (16000, 24000, 44100)[index % 3]
            wave = np.random.default_rng(index).uniform(-0.5, 0.5, int((0.2 + 0.02 * index) * rate)).astype(np.float32)
            clip = folder.clip(f"{name}-{index}.wav", wave, rate)
            lines.append(rows["heard" if index % 2 else "spoken"](f"{name[:5]}{index}", clip, "la " * (1 + index % 5)))
        made.append(folder.manifest(lines, name))
    return made[0], made[1]


@pytest.fixture
def make(folder: Any, sources: tuple[SourceSettings, SourceSettings]) -> Make:
    """Builds data modules over the same examples; keywords change settings or arguments."""
    train, valid = folder.read(sources[0]), folder.read(sources[1])
    cache = folder.cache([*train, *valid])

    def build(**changes: Any) -> PackDataModule:
        named = {item.name for item in fields(DataSettings)}
        settings = {"token_budget": 128, "workers": 0, "cfg_dropout": 0.3, **changes}
        arguments = {"train": train, "valid": valid, "seed": 5}
        layout = Layout(
            settings.pop("template", folder.template),
            folder.encoder,
            settings.pop("adaptor", folder.adaptor),
            folder.codec,
            cache,
        )
        arguments |= {key: settings.pop(key) for key in list(settings) if key not in named}
        return PackDataModule(layout=layout, settings=DataSettings(**settings), **arguments)

    return build


def test_a_pack_holds_what_the_template_says(make: Make, folder: Any) -> None:
    module = make(cfg_dropout=0.0)
    texts = folder.template.encode_text
    for batch in take(module.train_dataloader(), 8):
        assert len(batch) <= 128 and sum(batch.spans.lengths) == len(batch)
        assert len(batch.slots) == len(batch.waves) == sum(key[5:] in map(str, range(1, 24, 2)) for key in batch.keys)
        for (start, length), wave in zip(batch.slots, batch.waves, strict=True):
            assert length == folder.encoder.num_frames(len(wave))
            assert (batch.ids[start : start + length] == PAD).all() and batch.ids[start - 1, 0] == AUDIO
        assert batch.num_targets == batch.num_text + batch.num_frames > 0
        assert batch.seconds > 0
    assert len(texts("la ")) == 3


def test_promises_of_the_adaptor_decide_the_rows(make: Make, folder: Any) -> None:
    halved = make(adaptor=MlpConfig(stack=2), cfg_dropout=0.0)
    for batch in take(halved.train_dataloader(), 4):
        for (_, length), wave in zip(batch.slots, batch.waves, strict=True):
            assert length == -(-folder.encoder.num_frames(len(wave)) // 2)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(make: Make, workers: int) -> None:
    alone, ahead = take(make().train_dataloader(), 25), take(make(workers=workers).train_dataloader(), 25)
    assert all_equal(alone, ahead)
    assert all_equal(make().val_dataloader(), make(workers=workers).val_dataloader())


def test_workers_leave_the_threads_of_the_training_step_alone(make: Make) -> None:
    """torchdata's workers set torch's thread number to 1."""
    before, threads = torch.get_num_threads(), threading.active_count()
    try:
        torch.set_num_threads(2)
        stream = iter(make(workers=2).train_dataloader())
        next(stream)
        assert torch.get_num_threads() == 2
        stream.close()  # type: ignore[attr-defined]
        deadline = time.monotonic() + 5
        while threading.active_count() > threads and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threading.active_count() == threads, "no thread is left behind"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("position", [1, 7, 30])
def test_resume_is_the_tail_of_the_uninterrupted_stream(make: Make, workers: int, position: int) -> None:
    whole = make(workers=workers)
    batches = []
    for batch in itertools.islice(iter(whole.train_dataloader()), position + 4):
        batches.append(batch)
        if len(batches) <= position:
            whole.position += 1  # the loader itself is always further on
    resumed = make(workers=workers)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.position == position
    assert all_equal(take(resumed.train_dataloader(), 4), batches[position:])


def test_state_is_plain_and_loads_safely(make: Make, tmp_path: Path) -> None:
    module = make()
    module.position = 3
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other = make()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.position == 3


def test_examples_are_hashed_once_not_at_every_checkpoint(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.1 s per million examples."""
    module = make()
    calls: list[None] = []
    original = PackStream.fingerprint
    monkeypatch.setattr(PackStream, "fingerprint", lambda self: calls.append(None) or original(self))
    states = [module.state_dict() for _ in range(3)]
    module.load_state_dict(states[0])
    assert states[0] == states[2] and len(calls) == 1


def test_resume_on_other_ranks_goes_on_at_the_same_pack(make: Make) -> None:
    """The official resume is tied to the number of ranks (spec section 11.5)."""
    one = make()
    one.position = 12
    seen = take(one.train_dataloader(), 6)
    ranks = [make(rank=rank, world=3) for rank in range(3)]
    for module in ranks:
        module.load_state_dict(one.state_dict())
        assert module.position == 4
    dealt = [take(module.train_dataloader(), 2) for module in ranks]
    assert all_equal([dealt[rank][at] for at in range(2) for rank in range(3)], seen)


@pytest.mark.parametrize("change", ["seed", "budget", "clip", "order"])
def test_resume_on_other_data_is_refused(change: str, make: Make, folder: Any, sources: Any) -> None:
    state = make().state_dict()
    train = folder.read(sources[0])
    if change == "clip":
        clips = {index: replace(clip, sha256="0" * 64) for index, clip in train[0].clips.items()}
        train[0] = replace(train[0], clips=clips)
    changed = {
        "seed": {"seed": 6},
        "budget": {"token_budget": 130},
        "clip": {"train": train},
        "order": {"train": train[::-1]},
    }[change]
    with pytest.raises(UserError, match="not that of the checkpoint"):
        make(**changed).load_state_dict(state)


def test_an_epoch_holds_every_example_once_over_all_ranks(make: Make) -> None:
    packs = len(make()._stream.plan(0))
    keys = [key for batch in take(make().train_dataloader(), packs) for key in batch.keys]
    assert Counter(keys) == Counter(f"train{index}" for index in range(24))


def without_condition(batch: Batch) -> Iterator[str]:
    """Keys of the examples that begin with padding: their condition was dropped."""
    for key, start in zip(batch.keys, batch.spans.cu_seqlens.tolist(), strict=False):
        if batch.ids[start, 0] == PAD:
            yield key


def test_validation_has_no_condition_dropout(make: Make) -> None:
    """Defect of the official code (spec section 9.4): validation reused the training preprocessor, dropout included."""
    module = make(cfg_dropout=1.0)
    assert {key for batch in take(module.train_dataloader(), 9) for key in without_condition(batch)}
    batches = list(module.val_dataloader())
    assert not {key for batch in batches for key in without_condition(batch)}
    assert all_equal(batches, make(cfg_dropout=0.0).val_dataloader())


def test_validation_is_the_same_every_time_and_for_every_seed(make: Make) -> None:
    module = make()
    first = list(module.val_dataloader())
    assert len(module.val_dataloader()) == len(first) > 1
    assert Counter(key for batch in first for key in batch.keys) == Counter(f"valid{index}" for index in range(6))
    take(module.train_dataloader(), 3)
    for again in (module.val_dataloader(), make(seed=99).val_dataloader()):
        assert all_equal(first, again)


def test_condition_dropout_hits_only_what_is_spoken_and_reads_no_other_clip(make: Make) -> None:
    batches = take(make(cfg_dropout=1.0).train_dataloader(), 30)
    for batch in batches:
        for key, start, length in zip(batch.keys, batch.spans.cu_seqlens.tolist(), batch.spans.lengths, strict=False):
            rows, weights = batch.ids[start : start + length], batch.weights[start : start + length]
            if int(key[5:]) % 2:
                assert rows[0, 0] != PAD, f"{key} is heard: nothing may be dropped"
                continue
            kept = int((rows[:, 0] == ASSISTANT).nonzero()[0])
            assert (rows[:kept] == PAD).all() and (weights[:kept] == 0).all()
            assert rows[kept + 1, 0] == AUDIO and weights[kept:, 0].all()


def test_condition_dropout_keeps_one_of_several_spoken_messages_and_drops_heard_clips(folder: Any, make: Make) -> None:
    """The official code writes the codes of dropped clips back into the input (golden quirk 5)."""
    for name, seconds in (("in.wav", 0.3), ("one.wav", 0.4), ("two.wav", 0.6)):
        folder.clip(name, np.zeros(int(16000 * seconds), dtype=np.float32))
    audio = {name: [{"type": "audio", "audio": f"{name}.wav"}] for name in ("in", "one", "two")}
    turns = [("user", audio["in"]), ("assistant", audio["one"]), ("user", "again"), ("assistant", audio["two"])]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    train = folder.read(folder.manifest([{**row, "id": str(n)} for n in range(20)], "many.jsonl"))
    folder.cache(train)
    kept: Counter[float] = Counter()
    for batch in take(make(train=train, cfg_dropout=1.0, token_budget=80).train_dataloader(), 20):
        assert batch.waves == () and batch.slots == ()
        starts = (batch.ids[:, 0] == ASSISTANT).sum()
        assert starts == 1, "one message of the example stays"
        kept[round(batch.seconds, 1)] += 1
    assert set(kept) == {0.4, 0.6} and min(kept.values()) >= 3


def test_dropout_draw_is_keyed_by_epoch_and_example(make: Make) -> None:
    module = make()
    spoken = [item.example for item in module._train if module.layout.spoken(item.example)]
    dropped = [
        {example.where for example in spoken if condition_to_keep(module.layout, example, 0.3, 5, epoch) is not None}
        for epoch in range(200)
    ]
    assert sum(map(len, dropped)) / (200 * len(spoken)) == pytest.approx(0.3, abs=0.04)
    assert len(set(map(frozenset, dropped))) > 150
    again = [condition_to_keep(module.layout, example, 0.3, 6, 0) is not None for example in spoken]
    assert again != [example.where in dropped[0] for example in spoken], "another seed, another draw"


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_validates_on_as_many_batches(make: Make, world: int) -> None:
    ranks = [list(make(rank=rank, world=world).val_dataloader()) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    keys = Counter(key for batches in ranks for batch in batches for key in batch.keys)
    assert keys == Counter(f"valid{index}" for index in range(6)), "each example counts once"
    for batch in itertools.chain(*ranks):
        if not batch.keys:
            assert batch.num_targets == batch.num_text == batch.num_frames == 0 and not batch.weights.any()


def test_text_longer_than_the_budget_is_named_or_counted(folder: Any, rows: Any, make: Make) -> None:
    folder.clip("a.wav")
    lines = [rows["heard"]("ok", "a.wav"), rows["heard"]("long", "a.wav", "la " * 100)]
    train = folder.read(folder.manifest(lines, "long.jsonl"))
    with pytest.raises(UserError, match=r"long\.jsonl:2: \d+ rows \(300 of text.*may have 128.*raise data\.max_rows"):
        make(train=train)
    with pytest.raises(UserError, match=r"long\.jsonl:1: \d+ rows .* may have 20"):
        make(train=train, max_rows=20)
    module = make(train=train, on_bad_example="skip")
    assert {key for batch in take(module.train_dataloader(), 3) for key in batch.keys} == {"ok"}
    assert module.ledger.as_metrics()["long/skipped_too_many_rows"] == 1
    module = make(train=train, max_rows=400)
    assert {batch.keys: len(batch) > 128 for batch in take(module.train_dataloader(), 2)} == {
        ("ok",): False,
        ("long",): True,
    }


@pytest.mark.parametrize("direction", ["heard", "spoken"])
@pytest.mark.parametrize("samples", [1, 159])
def test_clip_without_a_frame_is_refused(direction: str, samples: int, folder: Any, rows: Any, make: Make) -> None:
    folder.clip("a.wav")
    folder.clip("short.wav", np.zeros(samples, dtype=np.float32))
    lines = [rows[direction]("ok", "a.wav"), rows[direction]("short", "short.wav")]
    train = folder.read(folder.manifest(lines, "short.jsonl"))
    part = "encoder" if direction == "heard" else "codec"
    with pytest.raises(UserError, match=rf"short\.jsonl:2: .*short\.wav is .*too short for one frame of the {part}"):
        make(train=train)
    folder.cache(train)
    module = make(train=train, on_bad_example="skip", cfg_dropout=0.0)
    assert {key for batch in take(module.train_dataloader(), 3) for key in batch.keys} == {"ok"}


def test_nothing_to_train_on(folder: Any, make: Make) -> None:
    train = folder.read(folder.manifest([{"messages": [{"role": "user", "content": "hi"}]}], "user.jsonl"))
    with pytest.raises(UserError, match=r"user\.jsonl:1: no message is trained on"):
        make(train=train)
    with pytest.raises(UserError, match="no training example is left of 1"):
        make(train=train, on_bad_example="skip")
    module = make(train=train, template=replace(folder.template, loss_region="all"))
    (batch,) = take(module.train_dataloader(), 1)
    assert batch.waves == () and batch.num_targets == batch.num_text == len(batch) - 1, "text alone is fine too"


def test_clip_that_vanishes_while_training(make: Make, folder: Any) -> None:
    packs = enumerate(take(make(cfg_dropout=0.0).train_dataloader(), 12))
    position, keys = next((at, batch.keys) for at, batch in packs if "train1" in batch.keys and len(batch.keys) > 1)
    (folder.path / "train.jsonl-1.wav").unlink()
    with pytest.raises(UserError, match=r"train\.jsonl-1\.wav: no such file"):
        take(make(workers=2, cfg_dropout=0.0).train_dataloader(), 12)
    said: list[str] = []
    module = make(on_bad_example="skip", cfg_dropout=0.0, tell=said.append)
    batch = module.batch_at(position)
    assert batch.keys == tuple(key for key in keys if key != "train1")
    (note,) = batch.notes
    assert note.source == "train" and "train.jsonl:2: left out" in note.text
    assert "train/lost_while_training" not in module.ledger.as_metrics(), "laid out ahead, not consumed yet"
    for _ in range(2):
        module.on_after_batch_transfer(batch, 0)
    assert module.ledger.as_metrics()["train/lost_while_training"] == 2
    assert said == [note.text], "told once"


def test_pack_that_is_lost_whole_gives_way_to_the_next(make: Make, folder: Any) -> None:
    module = make(on_bad_example="skip", cfg_dropout=0.0)
    for key in module.batch_at(0).keys:
        for path in folder.path.glob(f"train.jsonl-{key[5:]}.wav"):
            path.unlink()
    for path in folder.path.rglob("*.codes"):
        path.unlink()
    batch = module.batch_at(0)
    assert batch.keys and equal(replace(batch, notes=()), replace(module.batch_at(1), notes=())), "the next pack"
    module.on_after_batch_transfer(batch, 0)
    counts = module.ledger.as_metrics()
    assert counts["train/lost_while_training"] == len([note for note in batch.notes if note.text])
    assert counts["train/repeated_in_place_of_lost"] == len(batch.keys)
    assert f"{len(batch.keys)} times an example was trained on once more" in module.ledger.summary()
    for path in folder.path.glob("*.wav"):
        path.unlink()
    with pytest.raises(UserError, match="not one training example can be read"):
        module.batch_at(0)


def test_changed_clip_and_codes_of_another_codec_are_noticed(make: Make, folder: Any) -> None:
    module = make(cfg_dropout=0.0)
    folder.clip("train.jsonl-1.wav", np.zeros(4000, dtype=np.float32))
    with pytest.raises(UserError, match="has changed since the run began"):
        take(module.train_dataloader(), 12)
    codec = folder.codec
    folder.codec = replace(codec, hop=320)
    with pytest.raises(UserError, match="cached codes of .* have shape"):
        take(make(cfg_dropout=0.0, on_bad_example="fail").train_dataloader(), 12)


def test_texts_are_tokenised_once_and_never_in_a_data_thread(make: Make, folder: Any) -> None:
    threads: Counter[str] = Counter()

    def encode(text: str) -> list[int]:
        threads[threading.current_thread().name] += 1
        return list(text.encode())

    module = make(template=replace(folder.template, encode_text=encode), workers=2)
    take(module.train_dataloader(), 20)
    assert threads == {threading.current_thread().name: 5}, "five different texts"


def test_resampled_clips_are_counted(make: Make) -> None:
    module = make()
    metrics = module.ledger.as_metrics()
    assert metrics["train/resampled"] == 16 and metrics["valid/resampled"] == 4
    assert "24 training examples in" in module.describe() and "validation examples" in module.describe()


class Recorder(lightning.LightningModule):
    """Trains one number and records what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[str, ...]] = []

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        self.seen.append(batch.keys)
        return self.weight * batch.num_targets

    def validation_step(self, batch: Batch, _: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Saver(lightning.Callback):
    """A checkpoint callback that knows nothing of the data module."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 5 and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_resumes_at_the_next_unseen_batch(make: Make, workers: int, tmp_path: Path) -> None:
    """Lightning fetches a batch ahead; a loader without length and with state would lose it on resume.

    The position is that of the data module, whoever writes the checkpoint; it was once moved by our own callback for
    checkpoints, and a resume from any other one began anew.
    """

    def fit(*callbacks: lightning.Callback, checkpoint: Path | None = None) -> Recorder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=8,
            accumulate_grad_batches=2,
            val_check_interval=4,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=1,
        )
        recorder = Recorder()
        trainer.fit(recorder, datamodule=make(workers=workers), ckpt_path=checkpoint, weights_only=True)
        return recorder

    whole = fit(Saver(tmp_path / "half.ckpt"))
    assert len(whole.seen) == 16
    assert fit(checkpoint=tmp_path / "half.ckpt").seen == whole.seen[10:]
