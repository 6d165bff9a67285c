"""The Python API, with the names of the verbs: ``load``, ``describe``, ``render``, ``ask``, ``train``...

The functions load the model each time; ``load`` keeps it::

    piper = bagpiper.load("runs/quickstart")
    caption = piper.describe("clip.wav")
    samples, sample_rate = piper.render(caption)
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, get_args, overload

import numpy as np
from numpy.typing import NDArray

from bagpiper.data.sound import rate_of, samples_of
from bagpiper.errors import Notice, UserError, shown
from bagpiper.inference.answerer import LoadedModel, Request
from bagpiper.inference.device import choose_device
from bagpiper.inference.generate import Answer
from bagpiper.interop.system_prompt import missing_prompt
from bagpiper.language.conversation import Clip, Conversation, Message, Modality
from bagpiper.recipe.model_config import find_model, read_config
from bagpiper.recipe.settings import Channel, GenerationSettings
from bagpiper.weights.model_folder import generation_of, load_model, lora_of, read_provenance

if TYPE_CHECKING:
    from lightning import Callback
    from rich.console import Console

    from bagpiper.model import Bagpiper
    from bagpiper.parity.report import ParityReport

Sound: TypeAlias = tuple[NDArray[np.float32], int]
"""Samples ``[N]`` and their rate in Hz."""
ClipLike: TypeAlias = str | Path | tuple[Any, Any] | Clip
"""A file, samples with their rate (see ``bagpiper.data.sound.samples_of``), or a clip of a conversation."""

SEED = 42
"""The official seed; it is the same for every answer, however many are asked for."""


class Pipeline:
    """A loaded model.

    Attributes:
        model: the model.
        generation: how it is sampled; what the methods are given wins.
        stage: what it was trained for last; ``sft`` models write a caption before they make a sound.
        advice: what to warn of when a sound is asked for, or None.
    """

    def __init__(
        self, model: Bagpiper, generation: GenerationSettings, stage: str = "pretrain", *, advice: str | None = None
    ) -> None:
        self.model = model
        self.generation = generation
        self.stage = stage
        self.advice = advice
        self._answerer = LoadedModel(model, generation)

    @property
    def sample_rate(self) -> int:
        """Of the sounds that the model makes, in Hz."""
        return self._answerer.sample_rate

    @overload
    def describe(self, clip: ClipLike, **options: Any) -> str: ...

    @overload
    def describe(self, clip: list[ClipLike], **options: Any) -> list[str]: ...

    def describe(self, clip: ClipLike | list[ClipLike], **options: Any) -> str | list[str]:
        """Write what is heard.

        Args:
            clip: one clip, or a list of clips that are heard together.
            options: ``temperature``, ``top_k``, ``cfg``, ``max_rows``, ``seed``; ``channel``: ``first``, ``mean`` or
                ``loudest`` of clips that have several, by default as the model says.

        Returns:
            a caption, or one for each clip.

        Raises:
            UserError: a clip cannot be used.
        """
        clips = clip if isinstance(clip, list) else [clip]
        requests = [(Message("user", "audio", as_clip(item)),) for item in clips]
        texts = [answer.text for answer in self.answer(requests, ["text"], **options)]
        return texts if isinstance(clip, list) else texts[0]

    @overload
    def render(self, caption: str, **options: Any) -> Sound: ...

    @overload
    def render(self, caption: list[str], **options: Any) -> list[Sound]: ...

    def render(self, caption: str | list[str], **options: Any) -> Sound | list[Sound]:
        """Make the sound that a caption (or, for ``sft`` models, a request) tells of.

        Args:
            caption: one text, or a list of texts that are rendered together.
            options: ``temperature``, ``top_k``, ``cfg``, ``max_rows``, ``max_seconds``, ``seed``; ``think``: whether
                text comes before the sound, by default for ``sft`` models only.

        Returns:
            samples float32 ``[N]`` and their rate in Hz, or one such pair for each text.
        """
        captions = caption if isinstance(caption, list) else [caption]
        if self.advice:
            warnings.warn(self.advice, Notice, stacklevel=2)
        think = options.pop("think", None)
        if think is None:
            think = self.stage == "sft"
        requests = [(Message("user", "text", item),) for item in captions]
        answers = self.answer(requests, ["text", "audio"] if think else ["audio"], **options)
        sounds = [(answer.samples, self.sample_rate) for answer in answers]
        return sounds if isinstance(caption, list) else sounds[0]

    def ask(self, clip: ClipLike, question: str, **options: Any) -> str:
        """Answer a question about a clip.

        Args:
            clip: the clip.
            question: the question.
            options: as for ``describe``.
        """
        request = (Message("user", "audio", as_clip(clip)), Message("user", "text", question))
        return self.answer([request], ["text"], **options)[0].text

    def answer(
        self,
        requests: Sequence[Sequence[Message]],
        plan: Sequence[Modality] | None = None,
        *,
        seed: int = SEED,
        **options: Any,
    ) -> list[Answer]:
        """Answer any conversations, with everything that is known about the answers.

        Args:
            requests: the messages of each.
            plan: modalities of the answers' segments; without one the model chooses.
            seed: of every answer.
            options: ``temperature``, ``top_k``, ``cfg``, ``max_rows``, ``max_seconds`` of the plan's last modality
                (``max_seconds`` for audio only); ``channel`` of clips in the requests.
        """
        settings = self._settings(plan[-1] if plan else None, options)
        asked = [
            Request(Conversation(f"request {n}", tuple(map(_with_samples, messages))), seed, tuple(plan or ()))
            for n, messages in enumerate(requests, start=1)
        ]
        answers = self._answerer.answer(asked, settings)
        _tell_cuts(answers, settings, self.model.llm.max_positions)
        return answers

    def _settings(self, modality: Modality | None, options: dict[str, Any]) -> GenerationSettings:
        given = {name: value for name, value in options.items() if value is not None}
        generation = self.generation
        if "channel" in given:
            generation = replace(generation, channel=_channel(given.pop("channel")))
        if not given:
            return generation
        allowed = ["temperature", "top_k", "cfg", "max_rows", *(["max_seconds"] if modality == "audio" else [])]
        unknown = sorted(set(given) - set(allowed))
        if unknown or modality is None:
            listed = ", ".join([*allowed, "seed", "channel"])
            raise UserError(f"unknown option {', '.join(unknown or given)}; allowed: {listed}")
        if "max_seconds" in given:
            given["max_rows"] = self._answerer.rows_of_audio(given.pop("max_seconds"))
        if modality == "text":
            return replace(generation, text=replace(generation.text, **given))
        return replace(generation, audio=replace(generation.audio, **given))


def _tell_cuts(answers: Sequence[Answer], settings: GenerationSettings, positions: int | None) -> None:
    """Warn of answers that the model would have gone on with."""
    stops = [{(segment.modality, segment.stop) for segment in answer.segments} for answer in answers]
    full = sum(any(stop == "positions" for _, stop in own) for own in stops)
    if full:
        warnings.warn(
            f"{full} of {len(answers)} answers ended where the LLM has no position left (it has {positions}), before "
            "the model ended them; shorten the requests",
            Notice,
            stacklevel=3,
        )
    for modality, limit in (("text", settings.text.max_rows), ("audio", settings.audio.max_rows)):
        count = sum((modality, "max_rows") in own for own in stops)
        if count:
            warnings.warn(
                f"{modality} of {count} of {len(answers)} answers stopped at the limit of {limit} rows, before the "
                f"model ended it; max_rows{', or max_seconds,' if modality == 'audio' else ''} allows more",
                Notice,
                stacklevel=3,
            )


def _channel(value: Any) -> Channel:
    """An option of that name."""
    if value not in get_args(Channel):
        raise UserError(f"channel {shown(value)}; allowed: {', '.join(get_args(Channel))}")
    return cast(Channel, value)


def _with_samples(message: Message) -> Message:
    """A message whose samples, if it has some, are floats from -1 to 1."""
    return replace(message, content=as_clip(message.clip)) if message.modality == "audio" else message


def as_clip(clip: ClipLike) -> Clip:
    """A clip of a conversation, its samples as floats from -1 to 1.

    Raises:
        UserError: samples or sample rate are none.
    """
    if isinstance(clip, str | Path):
        return Clip(path=str(clip))
    if isinstance(clip, Clip):
        if clip.path is not None:
            return clip
        clip = (clip.samples, clip.sample_rate)
    if not isinstance(clip, tuple) or len(clip) != 2:
        raise UserError(f"a clip is a file or (samples, sample_rate), got {shown(clip)}")
    samples, sample_rate = clip
    if np.isscalar(samples) and not np.isscalar(sample_rate):
        raise UserError("a clip is (samples, sample_rate), in this order; the other order was given")
    return Clip(samples=samples_of(samples), sample_rate=rate_of(sample_rate))


def load(run: str | Path, device: str = "auto") -> Pipeline:
    """Load a model.

    Args:
        run: a run folder (its ``model/``, else its newest checkpoint) or a model folder.
        device: auto, cpu, cuda or mps.

    Raises:
        UserError: there is no model, or no such device.
    """
    chosen = choose_device(device)
    folder = find_model(Path(run))
    stage = read_config(folder).get("stage", "pretrain")
    generation = generation_of(folder)
    advice = missing_prompt(read_provenance(folder), stage, generation)
    return Pipeline(load_model(folder, chosen), generation, stage, advice=advice)


def describe(run: str | Path, clip: ClipLike, *, device: str = "auto", **options: Any) -> str:
    """Write what is heard in a clip; see ``Pipeline.describe``."""
    return load(run, device).describe(clip, **options)


def render(run: str | Path, caption: str, *, device: str = "auto", **options: Any) -> Sound:
    """Make the sound that a caption tells of; see ``Pipeline.render``."""
    return load(run, device).render(caption, **options)


def ask(run: str | Path, clip: ClipLike, question: str, *, device: str = "auto", **options: Any) -> str:
    """Answer a question about a clip; see ``Pipeline.ask``."""
    return load(run, device).ask(clip, question, **options)


def evaluate(run: str | Path, **options: Any) -> dict[str, Any]:
    """Measure what a run's model can do, and write ``eval.json``; see ``bagpiper.evaluation.probe.evaluate``."""
    from bagpiper.evaluation.probe import FILE, TABLE
    from bagpiper.evaluation.probe import evaluate as evaluate_run

    result = evaluate_run(Path(run), **options)
    _show_in_mlflow(Path(run), [FILE, TABLE], options.get("console"))
    return result


