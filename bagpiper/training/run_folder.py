"""The run folder: the records that say what a run was, and what to say when it cannot be written to."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from bagpiper.errors import UserError, reason
from bagpiper.files import write_text
from bagpiper.recipe.load import dump_recipe
from bagpiper.recipe.settings import Recipe
from bagpiper.redact import redact_arguments
from bagpiper.training.checkpoints import list_checkpoints, remove_leftovers

RECIPE, ENVIRONMENT, FINGERPRINT, ORIGIN = "recipe.yaml", "environment.json", "fingerprint.json", "started_from.json"
METRICS = "metrics.jsonl"

PACKAGES = (
    "bagpiper",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "bitsandbytes",
    "safetensors",
    "torchdata",
    "numpy",
    "omegaconf",
    "soundfile",
    "soxr",
    "mlflow-skinny",
)


_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO)


def read_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a run as a plain mapping.

    Raises:
        UserError: the folder holds no run.
    """
    path = folder / RECIPE
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no {RECIPE}")
    return read_yaml(path)


def read_yaml(path: Path) -> dict[str, Any]:
    """A recipe that ``recipe_text`` made, as a plain mapping.

    Raises:
        UserError: that is not what the file holds.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable YAML ({reason(error)}); put the file back") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is empty or not a recipe")
    return content


def recipe_text(recipe: Recipe) -> str:
    """A recipe as the run's records have it: without secrets."""
    return dump_recipe(recipe, masked=True)


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """What ``read_recipe`` will give for this recipe."""
    content = yaml.safe_load(recipe_text(recipe))
    assert isinstance(content, dict)
    return content


def check_fingerprint(folder: Path, record: Mapping[str, str], trained: Mapping[str, str] | None = None) -> None:
    """Compare what the ids mean with what the run has recorded.

    Args:
        folder: the run.
        record: ``layout`` (the vocabulary layout's fingerprint), ``tokenizer`` and ``codec`` (hashes).
        trained: what the checkpoint says that is resumed, whose file may be gone.

    Raises:
        UserError: they differ, for example because the codec was fitted again.
    """
    path = folder / FINGERPRINT
    way_out = "put the file back, or remove it if you trust the folder"
    known = _read_object(path, way_out) if path.is_file() else trained
    if known is None:
        return
    changed = [name for name in ("tokenizer", "codec", "layout") if known.get(name) != record.get(name)]
    if changed:
        raise UserError(
            f"{folder}: the ids of this run do not mean what they meant: changed {_listed(changed)}. A codec or "
            "tokenizer of the same shape but with other contents would turn every code and text into another one. "
            f"Put the run's own files back (codec.safetensors, tokenizer/) or start a new run with another run_dir."
        )


def write_fingerprint(folder: Path, record: Mapping[str, str]) -> None:
    """Record what the ids of the run mean."""
    write_text(folder / FINGERPRINT, json.dumps(dict(record), indent=2) + "\n")


def write_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Record the model folder that the run started from; every model that it saves repeats it."""
    write_text(folder / ORIGIN, json.dumps(dict(origin), indent=2) + "\n")


def read_origin(folder: Path) -> dict[str, Any]:
    """What provenance says of the model that the run started from; nothing for a run that started without one.

    Raises:
        UserError: the record is damaged.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return {}
    way_out = "put the file back, or remove it: models then no longer say what the run started from"
    return {"started_from": _read_object(path, way_out)}


def _read_object(path: Path, way_out: str) -> dict[str, Any]:
    """A record that is an object of JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({reason(error)}); {way_out}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not an object of JSON; {way_out}")
    return content


def drop_records(folder: Path, step: int) -> None:
    """Drop the records after a step from ``metrics.jsonl``: the run comes there again, by another plan.

    MLflow cannot drop them, so there the run goes on as another one.
    """
    path = folder / METRICS
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        (folder / "mlflow_run.json").unlink(missing_ok=True)
        write_text(path, b"".join(kept).decode("utf-8"))


def write_records(folder: Path, recipe: Recipe) -> None:
    """Write ``recipe.yaml`` and ``environment.json``, and remove what a killed process left under temporary names.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    check_writable(folder)
    with disk_errors(folder):
        remove_leftovers(folder)
        write_text(folder / RECIPE, recipe_text(dataclasses.replace(recipe, run_dir=str(folder))))
        write_text(folder / ENVIRONMENT, json.dumps(environment(sys.argv), indent=2) + "\n")


def check_writable(folder: Path) -> None:
    """Make the folder and write a small file to it.

    Raises:
        UserError: that fails; says why and what to do.
    """
    trial = folder / ".tmp-trial"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"\0" * 65536)
        trial.unlink()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into messages with a way out.

    Raises:
        UserError: instead of an OSError that a user can mend.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            complete = list_checkpoints(folder)
            kept = f"; the last complete checkpoint is {complete[-1].folder}" if complete else ""
            raise UserError(
                f"{folder}: no space left on the disk{kept}. Free some space"
                + (f", then `bagpiper train --resume {folder}`." if complete else " or choose another run_dir.")
            ) from error
        if error.errno not in _UNWRITABLE:
            raise
        raise UserError(
            f"{folder}: cannot be written to ({error.strerror or error}). Choose another folder with run_dir=..."
        ) from error


def environment(arguments: Sequence[str]) -> dict[str, Any]:
    """What a run ran on: versions, platform, git state of the working folder, command line without secrets."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(Path.cwd()),
        "command": redact_arguments(arguments),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and cleanliness of the repository around ``folder``; None outside a repository or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain")
    if status is None:
        return None
    return {"commit": (commit or "").strip() or None, "dirty": bool(status.strip())}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _listed(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
