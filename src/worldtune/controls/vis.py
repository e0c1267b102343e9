"""The vis control: blurred frames of less detail (spec/transfer1-training.md 5.7). T frames, H height, W width.

Large frames are shrunk, then blurred at a fraction of their size by one blur or several in a row (blurs.py), then
scaled down and up again. The values are drawn once for a window. The bilateral filter takes minutes a window on a CPU;
it and what follows it may be left to the training device (on_device.py), which is handed the frames before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import get_type_hints

import cv2
import numpy as np

from worldtune.controls.blurs import Bilateral, Blur, Gaussian, draw_blur
from worldtune.controls.protocol import Controlled, ControlSource, draw_integer
from worldtune.controls.shrink import shrink, shrink_target, shrunk_size
from worldtune.media.geometry import resize
from worldtune.media.threads import for_each_frame
from worldtune.recipe.schema import Control, VisControl, VisPresetName

Size = tuple[int, int]
"""Width and height."""


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """What is done to the frames of one window."""

    blur_downscale: int
    """Frames are this number of times smaller, in both directions, while they are blurred."""
    blurs: tuple[Blur, ...]
    """Applied one after the other."""
    downscale: int
    """Blurred frames are made this number of times smaller, and as large as before again."""
    downsize_before_blur: bool = False
    """Whether frames are made smaller before they are blurred, by area, and as large as before after, linearly."""


@dataclass(frozen=True, kw_only=True)
class StepsLeft:
    """What is left to do to frames before they are the hint, in this order."""

    height: int
    """Of the frames."""
    width: int
    diameter: int = 1
    """Of the bilateral filter."""
    sigma_color: float = 1.0
    sigma_space: float = 1.0
    iterations: int = 0
    """0 leaves the bilateral filter out."""
    gaussian_size: int = 1
    """1 leaves the Gaussian filter out."""
    gaussian_sigma: float = 1.0
    blurred_height: int
    """To which frames are then scaled, linearly."""
    blurred_width: int
    shrunk_height: int
    """To which frames are then scaled, linearly."""
    shrunk_width: int
    downscale: int
    """Number of times that frames are then made smaller, and as large as before again, bicubically."""

    def to_array(self) -> np.ndarray:
        """Return the values as float32 [P]; whole numbers of any frame's size keep their value."""
        return np.array([getattr(self, field.name) for field in fields(self)], np.float32)

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "StepsLeft":
        """Return what `to_array` was called on, from its numbers."""
        kinds = get_type_hints(cls)
        return cls(**{field.name: kinds[field.name](value) for field, value in zip(fields(cls), values, strict=True)})


def _bilateral_only(blur_downscale: int, bilateral: Bilateral, downscale: int) -> Degradation:
    return Degradation(blur_downscale=blur_downscale, blurs=(bilateral,), downscale=downscale)


_WEAK = Bilateral(diameter=15, sigma_color=100, sigma_space=50, iterations=1)
_MEDIUM = Bilateral(diameter=30, sigma_color=150, sigma_space=100, iterations=1)
_STRONG = Bilateral(diameter=50, sigma_color=300, sigma_space=150, iterations=1)

PRESETS: dict[VisPresetName, Degradation] = {
    "none": _bilateral_only(1, Bilateral(diameter=1, sigma_color=1, sigma_space=1, iterations=1), 1),
    "very_low": _bilateral_only(1, _WEAK, 4),
    "low": _bilateral_only(4, _WEAK, 4),
    "medium": _bilateral_only(2, _MEDIUM, 10),
    "high": _bilateral_only(1, _STRONG, 16),
    "very_high": _bilateral_only(4, _STRONG, 16),
}
"""Fixed degradations by name."""


def draw_degradation(config: VisControl, rng: np.random.Generator) -> Degradation:
    """Draw the degradation of one window; both ends of each range of integers are included."""
    chances = np.asarray(config.blur_probabilities)
    names = config.blurs[int(rng.choice(len(config.blurs), p=chances / chances.sum()))]
    return Degradation(
        blur_downscale=draw_integer(rng, config.blur_downscale_min, config.blur_downscale_max),
        blurs=tuple(draw_blur(name, config, rng) for name in names),
        downscale=draw_integer(rng, config.downscale_min, config.downscale_max),
        downsize_before_blur=config.downsize_before_blur,
    )


