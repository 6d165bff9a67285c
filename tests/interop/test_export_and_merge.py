"""What goes out is what was there; what has no place in a format is refused."""

import json

import pytest
import torch
from tiny import TEXTS, tiny_batch, tiny_model

from bagpiper.batch import Spans
from bagpiper.errors import UserError
from bagpiper.interop.backbone import export_backbone
from bagpiper.interop.espnet import PartFolders, import_espnet
from bagpiper.interop.espnet_export import export_espnet
from bagpiper.interop.merge import merge_folder
from bagpiper.llms.configs import LoraSettings
from bagpiper.llms.lora import add_lora, merge_lora
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.recipe.settings import GenerationSettings
from bagpiper.weights.model_folder import load_model, read_tensors, save_model

GENERATION = GenerationSettings()


def lora_folder(folder, quantize="none", **options):
    """A tiny model with adaptors that change something."""
    model, lora = tiny_model(), LoraSettings(rank=3, alpha=5, quantize=quantize, **options)
    trained = add_lora(model.llm, lora)
    with torch.no_grad():
        for name, parameter in model.llm.named_parameters():
            if name in trained:
                parameter.normal_()
    save_model(model, folder, generation=GENERATION, lora=lora, stage="sft", provenance={"recipe": "x"})
    return model.eval()


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj"]])
def test_merged_model_gives_the_same_loss(tmp_path, quantize, targets):
    model = lora_folder(tmp_path / "lora", quantize, targets=targets)
    count = merge_folder(tmp_path / "lora", tmp_path / "merged")
    merged, batch = load_model(tmp_path / "merged"), tiny_batch(model)
    assert count == len([name for name in read_tensors(tmp_path / "lora") if ".lora_A." in name])
    assert not any("lora" in name or "absmax" in name for name in merged.state_dict())
    assert merged(batch).total.item() == pytest.approx(model(batch).total.item(), rel=1e-5)
    plain = dict(tiny_model().named_parameters())
    merge_lora(model.llm)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
        if name.endswith("q_proj.weight"):
            assert (tensor - plain[name]).abs().max() > 0.1
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["lora"], config["stage"]) == (None, "sft")
    assert json.loads((tmp_path / "merged" / "provenance.json").read_text())["recipe"] == "x"


def test_a_folder_with_another_tokenizer_or_codec_is_not_passed_on(tmp_path):
    """The fingerprint was not compared: texts went out permuted, with exit 0."""
    lora_folder(tmp_path / "lora")
    merge_folder(tmp_path / "lora", tmp_path / "merged")
    other = TextTokenizer.train_bpe([text[::-1] for text in TEXTS], 300)
    for source, verbs in (("lora", [merge_folder]), ("merged", [export_backbone])):
        other.save(tmp_path / source / "tokenizer")
        for verb in verbs:
            with pytest.raises(UserError, match="a file was changed or replaced"):
                verb(tmp_path / source, tmp_path / "out")
            assert not (tmp_path / "out").exists()


def test_adaptors_must_be_merged_before_they_go_out(tmp_path):
    lora_folder(tmp_path / "lora")
    for verb in (export_espnet, export_backbone):
        with pytest.raises(UserError, match="bagpiper convert merge"):
            verb(tmp_path / "lora", tmp_path / "out")
    merge_folder(tmp_path / "lora", tmp_path / "merged")
    with pytest.raises(UserError, match="nothing to merge"):
        merge_folder(tmp_path / "merged", tmp_path / "again")
    assert not (tmp_path / "out").exists()


def test_other_parts_have_no_place_in_the_official_format(tmp_path):
    save_model(tiny_model(), tmp_path / "m", generation=GENERATION)
    with pytest.raises(UserError, match="'mel' has no place in the official format, only qwen3_omni"):
        export_espnet(tmp_path / "m", tmp_path / "out.pt")


def test_trained_float32_goes_out_in_the_dtype_it_came_in(official_once, imported, tmp_path):
    """A run holds float32; what it did not change must have its old bits in the exported file."""
    model = load_model(imported)
    with torch.no_grad():
        model.head.streams.add_(1)
    before = json.loads((imported / "provenance.json").read_text())
    provenance = {"recipe": "x", "started_from": {"folder": "m", "provenance": before}}
    save_model(model, tmp_path / "run", generation=GENERATION, provenance=provenance)
    assert {t.dtype for t in read_tensors(tmp_path / "run").values()} == {torch.float32}
    export_espnet(tmp_path / "run", tmp_path / "out.pt")
    written = torch.load(tmp_path / "out.pt", weights_only=True)["module"]
    assert next(iter(written)) == "vocab_weight"
    for name, tensor in official_once.tensors.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor) != (name == "stream_emb.weight"), name


def test_what_went_out_comes_in_again(official_once, imported, tmp_path):
    export_espnet(imported, tmp_path / "out.pt")
    folders = PartFolders(**official_once.folders)
    import_espnet(tmp_path / "out.pt", official_once.config, tmp_path / "again", folders=folders)
    assert (tmp_path / "again" / "config.json").read_text() == (imported / "config.json").read_text()


def test_backbone_is_a_model_of_transformers_with_its_own_ids(imported, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_backbone(imported, tmp_path / "llm", dtype=torch.float32)
    causal_lm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype=torch.float32)
    model = load_model(imported)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llm")
    ids = tokenizer("a low hum, then rain", return_tensors="pt").input_ids
    assert ids[0].tolist() == model.tokenizer.encode("a low hum, then rain")
    length = ids.shape[1]
    spans = Spans(torch.tensor([0, length], dtype=torch.int32), (length,))
    embeds = torch.nn.functional.embedding(ids, model.input_rows.text)
    with torch.no_grad():
        hidden = model.llm(embeds, torch.arange(length)[None], spans=spans)
        ours, theirs = hidden @ model.output_rows.text.T, causal_lm(ids).logits
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert "stream embeddings" in (tmp_path / "llm" / "README.md").read_text()


def test_backbone_loads_in_the_widest_dtype_that_it_holds(tmp_path):
    """transformers loads all tensors in the dtype that the config names; one of the first tensor would round others."""
    from transformers import AutoModelForCausalLM

    model = tiny_model()
    model.input_rows.bfloat16()
    save_model(model, tmp_path / "m", generation=GENERATION)
    export_backbone(tmp_path / "m", tmp_path / "llm")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype="auto")
    assert torch.equal(loaded.model.layers[0].mlp.up_proj.weight, model.llm.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(loaded.get_input_embeddings().weight, model.input_rows.text.float())


@pytest.mark.parametrize("tied", [False, True])
def test_backbone_of_several_files(tmp_path, monkeypatch, tied):
    from transformers import AutoModelForCausalLM

    from bagpiper.interop import backbone
    from bagpiper.weights.safetensors import plan_shards, write_shards

    model = tiny_model(llm={"tie_word_embeddings": tied})
    save_model(model, tmp_path / "m", generation=GENERATION)
    monkeypatch.setattr(backbone, "write_shards", lambda *a, **k: write_shards(*a, **k, limit=9000))
    monkeypatch.setattr(backbone, "plan_shards", lambda specs: plan_shards(specs, 9000))
    export_backbone(tmp_path / "m", tmp_path / "llm")
    assert len(list((tmp_path / "llm").glob("model-*.safetensors"))) > 2
    causal_lm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype=torch.float32)
    assert torch.equal(causal_lm.get_input_embeddings().weight, model.input_rows.text)
    assert torch.equal(causal_lm.get_output_embeddings().weight, model.output_rows.text)
    assert (causal_lm.get_output_embeddings().weight is causal_lm.get_input_embeddings().weight) == tied
