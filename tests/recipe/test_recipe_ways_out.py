"""Every way out that a message about a recipe names is tried, see ``tests/test_ways_out.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from bagpiper.recipe.load import check_recipe

LORA = "stage.lora={rank: 2}"
DEPTH = "model.head={name: depth}"

ON_THE_LINE: list[tuple[list[str], str, list[str]]] = [
    ([LORA, "stage.name=warmup"], "use stage.name: sft", [LORA, "stage.name=sft", "optimizer.name=adamw"]),
    ([LORA, "stage.name=sft", "optimizer.name=muon"], "use adamw", [LORA, "stage.name=sft", "optimizer.name=adamw"]),
    (
        ["stage.lora={rank: 2, targets: []}", "stage.name=sft", "optimizer.name=adamw"],
        "names no layer; 'all-linear' takes all",
        ["stage.lora={rank: 2, targets: [all-linear]}", "stage.name=sft", "optimizer.name=adamw"],
    ),
    (
        ["stage.lora={rank: 2, quantize: nf4}", "stage.name=sft", "optimizer.name=adamw", "trainer.compile=true"],
        "set trainer.compile: false",
        ["stage.lora={rank: 2, quantize: nf4}", "stage.name=sft", "optimizer.name=adamw", "trainer.compile=false"],
    ),
    (
        ["optimizer.name=muon", "stage.name=warmup", "stage.train_encoder=false"],
        "use adamw",
        ["optimizer.name=adamw", "stage.name=warmup", "stage.train_encoder=false"],
    ),
    (
        [DEPTH, "model.pattern=flatten"],
        "choose the head 'parallel'",
        ["model.head={name: parallel}", "model.pattern=flatten"],
    ),
    (["model.encoder={name: mel, strides: []}"], "for example [1]", ["model.encoder={name: mel, strides: [1]}"]),
    (["model.head=parallel"], "such as {name: ", ["model.head={name: parallel}"]),
    (["model.head={}"], "such as {name: ", ["model.head={name: parallel}"]),
    (["optimizer.betas=0.9"], "must be a list, such as [0.9]", ["optimizer.betas=[0.9,0.99]"]),
    (["plugins=json"], "must be a list, such as [json]", ["plugins=[json]"]),
    (["optimizer.lr='1e-4'"], "write it without quotes", ["optimizer.lr=1e-4"]),
    (["tracking.experiment=7"], "put it in quotes", ["tracking.experiment='7'"]),
    (["data.sources=???"], "give data.sources=... on the command line", ["data.sources=[HERE]"]),
    (["data.workers=null"], "leave the key out", []),
    (["trainer.max_step=5"], "did you mean 'max_steps'", ["trainer.max_steps=5"]),
    (["optimizer.max_steps=5"], "there is 'trainer.max_steps'", ["trainer.max_steps=5"]),
    (["run_dir=${HOME}/x"], "write the value itself", ["run_dir=/tmp/x"]),
    (["trainer.max_steps"], "e.g. trainer.max_steps=10", ["trainer.max_steps=10"]),
    (["data.soundscapes=null"], "give files, or set data.soundscapes", ["data.soundscapes={}"]),
    (
        ["data.soundscapes=null"],
        "give files, or set data.soundscapes",
        ["data.soundscapes=null", "data.sources=[HERE]"],
    ),
    (["data.sources=[HERE,HERE]"], "name it once, and set its weight", ["data.sources=[{path: HERE, weight: 2}]"]),
    (["data.sources=[HERE]", "data.max_seconds=300"], "lower data.max_seconds", ["data.sources=[HERE]"]),
    (
        ["data.sources=[HERE]", "data.max_seconds=300"],
        "raise data.max_rows",
        ["data.sources=[HERE]", "data.max_seconds=300", "data.max_rows=100000"],
    ),
    (["model.llm={name: hf}"], "needs source (weights) or config", ["model.llm={name: hf, config: {}}"]),
    (
        ["model.llm={name: hf, config: {}, source: a/b}"],
        "leave out config or source",
        ["model.llm={name: hf, config: {}}"],
    ),
    (
        ["optimizer.warmup_steps=10", "optimizer.decay_end_step=9"],
        "before the warm-up of 10 steps",
        ["optimizer.warmup_steps=10", "optimizer.decay_end_step=10"],
    ),
]


@pytest.mark.parametrize(("wrong", "advice", "right"), ON_THE_LINE, ids=[f"{w[0]}: {a}" for w, a, _ in ON_THE_LINE])
def test_of_recipes(wrong: list[str], advice: str, right: list[str], tmp_path: Path) -> None:
    here = tmp_path / "here.jsonl"
    here.write_text("{}\n")

    def problems(overrides: list[str]) -> list[str]:
        given = [text.replace("HERE", str(here)) for text in overrides]
        return [str(problem) for problem in check_recipe("quickstart", given)]

    assert any(advice in problem for problem in problems(wrong)), problems(wrong)
    assert problems(right) == []