def parity(run: str | Path, *, device: str | None = None, console: Console | None = None) -> ParityReport:
    """Compare training, decoding and the exported model on a run's own weights and data, and write ``parity.json``.

    Args:
        run: the run folder.
        device: auto, cpu, cuda or mps; None takes the recipe's.
        console: where the table is printed; None is the standard output.

    Raises:
        UserError: not a run folder, no model in it, or no example to compare on.
    """
    from rich.console import Console

    from bagpiper.parity.compare import check_parity, choose_examples, first_of_each, write_report
    from bagpiper.parity.report import FILE
    from bagpiper.recipe.load import load_recipe
    from bagpiper.training.assemble import build_layout
    from bagpiper.training.prepare import Examples, prepare_codes, prepare_examples

    folder = Path(run)
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder} is not a run folder: it has no recipe.yaml, which tells where the data is")
    recipe = load_recipe(str(folder), ready=False)
    recipe.run_dir = str(folder)
    found, quiet = find_model(folder), Console(quiet=True)
    examples = prepare_examples(recipe, folder, quiet)
    chosen = choose_device(device or recipe.device)
    model = load_model(found, chosen)
    pool = Examples(first_of_each(examples.train), first_of_each(examples.valid), examples.ledger)
    layout = build_layout(model, recipe.data, prepare_codes(recipe, folder, model.codec, pool, chosen, quiet))
    report = check_parity(
        model,
        layout,
        choose_examples(layout, examples.valid, examples.train),
        generation=generation_of(found),
        lora=lora_of(found),
        precision=recipe.trainer.precision,
        workspace=folder / ".tmp-parity",
    )
    write_report(report, folder)
    (console or Console()).print(report.table())
    _show_in_mlflow(folder, [FILE], console)
    return report


