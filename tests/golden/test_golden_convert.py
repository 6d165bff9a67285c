"""The official checkpoint comes in, decodes as the official code did, and goes out again with every bit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden.test_golden_decode import RUNS, STOPS, official_settings

import bagpiper
from bagpiper.conversation import Clip, Message
from bagpiper.interop.espnet import PartFolders, import_espnet
from bagpiper.interop.espnet_export import export_espnet

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def imported(golden, tmp_path_factory):
    out = tmp_path_factory.mktemp("golden") / "model"
    folders = {}
    for folder in json.loads((golden / "assets.json").read_text()).values():
        kind = json.loads((golden / folder / "config.json").read_text())["model_type"]
        folders["tower" if "omni" in kind else "codec" if kind == "xcodec" else "llm"] = golden / folder
    import_espnet(golden / "espnet_tiny.pt", golden / "train.yaml", out, folders=PartFolders(**folders))
    return out


@pytest.fixture(scope="module")
def piper(imported):
    return bagpiper.load(imported, device="cpu")


def test_goes_out_with_every_bit(golden, imported, tmp_path):
    export_espnet(imported, tmp_path / "out.pt")
    given = torch.load(golden / "espnet_tiny.pt", weights_only=True)["module"]
    written = torch.load(tmp_path / "out.pt", weights_only=True)["module"]
    index = json.loads((golden / "state_dict_index.json").read_text())
    assert len(written) == index["tensors"]
    assert set(written) == set(index["keys"]) == set(given)
    for name, (shape, dtype) in index["keys"].items():
        assert (list(written[name].shape), str(written[name].dtype)) == (shape, f"torch.{dtype}"), name
        assert torch.equal(written[name].view(torch.uint8), given[name].view(torch.uint8)), name


def test_half_precision_copy_is_the_same_model(golden, imported, tmp_path):
    """All golden weights can be told in bfloat16, as the released ones are: the copy must come back equal."""
    export_espnet(imported, tmp_path / "half.pt", dtype=torch.bfloat16)
    written = torch.load(tmp_path / "half.pt", weights_only=True)["module"]
    assert {t.dtype for name, t in written.items() if name != "vocab_weight"} == {torch.bfloat16}
    for name, tensor in torch.load(golden / "espnet_tiny.pt", weights_only=True)["module"].items():
        assert torch.equal(written[name].float(), tensor), name


@pytest.mark.parametrize("name", RUNS)
def test_decodes_as_the_official_code(golden, piper, name):
    """Through the public API, on the audio files: encoder, adaptor, LLM, head and masks are the imported ones."""
    runs = {run["name"]: run for run in json.loads((golden / "decode.json").read_text())["runs"]}
    arrays, run = np.load(golden / "decode.npz"), runs[name]
    rows = [json.loads(line) for line in (golden / "dialogues.jsonl").read_text().splitlines()]
    turns = next(row["messages"] for row in rows if row["example_id"] == run["prompt_example"])
    first = [role for role, _, _ in turns].index("assistant")
    request = [
        Message(role, modality, content if modality == "text" else Clip(path=str(golden / content)))
        for role, modality, content in turns[:first]
    ]
    wanted = official_settings(run["config"])
    official = replace(piper.generation, text=wanted.text, audio=wanted.audio)
    assert official == replace(wanted, max_segments=None, resampler="official")
    pipeline = bagpiper.api.Pipeline(piper.model, official)
    answer = pipeline.answer([request], run["config"]["enforce_modality"])[0]
    assert len(answer.segments) == len(run["segments"])
    for number, (segment, expected) in enumerate(zip(answer.segments, run["segments"], strict=True)):
        assert (segment.modality, segment.stop) == (expected["modality"], STOPS[expected["ended_by"]])
        assert np.array_equal(segment.rows, arrays[f"{name}/seg{number}/rows"])
        if segment.samples is not None and len(segment.samples):
            np.testing.assert_allclose(segment.samples, arrays[f"{name}/seg{number}/audio"], atol=1e-4)
