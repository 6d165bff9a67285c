"""What a model can do, measured: captions by the facts they state, audio by the facts found in its waveform.

The truth is the soundscapes corpus's own list of facts. Nothing is read from codes, and no answer is helped along by
the right one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bagpiper.console import counted, say
from bagpiper.data.audio import inspect_clip
from bagpiper.draws import derive_seed
from bagpiper.errors import UserError, reason
from bagpiper.evaluation.table import DIRECTIONS, probe_table, table_text
from bagpiper.files import write_together
from bagpiper.inference.answerer import Answerer, LoadedModel, Request
from bagpiper.inference.device import choose_device
from bagpiper.inference.generate import Answer
from bagpiper.language.conversation import Clip, Conversation, Message, Modality
from bagpiper.recipe.load import load_recipe
from bagpiper.recipe.model_config import find_model
from bagpiper.recipe.settings import GenerationSettings, Recipe
from bagpiper.recipe.summary import evaluation
from bagpiper.soundscapes.corpus.make import read_recordings
from bagpiper.soundscapes.corpus.voice import Recordings
from bagpiper.soundscapes.scoring.analyse import analyse_audio
from bagpiper.soundscapes.scoring.parse import parse_caption
from bagpiper.soundscapes.scoring.score import score_many
from bagpiper.weights.model_folder import generation_of, load_model

Progress = Callable[[int, int], None]
"""(done, total) answers."""

FILE, TABLE = "eval.json", "eval.txt"
_LONGEST = 3600.0
LEAST_CLIPS = 2
"""Chance is measured by pairing every clip with another one."""


@dataclass(frozen=True)
class Item:
    """A clip of the corpus.

    Attributes:
        id: its name.
        clip: its audio.
        caption: the caption that it was written with.
        seconds: its length.
        facts: what is true of it.
    """

    id: str
    clip: Clip
    caption: str
    seconds: float
    facts: dict[str, Any]


def evaluate(
    folder: Path,
    *,
    clips: int | None = None,
    cycles: int | None = None,
    device: str | None = None,
    corpus: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate a run's model on its corpus, print the table and write both ``eval.json`` and, for people, ``eval.txt``.

    Args:
        folder: the run folder, or a model folder with ``corpus``.
        clips: held-out clips of each direction, 0 for all; None takes the recipe's.
        cycles: clips of the two cycle figures, 0 leaves them out; None takes the recipe's.
        device: auto, cpu, cuda or mps; None takes the recipe's.
        corpus: folder of soundscapes; None takes the run's own.
        console: where the table is printed; None is the standard output.

    Returns:
        the content of ``eval.json``.

    Raises:
        UserError: not a run folder, no model, or no corpus with facts.
    """
    console = console or Console()
    has_recipe = (folder / "recipe.yaml").is_file()
    if not has_recipe and corpus is None:
        raise UserError(
            f"{folder} is not a run folder: it has no recipe.yaml, which tells where the corpus is; "
            "name one with --corpus (the corpus/ of a run of the quickstart, say)"
        )
    recipe = load_recipe(str(folder), ready=False) if has_recipe else Recipe()
    recipe.run_dir = str(folder)
    clips = recipe.eval.clips if clips is None else clips
    cycles = recipe.eval.cycles if cycles is None else cycles
    corpus = corpus or recipe.corpus_folder
    read_items(corpus, "test", clips)  # before the model is loaded, which takes longer
    chosen = choose_device(device or recipe.device)
    found = find_model(folder)
    answerer = LoadedModel(load_model(found, chosen), generation_of(found))
    with counted(console, "evaluating") as progress:
        result = evaluate_soundscapes(answerer, corpus, clips=clips, cycles=cycles, seed=recipe.seed, progress=progress)
    result["model"] = str(found.relative_to(folder))
    write_together(
        {folder / FILE: (json.dumps(result, indent=2) + "\n").encode(), folder / TABLE: table_text(result).encode()}
    )
    console.print(probe_table(result))
    return result


