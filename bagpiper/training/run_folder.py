"""The run folder: who may write into it, and the records that say what a run was."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from bagpiper.errors import UserError
from bagpiper.files import write_text
from bagpiper.recipe.load import dump_recipe
from bagpiper.recipe.settings import Recipe
from bagpiper.training.checkpoints import Checkpoint, list_checkpoints, remove_leftovers

RECIPE, ENVIRONMENT, FINGERPRINT, ORIGIN = "recipe.yaml", "environment.json", "fingerprint.json", "started_from.json"

HARMLESS = (
    "name",
    "run_dir",
    "device",
    "start_from",
    "trainer.max_steps",
    "trainer.validate_every",
    "trainer.validate_packs",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.log_every",
    "trainer.threads",
    "data.workers",
    "data.cache",
    "listening",
    "tracking",
    "generation",
    "eval",
    "parity",
)
"""Keys that may change between a run and its continuation: what they change is not the training itself."""

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
_SECRET = re.compile(r"(^|[._-])(token|secret|password|passwd|key|credentials?)$", re.IGNORECASE)


_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO)


def check_start(folder: Path, recipe: Recipe, resume: bool) -> Checkpoint | None:
    """The checkpoint to continue from; None for a new run.

    Raises:
        UserError: as ``check_new`` and ``check_resume``.
    """
    if not resume:
        check_new(folder, recipe)
        return None
    check_resume(folder, recipe)
    return list_checkpoints(folder)[-1]


def check_new(folder: Path, recipe: Recipe) -> None:
    """Check that a new run may have this folder. A run of this recipe that never reached a checkpoint may start again.

    Raises:
        UserError: the folder belongs to another run.
    """
    started = list_checkpoints(folder) or (folder / "model").exists()
    if (folder / RECIPE).is_file():
        changed = differences(read_recipe(folder), as_dict(recipe))
        if changed:
            raise UserError(
                f"{folder} holds the run of another recipe (it differs in {_listed(changed)}). "
                "Choose another folder with run_dir=..., or remove this one."
            )
        if started:
            raise UserError(
                f"{folder} holds a run of this recipe already. Continue it with `bagpiper train --resume {folder}`, "
                "or choose another folder with run_dir=..."
            )
    elif started:
        raise UserError(
            f"{folder} holds a model or checkpoints, but no {RECIPE} that says whose. "
            "Choose another folder with run_dir=..."
        )


def check_resume(folder: Path, recipe: Recipe) -> None:
    """Check that a run may be continued with this recipe.

    Raises:
        UserError: no run or no checkpoint here, or a key changed that decides what is trained.
    """
    changed = differences(read_recipe(folder), as_dict(recipe))
    if changed:
        raise UserError(
            f"{folder}: a resumed run cannot change {_listed(changed)}. Keys that may change: {', '.join(HARMLESS)}. "
            "Start a new run with another run_dir for everything else."
        )
    if not list_checkpoints(folder):
        raise UserError(
            f"{folder} has no complete checkpoint to resume from; start it again with `bagpiper train`, "
            "which keeps what was prepared"
        )


def read_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a run as a plain mapping.

    Raises:
        UserError: the folder holds no run.
    """
    path = folder / RECIPE
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no {RECIPE}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not readable YAML ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is empty or not a recipe")
    return content


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """What ``read_recipe`` will give for this recipe."""
    content = yaml.safe_load(dump_recipe(recipe))
    assert isinstance(content, dict)
    return content


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys, other than harmless ones, whose values differ."""
    found = []
    for key in sorted(set(old) | set(new)):
        dotted = f"{prefix}{key}"
        if dotted in HARMLESS or old.get(key) == new.get(key):
            continue
        if isinstance(old.get(key), Mapping) and isinstance(new.get(key), Mapping):
            found += differences(old[key], new[key], f"{dotted}.")
        else:
            found.append(dotted)
    return found


def check_fingerprint(folder: Path, record: Mapping[str, str]) -> None:
    """Compare what the ids mean with what the run has recorded.

    Args:
        folder: the run.
        record: ``layout`` (the vocabulary layout's fingerprint), ``tokenizer`` and ``codec`` (hashes).

    Raises:
        UserError: they differ, for example because the codec was fitted again.
    """
    path = folder / FINGERPRINT
    if not path.is_file():
        return
    known = json.loads(path.read_text(encoding="utf-8"))
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
    """What provenance says of the model that the run started from; nothing for a run that started without one."""
    path = folder / ORIGIN
    return {"started_from": json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {}


def write_records(folder: Path, recipe: Recipe) -> None:
    """Write ``recipe.yaml`` and ``environment.json``, and remove what a killed process left under temporary names.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    check_writable(folder)
    with disk_errors(folder):
        remove_leftovers(folder)
        write_text(folder / RECIPE, dump_recipe(dataclasses.replace(recipe, run_dir=str(folder))))
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
        "command": without_secrets(arguments),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and cleanliness of the repository around ``folder``; None outside a repository or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain")
    if status is None:
        return None
    return {"commit": (commit or "").strip() or None, "dirty": bool(status.strip())}


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line whose secrets are masked: values of tell-tale keys, and passwords inside URLs."""
    cleaned = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if equals and _SECRET.search(key):
            argument = f"{key}=***"
        scheme, separator, rest = argument.partition("://")
        if separator and "@" in rest.split("/", 1)[0]:
            argument = f"{scheme}://***@{rest.split('@', 1)[1]}"
        cleaned.append(argument)
    return cleaned


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
