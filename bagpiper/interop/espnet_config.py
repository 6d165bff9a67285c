"""What the official training YAML says about a checkpoint, and the sizes of the published parts.

The checkpoint holds no sizes, no tokenizer and no record of its layout (spec sections 1.2 and 8): they follow from this
file, and from the configs of the LLM, the tower and the codec that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from bagpiper.adaptors.configs import LinearConfig
from bagpiper.codecs.configs import XcodecConfig
from bagpiper.data.importers import UNDERSTANDING_PROMPT
from bagpiper.encoders.configs import OmniConfig, Qwen3OmniConfig, Qwen25OmniConfig
from bagpiper.errors import UserError, brief, shown
from bagpiper.heads.configs import ParallelConfig
from bagpiper.language.vocabulary import NUM_SPECIAL, Vocabulary
from bagpiper.llms.configs import HfConfig
from bagpiper.llms.tokenizer import FILE_NAME, TextTokenizer
from bagpiper.recipe.settings import DecodeSettings, GenerationSettings, ModelSettings

QWEN3_8B = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "attention_bias": False,
    "hidden_act": "silu",
}
"""Qwen3-8B-Base (spec section 0), without its vocabulary."""
QWEN3_8B_ROWS = 151936
QWEN3_OMNI_TOWER = {
    "num_mel_bins": 128,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "downsample_hidden_size": 480,
    "max_source_positions": 1500,
    "n_window": 50,
    "n_window_infer": 800,
    "conv_chunksize": 500,
    "output_dim": 2048,
}
"""The tower of Qwen3-Omni-30B-A3B (spec section 3.3)."""
_LLMS = {"Qwen/Qwen3-8B-Base": (QWEN3_8B, QWEN3_8B_ROWS)}
_TOWERS = {"Qwen/Qwen3-Omni-30B-A3B-Instruct": QWEN3_OMNI_TOWER}
_CODECS = ("hf-audio/xcodec-hubert-general",)
_KNOWN_TOKENS = {"Qwen/Qwen3-8B-Base": {"<think>": 151667, "</think>": 151668}}
"""Ids that tell a tokenizer from a similar one (spec section 1.1)."""


@dataclass(frozen=True)
class Official:
    """What a training YAML says.

    Attributes:
        llm, tower, codec: hub names.
        num_codebooks: codebooks that are used.
        delayed: whether codebooks are delayed against each other.
        stream_weights: loss weight of each codebook.
        tied: whether input and output rows are one matrix.
        intervals: record of the layout, if there is one: block -> [first, end] pairs.
    """

    llm: str
    tower: str
    codec: str
    num_codebooks: int
    delayed: bool
    stream_weights: tuple[float, ...]
    tied: bool
    intervals: Mapping[str, Any] | None


def read_training_config(path: Path) -> Official:
    """Read an official training YAML.

    Raises:
        UserError: it is not one, describes a model that this toolkit does not hold, or its blocks of ids are in
            another order than the released checkpoints'.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # what stands behind a tag (`!!bool maybe`) raises what it likes
        raise UserError(f"{brief(path)}: not a readable YAML file ({brief(error)})") from None
    parts = content.get("multimodal_io") if isinstance(content, dict) else None
    if not isinstance(parts, dict):
        raise UserError(f"{path}: no official training config: it has no section multimodal_io")
    _check_order(path, [str(key) for key in parts])
    try:
        speech, heard = parts["discrete_audio"], parts["continuous_audio"]
        model = content["model"]
        wanted = {
            "multimodal_io.discrete_audio.codec_choice": (speech["codec_choice"], "Xcodec"),
            "multimodal_io.discrete_audio.ssl_choice": (speech.get("ssl_choice"), None),
            "multimodal_io.continuous_audio.encoder_choice": (heard["encoder_choice"], "huggingface"),
            "model.model_choice": (model["model_choice"], "parallel"),
            "multimodal_io.text.tokenizer_name": (parts["text"]["tokenizer_name"], model["model_hf_tag"]),
        }
        count = int(speech["codec_max_token_per_frame"])
        official = Official(
            llm=str(model["model_hf_tag"]),
            tower=str(heard["encoder_hf_model_tag"]),
            codec=str(speech["codec_hf_model_tag"]),
            num_codebooks=count,
            delayed=bool(speech.get("delay_interleave", True)),
            stream_weights=tuple(float(w) for w in speech.get("stream_weights") or [1.0 / count] * count),
            tied=bool((model.get("model_conf") or {}).get("tie_word_embeddings", False)),
            intervals=_find_intervals(content),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path}: no complete official training config: {type(error).__name__} {brief(error)}"
        ) from None
    for key, (found, known) in wanted.items():
        if found != known:
            raise UserError(f"{path}: {key} is {shown(found)}; only {known!r} can be imported")
    if len(official.stream_weights) != count:
        raise UserError(f"{path}: {len(official.stream_weights)} stream_weights for {count} codebooks")
    return official


