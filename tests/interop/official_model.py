"""A tiny model in the official checkpoint format, put together from transformers' own classes with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml

from bagpiper.llms.tokenizer import TextTokenizer

CODEBOOKS, CODES, TEXT_ROWS = 4, 16, 320
VOCABULARY = 256 + TEXT_ROWS + CODEBOOKS * (CODES + 1)
TEXTS = ("a low hum, then a bright tone", "two dogs bark far away", "<think> rain on a roof </think>") * 20
LLM = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": 512,
    "vocab_size": TEXT_ROWS,
    "tie_word_embeddings": False,
}
TOWER = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "d_model": 12,
    "output_dim": 10,
    "n_window": 50,
    "n_window_infer": 200,
    "downsample_hidden_size": 4,
    "max_source_positions": 100,
}
CODEC = {
    "target_bandwidths": [0.8],
    "codebook_size": CODES,
    "codebook_dim": 12,
    "acoustic_model_config": {
        "model_type": "dac",
        "encoder_hidden_size": 2,
        "decoder_hidden_size": 32,
        "hidden_size": 4,
        "downsampling_ratios": [8, 5, 4, 2],
        "upsampling_ratios": [8, 5, 4, 2],
    },
    "semantic_model_config": {
        "model_type": "hubert",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    },
}


class OfficialFiles:
    """What a user has: the checkpoint, the YAML, and folders with the parts' small files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint, self.config = root / "base.pt", root / "train.yaml"
        self.folders = {name: root / name for name in ("llm", "tower", "codec")}
        for folder, content in zip(self.folders.values(), (LLM, TOWER, {"model_type": "xcodec", **CODEC}), strict=True):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(content))
        TextTokenizer.train_bpe(TEXTS, 300).save(self.folders["llm"])
        (self.folders["llm"] / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        self.yaml = {
            "job_type": "speechlm",
            "multimodal_io": {
                "text": {"tokenizer_name": "some/llm"},
                "discrete_audio": {
                    "codec_choice": "Xcodec",
                    "codec_hf_model_tag": "some/codec",
                    "codec_max_token_per_frame": CODEBOOKS,
                    "ssl_choice": None,
                    "delay_interleave": True,
                    "stream_weights": [1 / CODEBOOKS] * CODEBOOKS,
                },
                "continuous_audio": {"encoder_choice": "huggingface", "encoder_hf_model_tag": "some/Qwen3-Omni"},
            },
            "model": {"model_choice": "parallel", "model_hf_tag": "some/llm"},
        }
        self.write_config(self.yaml)
        self.tensors = make_tensors()
        self.write_checkpoint({"module": self.tensors})

    def write_config(self, content, **options) -> Path:
        self.config.write_text(yaml.safe_dump(content, sort_keys=options.get("sort_keys", False)))
        return self.config

    def write_checkpoint(self, content) -> Path:
        torch.save(content, self.checkpoint)
        return self.checkpoint


def make_tensors() -> dict[str, torch.Tensor]:
    """The official state dict in bfloat16, ``vocab_weight`` in float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, XcodecConfig, XcodecModel
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

    with torch.random.fork_rng():
        torch.manual_seed(5)
        llm = Qwen3ForCausalLM(Qwen3Config(**{**LLM, "vocab_size": VOCABULARY}))
        tower = Qwen3OmniMoeAudioEncoder(Qwen3OmniMoeAudioEncoderConfig(**TOWER))
        codec = XcodecModel(XcodecConfig(**CODEC))
        stream, adaptor = torch.randn(CODEBOOKS, LLM["hidden_size"]), torch.nn.Linear(10, LLM["hidden_size"])
        codebooks = {
            name: torch.randn_like(tensor)
            for name, tensor in codec.state_dict().items()
            if name.endswith("codebook.embed")
        }
    state = {**llm.state_dict(), "stream_emb.weight": stream}
    state |= {f"adaptor.continuous_audio.{name}": tensor for name, tensor in adaptor.state_dict().items()}
    state |= {f"multimodal_io_dict.continuous_audio.model.audio_tower.{n}": t for n, t in tower.state_dict().items()}
    state |= {
        f"multimodal_io_dict.discrete_audio.codec_model.{n}": codebooks.get(n, t) for n, t in codec.state_dict().items()
    }
    weights = torch.ones(VOCABULARY)
    weights[256 + TEXT_ROWS :] = 1 / CODEBOOKS
    return {"vocab_weight": weights, **{name: tensor.detach().bfloat16() for name, tensor in state.items()}}
