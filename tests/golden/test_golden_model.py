"""Embeddings, hidden states, logits, loss and gradients against the official code (close, its README's limits)."""

import json

import numpy as np
import pytest
import torch
from golden.official import Official, error

from bagpiper.batch import collate
from bagpiper.heads.configs import ParallelConfig
from bagpiper.heads.parallel import ParallelHead
from bagpiper.language.vocabulary import NUM_SPECIAL
from bagpiper.llms.configs import HfConfig
from bagpiper.llms.hf import HfBackbone
from bagpiper.token_rows import TokenRows

pytestmark = pytest.mark.golden


class OfficialModel(Official):
    """The official weights in our parts; audio enters as the golden encoder features."""

    def __init__(self, folder):
        super().__init__(folder)
        self.weights = torch.load(folder / "espnet_tiny.pt", weights_only=True)["module"]
        config = json.loads((folder / "llm" / "config.json").read_text())
        self.llm = HfBackbone(HfConfig(config=config), vocab_size=self.vocabulary.text_size)
        self.llm.model.load_state_dict(
            {
                name.removeprefix("model."): tensor
                for name, tensor in self.weights.items()
                if name.startswith("model.") and "embed_tokens" not in name
            }
        )
        width = self.llm.width
        self.input_rows = self.split_rows("model.embed_tokens.weight", width)
        self.output_rows = self.split_rows("lm_head.weight", width)
        self.adaptor = torch.nn.Linear(self.weights["adaptor.continuous_audio.weight"].shape[1], width)
        self.adaptor.load_state_dict({n: self.weights[f"adaptor.continuous_audio.{n}"] for n in ("weight", "bias")})
        self.info = json.loads((folder / "forward.json").read_text())
        assert self.info["examples"]

    def split_rows(self, name, width):
        matrix = self.weights[name]
        start, stop = self.vocabulary.text_start, self.vocabulary.audio_start
        rows = TokenRows(self.vocabulary, width)
        rows.load_state_dict({"text": matrix[start:stop], "new": torch.cat([matrix[:NUM_SPECIAL], matrix[stop:]])})
        return rows

    def head(self, **options):
        head = ParallelHead(ParallelConfig(**options), width=self.llm.width, num_streams=self.template.num_streams)
        head.load_state_dict({"streams": self.weights["stream_emb.weight"]})
        return head

    def hear(self, clip):
        """Embeddings of a clip."""
        return self.adaptor(torch.from_numpy(self.codes[f"clip/{clip}/encoder_features"]))

    def forward(self, names, head, pad_to=None):
        """Batch, embeddings, hidden states and loss of a pack."""
        grids = [self.grid(name) for name in names]
        waves = [[np.zeros(1, dtype=np.float32)] * len(grid.slots) for grid in grids]
        batch = collate(grids, waves, names, audio_start=self.vocabulary.audio_start, pad_to=pad_to)
        embeds = self.input_rows(batch.ids)
        heard = []
        for name, grid in zip(names, grids, strict=True):
            for slot in grid.slots:
                heard.append(self.hear(self.clip_name(name, slot.message)))
        if heard:
            rows = torch.cat([torch.arange(start, start + length) for start, length in batch.slots])
            embeds = embeds.index_copy(0, rows, torch.cat(heard))
        hidden = self.llm(embeds[None], batch.positions[None], spans=batch.spans)[0]
        total, counted = head(hidden[:-1], batch.ids[1:], batch.weights[1:], self.output_rows)
        return batch, embeds, hidden, total, counted

    def joint_gradient(self, rows):
        """Gradient in the layout of the official single matrix."""
        return torch.cat([rows.new.grad[:NUM_SPECIAL], rows.text.grad, rows.new.grad[NUM_SPECIAL:]])

    def parameter(self, head, name):
        """Our parameter of an official name."""
        if name == "stream_emb.weight":
            return head.streams
        part, _, rest = name.partition(".")
        if part == "model":
            return self.llm.model.get_parameter(rest)
        return self.adaptor.get_parameter(rest.removeprefix("continuous_audio."))

    def zero_grad(self, head):
        for part in (self.llm, self.input_rows, self.output_rows, self.adaptor, head):
            part.zero_grad()


