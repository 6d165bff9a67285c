"""The official codec: codes and the sequences that they go into (exact but for near ties), decoded audio (close)."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from golden.official import RATE, Official
from golden.rounding import exact_resample, rounded_resample

from bagpiper.codecs.xcodec import XcodecCodec, xcodec_config
from bagpiper.language.conversation import drop_condition
from bagpiper.language.patterns import apply, revert
from bagpiper.language.vocabulary import EOS, EOT

pytestmark = pytest.mark.golden

PREFIX = "multimodal_io_dict.discrete_audio.codec_model."
NEAR_TIE = 1e-4
"""Relative gap below which a decision, and what follows from it in the same frame, is open (README, Tolerances)."""


class OfficialCodec(Official):
    """The official codec's weights in our codec, and the clips that it hears."""

    def __init__(self, folder):
        super().__init__(folder)
        from transformers import XcodecConfig

        weights = torch.load(folder / "espnet_tiny.pt", weights_only=True)["module"]
        with torch.device("meta"):
            self.codec = XcodecCodec(xcodec_config(XcodecConfig.from_pretrained(folder / "codec")))
        own = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
        self.codec.model.load_state_dict(own, assign=True)
        self.codec.reset_buffers()
        assert self.codec.config.sample_rate == RATE

    @cache  # noqa: B019 (one object per test module)
    def encode(self, name):
        """Our codes of a clip, with the recorded code where the decision is open."""
        recorded, ours = self.recorded(name), self.heard(name)
        assert ours.shape == recorded.shape, name
        return np.where(self.settled(name), ours, recorded)

    def recorded(self, name):
        """The official codes of a clip, int64 ``[F, K]``."""
        return self.codes[f"clip/{name}/codes"].astype(np.int64)

    def heard(self, name):
        """Our codes of a clip, with all that is open in them."""
        return self.codec.encode([self.wave(name)])[0].numpy()

    def untied(self, name):
        """Which codes are no near tie and follow none, bool ``[F, K]``."""
        return _until_first(self.codes[f"clip/{name}/code_rel_gap"] < NEAR_TIE)

    @cache  # noqa: B019
    def settled(self, name):
        """Which of those do not depend on how the official resampling filter is rounded either."""
        moved = self.by(exact_resample).heard(name) != self.by(rounded_resample).heard(name)
        return self.untied(name) & _until_first(moved)

    def own_grid(self, name):
        """An example's grid with the codes that our codec makes."""
        conversation = self.conversations[name]
        inputs = self.inputs(conversation)
        for index, message in enumerate(conversation.messages):
            if message.is_spoken:
                inputs["codes"][index] = self.encode(self.clip_name(conversation.id, index))
        return self.template.grid(conversation, **inputs)


def _until_first(open_cells):
    """Cells before the first open one of their frame."""
    return np.cumprod(~open_cells, axis=1).astype(bool)


@pytest.fixture(scope="module")
def official(golden):
    return OfficialCodec(golden)


def clips(official):
    """All clips of the set."""
    names = [key.split("/")[1] for key in official.codes.files if key.endswith("/codes")]
    assert set(names) == set(official.codes_info["clips"])
    return names


def test_codes(official):
    """Codes of our waveforms where they are settled; of waveforms rounded as the official ones all but near ties."""
    tied = total = 0
    for name in clips(official):
        untied = official.untied(name)
        tied, total = tied + int((~untied).sum()), total + untied.size
        assert np.array_equal(official.encode(name), official.recorded(name)), name
        theirs = official.by(rounded_resample).heard(name)
        assert np.array_equal(theirs[untied], official.recorded(name)[untied]), name
    assert tied <= 0.01 * total  # the rule leaves nearly all codes to be compared


def test_codes_of_clips_coded_together(official):
    names = clips(official)
    together = official.codec.encode([official.wave(name) for name in names])
    for name, codes in zip(names, together, strict=True):
        settled = official.settled(name)
        assert np.array_equal(codes.numpy()[settled], official.recorded(name)[settled]), name


