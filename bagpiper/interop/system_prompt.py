"""The system prompt that the official SFT model was trained with, taken from SFT data (spec section 2.5)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bagpiper.data.lines import read_lines
from bagpiper.data.parquet import SUFFIX, read_parquet
from bagpiper.errors import UserError, brief, shown
from bagpiper.recipe.settings import GenerationSettings

OFFICIAL_MD5 = "903599715f6bea955adc1cfbf83aa9e2"
"""Of the published prompt for making sounds; it must be byte-exact, with another the model answers with text only."""

NO_PROMPT = (
    "this official SFT model has no system prompt; the general one answers with text only unless it sees the prompt "
    "that it was trained with: import it again with --system-prompt-from SFT.jsonl (the TTS model needs none)"
)


def missing_prompt(provenance: Mapping[str, Any], stage: str, generation: GenerationSettings) -> str | None:
    """What to warn of before an imported model is asked for a sound, or None.

    Args:
        provenance: of the model folder.
        stage: what the model was trained for last.
        generation: how it is to be sampled.
    """
    needs = "official" in provenance and stage == "sft"
    return NO_PROMPT if needs and not (generation.render_prompt or generation.system_prompt) else None


def find_system_prompt(path: Path) -> str:
    """The system prompt of a file of conversations.

    Lines are official ones (``messages`` of ``[role, modality, content]``), this toolkit's own, or the demo page's
    (a text under ``system``). The prompt with the published md5 is taken if it occurs; else the only one.

    Args:
        path: JSON lines or Parquet.

    Raises:
        UserError: no line has one, or there are several and none is the published one.
    """
    found = Counter(_prompts(path))
    for prompt in found:
        if hashlib.md5(prompt.encode(), usedforsecurity=False).hexdigest() == OFFICIAL_MD5:
            return prompt
    if not found:
        raise UserError(f"{brief(path)}: no line has a system message; give lines of the SFT data (JSON lines)")
    if len(found) > 1:
        listed = "; ".join(f"{count} times {shown(prompt, 40)}" for prompt, count in found.most_common(3))
        raise UserError(
            f"{brief(path)}: {len(found)} different system prompts, none of them the published one "
            f"(md5 {OFFICIAL_MD5}): {listed}. Give lines that share one"
        )
    return next(iter(found))


def _prompts(path: Path) -> Iterator[str]:
    for number, line, fault in read_parquet(path) if path.suffix == SUFFIX else read_lines(path):
        if fault is not None:
            raise UserError(f"{brief(path)}:{number}: {fault}")
        yield from _of_line(line)


def _of_line(line: Any) -> Iterator[str]:
    if not isinstance(line, dict):
        return
    turns = line.get("messages")
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, list) and len(turn) == 3 and turn[:2] == ["system", "text"] and isinstance(turn[2], str):
            yield turn[2]
        elif isinstance(turn, dict) and turn.get("role") == "system":
            content = turn.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            yield from (part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
    if isinstance(line.get("system"), str):
        yield line["system"]
