"""A training job of the toy task, with its attempt and its records."""

from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh
from trainer_toy import ToyTask

from worldtune.recipe.schema import Recipe
from worldtune.training.inputs import Inputs
from worldtune.training.run import run_training


class Job:
    """Runs training jobs in this process and remembers what they built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: dict[str, str] = {}
        self.num_built = 0

    def build(self, recipe: Recipe, _inputs: Inputs, mesh: DeviceMesh, _device: torch.device) -> ToyTask:
        self.num_built += 1
        return ToyTask(recipe, mesh, self.events)

    def __call__(
        self,
        recipe: Recipe,
        *,
        has_overrides: bool = False,
        manifest: Path | None = None,
        preflight_only: bool = False,
    ) -> int:
        return run_training(
            recipe,
            self.folder,
            self.build,
            has_overrides=has_overrides,
            manifest=manifest,
            preflight_only=preflight_only,
            datasets=self.folder,
            checkpoints=self.folder,
        )

    def attempts(self) -> list[Path]:
        return sorted((self.folder / "attempts").iterdir())
