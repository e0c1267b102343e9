"""A training job of the toy task, with its attempt and its records."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from trainer_toy import NUM_HELD_OUT, ToyTask

from worldtune.recipe.schema import Recipe
from worldtune.training.inputs import Inputs, SplitCheckpoint
from worldtune.training.run import run_training


def inputs() -> Inputs:
    base = SplitCheckpoint(source="toy/base.pt", source_sha256="b" * 64, split_file=Path("base.split.json"))
    clips = [SimpleNamespace(clip_id=f"clip{number}", num_frames=121) for number in range(NUM_HELD_OUT)]
    dataset: Any = SimpleNamespace(name="toy", digest="d" * 64, split=lambda _name: clips)
    return Inputs(
        dataset=dataset,
        base=base,
        control=None,
        tokenizer_name="toy/tokenizer",
        tokenizer=Path("toy/tokenizer"),
        tokenizer_sha256="t" * 64,
        latents=None,
    )


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
