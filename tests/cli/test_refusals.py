"""What the command line prints when it refuses: short lines that a terminal takes for text, and exit 2."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bagpiper.cli.main import _refuse


def test_control_characters_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _refuse("runs/\x1b]0;evil\x07: no run\n  second line")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: runs/\\x1b]0;evil\\x07: no run\n  second line\n"


@pytest.mark.parametrize(
    "words",
    [
        ["cp", "quickstart", "LONG"],
        ["check", "LONG"],
        ["check", "quickstart", "seed=" + "1" * 5000],
        ["train", "quickstart", "--dry-run", "run_dir=LONG"],
        ["train", "--resume", "LONG"],
        ["describe", ".", "LONG"],
        ["render", ".", "a bell", "-o", "LONG.wav"],
        ["convert", "merge", "LONG", "-o", "out"],
        ["data", "import-pairs", "LONG", "-o", "out.jsonl"],
        ["data", "export-dialogues", "LONG", "-o", "out.jsonl"],
    ],
    ids=lambda words: " ".join(words)[:30],
)
def test_a_name_that_no_file_can_have_is_told_in_short_lines(words: list[str]) -> None:
    command = [sys.executable, "-m", "bagpiper", *(word.replace("LONG", "x" * 5000) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert len(done.stderr) < 1000
