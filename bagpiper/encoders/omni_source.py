"""Reading an audio tower out of an Omni checkpoint: its config, and its tensors alone.

An Omni model has 70 GB, its tower 2.6 GB. Only the shards that hold tensors of the tower are fetched, and only those
tensors are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bagpiper.errors import brief, reason, shown
from bagpiper.pretrained import fault_of

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_INSIDE = "audio_tower."
"""What stands before a tensor's own name in the checkpoint of a whole Omni model, after prefixes that vary."""

Find = Callable[[str], Path | None]
"""File of a source by name, or None."""


def read_fields(source: str, fields: Iterable[str]) -> dict[str, Any]:
    """The tower's fields in a source's ``config.json``.

    Args:
        source: folder or hub name.
        fields: names to take; the others describe other things than the tower's shape.

    Raises:
        ValueError: there is no such config.
    """
    return _fields(source, _finder(source), fields)


def read_tower(source: str, fields: Iterable[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The tower's fields and its tensors under their own names, in float32.

    Args:
        source: folder or hub name.
        fields: as in ``read_fields``.

    Raises:
        ValueError: config or weights are missing or damaged.
    """
    find = _finder(source)
    kept = _fields(source, find, fields)
    tensors: dict[str, torch.Tensor] = {}
    for file, names in _where(source, find).items():
        path = find(file)
        if path is None:
            raise ValueError(f"encoder: {shown(source, 200)} lacks {file}, which its index names")
        try:
            with safe_open(path, framework="pt") as opened:
                known = opened.keys()
                names = names or _of_tower(known)
                tensors.update({_own_name(name): opened.get_tensor(name).float() for name in names})
        except SafetensorError as error:
            fault = fault_of(path) or f"cannot be read ({reason(error)}); fetch it again"
            raise ValueError(f"encoder: {brief(path)} {fault}") from error
    return kept, tensors


def _fields(source: str, find: Find, fields: Iterable[str]) -> dict[str, Any]:
    path = find(CONFIG)
    if path is None:
        raise ValueError(f"encoder: cannot load {shown(source, 200)} (a folder or a hub name): it has no {CONFIG}")
    config = _read_json(path)
    for outer in ("thinker_config", "audio_config"):
        config = config.get(outer, config)
    if "d_model" not in config:
        raise ValueError(f"encoder: {path} describes no audio tower (no d_model)")
    return {name: config[name] for name in fields if name in config}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"encoder: {path}: not JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"encoder: {path}: not a JSON object; fetch it again")
    return content


def _where(source: str, find: Find) -> dict[str, list[str]]:
    """Names of the tower's tensors by file; a file alone names them itself."""
    index = find(INDEX)
    if index is None:
        if find(WEIGHTS) is None:
            raise ValueError(
                f"encoder: {shown(source, 200)} has neither {WEIGHTS} nor {INDEX}; weights in other formats are not "
                "read"
            )
        return {WEIGHTS: []}
    weight_map: dict[str, str] = _read_json(index).get("weight_map", {})
    files: dict[str, list[str]] = {}
    for name in _of_tower(weight_map):
        files.setdefault(weight_map[name], []).append(name)
    return files


def _of_tower(names: Iterable[str]) -> list[str]:
    """Those that belong to the tower; all of them where no name says so, as in a tower's own file."""
    names = list(names)
    return [name for name in names if _INSIDE in name] or names


def _own_name(name: str) -> str:
    return name.rpartition(_INSIDE)[2]


def _finder(source: str) -> Find:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return lambda name: found if (found := folder / name).is_file() else None
    if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise ValueError(f"encoder: there is no folder {shown(source, 200)}")

    def fetch(name: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(source, name))
        except (OSError, ValueError, EntryNotFoundError) as error:
            # the hub's own "no such file" is an OSError too; without a connection nothing is known about the file
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                return None
            found = f"cannot load {shown(source, 200)} (a folder or a hub name): {brief(error, 1000)}"
            raise ValueError(f"encoder: {found}") from error

    return fetch
