"""The ``model/`` folder: ordinary weights and everything needed to use them, nothing else.

    config.json            format version, parts, language, fingerprint, generation settings, stage, LoRA
    trained.safetensors    every tensor that trained
    frozen.safetensors     the others (codec, frozen encoder, LoRA's base): one file on disk for all folders of a run
    tokenizer/             the text tokenizer; never fetched by name
    provenance.json        where every part came from

All inference reads only this. Tensors are safetensors; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bagpiper.errors import UserError
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.model import Bagpiper
from bagpiper.recipe import generation_from_dict, generation_to_dict, model_from_dict, model_to_dict
from bagpiper.settings import GenerationSettings, LoraSettings, ModelSettings

FORMAT = 1
CONFIG, TRAINED, FROZEN, TOKENIZER, PROVENANCE = (
    "config.json",
    "trained.safetensors",
    "frozen.safetensors",
    "tokenizer",
    "provenance.json",
)


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
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    trained, frozen = _split(model)
    save_file(trained, temporary / TRAINED)
    _save_frozen(frozen, temporary / FROZEN, store)
    model.tokenizer.save(temporary / TOKENIZER)
    config = {
        "format": FORMAT,
        "fingerprint": model.fingerprint(),
        "text_size": model.vocabulary.text_size,
        "model": model_to_dict(portable_settings(model)),
        "generation": generation_to_dict(generation),
        "stage": stage,
        "lora": vars(lora) if lora else None,
        "tensors": {"trained": len(trained), "frozen": len(frozen)},
    }
    _write_json(temporary / CONFIG, config)
    _write_json(temporary / PROVENANCE, dict(provenance or {}))
    for path in temporary.rglob("*"):
        if path.is_file():
            _sync(path)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():  # moved aside first: a crash at any instant leaves one whole folder
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_model(folder: Path, device: torch.device | str = "cpu") -> Bagpiper:
    """Build a model from its folder, on the meta device first, and fill in the weights.

    Raises:
        UserError: not a model folder, another format, files missing or corrupt, or the fingerprint differs.
    """
    from bagpiper.llms.lora import add_lora

    config = read_config(folder)
    settings = model_from_dict(config["model"])
    tokenizer = TextTokenizer.load(folder / TOKENIZER)
    with torch.device("meta"):
        model = Bagpiper.build(settings, tokenizer, text_size=config["text_size"])
        if config["lora"]:
            add_lora(model.llm, LoraSettings(**config["lora"]))
    model.to_empty(device=device)
    model.tie()
    load_weights(model, folder)
    model.reset_buffers()
    if model.fingerprint() != config["fingerprint"]:
        raise UserError(
            f"{folder}: the language of these weights (vocabulary, tokenizer, codec, pattern) is not the one that "
            "config.json records; a file was changed or replaced. Restore the folder from the run that wrote it."
        )
    return model.eval()


def load_weights(model: Bagpiper, folder: Path) -> None:
    """Fill a model of the same shape with a folder's tensors, in place.

    Raises:
        UserError: names or shapes differ; nothing has been changed then.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name in (TRAINED, FROZEN):
        tensors.update(_read(folder / name))
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if hasattr(module, "packed_shapes"):  # a 4-bit layer, which is saved in another form than it is built in
            own.update({f"{name}.{key}": shape for key, shape in module.packed_shapes().items()})
    differing = sorted(set(own) ^ set(tensors)) + sorted(
        key for key in set(own) & set(tensors) if own[key] != tensors[key].shape
    )
    if differing:
        shown = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        raise UserError(f"{folder}: these tensors do not fit the model: {shown}")
    model.load_state_dict(tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``.

    Raises:
        UserError: there is none, or it has another format.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} is not a model folder: it has no {CONFIG}")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if config.get("format") != FORMAT:
        raise UserError(f"{path}: format {config.get('format')!r}, this version of bagpiper reads {FORMAT}")
    return config


def generation_of(folder: Path) -> GenerationSettings:
    """How the folder's model is to be sampled."""
    return generation_from_dict(read_config(folder)["generation"])


def find_model(path: Path) -> Path:
    """The model folder that a user means: itself, a run's ``model/``, or its newest checkpoint's.

    Raises:
        UserError: there is none.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run folder or a model folder")
    checkpoints = sorted(path.glob("checkpoints/step-*/model"), key=lambda found: int(found.parent.name[5:]))
    for candidate in (path, path / "model", *reversed(checkpoints)):
        if (candidate / CONFIG).is_file():
            return candidate
    raise UserError(f"{path} holds no model yet: neither {CONFIG}, model/ nor checkpoints/step-*/model/")


def portable_settings(model: Bagpiper) -> ModelSettings:
    """Settings that rebuild the model with random weights and need no file or network."""
    parts = {name: part.portable_config() for name, part in model.parts.items()}
    return ModelSettings(
        **parts,
        pattern=model.settings.pattern,
        stream_weights=list(model.template.stream_weights),
        text_zero_is_pad=model.settings.text_zero_is_pad,
    )


def _split(model: Bagpiper) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State dict as (trained, frozen); a tied tensor is written under each of its names."""
    trains = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    trained: dict[str, torch.Tensor] = {}
    frozen: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        kept = tensor.detach().cpu().contiguous()
        if kept.data_ptr() in seen:
            kept = kept.clone()  # safetensors refuses two names for one storage
        seen.add(kept.data_ptr())
        (trained if name in trains else frozen)[name] = kept
    return trained, frozen


def _save_frozen(tensors: dict[str, torch.Tensor], target: Path, store: Path | None) -> None:
    if store is None:
        save_file(tensors, target)
        return
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    kept = store / f"{digest.hexdigest()[:16]}.safetensors"
    if not kept.exists():
        store.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".tmp")
        save_file(tensors, partial)
        _sync(partial)
        os.replace(partial, kept)
    try:
        os.link(kept, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(kept, target)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing; the model folder is incomplete")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
