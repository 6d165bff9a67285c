"""A model trained from nothing for about a minute is better than chance at what it was trained for."""

import math

from rich.console import Console

from bagpiper.evaluation.probe import evaluate
from bagpiper.recipe.load import load_recipe
from bagpiper.run import run

CLIPS = 200


def test_a_minute_of_training_beats_chance_by_three_standard_errors(tmp_path):
    """Measured on waveforms and generated text of held-out clips, as ``bagpiper eval`` does."""
    recipe = load_recipe(
        "quickstart",
        [
            f"run_dir={tmp_path / 'run'}",
            "data.soundscapes.train=700",
            "data.soundscapes.valid=4",
            f"data.soundscapes.test={CLIPS}",
            "data.token_budget=1024",
            "trainer.max_steps=100",
            "trainer.threads=1",
            "trainer.validate_every=0",
            "trainer.checkpoint_every=0",
            "listening.every=0",
            "listening.from_valid=0",
            "parity.at_end=false",
            "tracking.enabled=false",
            "generation.audio.cfg=1.0",
            "eval.cycles=0",
        ],
    )
    run(recipe)
    scores = evaluate(tmp_path / "run", console=Console(quiet=True))
    for direction in ("audio_to_caption", "caption_to_audio"):
        value, chance = scores[direction]["value"], scores[direction]["chance"]
        # facts of one clip hang together, so a clip counts as one draw
        error = math.sqrt(chance * (1 - chance) / CLIPS)
        assert value > chance + 3 * error, (direction, value, chance, error)
