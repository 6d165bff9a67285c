"""Several ranks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import tiny_recipe
from safetensors.torch import load_file

from bagpiper.errors import UserError
from bagpiper.recipe.load import dump_recipe
from bagpiper.run import run
from bagpiper.training.parallel import placement


@pytest.mark.slow
def test_two_ranks_with_one_micro_batch_equal_one_rank_with_two(tmp_path, shared_parts):
    """Lightning's own averaging over ranks and micro-batches weighs packs alike whatever they hold; ours does not."""
    recipe = tiny_recipe(tmp_path / "two", shared_parts, devices=2, accumulate=1, validate_every=2, checkpoint_every=2)
    (tmp_path / "two.yaml").write_text(dump_recipe(recipe))
    command = [sys.executable, "-m", "bagpiper.cli.main", "train", str(tmp_path / "two.yaml")]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    one = run(tiny_recipe(tmp_path / "one", shared_parts, accumulate=2)).folder
    two, reference = (load_file(f / "model" / "trained.safetensors") for f in (tmp_path / "two", one))
    for name, tensor in reference.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=name)


def test_missing_device_is_a_user_error(tmp_path, shared_parts):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    recipe = tiny_recipe(tmp_path, shared_parts)
    recipe.device = "cuda"
    with pytest.raises(UserError, match="finds no CUDA device"):
        placement(recipe)
