"""A folder with a tiny recipe in it and the command line, for tests that do what a user does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runs import Shared, tiny_recipe
from typer.testing import CliRunner, Result

from bagpiper.cli.main import build_app
from bagpiper.errors import UserError
from bagpiper.recipe.load import dump_recipe
from bagpiper.recipe.settings import Recipe
from bagpiper.training.checkpoints import list_checkpoints


@dataclass
class Desk:
    """A folder with a recipe of 2 steps in it, and the command line."""

    path: Path
    recipe: Recipe

    @property
    def run(self) -> Path:
        return self.path / "run"

    def write(self, recipe: Recipe | None = None) -> Path:
        """The recipe as a file."""
        file = self.path / "tiny.yaml"
        file.write_text(dump_recipe(recipe or self.recipe))
        return file

    def call(self, *arguments: object) -> Result:
        return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])

    def works(self, *arguments: object) -> str:
        result = self.call(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    def refused(self, *arguments: object) -> str:
        error = self.call(*arguments).exception
        assert isinstance(error, UserError), error
        return str(error)

    def train(self, *overrides: object) -> str:
        return self.works("train", self.write(), *overrides)

    def untrained(self, *overrides: object) -> str:
        return self.refused("train", self.write(), *overrides)

    def resume(self, *overrides: object) -> str:
        return self.works("train", "--resume", self.run, *overrides)

    def unresumed(self, *overrides: object) -> str:
        return self.refused("train", "--resume", self.run, *overrides)

    def trained(self, step: int) -> bool:
        return list_checkpoints(self.run)[-1].step == step and (self.run / "model").is_dir()


def make_desk(path: Path, shared: Shared) -> Desk:
    """A desk whose run can be resumed for longer."""
    recipe = tiny_recipe(path / "run", shared, max_steps=2, accumulate=1)
    recipe.optimizer.decay_end_step = 100
    return Desk(path, recipe)
