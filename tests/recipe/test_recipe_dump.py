"""Recipes and their parts as YAML and as plain containers: what is written reads back equal."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bagpiper.llms.configs import LoraSettings
from bagpiper.recipe import registry
from bagpiper.recipe.load import (
    RecipeError,
    component_from_dict,
    component_to_dict,
    dump_recipe,
    generation_from_dict,
    generation_to_dict,
    load_recipe,
    model_from_dict,
    model_to_dict,
    recipe_from_dict,
    recipe_to_dict,
)
from bagpiper.recipe.settings import SourceSettings

# What YAML 1.1 or OmegaConf could mistake for something else, and any other text without an interpolation.
_TEXTS = st.sampled_from(
    ["3e-4", "null", "on", "1:30", "1_000", "=", "<<", "~", "2001-01-01", " x", "a: b", "#c", "-", ""]
)
_TEXTS |= st.text().filter(lambda text: "${" not in text and text != "???")
_FLOATS = st.floats(min_value=1e-300, max_value=1e300)


@st.composite
def _recipes(draw: st.DrawFn):
    recipe = load_recipe("quickstart")
    recipe.seed = draw(st.integers(0, 2**63))
    recipe.name = draw(_TEXTS)
    recipe.run_dir = draw(st.none() | _TEXTS)
    recipe.optimizer.lr = draw(_FLOATS)
    recipe.optimizer.betas = (draw(st.floats(0, 0.999)), draw(st.floats(0, 0.999)))
    recipe.listening.captions = draw(st.lists(_TEXTS, max_size=3))
    recipe.data.sources = [
        SourceSettings(path=draw(_TEXTS) or "a", weight=draw(_FLOATS), name=draw(st.none() | _TEXTS))
        for _ in range(draw(st.integers(0, 2)))
    ]
    recipe.optimizer.name = "adamw"  # muon and adaptors clash
    recipe.stage.lora = draw(st.none() | st.builds(LoraSettings, rank=st.integers(1, 99), alpha=_FLOATS))
    recipe.model.encoder.strides = draw(st.sampled_from([(1,), (2, 2), (3, 1, 2)]))
    plain = st.none() | st.booleans() | st.integers() | _FLOATS | _TEXTS
    recipe.model.llm.config = draw(
        st.dictionaries(_TEXTS.filter(bool), plain | st.lists(plain, max_size=2), max_size=3)
    )
    return recipe


@settings(max_examples=25, deadline=None)
@given(recipe=_recipes())
def test_dump_and_load_gives_an_equal_recipe(recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(path), ready=False) == recipe
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe


def test_dump_holds_every_key_and_plain_yaml_reads_it() -> None:
    recipe = load_recipe("quickstart")
    plain = yaml.safe_load(dump_recipe(recipe))
    assert plain == recipe_to_dict(recipe)
    assert list(plain) == [field.name for field in dataclasses.fields(recipe)]
    assert plain["model"]["codec"]["name"] == "rvq"
    assert plain["optimizer"]["betas"] == [0.9, 0.95]


def test_sections_and_components_as_plain_containers() -> None:
    recipe = load_recipe("quickstart")
    assert model_from_dict(model_to_dict(recipe.model)) == recipe.model
    assert generation_from_dict(generation_to_dict(recipe.generation)) == recipe.generation
    for kind in registry.KINDS:
        config = getattr(recipe.model, kind)
        assert component_from_dict(kind, component_to_dict(kind, config)) == config
    with pytest.raises(RecipeError, match="codec.hopp: unknown key; did you mean 'hop'"):
        component_from_dict("codec", {"name": "rvq", "hopp": 1})
    with pytest.raises(RecipeError, match="generation.text: must be a mapping"):
        generation_from_dict({"text": 1})
    with pytest.raises(RecipeError, match="unknown llm 'gpt'"):
        model_from_dict({"llm": {"name": "gpt"}})
    with pytest.raises(RecipeError, match="trainer.max_steps: must be at least 1"):
        recipe_from_dict({**recipe_to_dict(recipe), "trainer": {"max_steps": 0}})
