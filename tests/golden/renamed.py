"""Copy a golden folder with all its names exchanged: ``python tests/golden/renamed.py SRC DST``.

Examples, decoding runs, clips, packs, buckets and the lengths of ``batching.json`` get names made of hashes, in file
names, keys and values. Every array and every other file keeps its bytes. README.md, which speaks of the names in prose,
stays behind.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path


def rename_set(source: Path, target: Path) -> dict[str, str]:
    """Make the copy.

    Args:
        source: a golden folder.
        target: folder to be made.

    Returns:
        New name of each old one.
    """
    names = new_names(source)
    for path in sorted(source.rglob("*")):
        if path.is_dir() or path.name == "README.md":
            continue
        copy = target / rename(str(path.relative_to(source)), names)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            _copy_arrays(path, copy, names)
        elif path.parent == source and path.suffix in (".json", ".jsonl"):
            # those in folders are configs and tokenizers, and hold no names
            text = path.read_text().strip()
            documents = text.split("\n") if path.suffix == ".jsonl" else [text]
            copy.write_text("".join(json.dumps(_walk(json.loads(each), names)) + "\n" for each in documents))
        else:
            shutil.copyfile(path, copy)
    return names


def new_names(folder: Path) -> dict[str, str]:
    """A new name for each name of a golden folder."""

    def read(name):
        return json.loads((folder / name).read_text())

    examples = [json.loads(line)["example_id"] for line in (folder / "dialogues.jsonl").read_text().splitlines()]
    plans = read("preprocess.json")
    kinds = {
        "story": examples,
        "sound": [*read("codes.json")["clips"]],
        "drawing": [part for run in read("decode.json")["runs"] for part in run["name"].split("/")],
        "parcel": [*plans["pack"], *plans["bucket"], *read("forward.json")["packed"]],
        "extent": [*read("batching.json")["lengths"]],
    }
    names: dict[str, str] = {}
    for kind, old in kinds.items():
        for name in old:
            names.setdefault(name, f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:8]}")
    assert len(set(names.values())) == len(names)
    return names


def rename(text: str, names: dict[str, str]) -> str:
    """Exchange names in a path: whole parts between slashes, with or without a suffix. Texts with spaces stay."""
    if " " in text:
        return text
    parts = []
    for part in text.split("/"):
        stem, dot, suffix = part.rpartition(".")
        known = stem in names and part not in names
        parts.append(names[stem] + dot + suffix if known else names.get(part, part))
    return "/".join(parts)


def _walk(value, names):
    if isinstance(value, dict):
        return {rename(key, names): _walk(entry, names) for key, entry in value.items()}
    if isinstance(value, list):
        return [_walk(entry, names) for entry in value]
    return rename(value, names) if isinstance(value, str) else value


def _copy_arrays(source: Path, target: Path, names: dict[str, str]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            new.writestr(rename(entry, names), old.read(entry))


if __name__ == "__main__":
    rename_set(Path(sys.argv[1]), Path(sys.argv[2]))
