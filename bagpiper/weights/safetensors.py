"""Tensors on the disk, in safetensors files of bounded size, read and written without holding them in memory.

``trained.safetensors`` is one file; more than ``SHARD_BYTES`` become ``trained-00001-of-00003.safetensors`` and so on.
Reading maps the files into memory: a tensor's pages come from the disk when they are touched, and can be dropped again.
The library's own writer wants all tensors of a file in memory, so the (simple) format is written here.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from bagpiper.errors import UserError, brief, reason
from bagpiper.files import replacing_file
from bagpiper.pretrained import fault_of

SHARD_BYTES = 1 << 30
"""A file is not made longer than this, but for a single tensor that is."""
CHUNK_BYTES = 32 << 20
"""Bytes of a tensor that are converted and written at once."""
SUFFIX = ".safetensors"

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes in the format."""


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor before its values are.

    Attributes:
        dtype: of the tensor on the disk.
        shape: of the tensor.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size on the disk."""
        return prod(self.shape) * self.dtype.itemsize


Specs = Mapping[str, TensorSpec]
Advance = Callable[[int], None]
"""Told how many more bytes are done."""


def spec_of(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> TensorSpec:
    """The spec of a tensor, under another float dtype if one is given."""
    return TensorSpec(dtype if dtype and tensor.is_floating_point() else tensor.dtype, tuple(tensor.shape))


def chunks_of(tensors: Iterable[torch.Tensor], dtype: torch.dtype) -> Iterator[memoryview]:
    """Bytes of tensors one after the other, converted to ``dtype``, never more than ``CHUNK_BYTES`` at once."""
    for tensor in tensors:
        flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().contiguous().reshape(-1)
        step = max(1, CHUNK_BYTES // max(flat.dtype.itemsize, dtype.itemsize))
        for piece in flat.split(step):
            yield memoryview(piece.cpu().to(dtype).contiguous().view(torch.uint8).numpy())


def plan_shards(specs: Specs, limit: int = SHARD_BYTES) -> list[list[str]]:
    """Names of the tensors of each file, in the order of ``specs``; at least one file."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.num_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.num_bytes
    return shards


def shard_file(stem: str, number: int, count: int) -> str:
    """Name of file ``number`` (from 0) of ``count``."""
    return stem + SUFFIX if count == 1 else f"{stem}-{number + 1:05d}-of-{count:05d}{SUFFIX}"


def header_of(specs: Specs) -> bytes:
    """What a file begins with: its length, then names, dtypes, shapes and places of the tensors (JSON)."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    start = 0
    for name, spec in specs.items():
        end = start + spec.num_bytes
        entries[name] = {"dtype": DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned
    return struct.pack("<Q", len(text)) + text


def write_shard(path: Path, specs: Specs, chunks: Callable[[str], Iterable[memoryview]], advance: Advance) -> None:
    """Write one file, under a temporary name first.

    Args:
        path: where to.
        specs: the tensors, in their order in the file.
        chunks: the bytes of a tensor by name.
        advance: told of every chunk.
    """
    with replacing_file(path) as temporary, temporary.open("wb") as file:  # raw files may write less
        file.write(header_of(specs))
        for name, spec in specs.items():
            written = 0
            for chunk in chunks(name):
                file.write(chunk)
                written += len(chunk)
                advance(len(chunk))
            assert written == spec.num_bytes, (name, written, spec)


def write_shards(
    folder: Path,
    stem: str,
    specs: Specs,
    chunks: Callable[[str], Iterable[memoryview]],
    *,
    advance: Advance = lambda count: None,
    limit: int = SHARD_BYTES,
) -> list[Path]:
    """Write tensors as files of bounded size; files that are there already, whole, are kept.

    A file under its final name was renamed after its last byte was on the disk, so its length tells that it is whole.
    """
    paths = []
    plan = plan_shards(specs, limit)
    for number, names in enumerate(plan):
        path = folder / shard_file(stem, number, len(plan))
        own = {name: specs[name] for name in names}
        size = sum(spec.num_bytes for spec in own.values())
        if path.is_file() and path.stat().st_size == len(header_of(own)) + size:
            advance(size)
        else:
            write_shard(path, own, chunks, advance)
        paths.append(path)
    return paths


def find_shards(folder: Path, stem: str) -> list[Path]:
    """The files of a stem, in order.

    Raises:
        UserError: there are none, or some are missing.
    """
    single = folder / (stem + SUFFIX)
    if single.is_file():
        return [single]
    pattern = re.compile(re.escape(stem) + r"-(\d{5})-of-(\d{5})" + re.escape(SUFFIX))
    found = {path.name for path in folder.iterdir() if pattern.fullmatch(path.name)} if folder.is_dir() else set()
    if not found:
        raise UserError(f"{single} is missing; the model folder is incomplete")
    count = max(int(name.removesuffix(SUFFIX)[-5:]) for name in found)
    wanted = [shard_file(stem, number, count) for number in range(count)]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{folder}: {_listed(missing)} missing; the model folder is incomplete, copy it again")
    return [folder / name for name in wanted]


def map_tensors(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """The tensors of a stem, mapped from the disk; not to be changed.

    Raises:
        UserError: files are missing, or damaged (cut off, or no safetensors).
    """
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    for path in find_shards(folder, stem):
        try:
            with safe_open(path, framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a mapping)
        except Exception as error:  # the library has an exception of its own for everything
            fault = fault_of(path) or f"is not a readable safetensors file ({reason(error)}); copy or write it again"
            raise UserError(f"{brief(path)} {fault}") from None
    return tensors


def _listed(names: Sequence[str], limit: int = 3) -> str:
    shown, more = ", ".join(names[:limit]), len(names) - limit
    if more > 0:
        return f"{shown} and {more} more are"
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
