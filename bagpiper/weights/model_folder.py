"""The ``model/`` folder: ordinary weights and everything needed to use them, nothing else.

    config.json            format version, parts, language, fingerprint, generation settings, stage, LoRA
    trained.safetensors    every tensor that trained; large models have several files (see ``shards``)
    frozen.safetensors     the others (codec, frozen encoder, LoRA's base): once on disk for all folders of a run
    tokenizer/             the text tokenizer; never fetched by name
    provenance.json        where every part came from

All inference reads only this. Tensors are safetensors; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bagpiper.errors import UserError, reason
from bagpiper.files import link_or_copy, replacing_folder
from bagpiper.llms.configs import LoraSettings
from bagpiper.llms.lora import add_lora, quantized_layers, set_compute_dtype
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.model import Bagpiper
from bagpiper.recipe.load import generation_from_dict, generation_to_dict, model_from_dict, model_to_dict
from bagpiper.recipe.model_config import CONFIG, FORMAT, read_config
from bagpiper.recipe.settings import GenerationSettings, ModelSettings
from bagpiper.weights.safetensors import chunks_of, map_tensors, spec_of, write_shards

TOKENIZER, PROVENANCE = "tokenizer", "provenance.json"
TRAINED, FROZEN = "trained", "frozen"
"""Stems of the files of tensors, see ``shards``."""


def save_model(
    model: Bagpiper,
    folder: Path,
    *,
    generation: GenerationSettings,
    lora: LoraSettings | None = None,
    stage: str = "pretrain",
    provenance: Mapping[str, Any] | None = None,
    store: Path | None = None,
) -> None:
    """Write a model folder, under a temporary name first.

    Args:
        model: the model, on any device.
        folder: where to; replaced if it exists.
        generation: how it is to be sampled.
        lora: adaptors that were injected, if any.
        stage: what the model was trained for last.
        provenance: where the parts came from, licences.
        store: folder that keeps frozen tensors once by hash; the model folder then holds a hard link.
    """
    with replacing_folder(folder) as temporary:
        write_model(
            model,
            temporary,
            model.state_dict(),
            generation=generation,
            lora=lora,
            stage=stage,
            provenance=provenance,
            store=store,
        )


def write_model(
    model: Bagpiper,
    folder: Path,
    state: Mapping[str, torch.Tensor],
    *,
    generation: GenerationSettings,
    lora: LoraSettings | None = None,
    stage: str = "pretrain",
    provenance: Mapping[str, Any] | None = None,
    store: Path | None = None,
) -> None:
    """Write the files of ``save_model`` into a new folder that the caller syncs and names.

    Args:
        model: whose parameters may be spread over ranks.
        folder: the new folder.
        state: the model's state dict, of whole tensors.
        generation, lora, stage, provenance, store: as for ``save_model``.
    """
    folder.mkdir(exist_ok=True)
    trained, frozen = _split(model, state)
    write_tensors(folder, TRAINED, trained)
    if store is None:
        write_tensors(folder, FROZEN, frozen)
    else:
        _link_frozen(frozen, folder, store)
    model.tokenizer.save(folder / TOKENIZER)
    write_records(
        folder,
        fingerprint=model.fingerprint(),
        text_size=model.vocabulary.text_size,
        model=portable_settings(model),
        generation=generation,
        lora=lora,
        stage=stage,
        provenance=provenance or {},
        sizes={TRAINED: len(trained), FROZEN: len(frozen)},
    )


def write_tensors(folder: Path, stem: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors in memory, each in its own dtype."""
    specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
    write_shards(folder, stem, specs, lambda name: chunks_of([tensors[name]], specs[name].dtype))


def write_records(
    folder: Path,
    *,
    fingerprint: str,
    text_size: int,
    model: ModelSettings,
    generation: GenerationSettings,
    lora: LoraSettings | None,
    stage: str,
    provenance: Mapping[str, Any],
    sizes: Mapping[str, int],
) -> None:
    """Write ``config.json`` and ``provenance.json``.

    Args:
        folder: the model folder.
        fingerprint: of the language.
        text_size: rows of the text block.
        model: portable settings.
        generation, lora, stage, provenance: as for ``save_model``.
        sizes: number of tensors of each stem.
    """
    config = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "text_size": text_size,
        "model": model_to_dict(model),
        "generation": generation_to_dict(generation),
        "stage": stage,
        "lora": vars(lora) if lora else None,
        "tensors": dict(sizes),
    }
    _write_json(folder / CONFIG, config)
    _write_json(folder / PROVENANCE, dict(provenance))


