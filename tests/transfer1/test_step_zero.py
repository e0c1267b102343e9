from pathlib import Path

import pytest
import torch
from tiny_world import tiny_inputs, tiny_recipe

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.mesh import build_mesh
from worldtune.transfer1.denoiser import check_step_zero
from worldtune.transfer1.task import build_task

CPU = torch.device("cpu")


@pytest.mark.usefixtures("own_process_group")
def test_a_loaded_branch_must_not_act_at_weight_zero(tiny_world: Path) -> None:
    recipe = tiny_recipe()
    # Building the task checks it.
    task = build_task(recipe, tiny_inputs(tiny_world, recipe), build_mesh("cpu"), CPU)
    # Such a branch acts at weight 1.
    with pytest.raises(
        WorldtuneError, match="step-0 parity failed: a freshly initialised branch changes the base's out"
    ):
        check_step_zero(task.denoiser, recipe, CPU, is_fresh=True)
    with torch.no_grad():
        next(iter(task.denoiser.control.zero_blocks.parameters()))[0, 0] = float("inf")
    with pytest.raises(
        WorldtuneError, match="a loaded branch at control weight 0 changes the base's output by up to nan"
    ):
        check_step_zero(task.denoiser, recipe, CPU, is_fresh=False)


@pytest.mark.usefixtures("own_process_group")
def test_a_fresh_branch_must_not_act(tiny_world: Path) -> None:
    recipe = tiny_recipe(checkpoints={"control": ""})
    task = build_task(recipe, tiny_inputs(tiny_world, recipe), build_mesh("cpu"), CPU)
    assert task.denoiser.control.zero_blocks["block0"].weight.eq(0).all()
    with torch.no_grad():
        task.denoiser.control.zero_blocks["block0"].bias += 1.0
    with pytest.raises(WorldtuneError, match="a freshly initialised branch changes the base's output by up to"):
        check_step_zero(task.denoiser, recipe, CPU, is_fresh=True)
