"""What conversions of official checkpoints cost: anonymous memory, and time against a plain copy of the same bytes.

    python benchmarks/convert.py [--gigabytes 4] [--folder FOLDER]

A checkpoint of random numbers with the published vocabulary (160,392 ids), a tiny tower and a tiny codec is written,
imported, exported, and read back; the LLM by itself is exported; and adaptors beside all its layers are merged, which
also computes: its time has no bar. Every conversion runs in a process of its own; its RssAnon (mapped file pages do not
count) is read 50 times a second. The copy reads, writes and syncs in Python, before and after, and the slower one
counts: disks vary. The full 8B model is built on the meta device, after imports.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from figures import figure, finish

from bagpiper.interop.backbone import export_backbone
from bagpiper.interop.espnet import PartFolders, import_espnet
from bagpiper.interop.espnet_config import find_settings, read_training_config
from bagpiper.interop.espnet_export import export_espnet
from bagpiper.interop.espnet_file import check_sums, map_checkpoint, write_checkpoint
from bagpiper.interop.merge import merge_folder
from bagpiper.interop.names import VOCAB_WEIGHT, official_shapes
from bagpiper.llms.configs import LoraSettings
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.model import Bagpiper
from bagpiper.recipe.load import model_from_dict
from bagpiper.recipe.model_config import read_config
from bagpiper.recipe.settings import ModelSettings
from bagpiper.weights.model_folder import (
    FROZEN,
    TOKENIZER,
    TRAINED,
    build_empty,
    generation_of,
    read_provenance,
    read_tensors,
    write_records,
)
from bagpiper.weights.safetensors import CHUNK_BYTES, TensorSpec, chunks_of, spec_of, write_shards

ANON_MB, RATIO, META_SECONDS = 1500, 2.0, 1.0
TEXT_ROWS = 151936
TOWER = {"d_model": 256, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 512, "output_dim": 512}
CODEC = {
    "model_type": "xcodec",
    "acoustic_model_config": {
        "model_type": "dac",
        "encoder_hidden_size": 3,
        "hidden_size": 6,
        "decoder_hidden_size": 32,
    },
    "semantic_model_config": {
        "model_type": "hubert",
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": [16] * 7,
        "num_conv_pos_embeddings": 32,
        "num_conv_pos_embedding_groups": 4,
    },
}
_POLL_SECONDS = 0.02


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint")
    parser.add_argument("--folder", type=Path, help="where to write, five times the size; default: a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        checkpoint = make_checkpoint(folder, options.gigabytes)
        measure(folder, checkpoint)
    measure_meta()
    finish()


def measure(folder: Path, checkpoint: Path) -> None:
    """Every conversion, beside two copies of the checkpoint."""
    size = checkpoint.stat().st_size
    figure("checkpoint", size / 1e9, "GB")
    copies = [copy_seconds(checkpoint, folder / "copy")]
    imported = alone(do_import, folder, checkpoint, folder / "model")
    exported = alone(do_export, folder, folder / "model", folder / "out.pt")
    backbone = alone(do_backbone, folder, folder / "model", folder / "backbone")
    add_adaptors(folder / "model", folder / "lora")
    merged = alone(do_merge, folder, folder / "lora", folder / "merged")
    copies.append(copy_seconds(checkpoint, folder / "copy"))
    figure("read, write, fsync in Python", max(copies), "s")
    found = {"import": imported, "export": exported, "export of the LLM": backbone, "merge": merged}
    for name, figures in found.items():
        bar = None if name == "merge" else RATIO
        figure(f"{name}, time against the copy", figures["seconds"] / max(copies), "x", bar, "lower")
        figure(f"{name}, peak RssAnon", figures["anon"] / 1e6, "MB", ANON_MB, "lower")
    check_sums(folder / "out.pt", lambda count: None)
    one, two = map_checkpoint(checkpoint), map_checkpoint(folder / "out.pt")
    same = one.keys() == two.keys() and all(_equal(one[name], two[name]) for name in one)
    figure("tensors that came back with every bit", float(same), "all", 1.0)


def _equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.dtype == two.dtype and torch.equal(one.view(torch.uint8), two.view(torch.uint8))


def copy_seconds(source: Path, target: Path) -> float:
    """Seconds of reading a file, writing it and forcing it to the disk."""
    start = time.monotonic()
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, CHUNK_BYTES)
        write.flush()
        os.fsync(write.fileno())
    seconds = time.monotonic() - start
    target.unlink()
    return seconds


def alone(work: Callable[..., None], folder: Path, *arguments: Path) -> dict[str, float]:
    """Seconds and peak anonymous bytes of a function in a process of its own."""
    report = folder / "report.json"
    process = multiprocessing.get_context("spawn").Process(target=_timed, args=(work, report, folder, *arguments))
    process.start()
    peak = 0
    while process.is_alive():
        peak = max(peak, _anonymous_bytes(process.pid))
        time.sleep(_POLL_SECONDS)
    if process.exitcode:
        raise RuntimeError(f"{work.__name__} ended with {process.exitcode}")
    return {"seconds": json.loads(report.read_text()), "anon": peak}


def _timed(work: Callable[..., None], report: Path, *arguments: Path) -> None:
    torch.set_num_threads(1)
    build(full_parts())  # imports, as are the next two, which conversions make late
    importlib.import_module("peft")
    importlib.import_module("torch._subclasses.fake_tensor")
    start = time.monotonic()
    work(*arguments)
    report.write_text(json.dumps(time.monotonic() - start))


def _anonymous_bytes(pid: int | None) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def do_import(folder: Path, checkpoint: Path, out: Path) -> None:
    """In the child process."""
    import_espnet(checkpoint, folder / "train.yaml", out, folders=_folders(folder))


def do_export(folder: Path, model: Path, out: Path) -> None:
    """In the child process."""
    export_espnet(model, out)


def do_backbone(folder: Path, model: Path, out: Path) -> None:
    """In the child process."""
    export_backbone(model, out)


def do_merge(folder: Path, model: Path, out: Path) -> None:
    """In the child process."""
    merge_folder(model, out)


def _folders(folder: Path) -> PartFolders:
    return PartFolders(*(folder / name for name in ("llm", "tokenizer", "tower", "codec")))


def add_adaptors(source: Path, out: Path) -> None:
    """A model folder with random adaptors beside the layers of another one."""
    config, lora = read_config(source), LoraSettings()
    model = build_empty(source, {**config, "lora": vars(lora)})
    known = read_tensors(source)
    groups: dict[str, dict[str, torch.Tensor]] = {TRAINED: {}, FROZEN: {}}
    for name, tensor in model.state_dict().items():
        is_new = ".lora_" in name
        values = torch.randn(tensor.shape) / 100 if is_new else known[name.replace(".base_layer", "")]
        groups[TRAINED if is_new else FROZEN][name] = values
    for stem, tensors in groups.items():
        specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
        write_shards(out, stem, specs, lambda name: chunks_of([tensors[name]], tensors[name].dtype))  # noqa: B023
    TextTokenizer.load(source / TOKENIZER).save(out / TOKENIZER)
    write_records(
        out,
        fingerprint=config["fingerprint"],
        text_size=config["text_size"],
        model=model_from_dict(config["model"]),
        generation=generation_of(source),
        lora=lora,
        stage="sft",
        provenance=read_provenance(source),
        sizes={stem: len(tensors) for stem, tensors in groups.items()},
    )


def make_checkpoint(folder: Path, gigabytes: float) -> Path:
    """An official file of about this size (0.3 GB at least), and the small files that belong to it."""
    width = 4096 if gigabytes >= 3 else 384
    layer = 2 * (4 * width * width + 3 * width * 3 * width)
    layers = max(1, round((gigabytes * 1e9 - 4 * (TEXT_ROWS + 8456) * width) / layer))
    llm = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 128,
        "num_key_value_heads": width // 128,
        "head_dim": 128,
        "intermediate_size": 3 * width,
        "vocab_size": TEXT_ROWS,
    }
    for name, content in (("llm", llm), ("tower", TOWER), ("codec", CODEC)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(content))
    TextTokenizer.train_bpe(["a low hum"], 300).save(folder / "tokenizer")
    write_config(folder / "train.yaml")
    parts = _folders(folder)
    official = read_training_config(folder / "train.yaml")
    model = build(find_settings(official, parts.llm, parts.tokenizer, parts.tower, parts.codec))
    shapes = official_shapes({n: tuple(t.shape) for n, t in model.state_dict().items()}, model.vocabulary)
    specs = {n: TensorSpec(torch.float32 if n == VOCAB_WEIGHT else torch.bfloat16, s) for n, s in shapes.items()}
    weights = torch.from_numpy(model.vocabulary.token_weights(model.template.stream_weights))
    noise = torch.randn(CHUNK_BYTES // 2).bfloat16().view(torch.uint8).numpy()

    def chunks(name: str) -> Iterator[memoryview]:
        left = specs[name].num_bytes
        if name == VOCAB_WEIGHT:
            yield memoryview(weights.view(torch.uint8).numpy())
            return
        while left:
            yield memoryview(noise[: min(left, CHUNK_BYTES)])
            left -= min(left, CHUNK_BYTES)

    write_checkpoint(folder / "base.pt", specs, chunks, lambda count: None)
    return folder / "base.pt"


def write_config(path: Path) -> None:
    """The training YAML, with the published names and key order."""
    content: dict[str, Any] = {
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
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def full_parts() -> tuple[ModelSettings, TextTokenizer, int]:
    """Settings of the 8B model, its tower and its codec."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_config(folder / "train.yaml")
        TextTokenizer.train_bpe(["a low hum"], 300).save(folder)
        return find_settings(read_training_config(folder / "train.yaml"), None, folder, None, None)


def build(parts: tuple[ModelSettings, TextTokenizer, int]) -> Bagpiper:
    """A model on the meta device."""
    settings, tokenizer, rows = parts
    with torch.device("meta"):
        return Bagpiper.build(settings, tokenizer, text_size=rows)


def measure_meta() -> None:
    """Processor seconds of building the full model; it runs on one thread and waits for nothing."""
    parts = full_parts()
    model = build(parts)  # imports
    seconds = []
    for _ in range(3):
        start = time.process_time()
        build(parts)
        seconds.append(time.process_time() - start)
    figure("8B model on the meta device, CPU time", max(seconds), "s", META_SECONDS, "lower")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    figure("its tensors in the official file", len(official_shapes(shapes, model.vocabulary)), "")


if __name__ == "__main__":
    main()
