"""What every control input offers: a hint for a window of a clip. T frames, H height, W width."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from worldtune.common.errors import WorldtuneError
from worldtune.recipe.schema import Control


@dataclass(frozen=True, kw_only=True)
class ControlSource:
    """What a hint is made of."""

    frames: np.ndarray
    """The window of the clip, uint8 [T, H, W, 3]."""
    start: int
    """Number of the window's first frame in the clip."""
    file: Path | None
    """The clip's control file, where the kind has one."""
    size_wh: tuple[int, int]
    """Width and height that the recipe trains clips of this aspect ratio in."""

    def control_file(self) -> Path:
        """Return the clip's control file.

        Raises:
            WorldtuneError: none was given.
        """
        if self.file is None:
            raise WorldtuneError("This control is read from a file, and none was given. Make the dataset's controls.")
        return self.file


@dataclass(frozen=True, kw_only=True)
class Controlled:
    """A window with its hint."""

    video: np.ndarray
    """The frames to train on, uint8 [T, H, W, 3]: those of the source, or a part of their area."""
    hint: np.ndarray
    """uint8 [T, h, w, 3], of the same part; it may be smaller than the video."""
    steps_left: np.ndarray | None = None
    """What the training device has to do to `hint` before it is one, as float32 [P] (see worldtune.controls.on_device);
    None where nothing is left."""


class ControlKind(Protocol):
    """One kind of control input."""

    def training(self, source: ControlSource, config: Control, rng: np.random.Generator) -> Controlled:
        """Return the window under a control that is drawn anew for each sample; equal `rng` give equal controls.

        Every draw is from `rng`, so that a sample is a function of its seed and ordinal wherever the rest is computed.

        Raises:
            WorldtuneError: the control's file is missing, damaged, or does not fit the window.
        """
        ...

    def evaluation(self, source: ControlSource, config: Control) -> Controlled:
        """Return the window under its fixed control.

        Raises:
            WorldtuneError: the control's file is missing, damaged, or does not fit the window.
        """
        ...


def draw_integer(rng: np.random.Generator, low: int, high: int) -> int:
    """Draw an integer uniformly from a range whose two ends are included."""
    return int(rng.integers(low, high + 1))
