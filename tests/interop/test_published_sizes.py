"""The full model at the published sizes, on the meta device: quick to build, tensor for tensor the released one."""

import re
import time

import pytest
import torch
import yaml
from interop.official_model import TEXTS

from bagpiper.interop.espnet_config import find_settings, read_training_config
from bagpiper.interop.names import official_shapes, pieces_of_official, pieces_of_own
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.model import Bagpiper
from bagpiper.recipe.load import load_recipe
from bagpiper.recipe.registry import name_of
from bagpiper.recipe.settings import StageSettings
from bagpiper.training.stages import apply_stage, count_parameters

TRAINED = 8_268_432_384
LAYER = {
    "self_attn.q_proj.weight": (4096, 4096),
    "self_attn.k_proj.weight": (1024, 4096),
    "self_attn.v_proj.weight": (1024, 4096),
    "self_attn.o_proj.weight": (4096, 4096),
    "self_attn.q_norm.weight": (128,),
    "self_attn.k_norm.weight": (128,),
    "mlp.gate_proj.weight": (12288, 4096),
    "mlp.up_proj.weight": (12288, 4096),
    "mlp.down_proj.weight": (4096, 12288),
    "input_layernorm.weight": (4096,),
    "post_attention_layernorm.weight": (4096,),
}
TOWER_LAYER = {
    **{f"self_attn.{side}_proj.weight": (1280, 1280) for side in ("q", "k", "v", "out")},
    **{f"self_attn.{side}_proj.bias": (1280,) for side in ("q", "k", "v", "out")},
    **{
        f"{norm}.{kind}": (1280,)
        for norm in ("self_attn_layer_norm", "final_layer_norm")
        for kind in ("weight", "bias")
    },
    "fc1.weight": (5120, 1280),
    "fc1.bias": (5120,),
    "fc2.weight": (1280, 5120),
    "fc2.bias": (1280,),
}
TOWER = {
    "conv2d1.weight": (480, 1, 3, 3),
    "conv2d2.weight": (480, 480, 3, 3),
    "conv2d3.weight": (480, 480, 3, 3),
    **{f"conv2d{number}.bias": (480,) for number in (1, 2, 3)},
    "conv_out.weight": (1280, 7680),
    "ln_post.weight": (1280,),
    "ln_post.bias": (1280,),
    "proj1.weight": (1280, 1280),
    "proj1.bias": (1280,),
    "proj2.weight": (2048, 1280),
    "proj2.bias": (2048,),
    **{f"layers.{n}.{name}": shape for n in range(32) for name, shape in TOWER_LAYER.items()},
}
WHOLE = {
    "vocab_weight": (160392,),
    "model.embed_tokens.weight": (160392, 4096),
    **{f"model.layers.{n}.{name}": shape for n in range(36) for name, shape in LAYER.items()},
    "model.norm.weight": (4096,),
    "lm_head.weight": (160392, 4096),
    "stream_emb.weight": (8, 4096),
    "adaptor.continuous_audio.weight": (4096, 2048),
    "adaptor.continuous_audio.bias": (4096,),
    **{f"multimodal_io_dict.continuous_audio.model.audio_tower.{name}": shape for name, shape in TOWER.items()},
}
CODEC = "multimodal_io_dict.discrete_audio.codec_model."
CODEC_COUNTS = {
    "semantic_model": 211,
    "acoustic_encoder": 89,
    "acoustic_decoder": 89,
    "quantizer": 32,
    "encoder_semantic": 13,
    "decoder_semantic": 14,
    "fc": 2,
    "fc1": 2,
    "fc2": 2,
}
CODEC_SHAPES = {
    **{f"quantizer.quantizers.{n}.codebook.inited": (1,) for n in range(8)},
    **{f"quantizer.quantizers.{n}.codebook.cluster_size": (1024,) for n in range(8)},
    **{f"quantizer.quantizers.{n}.codebook.{name}": (1024, 1024) for n in range(8) for name in ("embed", "embed_avg")},
    "fc.weight": (1024, 1024),
    "fc1.weight": (768, 1024),
    "fc2.weight": (256, 1024),
    "semantic_model.masked_spec_embed": (768,),
}
"""What the description of the released state dict tells (spec section 8)."""

