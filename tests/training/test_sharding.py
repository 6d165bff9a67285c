"""FSDP2 on two ranks: the same gradients, steps, checkpoints and answers as one rank has."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import run_ranks, start_ranks
from runs import Shared, tiny_recipe
from safetensors.torch import load_file
from tiny import tiny_batch, tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from bagpiper.batch import Batch
from bagpiper.encoders.configs import MelConfig
from bagpiper.heads.configs import DepthConfig
from bagpiper.model import Bagpiper
from bagpiper.ops.shards import gathered, global_norm, is_sharded, whole_state
from bagpiper.recipe.load import dump_recipe, load_recipe
from bagpiper.recipe.settings import StageSettings
from bagpiper.run import run
from bagpiper.training.checkpoints import StateFile, checkpoint_at
from bagpiper.training.sharding import shard
from bagpiper.training.stages import apply_stage

COMMAND = "from bagpiper.cli.main import main; main()"


def ready(stage: StageSettings, tied: bool, head: str) -> Bagpiper:
    """A tiny model in float64."""
    changes = {"head": DepthConfig(width=16, layers=1, heads=2)} if head == "depth" else {}
    encoder = MelConfig(num_mels=20, channels=16, strides=(2, 2), layers=1, heads=2)
    model = tiny_model(encoder=encoder, llm={"tie_word_embeddings": tied}, **changes).double()
    apply_stage(model, stage)
    return model


def spread(model: Bagpiper, *, bf16: bool = False) -> Bagpiper:
    """What the run does, without a Trainer."""
    world = torch.distributed.get_world_size()
    model._device_mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    shard(model, bf16=bf16)
    model.takes_part = True
    return model


def in_double(batch: Batch) -> Batch:
    return replace(batch, waves=[wave.double() for wave in batch.waves])


# -- gradients -----------------------------------------------------------------------------------------------------


def check_gradients(stage: StageSettings, tied: bool, head: str) -> None:
    """On every rank: the gradients of its pack, added up over ranks, are those of one rank with all packs."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    alone = ready(stage, tied, head)
    model = spread(copy.deepcopy(alone))
    packs = [in_double(tiny_batch(alone, which, seed=number)) for number, which in enumerate(("hsth", "tt"))]
    assert packs[0].waves and not packs[1].waves, "the second has no sound at all"
    for pack in packs:
        alone(pack).total.backward()
    loss = model(packs[rank])
    loss.total.backward()
    reference = dict(alone.named_parameters())
    for name, parameter in model.named_parameters():
        if name.startswith("codec."):
            assert not isinstance(parameter, DTensor)
            continue
        assert isinstance(parameter, DTensor), name
        if parameter.shape[0] > 1:
            assert parameter.to_local().numel() < parameter.numel(), name
        expected = reference[name].grad
        if expected is None:
            assert not parameter.requires_grad, name
            continue
        found = world * parameter.grad.full_tensor()  # FSDP2 takes the mean over ranks
        assert (found - expected).abs().max() <= 1e-9 * expected.abs().max(), name
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    whole = torch.nn.utils.get_total_norm([p.grad for p in alone.parameters() if p.grad is not None])
    torch.testing.assert_close(world * global_norm(gradients), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("stage", "tied", "head"),
    [
        (StageSettings("pretrain", train_encoder=True), False, "parallel"),
        pytest.param(StageSettings("pretrain", train_encoder=True), True, "depth", marks=pytest.mark.slow),
        pytest.param(StageSettings("warmup"), False, "parallel", marks=pytest.mark.slow),
    ],
    ids=["pretrain", "tied, depth head", "warmup"],
)
def test_every_gradient_is_that_of_one_rank_though_one_of_two_hears_nothing(
    stage: StageSettings, tied: bool, head: str
) -> None:
    """The official code loses the reduction of both matrices; a rank without clips lets the others wait for ever."""
    run_ranks(check_gradients, stage, tied, head)


# -- the whole of it -----------------------------------------------------------------------------------------------


def check_whole() -> None:
    """States and answers of a model that is spread are those of the whole one."""
    alone = tiny_model()
    model = spread(copy.deepcopy(alone))
    assert is_sharded(model) and not is_sharded(alone)
    state, rank = whole_state(model), torch.distributed.get_rank()
    assert set(state) == (set(alone.state_dict()) if rank == 0 else set())
    assert all(torch.equal(state[name], tensor) for name, tensor in alone.state_dict().items() if rank == 0)
    batch = tiny_batch(alone)
    expected = alone(batch).total
    for _ in range(2):
        torch.testing.assert_close(model(batch).total, expected)
        with gathered(model):
            if rank == 0:  # alone, as in listening
                ids = batch.ids[:5]
                assert torch.equal(model.embed_rows(ids), alone.embed_rows(ids))
                heard = model.hear(batch.waves), alone.hear(batch.waves)
                assert all(torch.equal(left, right) for left, right in zip(*heard, strict=True))
                torch.testing.assert_close(model.hidden_states(batch), alone.hidden_states(batch))
    assert all(isinstance(p, DTensor) for p in model.llm.parameters())


@pytest.mark.slow
def test_one_rank_computes_alone_with_the_whole_parameters() -> None:
    run_ranks(check_whole)


