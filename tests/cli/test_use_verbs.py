from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bagpiper.cli.main import main

TIMEOUT = 240


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "tone.wav"
    soundfile.write(path, 0.2 * np.sin(np.arange(24000) * 0.2), 24000)
    return path


def call(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["bagpiper", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bagpiper.cli.main", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=environment
    )


def test_every_verb_runs_as_a_process(tiny_run: Path, clip: Path, tmp_path: Path) -> None:
    """All at once: each spends most of its time on imports."""
    sound, run = tmp_path / "out.wav", tmp_path / "run"
    shutil.copytree(tiny_run, run)
    processes = {
        "describe": start("describe", tiny_run, clip, clip, "--json"),
        "render": start("render", tiny_run, "a bell", "-o", sound, "--max-seconds", 0.2),
        "ask": start("ask", tiny_run, clip, "what is it?"),
        "eval": start("eval", run, "--clips", 2, "--cycles", 0),
    }
    said = {}
    for verb, process in processes.items():
        out, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, f"{verb}: {err}"
        said[verb] = out
    rows = [json.loads(line) for line in said["describe"].splitlines()]
    assert [row["clip"] for row in rows] == [str(clip), str(clip)]
    assert rows[0] == rows[1]  # the same seed
    samples, rate = soundfile.read(sound)
    assert rate == 16000
    assert 0 < len(samples) <= 0.2 * rate
    assert said["render"].startswith(f"{sound}: ")
    assert said["ask"].endswith("\n")
    assert "score (right / by chance)" in said["eval"]
    assert set(json.loads((run / "eval.json").read_text())) >= {"audio_to_caption", "caption_to_audio"}
    assert f"written to {run / 'eval.json'}, the table to {run / 'eval.txt'}" in said["eval"]


def test_a_silent_first_channel_is_told_in_one_line(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right, tone = tmp_path / "right.wav", 0.2 * np.sin(np.arange(24000) * 0.2)
    soundfile.write(right, np.stack([0 * tone, tone], axis=1), 24000)
    for verb, rest in (("describe", []), ("ask", ["what is it?"])):
        assert call(verb, tiny_run, right, *rest, monkeypatch=monkeypatch) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "first channel" in line]
        assert len(lines) == 1 and lines[0].startswith(f"warning: {right}: the first channel is silent")
        assert "--channel loudest" in lines[0], "the way out"
        assert call(verb, tiny_run, right, *rest, "--channel", "loudest", monkeypatch=monkeypatch) == 0
        assert "first channel" not in capsys.readouterr().err
    assert call("describe", tiny_run, right, "--channel", "left", monkeypatch=monkeypatch) == 2
    assert "channel 'left'; allowed: first, mean, loudest" in capsys.readouterr().err


def test_a_user_error_is_one_line_and_exit_status_2(clip: Path, tmp_path: Path) -> None:
    process = start("describe", tmp_path / "no-run", clip)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    assert out == ""
    assert err.strip() == f"error: there is no folder '{tmp_path / 'no-run'}'; give a run folder or a model folder"


def test_an_existing_sound_is_kept_unless_forced(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = tmp_path / "out.flac"
    sound.write_text("mine")
    render = ("render", tiny_run, "a bell", "-o", sound, "--seed", 3, "--device", "cpu")
    assert call(*render, monkeypatch=monkeypatch) == 2
    assert "exists already; choose another name, or replace it with --force" in capsys.readouterr().err
    assert sound.read_text() == "mine"
    assert call(*render, "--force", monkeypatch=monkeypatch) == 0
    first = soundfile.read(sound)[0]
    assert call(*render, "--force", monkeypatch=monkeypatch) == 0
    assert np.array_equal(soundfile.read(sound)[0], first)


def test_parity_exits_with_1_when_something_differs(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bagpiper.model import Bagpiper
    from bagpiper.parity import compare

    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    before = sorted(path.name for path in run.iterdir())
    (run / "parity.json").unlink()
    assert call("parity", run, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "exported and reloaded" in out and "DIFFERS" not in out
    assert json.loads((run / "parity.json").read_text())["passed"]
    assert sorted(path.name for path in run.iterdir()) == before

    load_model = compare.load_model

    def forgetful(folder: Path, device: object) -> Bagpiper:
        model = load_model(folder, device)  # type: ignore[arg-type]
        if folder.parent.name == ".tmp-parity":
            model.llm.model.norm.weight.data.mul_(1.01)
        return model

    monkeypatch.setattr(compare, "load_model", forgetful)
    assert call("parity", run, monkeypatch=monkeypatch) == 1
    assert "DIFFERS" in capsys.readouterr().out
    record = json.loads((run / "parity.json").read_text())
    assert [c["way"] for c in record["comparisons"] if not c["passed"]] == ["exported and reloaded"]
    assert not record["passed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("describe", "RUN", "CLIP", "gone.wav"), "no such audio file: gone.wav"),
        (("ask", "RUN", "gone.wav", "what?"), "no such audio file: gone.wav"),
        (("describe", "RUN", "CLIP"), "holds no model yet"),
        (("describe", "RUN", "CLIP", "--device", "abacus"), "device 'abacus' is not here"),
        (("render", "RUN", "a bell", "-o", "out.mp3"), "the name must end in .wav or .flac"),
        (("render", "RUN", "a bell", "-o", "nowhere/out.wav"), "there is no folder 'nowhere'; make it first"),
        (("eval", "RUN"), "not a run folder: it has no recipe.yaml"),
        (("parity", "RUN"), "not a run folder: it has no recipe.yaml"),
    ],
)
def test_mistakes_of_the_user(
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    real = {"RUN": str(tmp_path), "CLIP": str(clip)}
    assert call(*(real.get(argument, argument) for argument in arguments), monkeypatch=monkeypatch) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
