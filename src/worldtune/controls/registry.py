"""All kinds of control input by name. A new kind is a file with its class, a line here, and its keys in the recipe."""

from dataclasses import dataclass

import numpy as np

from worldtune.controls.edge import Edge
from worldtune.controls.given_video import GivenVideo
from worldtune.controls.keypoint import Keypoint
from worldtune.controls.protocol import ControlKind, Controlled, ControlSource
from worldtune.controls.seg import Seg
from worldtune.controls.upscale import Upscale
from worldtune.controls.vis import Vis
from worldtune.recipe.schema import Control


def gray(frames: np.ndarray) -> np.ndarray:
    """Return uint8 [T, H, W, 3] with the mean of the three colours, rounded, in each of them."""
    mean = (frames.sum(axis=3, dtype=np.uint16) + 1) // 3
    return np.repeat(mean.astype(np.uint8)[..., None], 3, axis=3)


@dataclass(frozen=True)
class _Finished:
    """A kind with what the recipe asks of every kind's hint."""

    kind: ControlKind

    def training(self, source: ControlSource, config: Control, rng: np.random.Generator) -> Controlled:
        return _finish(self.kind.training(source, config, rng), config)

    def evaluation(self, source: ControlSource, config: Control) -> Controlled:
        return _finish(self.kind.evaluation(source, config), config)


def _finish(controlled: Controlled, config: Control) -> Controlled:
    # The last step of all, wherever that is taken.
    if not config.grayscale or controlled.steps_left is not None:
        return controlled
    return Controlled(video=controlled.video, hint=gray(controlled.hint))


CONTROL_KINDS: dict[str, ControlKind] = {
    "edge": _Finished(Edge()),
    "vis": _Finished(Vis()),
    "depth": _Finished(GivenVideo()),
    "seg": _Finished(Seg()),
    "keypoint": _Finished(Keypoint()),
    "upscale": _Finished(Upscale()),
    "hdmap": _Finished(GivenVideo()),
    "lidar": _Finished(GivenVideo()),
}
"""What makes the hint of each kind of control (recipe key control.kind)."""

SIZE_ONLY_KINDS = frozenset({"depth", "seg", "keypoint", "hdmap", "lidar"})
"""Kinds that ask of a source's frames only their number and size, so that nobody needs to decode them."""
