"""A training job of the toy task on two ranks, the second of which stops arriving; started through the launcher.

python hanging_run.py RUN_FOLDER loader | skip | stopped | long | suspended | fine
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from trainer_toy import ToyDataset, ToyTask, toy_inputs, toy_recipe

import worldtune.training.run as run_module
from worldtune.common.script import run
from worldtune.parallel.mesh import Mesh
from worldtune.recipe.schema import Recipe
from worldtune.training.inputs import Inputs
from worldtune.training.task import Batch, LossOutput, Sample, ValidationRow
from worldtune.training.whereabouts import mark_progress

HANG_SECONDS = 3.0
SLOW_SECONDS = 5.0
"""Longer than a part of a step may take, and shorter than one of the first step."""
LONG_SECONDS = 15.0
"""Longer than anything may take without a mark."""
RECIPE = toy_recipe(
    parallel__data=2,
    training__gradient_accumulation=1,
    health={"hang_seconds": HANG_SECONDS},
    saving={"every": 2, "keep_last": 2},
)
FIRST_SAMPLE = 2
"""The second rank's in the first step."""
SAMPLE = 14
"""The second rank's in the fourth step; it is read ahead in the third."""


class HangingDataset(ToyDataset):
    def __init__(self, seed: int, how: str) -> None:
        super().__init__(seed)
        self.how = how

    def __getitem__(self, ordinal: int) -> Sample:
        if self.how == "loader" and ordinal == SAMPLE:
            time.sleep(1e6)
        return super().__getitem__(ordinal)


class HangingTask(ToyTask):
    def __init__(self, recipe: Recipe, mesh: Mesh, how: str) -> None:
        super().__init__(recipe, mesh)
        self.how = how
        # Of its own: in another group, a collective that is left out would meet a later one of another size.
        self.group = dist.new_group()
        self.pids = [0, 0]
        dist.all_gather_object(self.pids, os.getpid())
        self.is_long = how == "long"

    def make_dataset(self) -> HangingDataset:
        return HangingDataset(self.recipe.training.seed, self.how)

    def training_loss(self, batch: Batch) -> LossOutput:
        is_here = SAMPLE in batch["ordinal"].tolist()
        if self.how == "stopped" and is_here:
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.how == "suspended" and is_here:
            pids = " ".join(map(str, self.pids))
            subprocess.Popen(["bash", "-c", f"kill -STOP {pids}; sleep {LONG_SECONDS}; kill -CONT {pids}"])
        if self.how == "long" and FIRST_SAMPLE in batch["ordinal"].tolist():
            time.sleep(SLOW_SECONDS)
        if not (self.how == "skip" and is_here):
            dist.all_reduce(torch.zeros(1), group=self.group)
        return super().training_loss(batch)

    def validate(self) -> Iterator[Sequence[ValidationRow]]:
        if self.is_long and dist.get_rank() == 0:
            ended = time.monotonic() + LONG_SECONDS
            while time.monotonic() < ended:
                mark_progress()
                time.sleep(0.1)
        self.is_long = False
        dist.barrier()
        return super().validate()


def main() -> None:
    folder, how = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)

    def build(recipe: Recipe, _inputs: Inputs, mesh: Mesh, _device: torch.device) -> HangingTask:
        return HangingTask(recipe, mesh, how)

    with patch.object(run_module, "find_inputs", lambda *_args, **_kwargs: toy_inputs()):
        status = run_module.run_training(
            RECIPE,
            folder,
            build,
            has_overrides=False,
            manifest=None,
            preflight_only=False,
            datasets=folder,
            checkpoints=folder,
        )
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run(main)
