"""ls, cat, cp, diff, check as a user meets them; a few run as processes, the others inside this one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from bagpiper import __version__
from bagpiper.cli import main as cli
from bagpiper.cli.recipes import read_header
from bagpiper.errors import UserError
from bagpiper.recipe.load import dump_recipe, load_recipe, shipped
from bagpiper.recipe.source import read


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, output and error output of a command line."""
    before = sys.argv
    sys.argv = ["bagpiper", *words]
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = before
    code = ended.value.code
    captured = capsys.readouterr()
    return (code if isinstance(code, int) else 0), captured.out, captured.err


def process(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bagpiper.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    """0.13 s of CPU time here; the bound leaves room for slow and busy machines, but not for an import of torch."""
    code = (
        "import sys, time; sys.argv = ['bagpiper', '--help']; from bagpiper.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'lightning', 'transformers', 'numpy', 'omegaconf', 'mlflow')\n"
        "print([name for name in heavy if name in sys.modules], time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    for verb in ("ls", "cat", "cp", "diff", "check"):
        assert f"\n  {verb} " in done.stdout
    imported, seconds = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert imported == "[]"
    assert float(seconds) < 0.4


def test_check_as_a_process() -> None:
    started = time.perf_counter()
    good = process("check", "quickstart", "trainer.max_steps=5", "data.token_budget=4096")
    seconds = time.perf_counter() - started
    assert good.returncode == 0, good.stderr
    assert "25 code frames/s x 3 codebooks" in good.stdout
    assert "5 steps of up to 4096 rows" in good.stdout
    assert seconds < 10  # 0.8 s on an idle machine
    bad = process("check", "quickstart", "trainer.max_step=5", "optimizer.lr=fast")
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert "recipe quickstart has 2 mistakes" in bad.stderr
    assert "did you mean 'max_steps'?" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_ls_lists_every_recipe_with_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ls")
    assert code == 0
    for name in shipped():
        assert f" {name} " in out
        header = read_header(read(name).text)
        assert header["What"] and header["Needs"] and header["Reached"]
    assert "data.sources=[" in out  # brackets are text, not markup


def test_header_paragraphs_end_with_the_comment() -> None:
    text = "# What: one\n#   two.\n# Needs: a: b\nversion: 1\n# Reached: no\n"
    assert read_header(text) == {"What": "one two.", "Needs": "a: b"}


def test_cat_prints_the_file_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "cat", "quickstart") == (0, read("quickstart").text, "")
    code, out, err = run(capsys, "cat", "quikstart")
    assert (code, out) == (2, "")
    assert "did you mean 'quickstart'?" in err


def test_cp_copies_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine.yaml"
    assert run(capsys, "cp", "quickstart", str(target))[0] == 0
    assert target.read_text() == read("quickstart").text
    target.write_text("precious")
    code, _, err = run(capsys, "cp", "quickstart", str(target))
    assert code == 2
    assert "exists already" in err
    assert target.read_text() == "precious"
    code, _, err = run(capsys, "cp", "quickstart", str(tmp_path / "no" / "mine.yaml"))
    assert code == 2
    assert "there is no folder" in err


def test_diff_compares_what_recipes_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("quickstart")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert run(capsys, "diff", "quickstart", str(tmp_path))[1].endswith("set the same\n")
    recipe.trainer.max_steps = 7
    recipe.data.soundscapes = None
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    code, out, _ = run(capsys, "diff", str(tmp_path), "quickstart")
    assert code == 0
    assert f"trainer.max_steps: 7 -> {load_recipe('quickstart').trainer.max_steps}\n" in out
    assert "data.soundscapes: null -> (no such key)\n" in out
    assert 'data.soundscapes.variety: (no such key) -> "quick"\n' in out
    code, out, _ = run(capsys, "diff", "sft/bagpiper-8b", "sft/bagpiper-8b-qlora")
    assert code == 0
    assert 'stage.lora.quantize: (no such key) -> "nf4"\n' in out


def test_version_and_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"{__version__}\n", "")
    code, _, err = run(capsys, "chek", "quickstart")
    assert code == 2
    assert "Did you mean 'check'?" in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("clip.wav: empty file"), "error: clip.wav: empty file\n"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/runs/x"), "error: Permission denied: /runs/x\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
    ],
)
def test_a_users_mistake_is_one_message(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "build_app", lambda: _failing(error))
    code, _, err = run(capsys)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("x"), FileNotFoundError(errno.ENOENT, "gone")])
def test_anything_else_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "build_app", lambda: _failing(error))
    monkeypatch.setattr(sys, "argv", ["bagpiper"])
    with pytest.raises(type(error)):
        cli.main()


def _failing(error: Exception) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    return app