@pytest.fixture(scope="module")
def official(golden):
    return OfficialModel(golden)


def test_forward(official):
    head, with_logits = official.head(), 0
    for name, info in official.info["examples"].items():
        with torch.no_grad():
            batch, embeds, hidden, total, counted = official.forward([name], head)
            logits = head.logits(hidden, official.output_rows)
        golden = official.forward_arrays(name)
        assert error(embeds, golden["inputs_embeds"]) < 1e-4, name
        assert error(hidden, golden["hidden"]) < 1e-4, name
        if "logits" in golden:
            with_logits += 1
            assert error(logits[golden["logits_rows"].astype(np.int64)], golden["logits"]) < 2e-4, name
        assert error(logits.logsumexp(-1), golden["lse"]) < 2e-4, name
        assert error(logits[:, 1:, official.vocabulary.audio_start :].logsumexp(-1), golden["lse_mm"]) < 2e-4
        assert np.array_equal(logits.argmax(-1).numpy(), golden["top5_ids"][..., 0]), name
        assert error(logits.topk(golden["top5_values"].shape[-1]).values, golden["top5_values"]) < 2e-4, name
        following = logits[:-1].gather(-1, batch.ids[1:, :, None])[..., 0]
        assert error(following, golden["target_logits"]) < 2e-4, name
        assert batch.num_targets == info["count"], name
        assert float(total) == pytest.approx(info["loss_sum"], rel=1e-5), name
        correct = counted["text"].correct.sum() + counted["codebook0"].correct.sum()
        assert float(correct) == pytest.approx(info["acc_layer0_times_count"], abs=0.01), name
    assert with_logits


def test_z_loss(official):
    head = official.head(z_loss=1e-5, chunk=16)
    for name, info in official.info["examples"].items():
        with torch.no_grad():
            total = official.forward([name], head)[3]
        assert float(total) == pytest.approx(info["z1e-5"]["loss_sum"], rel=1e-5), name


def test_gradients(official):
    head, examples = official.head(), official.info["gradients"]["examples"]
    assert examples
    for name in examples:
        official.zero_grad(head)
        batch, _, _, total, _ = official.forward([name], head)
        (total / batch.num_targets).backward()
        golden = official.forward_arrays(name)
        stored = [key.removeprefix("grad/") for key in golden if key.startswith("grad/")]
        assert stored, name
        for key in stored:
            expected = golden[f"grad/{key}"]
            gradient = official.parameter(head, key).grad
            gradient = torch.zeros(expected.shape) if gradient is None else gradient
            assert error(gradient, expected) <= 1e-3 * float(np.abs(expected).max()) + 1e-9, (name, key)
        for key, rows in (("embed", official.input_rows), ("lm_head", official.output_rows)):
            ids = golden[f"grad_rows/{key}_ids"]
            expected = golden[f"grad_rows/{key}"]
            gradient = official.joint_gradient(rows)[torch.from_numpy(ids)]
            assert error(gradient, expected) <= 1e-3 * float(np.abs(expected).max()), (name, key)
        assert not official.joint_gradient(official.input_rows)[0].any()


def test_packed_truth(official):
    """Isolated examples: the pack's loss is the sum of the examples' own; leaking attention gives another."""
    head, packs = official.head(), official.info["packed"]
    assert packs
    for info in packs.values():
        official.zero_grad(head)
        batch, _, _, total, _ = official.forward(info["examples"], head, pad_to=info["rows"])
        assert batch.num_targets == info["count"]
        assert float(total.detach()) == pytest.approx(info["loss_sum"], rel=1e-5)
        assert float(total.detach()) != pytest.approx(info.get("without_isolation_loss_sum", 0.0), rel=1e-5)
        (total / batch.num_targets).backward()
        norms = {
            "model.embed_tokens.weight": official.joint_gradient(official.input_rows).norm(),
            "lm_head.weight": official.joint_gradient(official.output_rows).norm(),
            "stream_emb.weight": head.streams.grad.norm(),
            "model.norm.weight": official.llm.model.norm.weight.grad.norm(),
            "adaptor.continuous_audio.weight": official.adaptor.weight.grad.norm(),
        }
        for key, norm in norms.items():
            assert float(norm) == pytest.approx(info["grad_norms"][key], rel=1e-3), key