def evaluate_soundscapes(
    answerer: Answerer,
    corpus_folder: Path,
    *,
    split: str = "test",
    clips: int = 0,
    cycles: int = 0,
    seed: int = 42,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a model on a split of a soundscapes corpus.

    Text is decoded greedily, audio as the model says. Segments may be as long as the longest clip, or twice the
    longest caption.

    Args:
        answerer: the model; also says how audio is sampled, and how many requests are asked at once.
        corpus_folder: what ``make_corpus`` wrote.
        split: train, valid or test.
        clips: how many, from the first; 0 for all.
        cycles: how many of them for the cycle figures; 0 leaves these out.
        seed: of sampling.
        progress: called after every batch.

    Returns:
        ``audio_to_caption``, ``caption_to_audio``, ``cycle_audio`` (audio -> caption -> audio) and ``cycle_caption``
        (caption -> audio -> caption), each with ``value`` (share of facts right), ``chance``, ``score`` = (value -
        chance) / (1 - chance) and, under ``facts``, the same per kind of fact; the cycles are None if left out. Also
        what was evaluated: ``split``, ``clips``, ``cycles``, ``seed``.

    Raises:
        UserError: there is no corpus, or too few clips.
    """
    items = read_items(corpus_folder, split, clips)
    cycled = _cycled(items, cycles)
    asker = _Asker(answerer, _bounded(answerer, items), seed, progress, 2 * (len(items) + len(cycled)))
    recordings = _recordings(corpus_folder)
    truths = [item.facts for item in items]
    captions = asker.describe("audio_to_caption", items, [item.clip for item in items])
    sounds = asker.render("caption_to_audio", items, [item.caption for item in items])
    result: dict[str, Any] = {
        "audio_to_caption": score_many(truths, [parse_caption(caption) for caption in captions]),
        "caption_to_audio": score_many(truths, [_measure(sound, recordings) for sound in sounds]),
        "cycle_audio": None,
        "cycle_caption": None,
    }
    if cycled:
        again = asker.render("cycle_audio", cycled, captions[: len(cycled)])
        retold = asker.describe("cycle_caption", cycled, sounds[: len(cycled)])
        truths = truths[: len(cycled)]
        result["cycle_audio"] = score_many(truths, [_measure(sound, recordings) for sound in again])
        result["cycle_caption"] = score_many(truths, [parse_caption(caption) for caption in retold])
    assert set(result) == set(DIRECTIONS)
    return result | {"split": split, "clips": len(items), "cycles": len(cycled), "seed": seed}


def read_items(corpus_folder: Path, split: str, clips: int) -> list[Item]:
    """Clips of a split with their facts.

    Args:
        corpus_folder: what ``make_corpus`` wrote.
        split: train, valid or test.
        clips: how many, from the first; 0 for all.

    Raises:
        UserError: there is no corpus, a line of it is damaged, or there are too few clips.
    """
    manifest = corpus_folder / f"{split}.jsonl"
    if not manifest.is_file():
        raise UserError(
            f"there is nothing to evaluate on: {manifest} does not exist. The evaluation needs a soundscapes corpus "
            "(data.soundscapes), because it compares with known facts"
        )
    items = []
    for number, line in enumerate(manifest.read_bytes().splitlines()[: clips or None], 1):
        try:
            items.append(_item(json.loads(line), corpus_folder))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{manifest}:{number}: not a line of a soundscapes corpus ({reason(error)}); name another corpus, or "
                "remove its folder and let a run make it again"
            ) from error
    if len(items) < LEAST_CLIPS:
        raise UserError(f"{manifest}: {len(items)} clips to evaluate on, at least {LEAST_CLIPS} are needed for chance")
    return items


def will_evaluate(recipe: Recipe, console: Console) -> bool:
    """Whether a run ends with an evaluation; what that needs is looked for before anything is trained.

    Raises:
        UserError: there is a corpus, but it cannot be evaluated on.
    """
    if not recipe.eval.at_end:
        return False
    if not recipe.can_evaluate:
        say(console, f"eval: {evaluation(recipe)}", style="yellow")
        return False
    check_corpus(recipe.corpus_folder, "test", recipe.eval.clips, recipe.eval.cycles, recipe.generation.max_seconds)
    return True


def check_corpus(corpus_folder: Path, split: str, clips: int, cycles: int, max_seconds: float) -> None:
    """Look whether a corpus can be evaluated on, for those who will do it later.

    Args:
        corpus_folder: what ``make_corpus`` wrote.
        split: train, valid or test.
        clips, cycles: as for ``evaluate_soundscapes``.
        max_seconds: longest clip that is heard, unless the corpus says that it has longer ones.

    Raises:
        UserError: lines are missing or damaged, clips cannot be read, or they are too few.
    """
    items = read_items(corpus_folder, split, clips)
    _cycled(items, cycles)
    _recordings(corpus_folder)
    for item in items:
        inspect_clip(str(item.clip.path), max(max_seconds, *(item.seconds for item in items)))


def _cycled(items: Sequence[Item], cycles: int) -> Sequence[Item]:
    if len(items[:cycles]) == 1:
        raise UserError(
            f"eval.cycles ({cycles}): give 0, or at least {LEAST_CLIPS} clips, so that chance can be measured"
        )
    return items[:cycles]


def _item(known: Any, corpus_folder: Path) -> Item:
    """A line of the corpus; what scoring looks at must be there."""
    clip = Clip(path=str(corpus_folder / known["audio"]))
    caption, seconds, facts = known["caption"], float(known["duration"]), known["facts"]
    if not isinstance(caption, str) or not 0 < seconds <= _LONGEST:
        raise ValueError("its caption must be a text and its duration seconds")
    score_many([facts] * LEAST_CLIPS, [facts] * LEAST_CLIPS)
    return Item(str(known["id"]), clip, caption, seconds, facts)


def _bounded(answerer: Answerer, items: Sequence[Item]) -> GenerationSettings:
    generation = answerer.generation
    longest_text = max(answerer.rows_of_text(item.caption) for item in items)
    longest_audio = answerer.rows_of_audio(max(item.seconds for item in items))
    return replace(
        generation,
        text=replace(generation.text, temperature=0.0, min_rows=1, max_rows=2 * longest_text),
        audio=replace(generation.audio, min_rows=1, max_rows=longest_audio),
        max_segments=None,
        max_seconds=max(generation.max_seconds, *(item.seconds for item in items)),
    )


def _recordings(corpus_folder: Path) -> Recordings | None:
    """What may be said in a corpus with speech: only there are sounds compared with it."""
    try:
        return read_recordings(corpus_folder)
    except ValueError as error:
        raise UserError(str(error)) from error


def _measure(sound: Clip, recordings: Recordings | None) -> dict[str, Any]:
    assert sound.samples is not None
    assert sound.sample_rate is not None
    return analyse_audio(sound.samples, sound.sample_rate, recordings)


class _Asker:
    """Asks a model about many items, batch by batch."""

    def __init__(
        self, answerer: Answerer, settings: GenerationSettings, seed: int, progress: Progress | None, total: int
    ) -> None:
        self.answerer = answerer
        self.settings = settings
        self.seed = seed
        self.progress = progress
        self.done, self.total = 0, total

    def describe(self, purpose: str, items: Sequence[Item], clips: Sequence[Clip]) -> list[str]:
        """Captions of clips; a clip too short to be heard gets an empty one."""
        captions = [""] * len(items)
        heard = [number for number, clip in enumerate(clips) if self.answerer.can_hear(clip)]
        self._advance(len(items) - len(heard))
        messages = [Message("user", "audio", clips[number]) for number in heard]
        chosen = [items[number] for number in heard]
        for number, answer in zip(heard, self._ask(purpose, chosen, messages, "text"), strict=True):
            captions[number] = answer.text
        return captions

    def render(self, purpose: str, items: Sequence[Item], captions: Sequence[str]) -> list[Clip]:
        """Sounds of captions."""
        messages = [Message("user", "text", caption) for caption in captions]
        answers = self._ask(purpose, items, messages, "audio")
        return [Clip(samples=answer.samples, sample_rate=self.answerer.sample_rate) for answer in answers]

    def _ask(
        self, purpose: str, items: Sequence[Item], messages: Sequence[Message], modality: Modality
    ) -> Iterator[Answer]:
        requests = [
            Request(Conversation(item.id, (message,)), derive_seed(self.seed, "eval", purpose, item.id), (modality,))
            for item, message in zip(items, messages, strict=True)
        ]
        size = self.settings.batch_size
        for start in range(0, len(requests), size):
            batch = requests[start : start + size]
            yield from self.answerer.answer(batch, self.settings)
            self._advance(len(batch))

    def _advance(self, count: int) -> None:
        self.done += count
        if self.progress is not None and count:
            self.progress(self.done, self.total)