def smaller(size_wh: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Return (width, height) divided by a whole number and rounded down, 1 at least."""
    return max(size_wh[0] // divisor, 1), max(size_wh[1] // divisor, 1)


def begin(frames: np.ndarray, degradation: Degradation, blurs: Sequence[Blur]) -> np.ndarray:
    """Return uint8 [T, H, W, 3] shrunk, scaled down to be blurred, and blurred by `blurs`, as uint8 [T, h, w, 3]."""
    target_wh = shrink_target(frames)
    smallest_wh, _ = _sizes(shrunk_size((frames.shape[2], frames.shape[1]), target_wh), degradation)
    begun = np.empty((len(frames), smallest_wh[1], smallest_wh[0], 3), np.uint8)

    def begin_frame(index: int) -> None:
        small = shrink(frames[index], target_wh)
        if degradation.downsize_before_blur:
            small = _by_area(small, degradation.downscale)
        small = np.ascontiguousarray(_by_area(small, degradation.blur_downscale))
        for blur in blurs:
            small = blur.apply(small)
        begun[index] = small

    for_each_frame(begin_frame, len(frames))
    return begun


def degrade(frames: np.ndarray, degradation: Degradation) -> np.ndarray:
    """Return uint8 [T, H, W, 3] degraded, as uint8 [T, h, w, 3]: of the size that shrink.shrink gives."""
    shrunk_wh = shrunk_size((frames.shape[2], frames.shape[1]), shrink_target(frames))
    _, blurred_wh = _sizes(shrunk_wh, degradation)
    blurred = [
        _linear(_linear(frame, blurred_wh), shrunk_wh) for frame in begin(frames, degradation, degradation.blurs)
    ]
    if degradation.downsize_before_blur:
        return np.stack(blurred)
    return resize(resize(np.stack(blurred), smaller(shrunk_wh, degradation.downscale)), shrunk_wh)


def split(frames: np.ndarray, degradation: Degradation) -> tuple[np.ndarray, StepsLeft]:
    """Degrade frames (uint8 [T, H, W, 3]) up to the bilateral filter, or what else on_device.finish can do.

    Returns:
        uint8 [T, h, w, 3], and what is left to do.
    """
    here = degradation.blurs[: len(degradation.blurs) - len(_last_blurs(degradation))]
    shrunk_wh = shrunk_size((frames.shape[2], frames.shape[1]), shrink_target(frames))
    return begin(frames, degradation, here), steps_left(shrunk_wh, degradation)


def steps_left(shrunk_wh: tuple[int, int], degradation: Degradation) -> StepsLeft:
    """Return what `split` leaves to do to frames that `shrink` gives this (width, height)."""
    smallest_wh, blurred_wh = _sizes(shrunk_wh, degradation)
    steps = StepsLeft(
        height=smallest_wh[1],
        width=smallest_wh[0],
        blurred_height=blurred_wh[1],
        blurred_width=blurred_wh[0],
        shrunk_height=shrunk_wh[1],
        shrunk_width=shrunk_wh[0],
        downscale=1 if degradation.downsize_before_blur else degradation.downscale,
    )
    for blur in _last_blurs(degradation):
        if isinstance(blur, Bilateral):
            steps = replace(steps, **vars(blur))
        elif isinstance(blur, Gaussian):
            steps = replace(steps, gaussian_size=blur.size, gaussian_sigma=blur.sigma)
    return steps


def _last_blurs(degradation: Degradation) -> tuple[Blur, ...]:
    """Return the last blurs of all, if they are a bilateral filter, a Gaussian one, or the first before the second."""
    *_, before, last = (None, None, *degradation.blurs)
    if isinstance(before, Bilateral) and isinstance(last, Gaussian):
        return before, last
    return (last,) if isinstance(last, Bilateral | Gaussian) else ()


def _sizes(shrunk_wh: Size, degradation: Degradation) -> tuple[Size, Size]:
    """Return (width, height) of shrunk frames as they are blurred, and as they are once blurred."""
    blurred_wh = smaller(shrunk_wh, degradation.downscale) if degradation.downsize_before_blur else shrunk_wh
    return smaller(blurred_wh, degradation.blur_downscale), blurred_wh


def _by_area(frame: np.ndarray, divisor: int) -> np.ndarray:
    if divisor == 1:
        return frame
    return cv2.resize(frame, smaller((frame.shape[1], frame.shape[0]), divisor), interpolation=cv2.INTER_AREA)


def _linear(frame: np.ndarray, size_wh: Size) -> np.ndarray:
    if (frame.shape[1], frame.shape[0]) == size_wh:
        return frame
    return cv2.resize(frame, size_wh, interpolation=cv2.INTER_LINEAR)


class Vis:
    """Degraded frames: as drawn in training, by the recipe's preset in evaluation."""

    def training(self, source: ControlSource, config: Control, rng: np.random.Generator) -> Controlled:
        """Return the degraded window, or what the recipe leaves to the device; see protocol.ControlKind."""
        degradation = draw_degradation(config.vis, rng)
        if config.vis.bilateral_on == "device":
            hint, steps = split(source.frames, degradation)
            return Controlled(video=source.frames, hint=hint, steps_left=steps.to_array())
        return Controlled(video=source.frames, hint=degrade(source.frames, degradation))

    def evaluation(self, source: ControlSource, config: Control) -> Controlled:
        """Return the degraded window; see protocol.ControlKind."""
        return Controlled(video=source.frames, hint=degrade(source.frames, PRESETS[config.vis.evaluation_preset]))
