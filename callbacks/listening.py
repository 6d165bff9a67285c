"""What the model says and plays while it trains: the same prompts every time, heard and seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import soundfile
import torch
from lightning import LightningModule, Trainer
from numpy.typing import NDArray

from bagpiper.callbacks.clock import Clock
from bagpiper.callbacks.step import StepCallback
from bagpiper.draws import derive_seed
from bagpiper.files import replacing_folder
from bagpiper.inference.answerer import Answerer, LoadedModel, Request
from bagpiper.inference.generate import Answer
from bagpiper.language.conversation import Clip, Conversation, Message, Modality
from bagpiper.model import Bagpiper
from bagpiper.ops.shards import gathered
from bagpiper.recipe.settings import GenerationSettings, ListeningSettings

LISTENING = "listening"
"""The folder of a run that has a folder for every step at which it listened."""


@dataclass(frozen=True)
class Prompt:
    """Something to ask every time.

    Attributes:
        name: of its files.
        request: the conversation up to the answer.
        plan: modalities of the answer.
        truth: what the data says, if known.
    """

    name: str
    request: Conversation
    plan: tuple[Modality, ...]
    truth: str = ""


@dataclass(frozen=True)
class Heard:
    """An answer and its files.

    Attributes:
        prompt: what was asked.
        text: what the model wrote.
        wav, picture: the sound and its spectrogram, if it made one.
        cut: whether it reached ``max_rows`` before the model ended it.
    """

    prompt: Prompt
    text: str
    wav: Path | None = None
    picture: Path | None = None
    cut: bool = False

    @property
    def asked(self) -> str:
        """The request in words: texts, and the paths of clips."""
        return "\n".join(_content(message) for message in self.prompt.request.messages)


def make_prompts(settings: ListeningSettings, valid: Sequence[Conversation]) -> list[Prompt]:
    """The recipe's captions and clips, and the first validation examples of each direction.

    Args:
        settings: of the recipe.
        valid: validation examples.
    """
    prompts = [
        Prompt(f"caption{n}", Conversation(f"caption{n}", (Message("user", "text", text),)), ("audio",))
        for n, text in enumerate(settings.captions)
    ]
    prompts += [
        Prompt(f"clip{n}", Conversation(f"clip{n}", (Message("user", "audio", Clip(path=path)),)), ("text",))
        for n, path in enumerate(settings.clips)
    ]
    for modality in ("text", "audio"):
        chosen = [c for c in valid if _first_answer(c) == modality][: settings.from_valid]
        prompts += [_from_example(f"valid_{modality}{n}", example) for n, example in enumerate(chosen)]
    return prompts


def _first_answer(conversation: Conversation) -> Modality | None:
    answers = [m for m in conversation.messages if m.role == "assistant"]
    return answers[0].modality if answers else None


def _from_example(name: str, example: Conversation) -> Prompt:
    request = example.prompt()
    answers: list[Message] = []
    for message in example.messages[len(request.messages) :]:
        if message.role != "assistant":
            break
        answers.append(message)
    truth = "\n".join(map(_content, answers))
    return Prompt(name, request, tuple(m.modality for m in answers), truth)


def _content(message: Message) -> str:
    return message.text if message.modality == "text" else str(message.clip.path)


def listen(answerer: Answerer, prompts: Sequence[Prompt], *, seed: int, folder: Path) -> list[Heard]:
    """Ask every prompt and write the answers.

    Args:
        answerer: the model.
        prompts: what to ask.
        seed: the same seed and weights give the same answers.
        folder: gets wav, png, ``answers.json`` and ``answers.md``; replaced if it exists.
    """
    requests = [Request(p.request, derive_seed(seed, "listening", p.name), p.plan) for p in prompts]
    answers = answerer.answer(requests)
    with replacing_folder(folder) as temporary:
        written = [
            _write(prompt, answer, temporary, answerer.sample_rate)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        _write_index(written, temporary)
    return [
        replace(h, wav=folder / h.wav.name if h.wav else None, picture=folder / h.picture.name if h.picture else None)
        for h in written
    ]


def _write(prompt: Prompt, answer: Answer, folder: Path, sample_rate: int) -> Heard:
    sounds = [segment.samples for segment in answer.segments if segment.samples is not None]
    if not sounds:
        return Heard(prompt, answer.text, cut=bool(answer.cut))
    samples = np.concatenate(sounds)
    wav, picture = folder / f"{prompt.name}.wav", folder / f"{prompt.name}.png"
    soundfile.write(wav, np.clip(samples, -1.0, 1.0), sample_rate, subtype="PCM_16")
    write_spectrogram(picture, samples, sample_rate)
    return Heard(prompt, answer.text, wav, picture, bool(answer.cut))


def _write_index(heard: Sequence[Heard], folder: Path) -> None:
    records = [
        {
            "name": h.prompt.name,
            "request": [_content(message) for message in h.prompt.request.messages],
            "answer": h.text,
            "wav": h.wav.name if h.wav else None,
            "truth": h.prompt.truth,
            "stopped_at_max_rows": h.cut,
        }
        for h in heard
    ]
    (folder / "answers.json").write_text(json.dumps(records, indent=2, ensure_ascii=False), encoding="utf-8")
    lines = []
    for h in heard:
        lines += [f"## {h.prompt.name}", "", *(f"> {part}" for part in h.asked.splitlines()), "", h.text, ""]
        if h.wav:
            lines += [f"![spectrogram]({h.prompt.name}.png) [{h.wav.name}]({h.wav.name})", ""]
        if h.cut:
            lines += ["*stopped at max_rows, before the model ended it*", ""]
        if h.prompt.truth:
            lines += [f"*the data says:* {h.prompt.truth}", ""]
    (folder / "answers.md").write_text("\n".join(lines), encoding="utf-8")


def write_spectrogram(path: Path, samples: NDArray[np.float32], sample_rate: int) -> None:
    """A picture of a sound: time to the right, 0 Hz to half the sample rate upwards, 80 dB from black to white.

    Args:
        path: PNG file.
        samples: float32 ``[N]``.
        sample_rate: in Hz.
    """
    import matplotlib.image

    window = 1 << max(6, int(sample_rate * 0.032).bit_length() - 1)
    hop = window // 4
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    decibels = 10.0 * np.log10(np.maximum(power, 1e-10))
    top = float(decibels.max())
    matplotlib.image.imsave(path, decibels.T, vmin=top - 80.0, vmax=top, cmap="magma", origin="lower")


class Listening(StepCallback):
    """Listens every ``every`` steps.

    Attributes:
        prompts: what is asked.
        every: steps between two listenings; 0 switches off.
    """

    def __init__(
        self,
        run_dir: Path,
        prompts: Sequence[Prompt],
        generation: GenerationSettings,
        *,
        every: int,
        seed: int,
        clock: Clock,
    ) -> None:
        """Set up.

        Args:
            run_dir: the run.
            prompts: what is asked.
            generation: how to decode.
            every: steps between two listenings; 0 switches off.
            seed: of the run.
            clock: stands still while listening.
        """
        self.run_dir = run_dir
        self.prompts = list(prompts)
        self.every = every
        self._generation = generation
        self._seed = seed
        self._clock = clock

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Listen if it is time."""
        due = self.every and step % self.every == 0 and step < trainer.max_steps  # the run listens when it has ended
        if due:
            self.listen(module, step, answers=trainer.is_global_zero)

    def listen(self, module: torch.nn.Module, step: int, *, answers: bool = True) -> list[Heard]:
        """Listen now; files go to ``listening/step-N``.

        Args:
            module: the model.
            step: which it has reached.
            answers: whether this rank is the one that answers; the others lend it their parts of a model that is
                spread, and hear nothing.
        """
        if not self.prompts:
            return []
        folder = self.run_dir / LISTENING / f"step-{step:06d}"
        with self._clock.paused(), gathered(module):
            if not answers:
                return []
            answerer = LoadedModel(cast(Bagpiper, module), self._generation)
            return listen(answerer, self.prompts, seed=self._seed, folder=folder)