def check_bfloat16() -> None:
    """Masters stay in float32, gradients come in float32, products are computed in bfloat16."""
    alone = tiny_model()
    apply_stage(alone, StageSettings())
    model = spread(copy.deepcopy(alone), bf16=True)
    batch = tiny_batch(alone)
    with torch.autocast("cpu", torch.bfloat16):
        expected, loss = alone(batch).total, model(batch).total
    loss.backward()
    torch.testing.assert_close(loss.float(), expected.float(), rtol=1e-2, atol=0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, name
            assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name


@pytest.mark.slow
def test_bfloat16_keeps_masters_and_sums_of_gradients_in_float32() -> None:
    run_ranks(check_bfloat16)


# -- runs ----------------------------------------------------------------------------------------------------------


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "trained.safetensors")


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert set(left) == set(right)
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, rtol=0, atol=2e-5, msg=name)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, shared_parts: Shared) -> Path:
    """A run of 6 steps on one rank, with a checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("one") / "run"
    return run(tiny_recipe(folder, shared_parts, accumulate=2, checkpoint_every=4)).folder


def two_ranks(folder: Path, shared: Shared, **trainer: object) -> Path:
    """The same on two ranks, spread unless ``strategy`` says otherwise; the recipe's file."""
    settings = {"devices": 2, "accumulate": 1, "checkpoint_every": 4, "validate_every": 4, "strategy": "fsdp2"}
    recipe = tiny_recipe(folder, shared, **{**settings, **trainer})
    recipe.data.workers, recipe.listening.every = 0, 2
    file = folder.with_suffix(".yaml")
    file.write_text(dump_recipe(recipe))
    return file


def train(*words: object) -> None:
    ended = start_ranks(COMMAND, "train", *words)
    assert [status for _, status in ended] == [0, 0], ended


def forget_the_end(folder: Path) -> None:
    """As if the run had been killed after step 4."""
    shutil.rmtree(checkpoint_at(folder, 6).folder)
    shutil.rmtree(folder / "model")


def test_two_ranks_equal_one(tmp_path: Path, shared_parts: Shared, one: Path) -> None:
    """Weights, listening while others wait, and the optimizer's state, which one rank reads as its own."""
    two = tmp_path / "two"
    train(two_ranks(two, shared_parts))
    assert_equal(weights(one), weights(two))
    listened = [folder.name for folder in sorted((two / "listening").iterdir())]
    assert listened == ["step-000002", "step-000004", "step-000006"]
    spread_state = torch.load(checkpoint_at(two, 4).state, weights_only=True)
    assert not {"optimizer_states", "state_dict"} & set(spread_state)
    found, expected = (StateFile().load_checkpoint(checkpoint_at(folder, 4).state) for folder in (two, one))
    (found,), (expected,) = found["optimizer_states"], expected["optimizer_states"]
    assert found["param_groups"] == expected["param_groups"]
    for number, state in expected["state"].items():
        for name, tensor in state.items():
            torch.testing.assert_close(found["state"][number][name], tensor, rtol=1e-4, atol=1e-7)
    assert not list(two.rglob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("fsdp2", "fsdp2"), ("fsdp2", "ddp"), ("ddp", "fsdp2")])
def test_a_run_goes_on_spread_or_not(tmp_path: Path, shared_parts: Shared, one: Path, before: str, after: str) -> None:
    folder = tmp_path / "two"
    train(two_ranks(folder, shared_parts, strategy=before))
    forget_the_end(folder)
    train("--resume", folder, f"trainer.strategy={after}")
    assert_equal(weights(one), weights(folder))


@pytest.mark.slow
def test_one_rank_goes_on_where_two_have_stopped(tmp_path: Path, shared_parts: Shared) -> None:
    """Its steps are of one pack, so they are those of one rank that goes on where two without FSDP2 have stopped."""
    ends = []
    for strategy in ("ddp", "fsdp2"):
        folder = tmp_path / strategy
        train(two_ranks(folder, shared_parts, strategy=strategy))
        forget_the_end(folder)
        recipe = load_recipe(str(folder), ["trainer.devices=1", "trainer.strategy=auto"], ready=False)
        ends.append(weights(run(recipe, resume=True).folder))
    assert_equal(*ends)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.precision=bf16-mixed"],
        ["trainer.gradient_checkpointing=true", "stage.train_encoder=false"],
        ["stage={name: sft, lora: {rank: 2, targets: [all-linear]}}", "trainer.precision=bf16-mixed"],
        ["stage.name=warmup", "model.head={name: depth, width: 16, layers: 1, heads: 2}"],
    ],
    ids=["bf16", "recomputed", "lora", "warmup"],
)
def test_other_recipes_train_and_go_on(tmp_path: Path, shared_parts: Shared, overrides: list[str]) -> None:
    """Two ranks end where they would without FSDP2 (nearly so in bfloat16, whose parameters are rounded otherwise)."""
    ends = []
    for strategy in ("ddp", "fsdp2"):
        folder = tmp_path / strategy
        train(two_ranks(folder, shared_parts, strategy=strategy), *overrides)
        forget_the_end(folder)
        train("--resume", folder)
        ends.append(weights(folder))
    assert set(ends[0]) == set(ends[1])
    bound = 5e-3 if "trainer.precision=bf16-mixed" in overrides else 2e-5
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=0, atol=bound, msg=name)


def test_one_rank_may_be_spread_too(tmp_path: Path, shared_parts: Shared, one: Path) -> None:
    """What runs on one device runs with the recipe of many."""
    recipe = tiny_recipe(tmp_path / "run", shared_parts, accumulate=2, strategy="fsdp2")
    (tmp_path / "run.yaml").write_text(dump_recipe(recipe))
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "train", tmp_path / "run.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_equal(weights(one), weights(tmp_path / "run"))
