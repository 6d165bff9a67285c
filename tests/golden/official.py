"""A golden folder: what the official code computed on a tiny random model (see its README)."""

from __future__ import annotations

import copy
import json

import numpy as np
import torch
from golden.rounding import exact_resample, rounded_resample

from bagpiper.data.audio import read_clip
from bagpiper.language.conversation import Clip, Conversation, Message, Template
from bagpiper.language.patterns import get_pattern
from bagpiper.language.vocabulary import Vocabulary
from bagpiper.llms.tokenizer import TextTokenizer

RATE = 16000
"""What encoder and codec hear, in Hz."""

KINDS = (
    "text",
    "audio",
    "guided audio",
    "audio that ends itself",
    "text that ends itself, then audio",
    "cut text, then audio",
    "free choice",
)
"""Kinds of greedy runs that a set must have (README, decode.json)."""

OTHER = "another plan"
"""Greedy runs of no such kind are decoded too; a set need not have any."""


def kind_of(run):
    """Kind of a decoding run, by what was asked and how it ended; ``sampled`` where draws are random."""
    plan, audio = run["config"]["enforce_modality"], run["config"]["audio"]
    ends_itself = bool(run["segments"]) and run["segments"][0]["ended_by"] != "max_step"
    if any(run["config"][part]["temperature"] for part in ("text", "audio")):
        return "sampled"
    if not plan:
        return "free choice"
    if plan == ["audio"]:
        return "audio that ends itself" if ends_itself else "guided audio" if audio["cfg"] != 1 else "audio"
    if plan == ["text", "audio"]:
        return "text that ends itself, then audio" if ends_itself else "cut text, then audio"
    return "text" if plan == ["text"] else OTHER


def runs_of(folder, kind):
    """All decoding runs of a kind, at least one."""
    runs = [run for run in json.loads((folder / "decode.json").read_text())["runs"] if kind_of(run) == kind]
    assert runs or kind == OTHER, f"this set has no run of the kind: {kind}"
    return runs


def error(ours, golden):
    """Largest absolute difference."""
    return float((ours.detach() - torch.as_tensor(np.asarray(golden))).abs().max())


class Official:
    """A golden folder's language, examples and clips."""

    resample = None
    """Filter of ``wave``: ours, or one of ``golden/rounding.py``."""

    def __init__(self, folder):
        self.folder = folder
        self.codes_info = json.loads((folder / "codes.json").read_text())
        self.codes = np.load(folder / "codes.npz")
        self.preprocess = np.load(folder / "preprocess.npz")
        self.forward_npz = np.load(folder / "forward.npz")
        config = json.loads((folder / "llm" / "config.json").read_text())
        tokenizer = TextTokenizer.from_transformers(str(folder / "llm"))
        layout = self.codes_info["layout"]
        num_codebooks, interval = layout["streams"], layout["pad_ids"][1] - layout["pad_ids"][0]
        self.vocabulary = Vocabulary(config["vocab_size"], num_codebooks, interval - 1, text_zero_is_pad=True)
        weights = (1.0 / num_codebooks,) * num_codebooks
        self.template = Template(self.vocabulary, get_pattern("delay"), tokenizer.encode, weights)
        self.conversations = {}
        for line in (folder / "dialogues.jsonl").read_text().splitlines():
            row = json.loads(line)
            messages = [
                Message(role, modality, content if modality == "text" else Clip(path=content))
                for role, modality, content in row["messages"]
            ]
            self.conversations[row["example_id"]] = Conversation(row["example_id"], tuple(messages))
        assert self.conversations and self.codes_info["clips"]

    def inputs(self, conversation):
        """Codes and state counts of a conversation's clips, from the golden arrays."""
        codes, states = {}, {}
        for index, message in enumerate(conversation.messages):
            if message.modality == "audio":
                name = self.clip_name(conversation.id, index)
                codes[index] = self.codes[f"clip/{name}/codes"].astype(np.int64)
                states[index] = self.codes_info["clips"][name]["encoder_frames"]
        return {"codes": codes, "states": states}

    def clip_name(self, name, index):
        """Name of the clip in a message of an example."""
        return self.conversations[name].messages[index].clip.path.split("/")[-1].rsplit(".", 1)[0]

    def wave(self, clip):
        """Waveform of a clip at 16 kHz, float32 ``[N]``."""
        (path,) = (self.folder / "audio").glob(f"{clip}.*")
        rate = self.codes_info["clips"][clip]["sample_rate"]
        if self.resample is None:
            return torch.from_numpy(read_clip(path, RATE, resampler="official"))
        samples = read_clip(path, rate)
        resampled = samples if rate == RATE else self.resample(samples, rate, RATE)
        return torch.from_numpy(resampled.astype(np.float32))

    def by(self, resample):
        """The same set and model, hearing clips through another filter."""
        other = copy.copy(self)
        other.resample = resample
        return other

    def compare(self, of, golden, limits, where):
        """Compare what ``of(self)`` makes of clips, a list of tensors, with what the official code made of them.

        With the official filter rounded as it was there, the limits hold as they are. With ours they are wider by what
        that rounding changes in the same tensor: nothing for clips at 16 kHz.
        """
        with torch.no_grad():
            ours, exact, rounded = (of(view) for view in (self, self.by(exact_resample), self.by(rounded_resample)))
        for mine, true, theirs, recorded, limit in zip(ours, exact, rounded, golden, limits, strict=True):
            assert mine.shape == recorded.shape, where
            assert error(theirs, recorded) < limit, where
            assert error(mine, recorded) < limit + error(true, theirs), where

    def grid(self, name, template=None):
        conversation = self.conversations[name]
        return (template or self.template).grid(conversation, **self.inputs(conversation))

    def forward_arrays(self, name):
        """Arrays of one example of the forward pass, without its prefix."""
        prefix = f"{name}/"
        return {
            key.removeprefix(prefix): self.forward_npz[key] for key in self.forward_npz.files if key.startswith(prefix)
        }
