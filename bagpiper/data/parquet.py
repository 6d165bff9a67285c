"""Dialogues in Parquet files, as the Hub holds the official SFT data (needs the package pyarrow).

A file has a column of ids and a column ``messages``: lists of ``[role, modality, content]``, the same as JSON text, or
that text compressed with zstd (spec sections 2.4 and 6.5).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bagpiper.data.lines import parse
from bagpiper.errors import UserError, brief, reason, shown
from bagpiper.files import replacing_file

SUFFIX = ".parquet"
IDS = ("example_id", "utt_id", "id")
"""Names of the column of ids, the first that is there."""
_BATCH = 1024


def read_parquet(path: Path) -> Iterator[tuple[int, Any, str | None]]:
    """Dialogues of a file: (number from 1, ``{"example_id", "messages", ...}``, None), or (number, None, fault).

    Raises:
        UserError: pyarrow is missing, or the file is no Parquet file with a column ``messages``.
    """
    parquet = _library()
    if not os.path.isfile(path):
        raise UserError(f"{brief(path)}: no such file; name a Parquet file (relative to the working folder)")
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:  # pyarrow has an exception for every layer
        raise UserError(f"{brief(path)}: not a readable Parquet file ({brief(error)}); fetch it again") from None
    columns = file.schema_arrow.names
    if "messages" not in columns:
        found = brief(", ".join(columns))
        raise UserError(f"{brief(path)}: has no column 'messages', only {found}; is it a file of dialogues?")
    number = 0
    for batch in _batches(path, file):
        for entry in batch.to_pylist():
            number += 1
            try:
                messages = [_turn(turn) for turn in _plain(entry["messages"])]
            except (ValueError, TypeError, OSError) as error:
                yield number, None, f"'messages' is no list of [role, modality, content] ({brief(error)})"
                continue
            name = next((entry[key] for key in IDS if entry.get(key) is not None), None)
            rest = {key: value for key, value in entry.items() if key not in (*IDS, "messages") and _is_json(value)}
            yield (
                number,
                {**rest, **({"example_id": str(name)} if name is not None else {}), "messages": messages},
                None,
            )


def _batches(path: Path, file: Any) -> Iterator[Any]:
    batches, number = file.iter_batches(_BATCH), 0
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:  # of a damaged page
            raise UserError(
                f"{brief(path)}: damaged after row {number} of {file.metadata.num_rows} ({reason(error)}); fetch it "
                "again"
            ) from None
        if batch is None:
            return
        number += batch.num_rows
        yield batch


def write_parquet(path: Path, dialogues: Sequence[Mapping[str, Any]]) -> None:
    """Write dialogues ``{"example_id", "messages"}``: ids, and messages as JSON text, pages compressed with zstd.

    Raises:
        UserError: pyarrow is missing.
    """
    parquet = _library()
    import pyarrow

    table = pyarrow.table(
        {
            "example_id": pyarrow.array([dialogue["example_id"] for dialogue in dialogues], pyarrow.string()),
            "messages": pyarrow.array(
                [json.dumps(dialogue["messages"], ensure_ascii=False) for dialogue in dialogues], pyarrow.string()
            ),
        }
    )
    with replacing_file(path, durable=False) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def _library() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet files need the package pyarrow: pip install 'bagpiper[parquet]'") from None
    return pyarrow.parquet


def _plain(value: Any) -> Any:
    """Messages as a list, whatever the column holds."""
    if isinstance(value, bytes):
        value = _decompressed(value).decode()
    return parse(value) if isinstance(value, str) else value


def _decompressed(value: bytes) -> bytes:
    """Bytes without their zstd frame, if they have one."""
    import pyarrow

    if not value.startswith(b"\x28\xb5\x2f\xfd"):
        return value
    with pyarrow.input_stream(pyarrow.BufferReader(value), compression="zstd") as stream:
        return bytes(stream.read())


def _turn(turn: Any) -> list[Any]:
    if isinstance(turn, Mapping):
        return [turn.get("role"), turn.get("modality"), turn.get("content")]
    if not isinstance(turn, list):
        raise ValueError(f"found {shown(turn)}")
    return turn


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
