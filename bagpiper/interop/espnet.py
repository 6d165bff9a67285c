"""Official checkpoints in: ``espnet/bagpiper``, ``-sft``, ``-tts-sft`` (spec sections 7.2 and 8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bagpiper.errors import UserError
from bagpiper.interop.espnet_config import check_intervals, find_settings, official_generation, read_training_config
from bagpiper.interop.espnet_file import check_sums, map_checkpoint
from bagpiper.interop.names import CODEC, TOWER, VOCAB_WEIGHT, official_shapes, pieces_of_own
from bagpiper.interop.resume import Meter, Progress, check_target, continued_folder, identity_of, silent
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.model import Bagpiper
from bagpiper.recipe.load import model_to_dict
from bagpiper.recipe.settings import ModelSettings
from bagpiper.weights.model_folder import FROZEN, TOKENIZER, TRAINED, portable_settings, write_records
from bagpiper.weights.safetensors import TensorSpec, chunks_of, write_shards

LICENCES = {
    "Qwen/Qwen3-8B-Base": "Apache-2.0",
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": "Apache-2.0",
}
"""Licences of parts as their authors state them."""


@dataclass(frozen=True)
class PartFolders:
    """Folders with the small files of the parts; None takes the published sizes, or asks the hub.

    Attributes:
        llm: ``config.json`` and ``tokenizer.json`` of the LLM.
        tokenizer: ``tokenizer.json``, where it is not the LLM's folder.
        tower, codec: ``config.json`` of each.
    """

    llm: Path | None = None
    tokenizer: Path | None = None
    tower: Path | None = None
    codec: Path | None = None


def import_espnet(
    checkpoint: Path,
    config: Path,
    out: Path,
    *,
    folders: PartFolders | None = None,
    stage: str = "pretrain",
    system_prompt: str | None = None,
    progress: Progress = silent,
) -> Bagpiper:
    """Make a model folder of an official checkpoint.

    Everything is checked before the first byte is written. A call that was killed is continued by the same call.

    Args:
        checkpoint: ``base.pt`` or ``model.pt``.
        config: the training YAML published beside it.
        out: the folder to make.
        folders: where configs and tokenizer of the parts are.
        stage: what the model was trained for last: ``pretrain`` or ``sft``.
        system_prompt: what the SFT model was trained to see first.
        progress: told what is going on.

    Returns:
        The model on the meta device.

    Raises:
        UserError: a file is missing, damaged or of another layout; says what differs and what to do.
    """
    check_target(out)
    official = read_training_config(config)
    tensors = map_checkpoint(checkpoint)
    given = folders or PartFolders()
    settings, tokenizer, rows = find_settings(official, given.llm, given.tokenizer, given.tower, given.codec)
    model = _empty(settings, tokenizer, rows)
    if official.intervals is not None:
        check_intervals(config, official.intervals, model.vocabulary)
    _check_names(checkpoint, tensors, model)
    _check_layout(checkpoint, tensors, model)
    check_sums(checkpoint, Meter(progress, "checking", checkpoint.stat().st_size))
    floats, exceptions = _dtypes(tensors)
    provenance = {
        "imported_from": {**identity_of(checkpoint), "config": str(config.resolve()), "format": "espnet speechlm"},
        "official": {"dtype": dtype_name(floats), "exceptions": {n: dtype_name(d) for n, d in exceptions.items()}},
        "parts": {
            name: {"name": part, "licence": LICENCES.get(part, "not stated here; see the page of its authors")}
            for name, part in (("llm", official.llm), ("encoder", official.tower), ("codec", official.codec))
        },
        "licence": "Apache-2.0 is what the authors state for code and demo; see the model's own page for its weights",
    }
    plan = {
        "what": "import",
        "source": identity_of(checkpoint),
        "model": model_to_dict(portable_settings(model)),
        "tokenizer": tokenizer.hash(),
    }
    with continued_folder(out, plan) as folder:
        sizes = _write_own(folder, tensors, model, progress)
        codec = {name: tensors[CODEC + name.removeprefix("model.")] for name in model.codec.state_dict()}
        tokenizer.save(folder / TOKENIZER)
        write_records(
            folder,
            fingerprint=model.fingerprint(codec),
            text_size=rows,
            model=portable_settings(model),
            generation=official_generation(system_prompt),
            lora=None,
            stage=stage,
            provenance=provenance,
            sizes=sizes,
        )
    return model


def _empty(settings: ModelSettings, tokenizer: TextTokenizer, rows: int) -> Bagpiper:
    try:
        with torch.device("meta"):
            return Bagpiper.build(settings, tokenizer, text_size=rows)
    except (ValueError, RuntimeError) as error:  # RuntimeError: sizes that do not go together
        raise UserError(f"the configs of the parts make no model: {error}") from error


def _shapes(model: Bagpiper) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _check_names(checkpoint: Path, tensors: Mapping[str, torch.Tensor], model: Bagpiper) -> None:
    """Compare names and shapes; ``vocab_weight`` may be missing, as in files older than it."""
    expected = official_shapes(_shapes(model), model.vocabulary)
    faults = [f"{name} is missing" for name in expected if name not in tensors and name != VOCAB_WEIGHT]
    faults += [f"{name} is unknown" for name in tensors if name not in expected]
    faults += [
        f"{name} has shape {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if not faults:
        return
    advice = "Give the YAML that was published beside this file"
    parts = {"the audio tower": (TOWER, "--tower"), "the codec": (CODEC, "--codec"), "the LLM": ("model.", "--llm")}
    for part, (prefix, option) in parts.items():
        if all(fault.startswith(prefix) for fault in faults):
            advice = f"Only {part} differs: give the folder with its config.json as {option}"
    more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
    raise UserError(
        f"{checkpoint}: does not hold the model that the config describes: {'; '.join(faults[:5])}{more}. {advice}"
    )


def _check_layout(checkpoint: Path, tensors: Mapping[str, torch.Tensor], model: Bagpiper) -> None:
    """``vocab_weight`` shows which ids are audio: the only trace of the layout in the file."""
    if model.tied and not torch.equal(tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]):
        raise UserError(f"{checkpoint}: the config ties input and output rows, but they differ in this file")
    if VOCAB_WEIGHT not in tensors:
        return
    expected = torch.from_numpy(model.vocabulary.token_weights(model.template.stream_weights))
    found = tensors[VOCAB_WEIGHT].float()
    wrong = (found != expected.to(tensors[VOCAB_WEIGHT].dtype).float()).nonzero().flatten().tolist()
    if wrong:
        first = wrong[0]
        raise UserError(
            f"{checkpoint}: {len(wrong)} ids have another loss weight than in this layout; the first is id {first} "
            f"({model.vocabulary.name_of(first)}), {found[first]:g} instead of {expected[first]:g}. The checkpoint "
            "was trained with another order of its blocks (a YAML with sorted keys, say) or with other stream_weights: "
            "give the YAML that it was trained with; a checkpoint of another order cannot be used"
        )


def _dtypes(tensors: Mapping[str, torch.Tensor]) -> tuple[torch.dtype, dict[str, torch.dtype]]:
    """The file's usual dtype, and tensors that have another."""
    usual = Counter(tensor.dtype for tensor in tensors.values()).most_common(1)[0][0]
    return usual, {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype != usual}


