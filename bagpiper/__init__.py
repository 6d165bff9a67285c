"""Bagpiper: audio-language models that hear and speak through rich captions.

The names below load lazily, so that ``import bagpiper`` (and the command line) never pays for torch by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_VERBS = ("load", "train", "describe", "render", "ask", "evaluate")
__all__ = ["Bagpiper", "Conversation", "Vocabulary", "__version__", *_VERBS]

if TYPE_CHECKING:
    from bagpiper.api import ask, describe, evaluate, load, render, train
    from bagpiper.language.conversation import Conversation
    from bagpiper.language.vocabulary import Vocabulary
    from bagpiper.model import Bagpiper


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        from bagpiper import api

        return getattr(api, name)
    if name == "Bagpiper":
        from bagpiper.model import Bagpiper

        return Bagpiper
    if name == "Conversation":
        from bagpiper.language.conversation import Conversation

        return Conversation
    if name == "Vocabulary":
        from bagpiper.language.vocabulary import Vocabulary

        return Vocabulary
    raise AttributeError(f"module 'bagpiper' has no attribute {name!r}")