def load_model(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Bagpiper:
    """Build a model from its folder, on the meta device first, and fill in the weights as they come off the disk.

    Args:
        folder: the model folder.
        device: where the model goes.
        dtype: of the LLM, the rows and the head, for inference, and what layers in 4 bits compute in; encoder, adaptor
            and codec stay in float32.

    Raises:
        UserError: not a model folder, another format, files missing or corrupt, or the fingerprint differs.
    """
    config = read_config(folder)
    tensors = read_tensors(folder)
    model = build_empty(folder, config)
    check_fit(model, tensors, folder)
    if dtype is not None:
        for part in (model.llm, model.input_rows, model.output_rows, model.head):
            part.to(dtype)
        set_compute_dtype(model.llm, dtype)
    _fill(model, tensors, device)
    model.reset_buffers()
    _check_fingerprint(model.fingerprint(), config, folder)
    return model.eval()


def build_empty(folder: Path, config: Mapping[str, Any]) -> Bagpiper:
    """The folder's model on the meta device, with its LoRA layers.

    Raises:
        UserError: ``config.json`` describes no model that can be built.
    """
    try:
        settings = model_from_dict(config["model"])
        tokenizer = TextTokenizer.load(folder / TOKENIZER)
        with torch.device("meta"):
            model = Bagpiper.build(settings, tokenizer, text_size=config["text_size"])
            if config["lora"]:
                add_lora(model.llm, LoraSettings(**config["lora"]))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{folder}: config.json or tokenizer does not describe a model ({reason(error)})") from error
    return model


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, mapped from the disk.

    Raises:
        UserError: files are missing, cut off or damaged.
    """
    return {**map_tensors(folder, TRAINED), **map_tensors(folder, FROZEN)}


def check_fit(model: Bagpiper, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Compare names and shapes of a folder's tensors with those of a model; nothing is changed.

    Raises:
        UserError: they differ; says in what.
    """
    shapes = _shapes(model)
    faults = [f"{name} is missing" for name in shapes if name not in tensors]
    faults += [f"{name} is not part of this model" for name in tensors if name not in shapes]
    faults += [
        f"{name} has shape {list(tensors[name].shape)}, this model {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(
            f"{folder}: these tensors do not fit the model that its config describes: {'; '.join(faults[:5])}{more}. "
            "Use the files that were written together."
        )


def check_language(
    model: Bagpiper, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], folder: Path
) -> None:
    """Compare a folder's language with the one that its config records, for those who do not load the model.

    Args:
        model: of ``build_empty``.
        tensors: of ``read_tensors``; they fit the model.
        config: of the folder.
        folder: for the message.

    Raises:
        UserError: a file of the folder was changed or replaced.
    """
    codec = {name: tensors[f"codec.{name}"] for name in model.codec.state_dict()}
    _check_fingerprint(model.fingerprint(codec), config, folder)


def _check_fingerprint(found: str, config: Mapping[str, Any], folder: Path) -> None:
    if found != config["fingerprint"]:
        raise UserError(
            f"{folder}: the language of these weights (vocabulary, tokenizer, codec, pattern) is not the one that "
            "config.json records; a file was changed or replaced. Restore the folder from the run that wrote it, "
            "or import it again."
        )


def _fill(model: Bagpiper, tensors: Mapping[str, torch.Tensor], device: torch.device | str) -> None:
    """Leave the meta device and copy tensors that fit, each converted to the model's own dtype, one at a time."""
    quantized = {f"{name}.": layer for name, layer in quantized_layers(model).items()}
    for module in model.modules():
        if module not in quantized.values():
            module.to_empty(device=device, recurse=False)
    model.tie()
    for prefix, layer in quantized.items():
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        layer.load_state_dict(own)
        layer.to(device)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.startswith(tuple(quantized)):
                tensor.copy_(tensors[name])


def _shapes(model: Bagpiper) -> dict[str, tuple[int, ...]]:
    """Names and shapes that the model's files have."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for prefix, layer in quantized_layers(model).items():
        shapes.update({f"{prefix}.{name}": tuple(shape) for name, shape in layer.packed_shapes().items()})
    return shapes


def read_provenance(folder: Path) -> dict[str, Any]:
    """Where the folder's parts came from; empty where nothing was recorded.

    Raises:
        UserError: the record is damaged.
    """
    path = folder / PROVENANCE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a record of where the parts came from ({reason(error)}); put it back, or remove it"
        ) from error


def generation_of(folder: Path) -> GenerationSettings:
    """How the folder's model is to be sampled."""
    return generation_from_dict(read_config(folder)["generation"])


def lora_of(folder: Path) -> LoraSettings | None:
    """The adaptors in the folder's model, if it has some."""
    given = read_config(folder)["lora"]
    return LoraSettings(**given) if given else None


def portable_settings(model: Bagpiper) -> ModelSettings:
    """Settings that rebuild the model with random weights and need no file or network."""
    parts = {name: part.portable_config() for name, part in model.parts.items()}
    return ModelSettings(
        **parts,
        pattern=model.settings.pattern,
        stream_weights=list(model.template.stream_weights),
        text_zero_is_pad=model.settings.text_zero_is_pad,
    )


def _split(
    model: Bagpiper, state: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State dict as (trained, frozen); a tied tensor is written under each of its names."""
    trains = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    trained = {name: tensor for name, tensor in state.items() if name in trains}
    return trained, {name: tensor for name, tensor in state.items() if name not in trains}


def _link_frozen(tensors: Mapping[str, torch.Tensor], folder: Path, store: Path) -> None:
    """Write frozen tensors to ``store`` by their hash, unless they are there, and link them into ``folder``."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        for chunk in chunks_of([tensors[name]], tensors[name].dtype):
            digest.update(chunk)
    stem = digest.hexdigest()[:16]
    store.mkdir(parents=True, exist_ok=True)
    specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
    kept = write_shards(store, stem, specs, lambda name: chunks_of([tensors[name]], specs[name].dtype))
    for path in kept:
        link_or_copy(path, folder / path.name.replace(stem, FROZEN, 1))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
