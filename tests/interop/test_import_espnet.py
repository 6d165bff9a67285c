"""Official checkpoints come in as they are, or are refused before anything is written."""

import json
import os

import pytest
import torch
from interop.official_model import CODEBOOKS, TEXT_ROWS, VOCABULARY

from bagpiper.errors import UserError
from bagpiper.interop.espnet import PartFolders, import_espnet
from bagpiper.weights.model_folder import load_model, read_tensors


def import_it(official, out, **changes):
    return import_espnet(official.checkpoint, official.config, out, folders=PartFolders(**official.folders), **changes)


def refused(official, out, message):
    with pytest.raises(UserError, match=message) as caught:
        import_it(official, out)
    assert not out.exists()
    assert not out.with_name(out.name + ".partial").exists()
    return str(caught.value)


def test_every_tensor_arrives_with_its_bits(official_once, imported):
    own = read_tensors(imported)
    given = official_once.tensors
    text = slice(256, 256 + TEXT_ROWS)
    for side, name in (("input_rows", "model.embed_tokens.weight"), ("output_rows", "lm_head.weight")):
        assert torch.equal(own[f"{side}.text"], given[name][text])
        assert torch.equal(own[f"{side}.new"], torch.cat([given[name][:256], given[name][256 + TEXT_ROWS :]]))
    assert torch.equal(own["head.streams"], given["stream_emb.weight"])
    assert len(own) == len(given) - 1 + 2  # vocab_weight follows from the settings, two matrices are two blocks each
    assert {tensor.dtype for tensor in own.values()} == {torch.bfloat16}


def test_the_model_loads_and_its_codec_is_in_float32(imported):
    model = load_model(imported)
    assert model.vocabulary.size == VOCABULARY
    assert model.vocabulary.num_codebooks == CODEBOOKS
    assert {p.dtype for p in model.codec.parameters()} == {torch.float32}
    assert model.vocabulary.text_zero_is_pad


def test_provenance_says_where_it_came_from_and_under_what_licence(official_once, imported):
    told = json.loads((imported / "provenance.json").read_text())
    assert told["imported_from"]["bytes"] == official_once.checkpoint.stat().st_size
    assert told["official"] == {"dtype": "bfloat16", "exceptions": {"vocab_weight": "float32"}}
    assert {part["name"] for part in told["parts"].values()} == {"some/llm", "some/codec", "some/Qwen3-Omni"}
    assert all(part["licence"] for part in told["parts"].values())


@pytest.mark.parametrize("form", ["bare", "without vocab_weight", "weight_g"])
def test_older_forms_give_the_same_model(official, imported, tmp_path, form):
    tensors = dict(official.tensors)
    if form == "without vocab_weight":
        del tensors["vocab_weight"]
    if form == "weight_g":
        ends = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
        for new, old in ends.items():
            tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        assert set(tensors) != set(official.tensors)
    official.write_checkpoint(tensors if form == "bare" else {"module": tensors, "ds_version": "0.18"})
    import_it(official, tmp_path / "m")
    config = [json.loads((folder / "config.json").read_text()) for folder in (imported, tmp_path / "m")]
    assert config[0]["fingerprint"] == config[1]["fingerprint"]
    made = read_tensors(tmp_path / "m")
    for name, tensor in read_tensors(imported).items():
        assert torch.equal(made[name], tensor), name


def test_sorted_keys_of_the_config_are_refused(official, tmp_path):
    """A YAML saved again with sorted keys moves every id: the official code trained on at a loss of 55.73."""
    official.write_config(official.yaml, sort_keys=True)
    assert "restore the order text, discrete_audio" in refused(official, tmp_path / "m", "audio ids before text ids")


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("discrete_audio", "codec_max_token_per_frame", 2, "4 stream_weights for 2 codebooks"),
        ("discrete_audio", "codec_choice", "Other", "codec_choice is 'Other'"),
        ("discrete_audio", "ssl_choice", "espnet", "ssl_choice is 'espnet'"),
        ("discrete_audio", "stream_weights", [1.0] * 4, "another loss weight than in this layout; the first is id 576"),
        ("continuous_audio", "encoder_hf_model_tag", "some/other", "encoder some/other is not known"),
        ("text", "tokenizer_name", "another/llm", "tokenizer_name is 'another/llm'"),
        ("image", "x", 1, "multimodal_io holds text, discrete_audio, continuous_audio, image"),
    ],
)
def test_altered_configs_are_refused(official, tmp_path, section, key, value, message):
    changed = {name: dict(part) for name, part in official.yaml["multimodal_io"].items()}
    changed.setdefault(section, {})[key] = value
    official.write_config({**official.yaml, "multimodal_io": changed})
    refused(official, tmp_path / "m", message)


