"""Controls that are given as a video beside the clip: depth, HD map, lidar (spec/transfer1-training.md 5.8)."""

import numpy as np

from worldtune.common.errors import WorldtuneError
from worldtune.controls.protocol import Controlled, ControlSource
from worldtune.media.video import read_frames
from worldtune.recipe.schema import Control


class GivenVideo:
    """The frames of the control's video at the window's place, as they are; nothing is random."""

    def training(self, source: ControlSource, config: Control, rng: np.random.Generator) -> Controlled:
        """Return the control's frames; see protocol.ControlKind."""
        return self.evaluation(source, config)

    def evaluation(self, source: ControlSource, config: Control) -> Controlled:
        """Return the control's frames; see protocol.ControlKind."""
        path = source.control_file()
        hint = read_frames(path, source.start, len(source.frames))
        if hint.shape != source.frames.shape:
            height, width = source.frames.shape[1:3]
            raise WorldtuneError(
                f"{path} is {hint.shape[2]}x{hint.shape[1]}, its clip is {width}x{height}. Make the control in the "
                "clip's size, so that they stay aligned."
            )
        return Controlled(video=source.frames, hint=hint)
