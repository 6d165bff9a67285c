"""Whole runs: resuming, watching, freezing."""

import errno
import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from runs import STEPS, tiny_recipe
from safetensors.torch import load_file

from bagpiper.callbacks.checkpoint import Stopped
from bagpiper.data.module import PackDataModule
from bagpiper.errors import UserError
from bagpiper.llms.configs import LoraSettings
from bagpiper.llms.lora import quantized_layers
from bagpiper.model import Bagpiper
from bagpiper.recipe.settings import StageSettings
from bagpiper.run import run
from bagpiper.training import begin
from bagpiper.training import save as save_room
from bagpiper.training.checkpoints import list_checkpoints
from bagpiper.weights.model_folder import load_model


def weights(folder):
    return load_file(folder / "model" / "trained.safetensors")


def assert_same_weights(left, right):
    first, second = weights(left), weights(right)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def rows(folder):
    """Rows of metrics without what a clock measured."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in found]


def state(folder):
    return torch.load(list_checkpoints(folder)[-1].state, weights_only=True)


def equal(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


def stop_at(monkeypatch, micro_batch, signum=signal.SIGTERM):
    """Send this process a signal while it trains on a micro-batch."""
    original = Bagpiper.training_step

    def step(self, batch, batch_idx):
        if batch_idx == micro_batch:
            os.kill(os.getpid(), signum)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Bagpiper, "training_step", step)


@pytest.fixture
def recorded(monkeypatch):
    """Keys of the examples of every micro-batch that was trained on."""
    seen = []
    original = Bagpiper.training_step

    def step(self, batch, batch_idx):
        seen.append(batch.keys)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Bagpiper, "training_step", step)
    return seen


WATCHED = {"log_every": 2, "validate_every": 2, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared_parts):
    """An uninterrupted run with dropout, accumulation 2, 2 workers, validation and checkpoints."""
    return run(tiny_recipe(tmp_path_factory.mktemp("whole") / "run", shared_parts, **WATCHED)).folder


def test_the_parity_check_can_be_switched_off(whole):
    """``parity.at_end: false``, as in most runs here."""
    assert not (whole / "parity.json").exists()


@pytest.mark.parametrize(("micro_batch", "step"), [(4, 3), (7, 4)], ids=["first of a window", "last of a window"])
def test_stopped_by_a_signal_and_resumed_equals_uninterrupted(
    tmp_path, shared_parts, whole, monkeypatch, recorded, micro_batch, step
):
    recipe = tiny_recipe(tmp_path / "run", shared_parts, **WATCHED)
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        stop_at(patch, micro_batch)
        run(recipe)
    assert stopped.value.signum == signal.SIGTERM
    assert list_checkpoints(tmp_path / "run")[-1].step == step  # the window was finished
    run(recipe, resume=True)
    assert_same_weights(tmp_path / "run", whole)
    ours, theirs = state(tmp_path / "run"), state(whole)
    for part in ("optimizer_states", "lr_schedulers", "PackDataModule", "metrics"):
        if part == "metrics":
            ours[part]["counts"].pop("busy"), theirs[part]["counts"].pop("busy")
        assert equal(ours[part], theirs[part]), part
    assert rows(tmp_path / "run") == rows(whole)
    assert len(recorded) == 2 * STEPS


def test_resume_moves_in_micro_batches_not_in_steps(tmp_path, shared_parts, recorded):
    """Defect of the official trainer: the resume offset counted optimizer steps (spec section 9.4)."""
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=2)
    recipe.optimizer.decay_end_step = 4
    run(recipe)
    assert state(tmp_path / "run")["PackDataModule"]["position"] == 4
    run(replace(recipe, trainer=replace(recipe.trainer, max_steps=4)), resume=True)
    straight = tiny_recipe(tmp_path / "straight", shared_parts, max_steps=4)
    straight.optimizer.decay_end_step = 4
    run(straight)
    assert recorded[:8] == recorded[8:]
    assert_same_weights(tmp_path / "run", tmp_path / "straight")


def test_the_run_ends_exactly_at_max_steps(whole):
    """Defect of the official trainer: the final interval overshot (spec section 9.4)."""
    assert [c.step for c in list_checkpoints(whole)] == [3, STEPS]
    assert [row["step"] for row in rows(whole) if row["split"] == "train"] == [2, 4, 6]
    assert [row["step"] for row in rows(whole) if row["split"] == "valid"] == [2, 4, 6]


def test_watching_changes_nothing(tmp_path, shared_parts, mlflow_template, whole):
    """Listening, validation, logging, checkpoints and prefetch, on or off: identical weights."""
    from runs import use_template

    blind = tiny_recipe(tmp_path / "blind", shared_parts, log_every=100)
    blind.data.workers = 0
    run(blind)
    assert_same_weights(tmp_path / "blind", whole)
    watched = tiny_recipe(tmp_path / "watched", shared_parts, log_every=1, validate_every=1, checkpoint_every=1)
    watched.listening.every = 1
    watched.tracking.enabled = True
    use_template(tmp_path / "watched", mlflow_template)
    run(watched)
    assert_same_weights(tmp_path / "watched", whole)


def test_modes_and_masters_at_every_step(tmp_path, shared_parts, monkeypatch):
    """Trainable parts train, frozen ones are in eval mode, masters are float32; after validation and listening too."""
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=3, validate_every=1)
    recipe.listening.every = 1
    recipe.stage = StageSettings(name="warmup", train_encoder=False)
    seen = []
    original = Bagpiper.training_step

    def step(self, batch, batch_idx):
        modes = {name: {module.training for module in part.modules()} for name, part in self.parts.items()}
        dtypes = {p.dtype for p in self.parameters() if p.requires_grad}
        seen.append((modes, dtypes, torch.is_grad_enabled()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Bagpiper, "training_step", step)
    run(recipe)
    assert len(seen) == 6
    frozen, trained = {False}, {True}
    expected = {"encoder": frozen, "adaptor": trained, "llm": frozen, "codec": frozen, "head": trained}
    assert all(item == (expected, {torch.float32}, True) for item in seen)


def changed_parameters(recipe, monkeypatch):
    """Names of parameters that a run changed."""
    before = {}
    original = begin.make_ready

    def ready(model, its_recipe):
        made = original(model, its_recipe)
        before.update({name: p.detach().clone() for name, p in made.named_parameters()})
        before["model"] = made
        return made

    monkeypatch.setattr(begin, "make_ready", ready)
    run(recipe)
    model = before.pop("model")
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def kinds(names):
    return {"llm lora" if "lora_" in n else n if "rows" in n else n.split(".")[0] for n in names}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (StageSettings(name="warmup"), {"adaptor", "head", "input_rows.new", "output_rows.new"}),
        (
            StageSettings(name="sft", lora=LoraSettings(rank=2, dropout=0.1)),
            {"adaptor", "head", "input_rows.new", "output_rows.new", "llm lora"},
        ),
        (
            StageSettings(name="sft"),
            {"adaptor", "head", "llm", "input_rows.new", "output_rows.new", "input_rows.text", "output_rows.text"},
        ),
    ],
    ids=["warmup", "lora", "sft"],
)
def test_only_what_the_stage_trains_changes(tmp_path, shared_parts, monkeypatch, stage, expected):
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=3)
    recipe.stage = stage
    recipe.model.llm.config["tie_word_embeddings"] = False
    assert kinds(changed_parameters(recipe, monkeypatch)) == expected


def test_lora_run_resumes_bit_for_bit(tmp_path, shared_parts, monkeypatch):
    def recipe(folder):
        made = tiny_recipe(folder, shared_parts, max_steps=4)
        made.stage = StageSettings(name="sft", lora=LoraSettings(rank=2, dropout=0.3))
        return made

    run(recipe(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 3)
        run(recipe(tmp_path / "run"))
    run(recipe(tmp_path / "run"), resume=True)
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_layers_in_4_bits_compute_in_the_precision_of_the_run(tmp_path, shared_parts, monkeypatch, precision, dtype):
    """They once computed in float32 whatever ``trainer.precision`` said; new, resumed and loaded models alike."""
    import bitsandbytes

    product, seen = bitsandbytes.matmul_4bit, set()

    def record(states, *arguments, **options):
        if torch.is_grad_enabled():  # the steps of training
            seen.add(states.dtype)
        return product(states, *arguments, **options)

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", record)
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=1, precision=precision)
    recipe.optimizer.decay_end_step = 3
    recipe.stage = StageSettings(name="sft", lora=LoraSettings(rank=2, quantize="nf4"))
    run(recipe)
    assert seen == {dtype}
    seen.clear()
    run(replace(recipe, trainer=replace(recipe.trainer, max_steps=2)), resume=True)
    assert seen == {dtype}
    for wanted in (None, torch.bfloat16):
        layers = quantized_layers(load_model(tmp_path / "run" / "model", dtype=wanted))
        assert {layer.compute_dtype for layer in layers.values()} == {wanted or torch.float32}


def test_full_disk_while_saving_leaves_the_last_checkpoint(tmp_path, shared_parts, monkeypatch):
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=4, checkpoint_every=2)
    original = save_room.write_model

    def save(model, target, state, **details):
        if "step-000004" in str(target):
            target.mkdir(parents=True)
            (target / "half").write_text("x")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(model, target, state, **details)

    monkeypatch.setattr(save_room, "write_model", save)
    with pytest.raises(UserError, match=r"no space left.*step-000002.*--resume"):
        run(recipe)
    assert [c.step for c in list_checkpoints(tmp_path / "run")] == [2]
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp*"))
    monkeypatch.undo()
    run(recipe, resume=True)
    assert list_checkpoints(tmp_path / "run")[-1].step == 4


def test_a_refitted_codec_of_equal_layout_is_refused_before_anything_is_written(tmp_path, shared_parts):
    from bagpiper.data.audio import read_clip
    from bagpiper.recipe import registry

    recipe = tiny_recipe(tmp_path / "run", replace(shared_parts, codec=None), max_steps=2)
    recipe.optimizer.decay_end_step = 4
    run(recipe)
    codec = registry.build("codec", recipe.model.codec)
    clips = sorted((shared_parts.corpus / "audio").glob("valid*"))
    codec.fit([read_clip(str(clip), 16000) for clip in clips], seed=1)
    codec.save(tmp_path / "run" / "codec.safetensors")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")}
    longer = replace(recipe, trainer=replace(recipe.trainer, max_steps=4))
    with pytest.raises(UserError, match="changed codec"):
        run(longer, resume=True)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")} == before


def test_a_codec_fitted_by_the_run_is_found_again_on_resume(tmp_path, shared_parts, monkeypatch):
    recipe = tiny_recipe(tmp_path / "run", replace(shared_parts, codec=None), max_steps=2)
    recipe.optimizer.decay_end_step = 4
    run(recipe)
    monkeypatch.setattr(begin, "prepare_codec", lambda *a: pytest.fail("fitted again"))
    run(replace(recipe, trainer=replace(recipe.trainer, max_steps=4)), resume=True)
    assert list_checkpoints(tmp_path / "run")[-1].step == 4


def test_resuming_a_finished_run_only_ends_it_again(tmp_path, shared_parts, monkeypatch):
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=2)
    run(recipe)
    monkeypatch.setattr(PackDataModule, "train_dataloader", lambda self: pytest.fail("trained again"))
    assert run(recipe, resume=True).folder == tmp_path / "run"


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: a shell lets processes in the background ignore it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def test_a_second_ctrl_c_interrupts_at_once(tmp_path, shared_parts, monkeypatch, interruptible):
    original = Bagpiper.training_step

    def step(self, batch, batch_idx):
        if batch_idx == 2:
            # not os.kill, which may reach another thread, nor at once: two signals may become one
            handler = signal.getsignal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            while signal.getsignal(signal.SIGINT) is handler:
                time.sleep(0.001)
            signal.raise_signal(signal.SIGINT)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Bagpiper, "training_step", step)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tiny_recipe(tmp_path / "run", shared_parts))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
