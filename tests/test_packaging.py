"""What a user installs: the wheel holds the linked folders and runs from a clean place."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from setuptools import find_packages

from bagpiper import __version__
from bagpiper.recipe.load import shipped

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirement(name: str, requirements: list[str]) -> str:
    (found,) = [text for text in requirements if re.match(rf"{name}\b(?!-)", text)]
    return found


@pytest.mark.parametrize("name", ["callbacks", "recipes"])
def test_linked_packages_point_at_the_folders_at_the_top(name: str) -> None:
    link = ROOT / "bagpiper" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert f"bagpiper.{name}" in find_packages(ROOT, include=["bagpiper*"])


def test_every_folder_with_code_is_a_package() -> None:
    packages = set(find_packages(ROOT, include=["bagpiper*"]))
    folders = {file.relative_to(ROOT).parent for file in (ROOT / "bagpiper").rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} <= packages


def test_versions_that_matter() -> None:
    """Lightning 2.6.2 and 2.6.3 carried malicious code; an open range of torch fetches a build for GPUs."""
    core = PROJECT["project"]["dependencies"]
    assert requirement("lightning", core) == "lightning>=2.6.6,<2.7"
    assert requirement("torch", core) == "torch>=2.11,<2.14"
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"ui", "encodec", "gguf", "parquet", "speech", "scores", "test", "dev"}
    assert not [text for text in core if re.match(r"mlflow\b(?!-)|encodec|torchaudio", text)]


def test_licence_and_conda_environment() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    assert {"pip": ["-e .[ui]"]} in environment["dependencies"]


def test_ci_script_is_executable_and_parses() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=10)


def test_the_wheel_runs_from_a_clean_place(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source / name)
    for name in ("bagpiper", "callbacks", "recipes"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    built = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120, check=True
    )
    wheel = tmp_path / built.stdout.splitlines()[-1]
    assert wheel.name == f"bagpiper-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {f"bagpiper/recipes/{name}.yaml" for name in shipped()} <= names
    assert {"bagpiper/py.typed", "bagpiper/callbacks/__init__.py", "bagpiper/recipes/__init__.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "callbacks/", "recipes/"))]
    done = subprocess.run(
        [sys.executable, "-m", "bagpiper.cli.main", "check", "quickstart"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "quickstart is fine" in done.stdout
