"""What other libraries say goes to the run's log, or nowhere; what we say is shown."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
from desk import make_desk
from runs import Shared

from bagpiper.errors import Notice, UserError
from bagpiper.overheard import LOG, keep_in, overheard


def others_speak() -> None:
    logging.getLogger("transformers.models").warning("weights of %s are odd", "wte")
    logging.getLogger("lightning.pytorch").error("bad")
    warnings.warn("old name", UserWarning, stacklevel=1)


def test_lines_of_others_go_to_the_file_and_ours_are_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with overheard() as others:
        others_speak()
        assert others.path() is None
        keep_in(tmp_path / LOG)
        logging.getLogger("bitsandbytes.ops").warning("no kernels\nat all, https://me:secret@host/")
        logging.getLogger("bagpiper.data").warning("a damaged entry")
        warnings.warn("an answer was cut", Notice, stacklevel=1)
        assert others.path() == tmp_path / LOG
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err == "warning: a damaged entry\nwarning: an answer was cut\n"
    lines = (tmp_path / LOG).read_text().splitlines()
    said = [line.partition(" WARNING ")[2] or line.partition(" ERROR ")[2] or line for line in lines]
    assert said[:2] == ["transformers.models: weights of wte are odd", "lightning.pytorch: bad"]
    assert said[2].startswith("py.warnings: UserWarning: old name (") and __file__ in said[2]
    assert said[3:] == ["bitsandbytes.ops: no kernels", "at all, https://***@host/"]


def test_without_a_file_they_are_shown_only_when_the_work_breaks_off(capfd: pytest.CaptureFixture[str]) -> None:
    with overheard():
        others_speak()
    for error in (UserError("a mistake"), KeyError("told")):
        with pytest.raises(type(error)), overheard(KeyError):
            others_speak()
            raise error
    assert capfd.readouterr().err == ""
    with pytest.raises(ZeroDivisionError), overheard():
        others_speak()
        raise ZeroDivisionError
    assert "transformers.models: weights of wte are odd" in capfd.readouterr().err


def test_with_a_file_its_place_is_told_when_the_work_breaks_off(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError), overheard():
        others_speak()
        keep_in(tmp_path / LOG)
        raise ZeroDivisionError
    assert capfd.readouterr().err == f"what other libraries said is in {tmp_path / LOG}\n"


def test_a_file_that_cannot_be_written_loses_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), overheard():
        keep_in(tmp_path / "gone" / LOG)
        others_speak()
        raise ZeroDivisionError
    assert "lightning.pytorch: bad" in capfd.readouterr().err


def test_a_block_within_another_is_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with overheard() as outer:
        others_speak()
        with overheard() as inner:
            assert inner is outer
            keep_in(tmp_path / LOG, prefix="rank 1: ")
        others_speak()
    lines = (tmp_path / LOG).read_text().splitlines()
    assert len(lines) == 5 and all(line.startswith("rank 1: 2") for line in lines)
    assert capfd.readouterr().err == ""


def test_everything_is_put_back() -> None:
    import transformers.utils.logging as theirs

    def state() -> tuple[object, ...]:
        loggers = [logging.getLogger(name) for name in ("", "transformers", "lightning", "lightning.pytorch", "mlflow")]
        levels = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
        return levels, warnings.showwarning, theirs.is_progress_bar_enabled(), dict(os.environ)

    before = state()
    with overheard():
        assert not theirs.is_progress_bar_enabled()
        assert state() != before
    assert state() == before


def test_what_a_run_overhears_stands_in_its_folder(
    tmp_path: Path, shared_parts: Shared, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from bagpiper.model import Bagpiper

    desk, step = make_desk(tmp_path, shared_parts), Bagpiper.training_step

    def training_step(self: Bagpiper, batch: object, batch_idx: int) -> object:
        others_speak()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Bagpiper, "training_step", training_step)
    output = desk.train()
    assert output.splitlines()[-1] == f"what other libraries said: {desk.run / LOG}"
    first = (desk.run / LOG).read_text()
    assert first.count("weights of wte are odd") == 2
    desk.resume("trainer.max_steps=3")
    assert (desk.run / LOG).read_text().startswith(first), "a resumed run adds to it"
    assert "wte" not in output + capfd.readouterr().err


def test_the_command_line_stays_quick() -> None:
    """The module stands at the top of the verbs, so it must not bring torch or transformers with it."""
    import subprocess

    code = "import sys, bagpiper.overheard; print({'torch', 'transformers', 'lightning', 'rich'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
