"""Control inputs of a micro-batch on the device, and what is left there to be done to one of them.

B batch, C channel, T frames, H height, W width, V views. Samples of a micro-batch may have frames of different sizes;
they lie at the top left of a canvas of one size until they are finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldtune.controls.on_device import finish, gray
from worldtune.controls.protocol import Controlled
from worldtune.controls.shrink import SHRINK_RESOLUTION
from worldtune.controls.vis import StepsLeft
from worldtune.recipe.schema import VIDEO_SIZES_WH, Recipe
from worldtune.training.task import Batch
from worldtune.transfer1.latents import channels_first

DEVICE_KIND = "vis"
"""The kind of control that may leave something to the device."""


def leaves_hint_to_device(recipe: Recipe) -> bool:
    """Return whether training samples of a recipe have an unfinished control input."""
    return DEVICE_KIND in recipe.control.kinds and recipe.control.vis.bilateral_on == "device"


def canvas_size(aspect: str) -> tuple[int, int]:
    """Return the (width, height) that no frames of an aspect ratio exceed once a control has shrunk them."""
    return VIDEO_SIZES_WH[SHRINK_RESOLUTION][aspect]


def unfinished_hint(views: Sequence[Controlled], aspect: str) -> dict[str, Tensor]:
    """Return `vis_frames` and `vis_steps` of a sample (see worldtune.transfer1.batch) of views of one aspect ratio."""
    width, height = canvas_size(aspect)
    canvas = np.zeros((sum(len(view.hint) for view in views), height, width, 3), np.uint8)
    first = 0
    for view in views:
        frames = view.hint
        canvas[first : first + len(frames), : frames.shape[1], : frames.shape[2]] = frames
        first += len(frames)
    steps = np.stack([view.steps_left for view in views if view.steps_left is not None])
    return {"vis_frames": channels_first(canvas), "vis_steps": torch.from_numpy(steps)}


@dataclass(frozen=True, kw_only=True)
class UnfinishedHint:
    """A micro-batch of frames of one control input, on the device."""

    frames: Tensor
    """uint8 [B, 3, V T, h, w]."""
    steps: Tensor
    """float32 [B, V, P]."""
    image_size: Tensor
    """float32 [B, 4]: height and width of the hint, then without its padding."""
    grayscale: bool
    """Whether the three colours are replaced by their mean."""
    compiled: bool
    """Whether the filter is compiled."""

    def finish(self) -> Tensor:
        """Return the hint, uint8 [B, 3, V T, H, W]."""
        hints = []
        for frames, steps, size in zip(self.frames, self.steps.tolist(), self.image_size.int().tolist(), strict=True):
            height, width, *resized = size
            views = frames.chunk(len(steps), dim=1)
            done = [
                finish(
                    view,
                    StepsLeft.from_values(values),
                    (resized[0], resized[1]),
                    (height, width),
                    compiled=self.compiled,
                )
                for view, values in zip(views, steps, strict=True)
            ]
            hints.append(torch.cat(done, dim=1))
        hint = torch.stack(hints)
        return gray(hint) if self.grayscale else hint


def hints_of(batch: Batch, recipe: Recipe) -> list[Tensor | UnfinishedHint]:
    """Return the control inputs of a micro-batch on the device, in the recipe's order: uint8 [B, 3, T, H, W] each."""
    finished: list[Tensor | UnfinishedHint] = list(batch["hint"].split(3, dim=1)) if "hint" in batch else []
    if "vis_frames" in batch:
        unfinished = UnfinishedHint(
            frames=batch["vis_frames"],
            steps=batch["vis_steps"],
            image_size=batch["image_size"],
            grayscale=recipe.control.grayscale,
            compiled=recipe.parallel.compile and batch["vis_frames"].device.type == "cuda",
        )
        finished.insert(recipe.control.kinds.index(DEVICE_KIND), unfinished)
    return finished