def test_another_record_of_the_layout_is_refused(official, tmp_path):
    blocks = {"special_token": [[0, 256]], "text": [[256, 256 + TEXT_ROWS]]}
    audio = [[256 + TEXT_ROWS + 17 * n, 256 + TEXT_ROWS + 17 * (n + 1)] for n in range(CODEBOOKS)]
    official.write_config({**official.yaml, "vocab_intervals": {**blocks, "discrete_audio": audio}})
    import_it(official, tmp_path / "good")
    moved = {"special_token": [[0, 256]], "discrete_audio": [[256, 324]], "text": [[324, 644]]}
    official.write_config({**official.yaml, "vocab_intervals": moved})
    refused(official, tmp_path / "m", r"puts text at \[\[324, 644\]\]")


def test_a_checkpoint_of_another_layout_is_refused(official, tmp_path):
    weights = torch.ones(VOCABULARY)
    weights[256 : 256 + CODEBOOKS * 17] = 1 / CODEBOOKS  # audio first
    official.write_checkpoint({"module": {**official.tensors, "vocab_weight": weights}})
    assert "id 256 (text:0)" in refused(official, tmp_path / "m", "another order of its blocks")


@pytest.mark.parametrize(
    ("part", "key", "value", "option"),
    [("tower", "d_model", 16, "--tower"), ("codec", "unit_kernel_size", 5, "--codec")],
)
def test_parts_of_other_sizes_are_refused(official, tmp_path, part, key, value, option):
    content = json.loads((official.folders[part] / "config.json").read_text())
    folder = tmp_path / part
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**content, key: value}))
    official.folders = {**official.folders, part: folder}
    assert f"as {option}" in refused(official, tmp_path / "m", "has shape")


def test_missing_and_unknown_tensors_are_named(official, tmp_path):
    tensors = {name: tensor for name, tensor in official.tensors.items() if name != "model.norm.weight"}
    official.write_checkpoint({"module": {**tensors, "model.extra": torch.zeros(1)}})
    assert "model.extra is unknown" in refused(official, tmp_path / "m", "model.norm.weight is missing")


def test_a_file_that_is_cut_off_is_refused(official, tmp_path):
    whole = official.checkpoint.read_bytes()
    official.checkpoint.write_bytes(whole[: len(whole) // 2])
    refused(official, tmp_path / "m", "cut off")


def test_one_changed_byte_is_found(official, tmp_path):
    whole = bytearray(official.checkpoint.read_bytes())
    whole[len(whole) // 2] ^= 1
    official.checkpoint.write_bytes(whole)
    refused(official, tmp_path / "m", "damaged")


def test_a_pickle_with_code_is_not_run(official, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    official.write_checkpoint({"module": official.tensors, "extra": Evil()})
    refused(official, tmp_path / "m", "loading it could run code")
    assert not (tmp_path / "hacked").exists()


def test_things_that_are_no_checkpoint(official, tmp_path):
    official.write_checkpoint({"module": {"a": 3}})
    refused(official, tmp_path / "m", "not an official checkpoint")
    official.checkpoint.unlink()
    refused(official, tmp_path / "m", "there is no file")
    official.config.write_text("- 1")
    refused(official, tmp_path / "m", "no section multimodal_io")


def test_parts_that_cannot_be_found_are_asked_for(official, tmp_path):
    official.folders = {}
    refused(official, tmp_path / "m", "--llm")


def test_nothing_is_overwritten(official, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        import_it(official, tmp_path / "m")
    assert (tmp_path / "m" / "mine").read_text() == "x"
