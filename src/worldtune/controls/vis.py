"""The vis control: blurred frames of less detail (spec/transfer1-training.md 5.7). T frames, H height, W width.

Large frames are shrunk, then blurred at a fraction of their size by a bilateral filter, a Gaussian one, or the first
and then the second, then scaled down and up again. The values are drawn once for a window.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from worldtune.controls.protocol import Controlled, ControlSource, draw_integer
from worldtune.controls.shrink import shrink, shrink_target
from worldtune.media.geometry import resize
from worldtune.recipe.schema import Control, VisControl


@dataclass(frozen=True, kw_only=True)
class Bilateral:
    """A filter that blurs within areas and keeps their borders."""

    diameter: int
    """Pixels across."""
    sigma_color: float
    """Difference in colour (0 to 255) that is still mixed."""
    sigma_space: float
    """Distance in pixels that is still mixed."""
    iterations: int
    """Times that the filter is applied."""


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """A blur that is the same everywhere."""

    size: int
    """Pixels across, odd."""
    sigma: float
    """Standard deviation in pixels."""


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """What is done to the frames of one window."""

    blur_downscale: int
    """Frames are this number of times smaller, in both directions, while they are blurred."""
    bilateral: Bilateral | None
    gaussian: Gaussian | None
    """Applied after `bilateral`."""
    downscale: int
    """Blurred frames are made this number of times smaller, and as large as before again."""


def _bilateral_only(blur_downscale: int, bilateral: Bilateral, downscale: int) -> Degradation:
    return Degradation(blur_downscale=blur_downscale, bilateral=bilateral, gaussian=None, downscale=downscale)


_WEAK = Bilateral(diameter=15, sigma_color=100, sigma_space=50, iterations=1)
_MEDIUM = Bilateral(diameter=30, sigma_color=150, sigma_space=100, iterations=1)
_STRONG = Bilateral(diameter=50, sigma_color=300, sigma_space=150, iterations=1)

PRESETS: dict[str, Degradation] = {
    "none": _bilateral_only(1, Bilateral(diameter=1, sigma_color=1, sigma_space=1, iterations=1), 1),
    "very_low": _bilateral_only(1, _WEAK, 4),
    "low": _bilateral_only(4, _WEAK, 4),
    "medium": _bilateral_only(2, _MEDIUM, 10),
    "high": _bilateral_only(1, _STRONG, 16),
    "very_high": _bilateral_only(4, _STRONG, 16),
}
"""Fixed degradations by name."""
EVALUATION_PRESET = "medium"


def draw_degradation(config: VisControl, rng: np.random.Generator) -> Degradation:
    """Draw the degradation of one window; both ends of each range of integers are included."""
    probabilities = [config.bilateral_probability, config.gaussian_probability, config.both_probability]
    blurs = ("bilateral", "gaussian", "both")[int(rng.choice(3, p=np.asarray(probabilities) / sum(probabilities)))]
    blur_downscale = draw_integer(rng, config.blur_downscale_min, config.blur_downscale_max)
    bilateral = Bilateral(
        diameter=draw_integer(rng, config.bilateral_diameter_min, config.bilateral_diameter_max),
        sigma_color=draw_integer(rng, config.bilateral_sigma_color_min, config.bilateral_sigma_color_max),
        sigma_space=draw_integer(rng, config.bilateral_sigma_space_min, config.bilateral_sigma_space_max),
        iterations=draw_integer(rng, config.bilateral_iterations_min, config.bilateral_iterations_max),
    )
    gaussian = Gaussian(
        # A kernel needs a middle.
        size=draw_integer(rng, config.gaussian_size_min, config.gaussian_size_max) | 1,
        sigma=float(rng.uniform(config.gaussian_sigma_min, config.gaussian_sigma_max)),
    )
    return Degradation(
        blur_downscale=blur_downscale,
        bilateral=bilateral if blurs != "gaussian" else None,
        gaussian=gaussian if blurs != "bilateral" else None,
        downscale=draw_integer(rng, config.downscale_min, config.downscale_max),
    )


def smaller(size_wh: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Return (width, height) divided by a whole number and rounded down, 1 at least."""
    return max(size_wh[0] // divisor, 1), max(size_wh[1] // divisor, 1)


def blur(frame: np.ndarray, degradation: Degradation) -> np.ndarray:
    """Return one frame (uint8 [H, W, 3]) blurred, in its size."""
    size_wh = (frame.shape[1], frame.shape[0])
    blurred = np.ascontiguousarray(frame)
    if degradation.blur_downscale > 1:
        blurred = cv2.resize(blurred, smaller(size_wh, degradation.blur_downscale), interpolation=cv2.INTER_AREA)
    bilateral, gaussian = degradation.bilateral, degradation.gaussian
    for _ in range(bilateral.iterations if bilateral else 0):
        assert bilateral
        blurred = cv2.bilateralFilter(blurred, bilateral.diameter, bilateral.sigma_color, bilateral.sigma_space)
    if gaussian:
        blurred = cv2.GaussianBlur(blurred, (gaussian.size, gaussian.size), gaussian.sigma)
    if degradation.blur_downscale > 1:
        blurred = cv2.resize(blurred, size_wh, interpolation=cv2.INTER_LINEAR)
    return blurred


def degrade(frames: np.ndarray, degradation: Degradation) -> np.ndarray:
    """Return uint8 [T, H, W, 3] degraded, as uint8 [T, h, w, 3]: of the size that shrink.shrink gives."""
    target_wh = shrink_target(frames)
    blurred = np.stack([blur(shrink(frame, target_wh), degradation) for frame in frames])
    size_wh = (blurred.shape[2], blurred.shape[1])
    return resize(resize(blurred, smaller(size_wh, degradation.downscale)), size_wh)


class Vis:
    """Degraded frames: as drawn in training, by the "medium" preset in evaluation."""

    def training(self, source: ControlSource, config: Control, rng: np.random.Generator) -> Controlled:
        """Return the degraded window; see protocol.ControlKind."""
        return Controlled(video=source.frames, hint=degrade(source.frames, draw_degradation(config.vis, rng)))

    def evaluation(self, source: ControlSource, config: Control) -> Controlled:
        """Return the degraded window; see protocol.ControlKind."""
        return Controlled(video=source.frames, hint=degrade(source.frames, PRESETS[EVALUATION_PRESET]))
