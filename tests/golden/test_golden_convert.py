"""The official checkpoint comes in, decodes as the official code did, and goes out again with every bit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden.official import KINDS, OTHER, runs_of
from golden.test_golden_decode import STOPS, official_settings
from rich.console import Console

import bagpiper
from bagpiper.data.importers import import_dialogues
from bagpiper.interop.espnet import PartFolders, import_espnet
from bagpiper.interop.espnet_export import export_espnet
from bagpiper.interop.merge import merge_folder
from bagpiper.language.conversation import Clip, Message
from bagpiper.recipe.load import load_recipe
from bagpiper.run import run

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


@pytest.mark.parametrize("kind", [*KINDS, OTHER])
def test_decodes_as_the_official_code(golden, piper, kind):
    """Through the public API, on the audio files: encoder, adaptor, LLM, head and masks are the imported ones."""
    arrays = np.load(golden / "decode.npz")
    dialogues = [json.loads(line) for line in (golden / "dialogues.jsonl").read_text().splitlines()]
    for drawn in runs_of(golden, kind):
        turns = next(row["messages"] for row in dialogues if row["example_id"] == drawn["prompt_example"])
        first = [role for role, _, _ in turns].index("assistant")
        request = [
            Message(role, modality, content if modality == "text" else Clip(path=str(golden / content)))
            for role, modality, content in turns[:first]
        ]
        wanted = official_settings(drawn["config"])
        official = replace(piper.generation, text=wanted.text, audio=wanted.audio)
        assert official == replace(wanted, max_segments=None, resampler="official")
        pipeline = bagpiper.api.Pipeline(piper.model, official)
        answer = pipeline.answer([request], drawn["config"]["enforce_modality"])[0]
        assert len(answer.segments) == len(drawn["segments"]), drawn["name"]
        for number, (segment, expected) in enumerate(zip(answer.segments, drawn["segments"], strict=True)):
            where = f"{drawn['name']}/seg{number}"
            assert (segment.modality, segment.stop) == (expected["modality"], STOPS[expected["ended_by"]]), where
            assert np.array_equal(segment.rows, arrays[f"{where}/rows"]), where
            if segment.samples is not None and len(segment.samples):
                np.testing.assert_allclose(segment.samples, arrays[f"{where}/audio"], atol=1e-4, err_msg=where)


def test_lora_starts_from_it_and_goes_out_merged(golden, imported, tmp_path):
    """A run of two steps on the golden dialogues; what it did not train keeps its bits all the way out."""
    source = tmp_path / "train.jsonl"
    assert import_dialogues(golden / "dialogues.jsonl", source).train
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\n")
    changes = [
        f"start_from={imported}",
        f"run_dir={tmp_path / 'run'}",
        f"data.sources=[{source}]",
        "stage={name: sft, lora: {rank: 2}}",
        "trainer={max_steps: 2, log_every: 1}",
        "optimizer={lr: 1e-3, warmup_steps: 0}",
        "device=cpu",
        "data.token_budget=2048",
        "data.workers=0",
        "tracking.enabled=false",
        "listening.from_valid=0",
    ]
    run(load_recipe(str(recipe), changes), console=Console(quiet=True))
    model = tmp_path / "run" / "model"
    assert json.loads((model / "config.json").read_text())["generation"]["unused_text_ids"]
    merge_folder(model, tmp_path / "merged")
    export_espnet(tmp_path / "merged", tmp_path / "out.pt")
    given = torch.load(golden / "espnet_tiny.pt", weights_only=True)["module"]
    written = torch.load(tmp_path / "out.pt", weights_only=True)["module"]
    changed = {name for name, tensor in given.items() if not torch.equal(tensor, written[name])}
    assert all(t.dtype == given[name].dtype for name, t in written.items())
    frozen, layers = ("multimodal_io_dict.", "vocab_weight"), ("_proj.weight", "embed_tokens.weight", "lm_head.weight")
    own = {name for name in given if not name.startswith(frozen)}
    assert changed == {name for name in own if name.startswith(("adaptor.", "stream_emb.")) or name.endswith(layers)}
