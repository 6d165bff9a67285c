"""Finding a model folder and reading its ``config.json``, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bagpiper.errors import UserError

FORMAT = 1
CONFIG = "config.json"


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``.

    Raises:
        UserError: there is none, or it has another format.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} is not a model folder: it has no {CONFIG}")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if config.get("format") != FORMAT:
        raise UserError(f"{path}: format {config.get('format')!r}, this version of bagpiper reads {FORMAT}")
    return config


def find_model(path: Path) -> Path:
    """The model folder that a user means: itself, a run's ``model/``, or its newest checkpoint's.

    Raises:
        UserError: there is none.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run folder or a model folder")
    checkpoints = sorted(path.glob("checkpoints/step-*/model"), key=lambda found: int(found.parent.name[5:]))
    for candidate in (path, path / "model", *reversed(checkpoints)):
        if (candidate / CONFIG).is_file():
            return candidate
    raise UserError(f"{path} holds no model yet: neither {CONFIG}, model/ nor checkpoints/step-*/model/")
