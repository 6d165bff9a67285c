"""Finding a model folder and reading its ``config.json``, without torch."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from bagpiper.errors import UserError, brief, shown

FORMAT = 1
CONFIG = "config.json"
_KEYS = ("fingerprint", "text_size", "model", "generation", "stage", "lora")
_STEP = re.compile(r"step-[0-9]+")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``.

    Raises:
        UserError: there is none, or it has another format.
    """
    path = folder / CONFIG
    if not os.path.isfile(path):
        raise UserError(f"{brief(folder)} is not a model folder: it has no {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{brief(path)}: not JSON ({brief(error)})") from None
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise UserError(f"{brief(path)}: format {shown(found)}, this version of bagpiper reads {FORMAT}")
    lacking = [key for key in _KEYS if key not in config]
    if lacking:
        raise UserError(
            f"{brief(path)}: lacks {', '.join(lacking)}; put the file back that was written with the weights"
        )
    return dict(config)


def find_model(path: Path) -> Path:
    """The model folder that a user means: itself, a run's ``model/``, or its newest checkpoint's.

    Raises:
        UserError: there is none.
    """
    if not os.path.exists(path):
        raise UserError(f"{brief(path)} does not exist; give a run folder or a model folder")
    checkpoints = [found for found in path.glob("checkpoints/*/model") if _STEP.fullmatch(found.parent.name)]
    checkpoints.sort(key=lambda found: int(found.parent.name[5:]))
    for candidate in (path, path / "model", *reversed(checkpoints)):
        if (candidate / CONFIG).is_file():
            return candidate
    raise UserError(f"{brief(path)} holds no model yet: neither {CONFIG}, model/ nor checkpoints/step-*/model/")
