"""Parity: training, decoding, merged adaptors and the exported model compute the same logits.

Two real examples are the measure. The reference is the training forward pass over both in one pack; every other way to
the same logits is compared with it, row by row, at the ids that the decoder's masks allow.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bagpiper.batch import Batch, collate
from bagpiper.data.examples import Example
from bagpiper.data.layout import BadExample, Layout, Measured
from bagpiper.errors import UserError
from bagpiper.files import write_text
from bagpiper.heads.streams import pick
from bagpiper.inference.generate import undisturbed
from bagpiper.inference.masks import END_IDS
from bagpiper.language.conversation import Message
from bagpiper.language.patterns import apply, revert
from bagpiper.llms.configs import LoraSettings
from bagpiper.llms.lora import computing_in, merged_for_a_while
from bagpiper.ops.precision import matmul_precision
from bagpiper.parity.forced import ForcedDecoder, ForcedRow, KnownSegment, known_segments
from bagpiper.parity.report import (
    AUTOCAST,
    BATCH,
    FILE,
    LIMITS,
    MERGED,
    RELOADED,
    STEP,
    Comparison,
    Limit,
    ParityReport,
)
from bagpiper.recipe.settings import GenerationSettings
from bagpiper.weights.model_folder import load_model, save_model

if TYPE_CHECKING:
    from bagpiper.model import Bagpiper

_POOL = 20
"""Examples of each direction among which the shortest is taken: rows are decoded one at a time."""


def write_report(report: ParityReport, folder: Path) -> None:
    """Write ``parity.json`` into a run folder."""
    write_text(folder / FILE, json.dumps(report.as_json(), indent=2) + "\n")


# -- which examples ----------------------------------------------------------------------------------------------------


def _first_answers(example: Example) -> Example | None:
    """The example up to the end of its first answer; None if it has none."""
    conversation = example.conversation
    count = len(conversation.prompt().messages)
    prompt = count
    while count < len(conversation.messages) and conversation.messages[count].role == "assistant":
        count += 1
    if count == prompt:
        return None
    clips = {index: clip for index, clip in example.clips.items() if index < count}
    return replace(example, conversation=replace(conversation, messages=conversation.messages[:count]), clips=clips)


def _direction(example: Example) -> str:
    """``audio`` if the answer holds some, perhaps after a text; else ``text``."""
    return "audio" if any(message.is_spoken for message in example.conversation.messages) else "text"


def first_of_each(examples: Sequence[Example]) -> list[Example]:
    """The first examples of each direction, cut after their first answer."""
    found: dict[str, list[Example]] = {"text": [], "audio": []}
    for example in examples:
        cut = _first_answers(example)
        if cut is None:
            continue
        if len(found[_direction(cut)]) < _POOL:
            found[_direction(cut)].append(cut)
        if all(len(group) == _POOL for group in found.values()):
            break
    return [*found["text"], *found["audio"]]


def choose_examples(layout: Layout, valid: Sequence[Example], train: Sequence[Example]) -> list[Measured]:
    """One example that is answered in text and one that is answered in audio; two of a kind if there is no other.

    Short ones are taken, of the validation set where that has some. What follows the first answer is left out.

    Args:
        layout: of the model.
        valid, train: examples of the run.

    Raises:
        UserError: no example has an answer.
    """
    groups: list[list[Measured]] = []
    for modality in ("text", "audio"):
        for examples in (valid, train):
            group = [item for item in _measured(layout, examples) if _direction(item.example) == modality]
            if group:
                groups.append(sorted(group, key=lambda item: item.rows))
                break
    if not groups:
        raise UserError("parity needs an example with an answer of the assistant, and the data has none")
    return groups[0][:2] if len(groups) == 1 else [groups[0][0], groups[1][0]]


def _measured(layout: Layout, examples: Sequence[Example]) -> list[Measured]:
    measured = []
    for example in first_of_each(examples):
        try:
            measured.append(layout.measure(example, max_rows=1 << 20))
        except BadExample:
            continue  # training counts and reports these
    return measured


# -- the comparison ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pack:
    """The examples as training sees them.

    Attributes:
        batch: on the model's device.
        starts: first row of each example.
        known: the segments of each example's answer.
    """

    batch: Batch
    starts: tuple[int, ...]
    known: list[list[KnownSegment]]


@matmul_precision("highest")  # whatever the run trains with
def check_parity(
    model: Bagpiper,
    layout: Layout,
    examples: Sequence[Measured],
    *,
    generation: GenerationSettings,
    lora: LoraSettings | None,
    precision: str,
    workspace: Path,
) -> ParityReport:
    """Compare all ways to the logits of the examples' answers.

    Args:
        model: on one device; left as it is.
        layout: lays examples out as in training.
        examples: of ``choose_examples``.
        generation: whose masks are used; nothing is sampled or guided.
        lora: adaptors in the model, if any.
        precision: the trainer's, ``32-true`` or ``bf16-mixed``.
        workspace: folder for the exported model; made and removed.

    Raises:
        UserError: the model gives NaN.
    """
    device = next(model.llm.parameters()).device
    numbers = _numbers(model, lora)
    conversations = [item.example.conversation for item in examples]
    with undisturbed(model), computing_in(model.llm, torch.float32):
        pack = _lay_out(layout, examples, device)
        alone: ForcedRows = []
        for conversation, segments in zip(conversations, pack.known, strict=True):
            decoder = ForcedDecoder(model, generation, [segments])
            decoder.run([conversation.prompt()])
            alone.append(decoder.forced[0])
        reference = _packed(model, pack, alone)
        _check_finite(reference)
        limit = LIMITS[numbers]
        judge = _Judge(reference, limit)
        comparisons = [judge.decoded(STEP, alone), judge.decoded(BATCH, _in_a_batch(model, generation, examples, pack))]
        if lora is None:
            comparisons.append(Comparison(MERGED, skipped="no LoRA"))
        else:
            with merged_for_a_while(model.llm):
                comparisons.append(judge.forward(MERGED, _packed(model, pack, alone)))
        comparisons.append(_reloaded(model, pack, alone, judge, generation, lora, workspace))
        if precision == "bf16-mixed":
            with torch.autocast(device.type, torch.bfloat16), computing_in(model.llm, torch.bfloat16):
                found = _packed(model, pack, alone)
            comparisons.append(_Judge(reference, LIMITS["bfloat16"]).forward(AUTOCAST, found))
    return ParityReport(
        examples=tuple(item.example.where for item in examples),
        numbers=numbers,
        ids=sum(len(logits) for rows in reference for logits in rows),
        largest=judge.largest,
        comparisons=tuple(comparisons),
    )


def _check_finite(reference: Logits) -> None:
    """Refuse to judge where nothing can be close to anything; minus infinity is what a mask forbids."""
    if any(not bool((row.isfinite() | (row == -torch.inf)).all()) for rows in reference for row in rows):
        raise UserError(
            "the model's own logits are not finite (NaN or infinity), so there is nothing to compare; its "
            "weights are damaged or trained too far: take an earlier checkpoint, or weights from elsewhere"
        )


ForcedRows = list[list[ForcedRow]]
"""Rows of each example."""

Logits = list[list[torch.Tensor]]
"""Of each example, of each row: ``[D, C]``."""


def _numbers(model: Bagpiper, lora: LoraSettings | None) -> str:
    if lora is not None and lora.quantize == "nf4":
        return "nf4"
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return "float32" if kinds == {torch.float32} else "bfloat16"


def _lay_out(layout: Layout, examples: Sequence[Measured], device: torch.device) -> _Pack:
    laid = [layout.lay_out(item) for item in examples]
    batch = collate(
        [out.grid for out in laid],
        [out.waves for out in laid],
        [item.example.where for item in examples],
        audio_start=layout.audio_start,
    )
    known = [known_segments(item.example.conversation, out.grid) for item, out in zip(examples, laid, strict=True)]
    return _Pack(batch.to(device), tuple(batch.spans.cu_seqlens[:-1].tolist()), known)


def _packed(model: Bagpiper, pack: _Pack, rows: ForcedRows) -> Logits:
    """Logits of the training forward pass where the decoder had its own, forbidden ids at minus infinity."""
    hidden = model.hidden_states(pack.batch)
    found: Logits = []
    for start, example in zip(pack.starts, rows, strict=True):
        found.append([])
        for row in example:
            target = start + row.row
            logits = model.logits(hidden[target - 1 : target], len(row.candidates), pack.batch.ids[target : target + 1])
            chosen = pick(logits, row.candidates)[0].float().cpu()
            found[-1].append(chosen.masked_fill(row.logits == -torch.inf, -torch.inf))
    return found


def _in_a_batch(
    model: Bagpiper, generation: GenerationSettings, examples: Sequence[Measured], pack: _Pack
) -> ForcedRows:
    """The examples decoded in one batch, each beside a mate with a longer prompt and a shorter answer.

    So prompts are ragged, modalities part, and rows leave the batch before others.
    """
    requests, known = [], []
    for item, segments in zip(examples, pack.known, strict=True):
        prompt = item.example.conversation.prompt()
        longer = replace(prompt, messages=(Message("system", "text", "one more row"), *prompt.messages))
        requests += [longer, prompt]
        known += [[_shorter(model, segment) for segment in segments], segments]
    decoder = ForcedDecoder(model, generation, known)
    decoder.run(requests)
    return decoder.forced[1::2]


def _shorter(model: Bagpiper, segment: KnownSegment) -> KnownSegment:
    content, end = segment.rows[:-1], segment.rows[-1:]
    assert int(end[0, 0]) in END_IDS, "the template ends every message"
    if segment.modality == "text":
        kept = content[: len(content) // 2]
    else:
        pattern, vocabulary = model.template.pattern, model.vocabulary
        codes = revert(pattern, content, vocabulary)
        kept = apply(pattern, codes[: max(1, len(codes) // 2)], vocabulary)
    return replace(segment, rows=torch.cat([torch.from_numpy(kept), torch.from_numpy(end)]).numpy())


def _reloaded(
    model: Bagpiper,
    pack: _Pack,
    rows: ForcedRows,
    judge: _Judge,
    generation: GenerationSettings,
    lora: LoraSettings | None,
    workspace: Path,
) -> Comparison:
    """The model written to a folder and read from there, on the same device."""
    try:
        save_model(model, workspace / "model", generation=generation, lora=lora)
        again = load_model(workspace / "model", pack.batch.ids.device)
        return judge.forward(RELOADED, _packed(again, pack, rows))
    except torch.OutOfMemoryError:
        return Comparison(RELOADED, skipped=f"no room for a second model on {pack.batch.ids.device}")
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


class _Judge:
    """Compares with the reference."""

    def __init__(self, reference: Logits, limit: Limit) -> None:
        self.reference = reference
        finite = [row[row.isfinite()].abs() for rows in reference for row in rows]
        self.largest = float(torch.cat([torch.zeros(1), *finite]).max())  # without a finite one nothing passes
        self._limit = limit

    def decoded(self, way: str, found: ForcedRows) -> Comparison:
        """Logits of a decoder; it must also have laid the rows out as they are in the data."""
        comparison = self.forward(way, [[row.logits for row in rows] for rows in found])
        if all(row.is_drawable() for rows in found for row in rows):
            return comparison
        return replace(comparison, difference=float("inf"))

    def forward(self, way: str, found: Logits) -> Comparison:
        """Logits against the reference's."""
        limit = self._limit.at(self.largest)
        differences, differing = [0.0], 0
        for rows, expected in zip(found, self.reference, strict=True):
            if len(rows) != len(expected):
                differences.append(float("inf"))
                continue
            for row, wanted in zip(rows, expected, strict=True):
                differences.append(_difference(row, wanted))
                best = wanted.gather(-1, row.argmax(-1, keepdim=True))
                differing += int((wanted.max(-1, keepdim=True).values - best > limit / 10).sum())
        largest = float(torch.tensor(differences, dtype=torch.float64).max())  # unlike max(), keeps a NaN
        return Comparison(way, largest, limit, differing, self._limit.same_ids)


def _difference(row: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference of two rows of logits ``[D, C]``; infinite where one of them forbids what the other allows."""
    allowed = wanted > -torch.inf
    if row.shape != wanted.shape or not torch.equal(allowed, ~(row == -torch.inf)):
        return float("inf")
    return float((row - wanted)[allowed].abs().max())
