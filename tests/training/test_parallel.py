"""Several ranks."""

import pytest
import torch
from ranks import start_ranks
from runs import tiny_recipe
from safetensors.torch import load_file

from bagpiper.errors import UserError
from bagpiper.recipe.load import dump_recipe
from bagpiper.run import run
from bagpiper.training.checkpoints import list_checkpoints
from bagpiper.training.parallel import placement

CHILD = """
import os, signal, sys
from bagpiper.cli.main import main
from bagpiper.model import Bagpiper

original = Bagpiper.training_step
def step(self, batch, batch_idx):
    if batch_idx == int(os.environ["STOP_AT"]) and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return original(self, batch, batch_idx)
Bagpiper.training_step = step
main()
"""


def ranks_of(*arguments, stop_at):
    """Run a command of ours on two ranks; rank 1 gets a SIGTERM at a micro-batch."""
    return start_ranks(CHILD, *arguments, more={"STOP_AT": str(stop_at)})


def test_two_ranks_stop_together_go_on_and_equal_one_rank(tmp_path, shared_parts):
    """Lightning's own averaging over ranks and micro-batches weighs packs alike whatever they hold; ours does not.

    A signal to one rank stops both, after the same step and with the same status.
    """
    recipe = tiny_recipe(tmp_path / "two", shared_parts, devices=2, accumulate=1, validate_every=2, checkpoint_every=2)
    (tmp_path / "two.yaml").write_text(dump_recipe(recipe))
    stopped = ranks_of("train", tmp_path / "two.yaml", stop_at=2)
    assert [status for _, status in stopped] == [143, 143], stopped
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "two")] == [2, 3]
    ended = ranks_of("train", "--resume", tmp_path / "two", stop_at=-1)
    assert [status for _, status in ended] == [0, 0], ended
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