def test_delayed_codes_in_the_joint_vocabulary(official):
    for name in clips(official):
        rows = apply(official.template.pattern, official.encode(name), official.vocabulary)
        assert np.array_equal(rows, official.codes[f"clip/{name}/codes_delayed_joint"]), name


def test_decoded_waveforms(official):
    recorded = [key.split("/")[1] for key in official.codes.files if key.endswith("/decoded")]
    assert recorded
    for name in recorded:
        wave = official.codec.decode([torch.from_numpy(official.recorded(name))])[0].numpy()
        np.testing.assert_allclose(wave, official.codes[f"clip/{name}/decoded"], rtol=0, atol=1e-4)


def test_decoded_audio_segments(official):
    """Rows that the official code drew -> its waveform; END is dropped, the pattern undone, pads become code 0."""
    arrays = np.load(official.folder / "decode.npz")
    segments = [key.removesuffix("/audio") for key in arrays.files if key.endswith("/audio")]
    assert segments
    for segment in segments:
        rows = arrays[f"{segment}/rows"]
        content = rows[:-1] if rows[-1, 0] in (EOS, EOT) else rows
        codes = torch.from_numpy(revert(official.template.pattern, content, official.vocabulary))
        wave = official.codec.decode([codes])[0].numpy()
        np.testing.assert_allclose(wave, arrays[f"{segment}/audio"], rtol=0, atol=1e-4, err_msg=segment)


def test_sequences_with_our_codes(official):
    for name in official.conversations:
        assert np.array_equal(official.own_grid(name).ids, official.forward_npz[f"{name}/seqs"]), name


def test_condition_dropout_leaves_no_codes_of_dropped_messages(official):
    """README, quirk 5: the official code encodes the clips of dropped messages and writes their codes back."""
    arrays = np.load(official.folder / "cfg_dropout.npz")
    differing = 0
    for case in json.loads((official.folder / "cfg_dropout.json").read_text())["cases"]:
        grid, kept, prefix = official.own_grid(case["example"]), case["kept_message_index"], case["prefix"]
        ids = grid.ids if kept is None else drop_condition(grid, kept).ids
        upstream = arrays[prefix + "seqs_after_encoding_upstream"]
        clean = prefix + "seqs_after_encoding_clean"  # recorded where it differs
        assert np.array_equal(ids, arrays.get(clean, upstream)), prefix
        differing += not np.array_equal(ids, upstream)
    assert differing == sum(key.endswith("_clean") for key in arrays.files) > 0


def test_padding_to_a_longer_batch_mate_gives_the_official_wrong_codes(official):
    """README, quirk 3: what the official code trains on is coded from the padded batch, and so are the delay's pads."""
    names = official.codes_info["quirks"]["batched_codes"]["clips"]
    recorded = official.codes["quirk/batched_codes_joint"]
    waves = [official.by(rounded_resample).wave(name) for name in names]
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    whole = padded[:, : official.codec.config.num_frames(padded.shape[1]) * official.codec.config.hop]
    with torch.no_grad():
        batch = official.codec.model.encode(whole[:, None], return_dict=False).transpose(1, 2).numpy()
    seen = set()
    for name, codes, rows in zip(names, batch, recorded, strict=True):
        alone, untied = official.recorded(name), official.untied(name)
        length = len(official.codes[f"clip/{name}/codes_delayed_joint"])
        laid_out = apply(official.template.pattern, codes, official.vocabulary)[:length]
        agreement = official.codes_info["quirks"]["batched_codes"]["agreement_with_one_at_a_time"][name]
        longest = len(codes) == len(alone)
        assert np.mean(laid_out == rows[:length]) > 0.99, name  # near ties may fall otherwise
        as_alone = np.array_equal(codes[: len(alone)][untied], alone[untied])
        assert as_alone == longest == (agreement["code_cells_equal"] == 1.0), name
        seen.add(longest)
    assert seen == {True, False}
