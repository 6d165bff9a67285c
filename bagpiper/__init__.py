"""Bagpiper: audio-language models that hear and speak through rich captions.

The names below load lazily, so that ``import bagpiper`` (and the command line) never pays for torch by itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "load": "bagpiper.api",
    "train": "bagpiper.api",
    "describe": "bagpiper.api",
    "render": "bagpiper.api",
    "ask": "bagpiper.api",
    "evaluate": "bagpiper.api",
    "Bagpiper": "bagpiper.model",
    "Conversation": "bagpiper.conversation",
    "Vocabulary": "bagpiper.vocabulary",
}
__all__ = ["__version__", *_LAZY]

if TYPE_CHECKING:
    from bagpiper.api import ask, describe, evaluate, load, render, train
    from bagpiper.conversation import Conversation
    from bagpiper.model import Bagpiper
    from bagpiper.vocabulary import Vocabulary


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'bagpiper' has no attribute {name!r}")
