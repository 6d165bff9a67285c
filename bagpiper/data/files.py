"""Writing files so that a reader, or a crash at any instant, never meets half a file."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from bagpiper.errors import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, then rename; makes the folder.

    Raises:
        UserError: the folder cannot be written or the disk is full; what was at ``path`` before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder. "
            "Files already written are kept."
        ) from error