def dtype_name(dtype: torch.dtype) -> str:
    """As in ``provenance.json``."""
    return str(dtype).removeprefix("torch.")


def _rows(tensors: Mapping[str, torch.Tensor], own: str, model: Bagpiper) -> list[torch.Tensor]:
    """Views that make up one of our tensors."""
    pieces = pieces_of_own(own, model.vocabulary)
    return [tensors[p.name] if p.stop is None else tensors[p.name][p.start : p.stop] for p in pieces]


def _write_own(
    folder: Path, tensors: Mapping[str, torch.Tensor], model: Bagpiper, progress: Progress
) -> dict[str, int]:
    """Write all tensors under our names; the tower and the codec are what has never trained."""
    groups: dict[str, dict[str, TensorSpec]] = {TRAINED: {}, FROZEN: {}}
    for name, shape in _shapes(model).items():
        dtype = tensors[pieces_of_own(name, model.vocabulary)[0].name].dtype
        groups[FROZEN if name.startswith(("encoder.", "codec.")) else TRAINED][name] = TensorSpec(dtype, shape)
    total = sum(spec.num_bytes for specs in groups.values() for spec in specs.values())
    advance = Meter(progress, "writing", total)
    for stem, specs in groups.items():

        def chunks(name: str, specs: Mapping[str, TensorSpec] = specs) -> Iterator[memoryview]:
            return chunks_of(_rows(tensors, name, model), specs[name].dtype)

        write_shards(folder, stem, specs, chunks, advance=advance)
    return {stem: len(specs) for stem, specs in groups.items()}
