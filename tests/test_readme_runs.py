"""Commands of the README are run as they stand there, with fewer steps."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from desk import Desk, make_desk
from runs import Shared

from bagpiper.recipe.load import load_recipe
from bagpiper.recipe.settings import DataSettings, EvalSettings, SourceSettings
from bagpiper.recipe.summary import summarise

README = Path(__file__).resolve().parents[1] / "README.md"


def block_under(title: str) -> list[list[str]]:
    """The ``bagpiper`` commands under a title, as words after ``bagpiper``."""
    section = README.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("bagpiper ")]


@pytest.fixture
def desk(tmp_path: Path, shared_parts: Shared, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk to work at, with the README's ``manifest.jsonl`` on it."""
    monkeypatch.chdir(tmp_path)
    pairs = []
    for number in range(12):
        wave = 0.1 * np.random.default_rng(number).standard_normal(16000).astype(np.float32)
        soundfile.write(tmp_path / f"{number}.flac", wave, 16000)
        pairs.append({"audio": f"{number}.flac", "text": f"Noise number {number}."})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return make_desk(tmp_path, shared_parts)


def test_your_own_data(desk: Desk) -> None:
    """It trained, and then ended with "there is nothing to evaluate on", exit 2 and no closing lines."""
    importing, training = block_under("Your own data")
    assert importing[:2] == ["data", "import-pairs"]
    assert training[0] == "train"
    desk.works(*importing)
    output = desk.works(*training, "trainer.max_steps=2", "optimizer.warmup_steps=1", "trainer.threads=1")
    folder = next(word for word in training if word.startswith("run_dir=")).split("=")[1]
    lines = output.splitlines()
    (told,) = (number for number, line in enumerate(lines) if line.startswith("eval: none at the end"))
    (closed,) = (number for number, line in enumerate(lines) if line.startswith("run: "))
    assert told < closed
    assert lines[closed] == f"run: {folder}"
    assert (desk.path / folder / "model" / "config.json").is_file()
    assert not (desk.path / folder / "eval.json").exists()
    checked = desk.works("check", *training[1:])
    assert any(line.startswith("eval:   none at the end") for line in checked.splitlines())


@pytest.fixture
def own(desk: Desk) -> Desk:
    """A desk whose recipe has data of its own and wants an evaluation."""
    desk.works("data", "import-pairs", "manifest.jsonl", "-o", "pairs.jsonl")
    cache = desk.recipe.data.cache
    desk.recipe.data = DataSettings(
        [SourceSettings("pairs.jsonl")], token_budget=300, max_seconds=1.0, workers=0, cache=cache
    )
    desk.recipe.eval = EvalSettings(at_end=True, clips=2, cycles=0)
    return desk


def test_a_corpus_that_is_there_is_evaluated_on(own: Desk, shared_parts: Shared) -> None:
    own.recipe.data.soundscapes = None
    assert not own.recipe.can_evaluate
    own.run.mkdir()
    (own.run / "corpus").symlink_to(shared_parts.corpus)
    assert own.recipe.can_evaluate
    assert f"on the soundscapes in {own.run / 'corpus'}" in dict(summarise(load_recipe(str(own.write()))))["eval"]
    own.train()
    assert json.loads((own.run / "eval.json").read_text())["clips"] == 2


LINE = {
    "id": "a",
    "audio": "../../0.flac",
    "caption": "noise",
    "duration": 1.0,
    "facts": {"background": "x", "events": []},
}


def lines(**changes: object) -> str:
    return 2 * (json.dumps({**LINE, **changes}) + "\n")


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "{}\n{}\n", '{"audio": 3}\n' * 2, "[]\n" * 2),
        *(lines(facts=facts) for facts in ({}, None, "x", {"background": "x"})),
        *(lines(duration=seconds) for seconds in (None, "x", 0, 1e9, float("nan"))),
        lines(caption=None),
        lines(audio="gone.flac"),
    ],
)
def test_a_corpus_that_cannot_be_evaluated_on_is_told_before_training(own: Desk, content: str) -> None:
    own.recipe.data.soundscapes = None
    (own.run / "corpus").mkdir(parents=True)
    manifest = own.run / "corpus" / "test.jsonl"
    manifest.write_text(content)
    message = own.untrained()
    assert str(manifest) in message or str(manifest.parent / "gone.flac") in message
    assert not (own.run / "checkpoints").exists()


@pytest.mark.parametrize("key", ["eval.cycles", "eval.clips"])
def test_one_clip_is_no_evaluation(own: Desk, key: str) -> None:
    assert f"{key}: chance is measured by pairing clips" in own.untrained(f"{key}=1")
