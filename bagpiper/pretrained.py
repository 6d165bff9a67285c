"""Weights that other programs wrote: loaded by transformers, whole or not at all; and how to tell a damaged file."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, BinaryIO

from bagpiper.errors import brief, reason, shown

_POINTER = b"version https://git-lfs.github.com/spec/"
_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".th", ".json")
_FOREIGN = "is not a safetensors file; copy or fetch it again"
_NUMBER = re.compile(r"\.\d+")
_LISTED = 3
_LARGEST = 1 << 46
"""Bytes that no file has: what promises more is something else."""


def read_pretrained(loader: Any, source: str, where: str, **options: Any) -> Any:
    """What ``loader.from_pretrained`` gives: a config, a tokenizer or a model.

    Args:
        loader: a class of transformers.
        source: folder or hub name.
        where: key of the recipe that names it, for messages.
        options: of ``from_pretrained``.

    Raises:
        ValueError: there is none, or it is damaged; the message names the file, where one is to blame.
    """
    # of a GGUF file transformers draws a bar that no setting switches off
    bar = redirect_stderr(io.StringIO()) if "gguf_file" in options else nullcontext()
    try:
        with bar:
            return loader.from_pretrained(source, **options)
    except Exception as error:  # transformers, its hub client, safetensors and torch have each their own
        name = str(Path(source, options["gguf_file"])) if "gguf_file" in options else source
        raise ValueError(f"{where}: cannot load {shown(name, 200)}: {_why(name, error)}") from error


def load_weights(model_class: Any, source: str, where: str, part: str = "", **options: Any) -> Any:
    """A model of transformers in float32, every tensor of it read from a file.

    transformers itself draws at random what the files lack, and goes on.

    Args:
        model_class, source, where, options: as for ``read_pretrained``.
        part: beginning of the names that matter; the rest of the model is thrown away.

    Raises:
        ValueError: as ``read_pretrained``; or the files lack tensors of the model, or do not fit its config.
    """
    options = {**options, "output_loading_info": True, "dtype": "float32", "ignore_mismatched_sizes": True}
    model, report = read_pretrained(model_class, source, where, **options)
    for name, found, wanted in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"{where}: {name} in {shown(source, 200)} has shape {list(found)}, by its config.json {list(wanted)}; put "
            "the two together that were written together"
        )
    more = _further(report["unexpected_keys"], model.state_dict())
    if more:
        raise ValueError(
            f"{where}: {shown(source, 200)} has more layers than its config.json says ({more}); put the two together "
            "that were written together"
        )
    missing = sorted(name for name in report["missing_keys"] if name.startswith(part))
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise ValueError(
            f"{where}: {shown(source, 200)} is not a whole {type(model).__name__}: it lacks "
            f"{', '.join(missing[:_LISTED])}{more}; these would be random. Name a complete model of this kind"
        )
    return model


def _further(unexpected: Iterable[str], known: Iterable[str]) -> str | None:
    """A tensor that a model has too, but for the number of its layer; other tensors belong to parts that it has not."""
    kinds = {_NUMBER.sub(".#", name) for name in known}
    return next((name for name in sorted(unexpected) if _NUMBER.sub(".#", name) in kinds), None)


def fault_of(path: Path) -> str | None:
    """What is wrong with a file of weights or records, as far as its length and its beginning tell; None if nothing.

    Seen are files that are empty, pointers of git-lfs that stand in for the file, safetensors that are cut off, and
    JSON that is none.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(len(_POINTER))
            if not size:
                return "is empty; copy or fetch it again"
            if head == _POINTER:
                return "is a pointer of git-lfs and not the file itself: run `git lfs pull` in its folder"
            if path.suffix == ".safetensors":
                return _fault_of_safetensors(file, size)
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            return None
    except ValueError as error:
        return f"is not JSON ({reason(error)}); copy or fetch it again"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _fault_of_safetensors(file: BinaryIO, size: int) -> str | None:
    """Compare the file's size with what its header promises: the length of a header in JSON, it, and the tensors."""
    file.seek(0)
    length, brace = file.read(8), file.read(1)
    if brace != b"{":
        return _FOREIGN
    promised = 8 + int.from_bytes(length, "little")
    if promised <= size:
        try:
            entries = json.loads(brace + file.read(promised - 9))
            ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
            promised += max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return _FOREIGN
        if promised == size:
            return None
    if promised > _LARGEST:
        return _FOREIGN
    return f"is cut off or damaged: it should have {promised:,} bytes and has {size:,}; copy or fetch it again"


def _why(source: str, error: Exception) -> str:
    first = reason(error)
    place = Path(source).expanduser()
    if place.exists():
        for path in sorted(place.iterdir()) if place.is_dir() else [place]:
            fault = fault_of(path) if path.suffix in _SUFFIXES and path.is_file() else None
            if fault is not None:
                return f"{brief(path)} {fault}"
        return first
    return (
        f"it is no folder here, and the hub does not give it ({first}). Correct the name; where the hub is not "
        f"reachable, fetch it on a machine that reaches it (`hf download {brief(source, 200)} --local-dir weights`), "
        "copy the folder here and name that"
    )
