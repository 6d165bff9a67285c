"""The commands of docs/convert.md, run in their order on a tiny official checkpoint."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import noise
from typer.testing import CliRunner

from bagpiper.cli.main import build_app
from bagpiper.errors import UserError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "convert.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def prepare(official, shared_parts):
    """The files that the page names, in the working folder."""
    shutil.copy(official.checkpoint, "base.pt")
    shutil.copy(official.checkpoint, "model.pt")
    for name in ("train.yaml", "train_sft.yaml"):
        shutil.copy(official.config, name)
    os.symlink(official.folders["llm"], "Qwen3-8B-Base")
    os.symlink(shared_parts.corpus, "corpus")
    soundfile.write("clip.wav", noise(0.5, 1), 16000)
    rows = [
        [["system", "text", "Make it."], ["user", "text", "a bell"], ["assistant", "audio", "clip.wav"]],
        [["user", "audio", "clip.wav"], ["assistant", "text", "a bell"]],
    ]
    lines = [json.dumps({"example_id": str(n), "messages": messages}) for n, messages in enumerate(rows)]
    Path("dialogues.jsonl").write_text("\n".join(lines) + "\n")
    Path("mine.yaml").write_text(blocks("yaml")[0])


def adapted(words, official):
    """Tiny sizes instead of the published ones, and no long answers."""
    if words[:2] == ["convert", "import"]:
        words += [f"--{part}={official.folders[part]}" for part in ("tower", "codec")]
    if words[0] == "train":
        words += ["trainer.max_steps=1", "tracking.enabled=false", "device=cpu", "listening.from_valid=0"]
    if words[0] in ("describe", "ask", "render", "eval"):
        words += ["--device=cpu"]
    if words[0] == "eval":
        words[words.index("20")] = "2"
    return words


def shorten(folder):
    path = Path(folder, "config.json")
    config = json.loads(path.read_text())
    config["generation"]["text"]["max_rows"] = config["generation"]["audio"]["max_rows"] = 9
    config["generation"]["audio"]["min_rows"] = 2
    path.write_text(json.dumps(config))


def test_every_command_of_the_page(official_once, shared_parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(official_once, shared_parts)
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("bagpiper ")]
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    commands.sort(key=lambda words: words[:2] != ["data", "import-dialogues"])  # the page trains on what this makes
    assert len(commands) > 10
    for words in commands:
        result = CliRunner().invoke(build_app(), adapted(words, official_once))
        assert result.exit_code == 0, (words, result.output, result.exception)
        if words[:2] == ["convert", "import"]:
            shorten(words[words.index("-o") + 1])
    generation = json.loads(Path("bagpiper-sft/config.json").read_text())["generation"]
    assert generation["render_prompt"] == "Make it."
    written = torch.load("mine.pt", weights_only=True)["module"]
    assert {n: (t.shape, t.dtype) for n, t in written.items()} == {
        n: (t.shape, t.dtype) for n, t in official_once.tensors.items()
    }
    assert Path("mine-llm", "model.safetensors").is_file()
    assert np.isfinite(soundfile.read("bell.wav")[0]).all()
    assert json.loads(Path("bagpiper-8b", "eval.json").read_text())


def test_mistakes_are_told_before_anything_heavy(tmp_path):
    for words, message in (
        (["convert", "import", "no.pt", "--config", "no.yaml", "-o", "x"], "there is no 'no.pt'"),
        (["convert", "merge", "nowhere", "-o", "x"], "there is no folder 'nowhere'"),
        (["convert", "export", "nowhere", "-o", "x"], "there is no folder 'nowhere'"),
        (["eval", str(tmp_path)], "--corpus"),
    ):
        result = CliRunner().invoke(build_app(), words)
        assert isinstance(result.exception, UserError)
        assert message in str(result.exception)


@pytest.mark.parametrize("names", [("base.pt", "train_stage3_qwen3_base.yaml"), ("bagpiper-sft/model.pt", "t.yaml")])
def test_stage_is_told_by_the_names(tmp_path, names):
    from bagpiper.cli.convert import _names_sft

    assert _names_sft(*(tmp_path / "x" / name for name in names))
    assert not _names_sft(tmp_path / "x" / "base.pt", tmp_path / "train_stage2_qwen3_base.yaml")