def _show_in_mlflow(folder: Path, names: Sequence[str], console: Console | None) -> None:
    """Show files of a run folder beside its metrics, if it has a run in MLflow and that can be reached."""
    from rich.console import Console

    from bagpiper.console import say
    from bagpiper.recipe.load import load_recipe
    from bagpiper.tracking.mlflow_store import share_files

    if (folder / "recipe.yaml").is_file():
        tracking = load_recipe(str(folder), ready=False).tracking
        share_files(folder, tracking, names, tell=lambda text: say(console or Console(), text, style="yellow"))


def train(recipe: str | Path, callbacks: Sequence[Callback] = (), **overrides: Any) -> Path:
    """Train, and evaluate at the end if the recipe says so.

    Args:
        recipe: a shipped recipe, or a YAML file.
        callbacks: Lightning callbacks of your own; what they log goes where the run's metrics go.
        overrides: what to change, such as ``run_dir="runs/mine"`` or ``**{"trainer.max_steps": 100}``.

    Returns:
        the run folder.

    Raises:
        UserError: something is wrong with recipe, data, folder or device.
    """
    from bagpiper.recipe.load import load_recipe
    from bagpiper.run import run

    loaded = load_recipe(str(recipe), [f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items()])
    return run(loaded, callbacks=callbacks).folder
