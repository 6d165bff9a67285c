"""The official checkpoint file: ``torch.save({"module": tensors})`` (spec section 8), mapped in and streamed out."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from bagpiper.errors import UserError, brief, shown
from bagpiper.files import sync, write_text
from bagpiper.pretrained import fault_of
from bagpiper.weights.safetensors import Advance, Specs

_READ = 16 << 20
_SYNC_BYTES = 1 << 30
"""Bytes between two notes of what is on the disk."""
_OLD_NAMES = (
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
)
_CENTRAL, _CRC_AT = 46, 16
"""Length of an entry of the archive's table, and where in it the checksum stands."""


def map_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of an official file, mapped from the disk; not to be changed.

    Both the wrapped and the bare dict are taken, and both spellings of weight norm.

    Raises:
        UserError: no such file, cut off, damaged, or holding anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"there is no file {shown(str(path), 200)}")
    fault = fault_of(path)
    if fault is not None:
        raise UserError(f"{brief(path)} {fault}")
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path}: not a file of torch.save, or cut off (its table of contents, at its end, is missing); "
            "compare its size with the published one and fetch it again"
        )
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: holds more than tensors ({reason[:200]}); loading it could run code, so it is not loaded. "
            "Take the file that its authors publish"
        ) from None
    except Exception as error:  # torch raises bare RuntimeErrors for damaged files
        raise UserError(f"{path}: cannot be read, it is damaged or cut off ({error}); fetch it again") from None
    tensors = content.get("module", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise UserError(f"{path}: not an official checkpoint, which is {{'module': tensors by name}}")
    return {_new_name(str(name)): tensor for name, tensor in tensors.items()}


def _new_name(name: str) -> str:
    for pattern, new in _OLD_NAMES:
        name = re.sub(pattern, new, name)
    return name


def check_sums(path: Path, advance: Advance) -> None:
    """Read the file once and compare with its checksums; records written without one are passed over.

    Raises:
        UserError: a record differs.
    """
    with path.open("rb") as file:
        for record in zipfile.ZipFile(file).infolist():
            if record.CRC == 0:
                continue
            file.seek(record.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            file.seek(name_length + extra_length, 1)
            left, found = record.file_size, 0
            while left:
                data = file.read(min(_READ, left))
                if not data:
                    raise UserError(f"{path}: cut off inside {record.filename}; fetch it again")
                found = zlib.crc32(data, found)
                left -= len(data)
                advance(len(data))
            if found != record.CRC:
                raise UserError(
                    f"{path}: {record.filename} is damaged (its checksum differs from the one recorded); fetch it again"
                )


def write_checkpoint(
    path: Path,
    specs: Specs,
    chunks: Callable[[str], Iterable[memoryview]],
    advance: Advance,
) -> None:
    """Write an official file, or go on writing one.

    ``torch.save`` writes the table and leaves room for the data (``skip_data``), which is filled in tensor by tensor.
    What is known to be on the disk stands in ``<path>.progress``.

    Args:
        path: the file; under a temporary name, the caller renames it.
        specs: the tensors.
        chunks: the bytes of a tensor by name.
        advance: told of every chunk, and of what an earlier call has written.
    """
    notes = path.with_name(path.name + ".progress")
    sums: dict[str, int] = {}
    if path.is_file() and notes.is_file():
        sums = json.loads(notes.read_text())
    else:
        _lay_out(path, specs)
        write_text(notes, "{}")
    places = _places(path)
    advance(sum(specs[name].num_bytes for name in sums))
    with path.open("r+b") as file:  # raw files may write less
        unsaved = 0
        for name, spec in specs.items():
            if name in sums:
                continue
            file.seek(places[name])
            found = 0
            for chunk in chunks(name):
                file.write(chunk)
                found = zlib.crc32(chunk, found)
                advance(len(chunk))
            sums[name] = found
            unsaved += spec.num_bytes
            if unsaved > _SYNC_BYTES:
                file.flush()
                sync(path)
                write_text(notes, json.dumps(sums))
                unsaved = 0
        _write_sums(file, {places[name]: value for name, value in sums.items()})
    sync(path)
    notes.unlink()


def _lay_out(path: Path, specs: Specs) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
        module = {name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in specs.items()}
        torch.save({"module": module}, path)
    sync(path)


def _places(path: Path) -> dict[str, int]:
    """Where in the file each tensor's data begins."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        module: Mapping[str, Any] = torch.load(path, weights_only=True)["module"]
    return {name: tensor.untyped_storage()._checkpoint_offset for name, tensor in module.items()}


def _write_sums(file: Any, sums: Mapping[int, int]) -> None:
    """Write checksums into the table of contents, so that zip tools find the file whole.

    Args:
        file: open for reading and writing.
        sums: where a record's data begins -> its CRC-32.
    """
    archive = zipfile.ZipFile(file)
    position = archive.start_dir
    for record in archive.infolist():
        file.seek(record.header_offset + 26)
        data_at = record.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        file.seek(position)
        header = file.read(_CENTRAL)
        if data_at in sums:
            file.seek(position + _CRC_AT)
            file.write(struct.pack("<I", sums[data_at]))
        position += _CENTRAL + sum(struct.unpack("<HHH", header[28:34]))
