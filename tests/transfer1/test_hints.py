"""Control inputs that are left to the device: equal to those that loaders make, whatever they are read with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from largest_check import assert_largest_is_like_samples
from tiny_world import tiny_inputs, tiny_recipe
from torch import Tensor
from torch.utils.data import default_collate

from worldtune.controls.on_device import TOLERANCE
from worldtune.dataset.clips import load_dataset
from worldtune.parallel.mesh import build_mesh
from worldtune.recipe.schema import Recipe
from worldtune.transfer1.batch import ClipDataset
from worldtune.transfer1.hints import hints_of
from worldtune.transfer1.task import build_task

ORDINALS = tuple(range(4))


def vis(place: str, **control: Any) -> Recipe:
    """A recipe of vis, filtered in the loader or on the device; smaller windows than usual, for the CPU's sake."""
    table = {"bilateral_on": place, "bilateral_diameter_min": 5, "bilateral_diameter_max": 9, "blur_downscale_min": 2}
    table |= control.pop("vis", {})
    return tiny_recipe(control={"kind": "vis", "vis": table, **control})


def clips(root: Path, recipe: Recipe) -> ClipDataset:
    return ClipDataset(load_dataset(root / "datasets/tiny"), recipe)


def finished(root: Path, recipe: Recipe) -> list[Tensor]:
    """The control inputs of a micro-batch of samples whose clips have different sizes."""
    dataset = clips(root, recipe)
    batch = default_collate([dataset[ordinal] for ordinal in ORDINALS])
    return [hint if isinstance(hint, Tensor) else hint.finish() for hint in hints_of(batch, recipe)]


@pytest.mark.parametrize(
    "control",
    [{}, {"grayscale": True}, {"kind": "edge", "also": ["vis"]}, {"vis": {"downsize_before_blur": True}}],
    ids=["alone", "gray", "second of two", "downsized before"],
)
def test_the_device_makes_what_loaders_make(tiny_world: Path, control: dict[str, Any]) -> None:
    loaders, device = (finished(tiny_world, vis(place, **control)) for place in ("loader", "device"))
    assert len(loaders) == len(device) == 1 + len(control.get("also", ()))
    for expected, found in zip(loaders, device, strict=True):
        assert found.dtype == torch.uint8
        assert found.shape == expected.shape == (len(ORDINALS), 3, 17, 96, 160)
        difference = (found.int() - expected.int()).abs()
        assert int(difference.max()) <= TOLERANCE
        assert float(difference.float().mean()) < 0.2
    assert len({hint.numpy().tobytes() for hint in device[-1]}) == len(ORDINALS)


@pytest.mark.parametrize("kinds", [{}, {"also": ["edge"]}])
def test_the_largest_batch_is_like_those_that_are_read(tiny_world: Path, kinds: dict[str, Any]) -> None:
    assert_largest_is_like_samples(clips(tiny_world, vis("device", **kinds)))


@pytest.mark.usefixtures("own_process_group")
def test_the_task_trains_on_it_and_measures_the_same_held_out_clips(tiny_world: Path) -> None:
    losses, held_out = [], []
    for place in ("loader", "device"):
        recipe = vis(place)
        task = build_task(recipe, tiny_inputs(tiny_world, recipe), build_mesh("cpu"), torch.device("cpu"))
        prepared = task.prepare(default_collate([task.make_dataset()[ordinal] for ordinal in ORDINALS]))
        assert prepared["hint"].shape == (len(ORDINALS), 16, 3, 12, 20)
        assert not {"video", "vis_frames", "vis_steps"} & prepared.keys()
        losses.append(task.training_loss(prepared).loss)
        held_out.append(task.dataset.evaluation_sample(task.dataset.held_out_clips[0])["hint"])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=0)
    assert torch.equal(held_out[0], held_out[1])
