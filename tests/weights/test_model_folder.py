"""Model folders: every kind of weights comes back, and what does not fit is refused."""

import json
import struct

import pytest
import torch
from tiny import tiny_batch, tiny_model

from bagpiper.errors import UserError
from bagpiper.llms.configs import LoraSettings
from bagpiper.llms.lora import add_lora
from bagpiper.recipe.settings import GenerationSettings
from bagpiper.weights import model_folder, safetensors
from bagpiper.weights.model_folder import load_model, save_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def save(model, folder, **options):
    save_model(model, folder, generation=GenerationSettings(), **options)
    return folder


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_lora_folder_gives_the_same_loss(tmp_path, quantize):
    """Folders of 4-bit models once could be written but not read."""
    model = tiny_model()
    lora = LoraSettings(rank=2, quantize=quantize)
    names = add_lora(model.llm, lora)
    with torch.no_grad():
        for name, parameter in model.llm.named_parameters():
            if name in names:
                parameter.normal_()
    loaded = load_model(save(model, tmp_path / "m", lora=lora))
    batch = tiny_batch(model)
    assert torch.equal(model.eval()(batch).total, loaded(batch).total)
    assert loaded.fingerprint() == model.fingerprint()


def test_large_models_have_several_files(tmp_path, monkeypatch, model):
    monkeypatch.setattr(model_folder, "write_shards", lambda *a, **k: safetensors.write_shards(*a, **k, limit=20_000))
    folder = save(model, tmp_path / "m", store=tmp_path / "store")
    assert len(list(folder.glob("trained-*-of-*.safetensors"))) > 2
    assert len(list(folder.glob("frozen*.safetensors"))) == len(list((tmp_path / "store").iterdir()))
    loaded = load_model(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_half_precision_of_the_llm_leaves_the_codec_alone(tmp_path, model):
    loaded = load_model(save(model, tmp_path / "m"), dtype=torch.bfloat16)
    kinds = {name: {p.dtype for p in part.parameters()} for name, part in loaded.parts.items()}
    assert kinds["llm"] == kinds["head"] == {torch.bfloat16}
    assert loaded.input_rows.text.dtype == loaded.output_rows.new.dtype == torch.bfloat16
    assert torch.bfloat16 not in kinds["encoder"] | kinds["codec"]
    assert loaded.codec.weights_hash() == model.codec.weights_hash()
    batch = tiny_batch(model)
    with torch.no_grad():
        assert loaded(batch).total.item() == pytest.approx(model(batch).total.item(), rel=0.02)


def test_cut_off_missing_and_foreign_files_are_refused(tmp_path, model):
    folder = save(model, tmp_path / "m")
    weights, whole = folder / "trained.safetensors", (folder / "trained.safetensors").read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="cut off or damaged"):
        load_model(folder)
    weights.write_bytes(b"PK" + whole[2:])
    with pytest.raises(UserError, match="trained.safetensors is not a safetensors file"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(UserError, match="trained.safetensors is missing"):
        load_model(folder)


def test_tensors_of_another_model_are_refused_with_the_difference(tmp_path, model):
    folder = save(model, tmp_path / "m")
    path = folder / "frozen.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    name = next(key for key, entry in header.items() if len(entry.get("shape", ())) == 2)
    shape = header[name]["shape"]
    header[name]["shape"] = shape[::-1] if shape[0] != shape[1] else [1, shape[0] * shape[1]]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(raw[:8] + text + raw[8 + length :])
    with pytest.raises(UserError, match=rf"{name} has shape \[{header[name]['shape'][0]}, .*this model \[{shape[0]}, "):
        load_model(folder)


def test_changed_config_is_refused(tmp_path, model):
    folder = save(model, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"pattern": "parallel"}, "the language of these weights"),
        ({"codec": {**config["model"]["codec"], "num_codebooks": 5}}, "do not fit the model"),
        ({"llm": {**config["model"]["llm"], "name": "nothing"}}, "does not describe a model"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, "model": {**config["model"], **change}}))
        with pytest.raises(UserError, match=message):
            load_model(folder)
