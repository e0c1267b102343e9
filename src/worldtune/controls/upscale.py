"""The upscale control: the frames in less resolution (spec/transfer1-training.md 5.11). T frames, H height, W width.

A part of the frames, as large as the recipe's size, takes the place of the whole: the branch learns to add what a small
picture lacks at the size that is trained.
"""

import cv2
import numpy as np

from worldtune.controls.protocol import Controlled, ControlSource, draw_integer
from worldtune.media.geometry import resize, scale_into, scaled
from worldtune.recipe.schema import Control

EVALUATION_DIVISOR = 3
"""Number of times that the hint's resolution is lower in evaluation: the "medium" preset."""


def crop_size(source_wh: tuple[int, int], size_wh: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (width, height) of the aspect ratio of `size_wh` that lies in the frame, `size_wh` at most."""
    scale = scale_into(size_wh, source_wh)
    if scale >= 1:
        return size_wh
    width, height = scaled(size_wh, scale)
    return min(width, source_wh[0]), min(height, source_wh[1])


def lower(frames: np.ndarray, divisor: int) -> np.ndarray:
    """Return uint8 [T, H, W, 3] scaled down by `divisor` (bicubic, antialiased), then up again (bilinear)."""
    size_wh = (frames.shape[2], frames.shape[1])
    small = resize(frames, (max(size_wh[0] // divisor, 1), max(size_wh[1] // divisor, 1)))
    return np.stack([cv2.resize(frame, size_wh, interpolation=cv2.INTER_LINEAR) for frame in small])


def _crop(frames: np.ndarray, top: int, left: int, size_wh: tuple[int, int]) -> np.ndarray:
    return frames[:, top : top + size_wh[1], left : left + size_wh[0]]


class Upscale:
    """A part of the frames and the same in a third of its resolution; both are drawn in training."""

    def training(self, source: ControlSource, config: Control, rng: np.random.Generator) -> Controlled:
        """Return a part anywhere in the frames, in a drawn resolution; see protocol.ControlKind."""
        height, width = source.frames.shape[1:3]
        size_wh = crop_size((width, height), source.size_wh)
        top = draw_integer(rng, 0, height - size_wh[1])
        left = draw_integer(rng, 0, width - size_wh[0])
        chances = np.asarray(config.upscale.probabilities)
        divisor = int(rng.choice(np.asarray(config.upscale.divisors), p=chances / chances.sum()))
        video = _crop(source.frames, top, left, size_wh)
        return Controlled(video=video, hint=lower(video, divisor))

    def evaluation(self, source: ControlSource, config: Control) -> Controlled:
        """Return the middle of the frames; see protocol.ControlKind."""
        height, width = source.frames.shape[1:3]
        size_wh = crop_size((width, height), source.size_wh)
        video = _crop(source.frames, (height - size_wh[1]) // 2, (width - size_wh[0]) // 2, size_wh)
        return Controlled(video=video, hint=lower(video, EVALUATION_DIVISOR))
