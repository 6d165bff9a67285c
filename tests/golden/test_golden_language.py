"""Template, mask, condition dropout and packs against what the official code computed (exact)."""

import json

import numpy as np
import pytest
from golden.official import Official

from bagpiper.batch import collate
from bagpiper.language.conversation import Template, TokenGrid, drop_condition

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def official(golden):
    return Official(golden)


def test_sequences(official):
    for name in official.conversations:
        assert np.array_equal(official.grid(name).ids, official.forward_npz[f"{name}/seqs"]), name


def test_masks(official):
    everything = Template(
        official.vocabulary,
        official.template.pattern,
        official.template.encode_text,
        official.template.stream_weights,
        loss_region="all",
    )
    for name in official.conversations:
        assert np.array_equal(official.grid(name).weights, official.preprocess[f"ex/{name}/loss_mask"]), name
        assert np.array_equal(official.grid(name, everything).weights, official.preprocess[f"ex/{name}/loss_mask_all"])


def test_prompts(official):
    for name, conversation in official.conversations.items():
        prompt = conversation.prompt()
        grid = official.template.grid(prompt, **official.inputs(prompt), next_role="assistant")
        assert np.array_equal(grid.ids, official.preprocess[f"ex/{name}/infer_sequence"]), name


def test_condition_dropout(official):
    cases = json.loads((official.folder / "cfg_dropout.json").read_text())["cases"]
    arrays = np.load(official.folder / "cfg_dropout.npz")
    assert {case["kept_message_index"] is None for case in cases} == {True, False}
    for case in cases:
        grid = official.grid(case["example"])
        kept = case["kept_message_index"]  # None: no audio of the assistant, so nothing to drop
        dropped = grid if kept is None else drop_condition(grid, kept)
        clean = case["prefix"] + "seqs_after_encoding_clean"  # left out where no other audio is dropped
        same = clean if clean in arrays else case["prefix"] + "seqs_after_encoding_upstream"
        assert np.array_equal(dropped.ids, arrays[same])
        assert np.array_equal(dropped.weights, arrays[case["prefix"] + "loss_mask"])


def test_packs(official):
    layouts = json.loads((official.folder / "preprocess.json").read_text())["pack"]
    assert layouts
    for name, layout in layouts.items():
        keys = layout["examples"]
        grids: list[TokenGrid] = [official.grid(key) for key in keys]
        length = official.preprocess[f"pack/{name}/seqs"].shape[1]
        waves = [[np.zeros(1, dtype=np.float32)] * len(grid.slots) for grid in grids]
        batch = collate(grids, waves, keys, audio_start=official.vocabulary.audio_start, pad_to=length)
        assert np.array_equal(batch.positions.numpy(), official.preprocess[f"pack/{name}/position_ids"][0])
        for side in ("q", "k"):
            cumulative = official.preprocess[f"pack/{name}/cu_seq_lens_{side}"]
            assert np.array_equal(batch.spans.cu_seqlens.numpy(), cumulative)
        heard = [[0, start, length] for start, length in batch.slots]
        spoken = [[0, *run] for run in _audio_rows(batch.ids.numpy(), official.vocabulary.audio_start)]
        _same_clips(official, f"pack/{name}", heard, spoken)
        assert np.array_equal(batch.weights.numpy(), official.preprocess[f"pack/{name}/loss_masks"][0])
        text_rows = official.preprocess[f"pack/{name}/seqs"][0]
        written = text_rows.any(-1)
        assert np.array_equal(batch.ids.numpy()[written], text_rows[written])


def test_padded_batches(official):
    """The official bucket batches: our grids beside one another, padded on the right."""
    layouts = json.loads((official.folder / "preprocess.json").read_text())["bucket"]
    assert layouts
    for name, layout in layouts.items():
        grids: list[TokenGrid] = [official.grid(key) for key in layout["examples"]]
        rows = official.preprocess[f"bucket/{name}/seqs"]
        masks = official.preprocess[f"bucket/{name}/loss_masks"]
        assert rows.shape[:2] == (len(grids), max(len(grid) for grid in grids))
        heard, spoken = [], []
        for number, grid in enumerate(grids):
            written = rows[number].any(-1)  # clips are written in later
            assert np.array_equal(grid.ids[written[: len(grid)]], rows[number][written])
            assert not rows[number, len(grid) :].any()
            assert np.array_equal(grid.weights, masks[number, : len(grid)])
            assert not masks[number, len(grid) :].any()
            heard += [[number, slot.start, slot.length] for slot in grid.slots]
            spoken += [[number, *run] for run in _audio_rows(grid.ids, official.vocabulary.audio_start)]
        _same_clips(official, f"bucket/{name}", heard, spoken)


def _audio_rows(ids, audio_start):
    """First row and number of rows of every run of codes."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], ids[:, 0] >= audio_start, [False]])))
    return [[int(start), int(stop - start)] for start, stop in edges.reshape(-1, 2)]


def _same_clips(official, where, heard, spoken):
    """Compare where clips lie (batch row, first row, rows) with the official indices."""
    for kind, ours in (("continuous_audio", heard), ("discrete_audio", spoken)):
        key = f"{where}/{kind}_indices"
        golden = official.preprocess[key].tolist() if key in official.preprocess.files else []
        assert ours == golden, key
        assert len(golden) == (len(official.preprocess[f"{where}/{kind}_lengths"]) if golden else 0)