def _check_order(path: Path, keys: list[str]) -> None:
    """The ids' blocks follow the order of the YAML's keys; ours is that of the released checkpoints."""
    blocks = [key for key in keys if key != "continuous_audio"]
    if blocks == ["text", "discrete_audio"] and "continuous_audio" in keys:
        return
    if sorted(keys) == ["continuous_audio", "discrete_audio", "text"]:
        raise UserError(
            f"{path}: the keys of multimodal_io are in the order {', '.join(keys)}, so the official code would put "
            "audio ids before text ids; the released checkpoints have text first. The file was probably saved again "
            "with sorted keys: take the published file, or restore the order text, discrete_audio, continuous_audio"
        )
    raise UserError(
        f"{path}: multimodal_io holds {brief(', '.join(keys))}; only text, discrete_audio and continuous_audio, each "
        "once, can be imported"
    )


def _find_intervals(content: Any) -> Mapping[str, Any] | None:
    """The record of the layout that newer code writes into the YAML of a run, wherever it stands."""
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("vocab_intervals"), dict):
        return dict(content["vocab_intervals"])
    return next((found for value in content.values() if (found := _find_intervals(value)) is not None), None)


def check_intervals(path: Path, recorded: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Compare a record of the layout with ours.

    Raises:
        UserError: they differ.
    """
    audio = [vocabulary.audio_pad(codebook) for codebook in range(vocabulary.num_codebooks)]
    ours = {
        "special_token": [[0, NUM_SPECIAL]],
        "text": [[vocabulary.text_start, vocabulary.audio_start]],
        "discrete_audio": [[start, start + vocabulary.interval] for start in audio],
    }
    for block, expected in ours.items():
        found = [list(pair) for pair in recorded.get(block) or []]
        if found != expected:
            raise UserError(
                f"{path}: vocab_intervals puts {block} at {found or 'no place'}, this toolkit (and every released "
                f"checkpoint) at {expected}; the checkpoint has another layout and its ids would mean something else"
            )


def find_settings(
    official: Official, llm: Path | None, tokenizer: Path | None, tower: Path | None, codec: Path | None
) -> tuple[ModelSettings, TextTokenizer, int]:
    """Settings of the model that a training YAML describes, without any source of weights.

    Args:
        official: what the YAML says.
        llm, tower, codec: folders with the ``config.json`` of each part; None takes the published sizes, or the hub.
        tokenizer: folder with a ``tokenizer.json``; None takes the LLM's.

    Returns:
        settings, tokenizer, rows of the text block.

    Raises:
        UserError: a config or the tokenizer is not to be had.
    """
    try:
        fields, rows = _llm(official, llm)
        found_tokenizer = _tokenizer(official, tokenizer or llm)
        settings = ModelSettings(
            encoder=_tower(official, tower),
            adaptor=LinearConfig(),
            llm=HfConfig(config={**fields, "tie_word_embeddings": official.tied}),
            codec=_codec(official, codec),
            head=ParallelConfig(),
            pattern="delay" if official.delayed else "parallel",
            stream_weights=list(official.stream_weights),
            text_zero_is_pad=True,
        )
    except ValueError as error:
        raise UserError(
            f"{error}. The checkpoint holds weights only: give folders with the small files of the parts it was made "
            "of, --llm (config.json, tokenizer.json), --tower and --codec (config.json each)"
        ) from error
    if found_tokenizer.size > rows:
        raise UserError(f"the tokenizer has {found_tokenizer.size} ids, the LLM only {rows} text rows; give its own")
    return settings, found_tokenizer, rows


def _llm(official: Official, folder: Path | None) -> tuple[dict[str, Any], int]:
    from bagpiper.llms.sources import fields_of, find_source

    if folder is None and official.llm in _LLMS:
        fields, rows = _LLMS[official.llm]
        return dict(fields), rows
    config = find_source(str(folder.resolve()) if folder else official.llm).config()
    return fields_of(config), int(config.vocab_size)


def _tokenizer(official: Official, folder: Path | None) -> TextTokenizer:
    if folder is not None and not (folder / "config.json").is_file() and (folder / FILE_NAME).is_file():
        found = TextTokenizer.load(folder)
    else:
        found = TextTokenizer.from_transformers(str(folder.resolve()) if folder else official.llm)
    if folder is None or (folder / FILE_NAME).is_file():
        for token, expected in _KNOWN_TOKENS.get(official.llm, {}).items():
            if found.size > expected and found.encode(token) != [expected]:
                raise ValueError(f"this is not the tokenizer of {official.llm}: {token} has ids {found.encode(token)}")
    return found


def _tower(official: Official, folder: Path | None) -> OmniConfig:
    from bagpiper.encoders.omni import Qwen3OmniEncoder, Qwen25OmniEncoder
    from bagpiper.encoders.omni_source import read_fields

    is_qwen3 = "Qwen3-Omni" in official.tower
    if not is_qwen3 and "Qwen2.5-Omni" not in official.tower:
        raise ValueError(f"the encoder {official.tower} is not known; Qwen3-Omni and Qwen2.5-Omni are")
    if folder is None and official.tower in _TOWERS:
        fields: dict[str, Any] = dict(_TOWERS[official.tower])
    else:
        known = (Qwen3OmniEncoder if is_qwen3 else Qwen25OmniEncoder).fields
        fields = read_fields(str(folder.resolve()) if folder else official.tower, known)
    kind = Qwen3OmniConfig if is_qwen3 else Qwen25OmniConfig
    return kind(config=fields, output_width=int(fields.get("output_dim", kind().output_width)))


def _codec(official: Official, folder: Path | None) -> XcodecConfig:
    from transformers import XcodecConfig as HfXcodecConfig

    from bagpiper.codecs.xcodec import xcodec_config

    if folder is None and official.codec in _CODECS:
        found = HfXcodecConfig()
    else:
        try:
            found = HfXcodecConfig.from_pretrained(str(folder.resolve()) if folder else official.codec)
        except OSError as error:
            raise ValueError(f"cannot read the config of the codec {official.codec}: {error}") from error
    return replace(xcodec_config(found), num_codebooks=official.num_codebooks)


def official_generation(render_prompt: str | None) -> GenerationSettings:
    """How the released models are sampled (spec section 4.6), with every rule of the official decoder.

    Args:
        render_prompt: system prompt of the SFT data for requests of sounds; with it, other requests get the one of the
            understanding data. Base and TTS models know none.
    """
    return GenerationSettings(
        text=DecodeSettings(temperature=0.6, top_k=20, cfg=1.0, max_rows=2048, min_rows=1),
        audio=DecodeSettings(temperature=0.8, top_k=20, cfg=3.0, max_rows=2048, min_rows=50),
        enforce_pads=False,
        unused_text_ids=True,
        cfg_keeps_assistant=False,
        end_cut_segments=False,
        resampler="official",
        system_prompt=UNDERSTANDING_PROMPT if render_prompt else None,
        render_prompt=render_prompt,
    )
