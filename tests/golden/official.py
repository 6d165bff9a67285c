"""A golden folder: what the official code computed on a tiny random model (see its README)."""

from __future__ import annotations

import json

import numpy as np

from bagpiper.language.conversation import Clip, Conversation, Message, Template
from bagpiper.language.patterns import get_pattern
from bagpiper.language.vocabulary import Vocabulary
from bagpiper.llms.tokenizer import TextTokenizer


class Official:
    """A golden folder's language and examples."""

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

    def grid(self, name, template=None):
        conversation = self.conversations[name]
        return (template or self.template).grid(conversation, **self.inputs(conversation))

    def forward_arrays(self, name):
        """Arrays of one example of the forward pass, without its prefix."""
        prefix = f"{name}/"
        return {
            key.removeprefix(prefix): self.forward_npz[key] for key in self.forward_npz.files if key.startswith(prefix)
        }
