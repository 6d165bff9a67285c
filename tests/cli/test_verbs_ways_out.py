"""Every way out that a message of a verb names is tried, see ``tests/test_ways_out.py``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from desk import Desk, make_desk
from runs import Shared

from bagpiper.errors import UserError


@pytest.fixture
def desk(tmp_path: Path, shared_parts: Shared) -> Desk:
    return make_desk(tmp_path, shared_parts)


def test_of_the_verb_cp(desk: Desk) -> None:
    target = desk.path / "folder" / "mine.yaml"
    assert "make it first" in desk.refused("cp", "quickstart", target)
    target.parent.mkdir()
    assert f"try `bagpiper check {target}`" in desk.works("cp", "quickstart", target)
    desk.works("check", target)
    message = desk.refused("cp", "quickstart", target)
    assert "choose another name or remove it first" in message
    desk.works("cp", "quickstart", target.with_name("other.yaml"))
    target.unlink()
    desk.works("cp", "quickstart", target)


def test_of_the_verb_render(desk: Desk, tiny_run: Path) -> None:
    assert "the name must end in .wav or .flac" in desk.refused("render", tiny_run, "a bell", "-o", desk.path / "a.mp3")
    target = desk.path / "folder" / "a.wav"
    assert "make it first" in desk.refused("render", tiny_run, "a bell", "-o", target)
    target.parent.mkdir()
    desk.works("render", tiny_run, "a bell", "-o", target)
    message = desk.refused("render", tiny_run, "a bell", "-o", target)
    assert "choose another name, or replace it with --force" in message
    desk.works("render", tiny_run, "a bell", "-o", target, "--force")
    desk.works("render", tiny_run, "a bell", "-o", target.with_name("b.flac"))


def test_of_verbs_that_use_a_model(desk: Desk, tiny_run: Path, shared_parts: Shared) -> None:
    clip = next((shared_parts.corpus / "audio").glob("valid*"))
    assert "give a run folder or a model folder" in desk.refused("describe", desk.path / "nothing", clip)
    for folder in (tiny_run, tiny_run / "model"):
        desk.works("describe", folder, clip)


def test_of_the_verb_eval(desk: Desk, tiny_run: Path, shared_parts: Shared) -> None:
    model = desk.path / "model"
    shutil.copytree(tiny_run / "model", model)
    assert "name one with --corpus" in desk.refused("eval", model)
    few = ("eval", model, "--corpus", shared_parts.corpus, "--clips", 2)
    assert "give 0" in desk.refused(*few, "--cycles", 1)
    desk.works(*few, "--cycles", 0)


def test_of_an_option_that_a_model_does_not_know(tiny_run: Path, shared_parts: Shared) -> None:
    import bagpiper

    clip = next((shared_parts.corpus / "audio").glob("valid*"))
    with pytest.raises(UserError) as refused:
        bagpiper.describe(tiny_run, clip, heat=1.0)
    allowed = str(refused.value).partition("allowed: ")[2].split(", ")
    for name in allowed:
        bagpiper.describe(tiny_run, clip, **{name: "mean" if name == "channel" else 1})


def test_of_a_recipe_without_a_version(desk: Desk) -> None:
    file = desk.write()
    plain = yaml.safe_load(file.read_text())
    del plain["version"]
    file.write_text(yaml.safe_dump(plain))
    assert "write `version: 1`" in desk.refused("train", file, "--dry-run")
    file.write_text("version: 1\n" + yaml.safe_dump(plain))
    desk.works("train", file, "--dry-run")
