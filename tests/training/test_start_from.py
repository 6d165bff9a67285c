"""Runs that start from the model of another run, or from an imported one."""

import json
from dataclasses import replace

import pytest
import torch
from runs import tiny_recipe
from safetensors.torch import load_file

from bagpiper.errors import UserError
from bagpiper.llms.configs import LoraSettings
from bagpiper.llms.lora import merge_lora
from bagpiper.recipe.load import dump_recipe, load_recipe
from bagpiper.recipe.settings import StageSettings
from bagpiper.run import run
from bagpiper.weights.model_folder import load_model, read_tensors


@pytest.fixture(scope="module")
def second(tiny_run, shared_parts, tmp_path_factory):
    """A LoRA run that starts from the tiny run."""
    folder = tmp_path_factory.mktemp("second")
    start = tiny_recipe(folder / "run", shared_parts, max_steps=4)
    start.stage = StageSettings(name="sft", lora=LoraSettings(rank=2))
    (folder / "recipe.yaml").write_text(without_model(dump_recipe(start)))
    loaded = load_recipe(str(folder / "recipe.yaml"), [f"start_from={tiny_run}", "model.head.z_loss=1e-4"])
    run(loaded)
    return folder / "run"


def without_model(text):
    """The recipe without its sections model and generation."""
    kept, inside = [], False
    for line in text.splitlines():
        if not line.startswith(" "):
            inside = line.startswith(("model:", "generation:"))
        if not inside:
            kept.append(line)
    return "\n".join(kept) + "\n"


def test_recipe_gets_parts_and_sampling_from_the_folder(tiny_run, second):
    first, other = load_recipe(str(tiny_run)), load_recipe(str(second))
    assert other.generation == replace(first.generation, resampler="soxr")
    assert other.model.encoder == first.model.encoder
    assert other.model.llm.source is None
    assert other.model.head.z_loss == 1e-4
    assert other.start_from == str(tiny_run)


def test_frozen_weights_are_those_of_the_first_run(tiny_run, second):
    before, frozen = read_tensors(tiny_run / "model"), load_file(second / "model" / "frozen.safetensors")
    assert any("base_layer" in name for name in frozen)
    for name, tensor in frozen.items():
        assert torch.equal(tensor, before[name.replace(".base_layer", "")]), name
    trained = load_file(second / "model" / "trained.safetensors")
    assert any(name.endswith("lora_B.default.weight") and tensor.any() for name, tensor in trained.items())
    drift = (trained["input_rows.new"] - before["input_rows.new"]).abs().max()
    assert 0 < drift < 0.1


def test_language_and_origin_are_kept(tiny_run, second):
    files = ("model/tokenizer/tokenizer.json", "tokenizer/tokenizer.json", "fingerprint.json")
    for name in files:
        assert (second / name).read_bytes() == (tiny_run / name).read_bytes(), name
    told = json.loads((second / "model" / "provenance.json").read_text())["started_from"]
    assert told["folder"] == str((tiny_run / "model").resolve())
    assert told["provenance"]["recipe"] == "tiny"


def test_adaptors_of_the_start_are_merged(second, shared_parts, tmp_path):
    third = tiny_recipe(tmp_path / "run", shared_parts, max_steps=1)
    third.start_from = str(second)
    third.model = load_recipe(str(second)).model
    third.stage = StageSettings(name="warmup")
    run(third)
    merged = load_model(second / "model")
    merge_lora(merged.llm)
    state = read_tensors(tmp_path / "run" / "model")
    for name, tensor in merged.llm.state_dict().items():
        torch.testing.assert_close(state[f"llm.{name}"], tensor, msg=name)


def test_contradictions_are_refused_before_anything_is_written(tiny_run, shared_parts, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(tiny_recipe(tmp_path / "run", shared_parts)))
    faults = {
        "model.pattern=parallel": "model.pattern: is 'parallel', but",
        "model.encoder.channels=32": "model.encoder.channels: is 32, but",
        "model.encoder.name=whisper": "model.encoder.name: is 'whisper', but",
        "model.codec.num_codebooks=4": "model.codec.num_codebooks: is 4, but",
        "model.text_zero_is_pad=true": "model.text_zero_is_pad: is True, but",
    }
    for override, message in faults.items():
        with pytest.raises(UserError, match="start from another folder") as caught:
            load_recipe(str(path), [f"start_from={tiny_run}", override])
        assert message in str(caught.value)
    with pytest.raises(UserError, match="start_from: .*nowhere does not exist"):
        load_recipe(str(path), ["start_from=nowhere"])
    assert not (tmp_path / "run").exists()


def test_a_finished_recipe_does_without_its_start(second, tiny_run):
    """Reading a run's own recipe later needs no folder that may be gone by then."""
    text = (second / "recipe.yaml").read_text()
    assert f"start_from: {tiny_run}" in text
    (second / "recipe.yaml").write_text(text.replace(f"start_from: {tiny_run}", "start_from: gone"))
    try:
        assert load_recipe(str(second), ready=False).model.encoder == load_recipe(str(tiny_run)).model.encoder
        assert load_recipe(str(second), ["start_from=null"]).start_from is None
        with pytest.raises(UserError, match="start_from=null"):
            load_recipe(str(second))
    finally:
        (second / "recipe.yaml").write_text(text)