PUBLISHED = {
    "multimodal_io": {
        "text": {"tokenizer_name": "Qwen/Qwen3-8B-Base"},
        "discrete_audio": {
            "codec_choice": "Xcodec",
            "codec_hf_model_tag": "hf-audio/xcodec-hubert-general",
            "codec_max_token_per_frame": 8,
            "stream_weights": [0.125] * 8,
        },
        "continuous_audio": {
            "encoder_choice": "huggingface",
            "encoder_hf_model_tag": "Qwen/Qwen3-Omni-30B-A3B-Instruct",
        },
    },
    "model": {"model_choice": "parallel", "model_hf_tag": "Qwen/Qwen3-8B-Base"},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Settings, tokenizer and text rows, as an import finds them without any folder but the tokenizer's."""
    folder = tmp_path_factory.mktemp("published")
    TextTokenizer.train_bpe(TEXTS, 300).save(folder)
    (folder / "train.yaml").write_text(yaml.safe_dump(PUBLISHED, sort_keys=False))
    return find_settings(read_training_config(folder / "train.yaml"), None, folder, None, None)


def build(parts):
    settings, tokenizer, rows = parts
    with torch.device("meta"):
        return Bagpiper.build(settings, tokenizer, text_size=rows)


@pytest.fixture(scope="module")
def model(parts):
    return build(parts)


def test_the_released_names_and_shapes(model):
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    official = official_shapes(own, model.vocabulary)
    assert len(official) == 1382
    codec = {name.removeprefix(CODEC): shape for name, shape in official.items() if name.startswith(CODEC)}
    assert {name: shape for name, shape in official.items() if not name.startswith(CODEC)} == WHOLE
    counts = {part: sum(name.startswith(f"{part}.") for name in codec) for part in CODEC_COUNTS}
    assert counts == CODEC_COUNTS
    assert sum(counts.values()) == len(codec) == 454
    assert CODEC_SHAPES.items() <= codec.items()
    books = [name for name in codec if name.startswith("quantizer")]
    assert set(books) == {name for name in CODEC_SHAPES if name.startswith("quantizer")}
    assert any(re.search(r"pos_conv_embed.*parametrizations\.weight\.original0$", name) for name in codec)


def test_every_row_of_ours_is_one_of_theirs_and_back(model):
    """The two directions of the mapping are inverse, for every row of every tensor."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in official_shapes(own, model.vocabulary).items():
        if name == "vocab_weight":
            continue
        pieces = pieces_of_official(name)
        rows = 0
        for piece in pieces:
            stop = piece.stop if piece.stop is not None else (own[piece.name] or (1,))[0]
            rows += stop - piece.start
            assert name in {back.name for back in pieces_of_own(piece.name, model.vocabulary)}
        assert rows == (shape or (1,))[0]


def test_trained_parameters_and_ids(model):
    apply_stage(model, StageSettings(name="pretrain"))
    assert count_parameters(model)[0] == TRAINED
    vocabulary = model.vocabulary
    assert vocabulary.size == 160392
    assert [vocabulary.audio_pad(n) for n in range(8)] == [152192 + 1025 * n for n in range(8)]
    assert vocabulary.token_weights(model.template.stream_weights).sum() == 153217.0


def test_built_in_under_a_second(parts):
    """CPU seconds, because other work on the machine is not counted in them; the official code takes 4 minutes."""
    build(parts)  # imports
    start = time.process_time()
    build(parts)
    assert time.process_time() - start < 1.0


def test_the_recipe_has_the_same_parts(parts):
    recipe = load_recipe("pretrain/bagpiper-8b", ["data.sources=[x.jsonl]"], ready=False).model
    for kind in ("encoder", "adaptor", "llm", "codec", "head"):
        assert name_of(kind, getattr(recipe, kind)) == name_of(kind, getattr(parts[0], kind)), kind
    assert (recipe.codec.num_codebooks, recipe.encoder.width, recipe.pattern) == (8, 2048, "delay")
