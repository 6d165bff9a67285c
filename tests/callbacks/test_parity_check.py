"""The check at the end of training: what it tells, and what does not stop the run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from runs import tiny_recipe

from bagpiper.callbacks import parity as callback
from bagpiper.callbacks.parity import ParityCheck
from bagpiper.errors import UserError
from bagpiper.llms.cache import KeyValueCache
from bagpiper.ops.shards import is_sharded
from bagpiper.parity.report import STEP, Comparison, ParityReport
from bagpiper.run import run
from bagpiper.training import begin

GOOD = ParityReport(("a",), "float32", 5, 1.0, (Comparison(STEP, 1e-6, 1e-4),))
BAD = ParityReport(("a",), "float32", 5, 1.0, (Comparison(STEP, 1.0, 1e-4),))


class Case:
    """A callback whose check is replaced."""

    def __init__(self, folder: Path, shared_parts: object, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.output = io.StringIO()
        self.patch = monkeypatch
        console = Console(file=self.output, width=200)
        recipe = tiny_recipe(folder, shared_parts)  # type: ignore[arg-type]
        self.check = ParityCheck(folder, recipe, [], [], console)

    def end(self, outcome: ParityReport | Exception, rank: int = 0, sharded: bool = False) -> str:
        """End a training; what is told."""

        def compare(*_: object, **__: object) -> ParityReport:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        self.patch.setattr(callback, "choose_examples", lambda *_: [])
        self.patch.setattr(callback, "check_parity", compare)
        self.patch.setattr(callback, "is_sharded", lambda _: sharded)
        trainer = SimpleNamespace(is_global_zero=rank == 0, datamodule=SimpleNamespace(layout=None))
        self.check.on_train_end(trainer, torch.nn.Linear(1, 1))  # type: ignore[arg-type]
        return self.output.getvalue()


@pytest.fixture
def case(tmp_path: Path, shared_parts: object, monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(tmp_path, shared_parts, monkeypatch)


def test_one_line_when_all_is_well(case: Case) -> None:
    told = case.end(GOOD)
    assert told.count("\n") == 1 and "1 ways to 5 choices agree" in told and STEP in told
    assert case.check.report is GOOD
    assert json.loads((case.folder / "parity.json").read_text())["passed"]


def test_the_table_when_something_differs(case: Case) -> None:
    assert "DIFFERS" in case.end(BAD)
    assert not json.loads((case.folder / "parity.json").read_text())["passed"]


@pytest.mark.parametrize(
    "error", [UserError("clip.wav is gone"), OSError("no space"), torch.OutOfMemoryError("out of memory")]
)
def test_what_keeps_it_from_comparing_does_not_stop_the_run(case: Case, error: Exception) -> None:
    told = case.end(error)
    assert "not compared" in told and str(error) in told and "bagpiper parity" in told
    assert case.check.report is None and not (case.folder / "parity.json").exists()


def test_a_mistake_of_ours_is_not_hidden(case: Case) -> None:
    with pytest.raises(ZeroDivisionError):
        case.end(ZeroDivisionError())


def test_other_ranks_do_nothing(case: Case) -> None:
    assert case.end(GOOD, rank=1) == ""
    assert case.check.report is None


def test_a_sharded_model_is_told_in_one_line(case: Case) -> None:
    told = case.end(GOOD, sharded=True)
    assert told.count("\n") == 1 and "spread over devices" in told and "bagpiper parity" in told
    assert case.check.report is None


def test_sharded_parameters_are_recognised(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    assert not is_sharded(torch.nn.Linear(2, 2))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        assert not is_sharded(torch.nn.Linear(2, 2))
        assert is_sharded(fully_shard(torch.nn.Linear(2, 2), mesh=mesh))
    finally:
        dist.destroy_process_group()


def test_a_run_with_a_broken_cache_knows_it(
    tmp_path: Path, shared_parts: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=1)  # type: ignore[arg-type]
    recipe.parity.at_end = True
    announce, build = KeyValueCache.begin, begin.build_model

    def broken(*arguments: object) -> object:
        model = build(*arguments)  # type: ignore[arg-type]
        late = lambda self, new_lengths, width: announce(self, new_lengths, width) + (width == 1)  # noqa: E731
        monkeypatch.setattr(KeyValueCache, "begin", late)
        return model

    monkeypatch.setattr(begin, "build_model", broken)
    finished = run(recipe, console=Console(file=io.StringIO()))
    assert finished.parity is not None and not finished.parity.passed
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert not json.loads((tmp_path / "run" / "parity.json").read_text())["passed"]
