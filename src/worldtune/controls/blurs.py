"""Blurs of the vis control (spec/transfer1-training.md 5.7). H height, W width.

Each is a table of its values with a method that blurs one frame, uint8 [H, W, 3] in and out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from worldtune.controls.protocol import draw_integer
from worldtune.recipe.schema import VisControl

NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))
"""Rows and columns from a pixel to those that it is mixed with by the diffusion."""


class Blur(Protocol):
    """A blur with its values."""

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """Return a frame (uint8 [H, W, 3]) blurred, in its size."""
        ...


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

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """Return the filtered frame; see Blur."""
        for _ in range(self.iterations):
            frame = cv2.bilateralFilter(frame, self.diameter, self.sigma_color, self.sigma_space)
        return frame


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """A blur that is the same everywhere."""

    size: int
    """Pixels across, odd."""
    sigma: float
    """Standard deviation in pixels."""

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """Return the blurred frame; see Blur."""
        return cv2.GaussianBlur(frame, (self.size, self.size), self.sigma)


@dataclass(frozen=True, kw_only=True)
class Guided:
    """The fast guided filter (He, Sun 2015) with the frame as its own guide, in colours from 0 to 1.

    Each pixel is an affine function of its colour, fitted over a window to the window's colours and averaged over all
    windows that hold the pixel.
    """

    radius: int
    """Pixels from the middle of a window to its sides."""
    epsilon: float
    """Variance of colours that counts as flat."""
    subsampling: int
    """Times that the frame is smaller, by its nearest pixels, while the functions are fitted."""

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """Return the filtered frame; see Blur."""
        height, width = frame.shape[:2]
        guide = frame.astype(np.float32) / 255
        small_wh = (max(width // self.subsampling, 1), max(height // self.subsampling, 1))
        small = cv2.resize(guide, small_wh, interpolation=cv2.INTER_NEAREST)
        side = 2 * max(self.radius // self.subsampling, 1) + 1

        def mean(values: np.ndarray) -> np.ndarray:
            return cv2.blur(values, (side, side))

        means = mean(small)
        products = np.stack([mean(small * small[..., channel : channel + 1]) for channel in range(3)], axis=2)
        covariances = products - means[..., None] * means[..., None, :]
        # The frame is what is filtered and what guides, so that one covariance stands on both sides.
        slopes = np.linalg.solve(covariances + self.epsilon * np.eye(3, dtype=np.float32), covariances)
        offsets = means - np.einsum("hwi,hwij->hwj", means, slopes)
        coefficients = [
            cv2.resize(mean(np.ascontiguousarray(part)), (width, height), interpolation=cv2.INTER_LINEAR)
            for part in (slopes[:, :, 0], slopes[:, :, 1], slopes[:, :, 2], offsets)
        ]
        filtered = coefficients[3]
        for channel in range(3):
            filtered = filtered + guide[..., channel : channel + 1] * coefficients[channel]
        return _to_bytes(255 * filtered)


@dataclass(frozen=True, kw_only=True)
class Median:
    """The median of each colour over a square."""

    size: int
    """Pixels across, odd."""

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """Return the filtered frame; see Blur."""
        return cv2.medianBlur(frame, self.size)


@dataclass(frozen=True, kw_only=True)
class LaplacianOfGaussian:
    """The size of the Laplacian of the blurred frame: its outlines."""

    size: int
    """Pixels across of both kernels, odd."""
    sigma: float
    """Standard deviation of the blur in pixels."""
    threshold: int | None
    """Sizes above it become 255 and others 0; None leaves them."""

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """Return the outlines; see Blur."""
        blurred = cv2.GaussianBlur(frame, (self.size, self.size), self.sigma)
        found = cv2.convertScaleAbs(cv2.Laplacian(blurred, cv2.CV_32F, ksize=self.size))
        return found if self.threshold is None else np.where(found > self.threshold, 255, 0).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Anisotropic diffusion (Perona, Malik 1990), which does not pass the borders of areas.

    A step takes each pixel to the mean of itself, with weight 1, and its four neighbours, with weight
    `step` exp(-(difference / contrast)^2): the difference is the root mean square over the colours, from 0 to 1. This
    is implicit in the pixel itself, and thereby stable for each `step`, unlike adding the neighbours' differences.
    """

    step: float
    """Weight of a neighbour of the same colour."""
    contrast: float
    """Difference in colour (0 to 1) that is still mixed."""
    iterations: int
    """Number of steps."""

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """Return the diffused frame; see Blur."""
        pixels = frame.astype(np.float32) / 255
        height, width = pixels.shape[:2]
        for _ in range(self.iterations):
            # A pixel at the border is its own neighbour.
            padded = cv2.copyMakeBorder(pixels, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
            total, weights = pixels.copy(), np.ones((height, width, 1), np.float32)
            for row, column in NEIGHBOURS:
                neighbour = padded[1 + row : 1 + row + height, 1 + column : 1 + column + width]
                squares = ((neighbour - pixels) ** 2).mean(axis=2, keepdims=True)
                weight = self.step * np.exp(-squares / self.contrast**2)
                total += weight * neighbour
                weights += weight
            pixels = total / weights
        return _to_bytes(255 * pixels)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def draw_blur(name: str, config: VisControl, rng: np.random.Generator) -> Blur:
    """Draw the values of one blur by its name in the recipe; both ends of each range of integers are included."""
    return _DRAWS[name](config, rng)


def _odd(rng: np.random.Generator, low: int, high: int) -> int:
    # A kernel needs a middle.
    return draw_integer(rng, low, high) | 1


def _draw_bilateral(config: VisControl, rng: np.random.Generator) -> Bilateral:
    return Bilateral(
        diameter=draw_integer(rng, config.bilateral_diameter_min, config.bilateral_diameter_max),
        sigma_color=draw_integer(rng, config.bilateral_sigma_color_min, config.bilateral_sigma_color_max),
        sigma_space=draw_integer(rng, config.bilateral_sigma_space_min, config.bilateral_sigma_space_max),
        iterations=draw_integer(rng, config.bilateral_iterations_min, config.bilateral_iterations_max),
    )


def _draw_gaussian(config: VisControl, rng: np.random.Generator) -> Gaussian:
    return Gaussian(
        size=_odd(rng, config.gaussian_size_min, config.gaussian_size_max),
        sigma=float(rng.uniform(config.gaussian_sigma_min, config.gaussian_sigma_max)),
    )


def _draw_guided(config: VisControl, rng: np.random.Generator) -> Guided:
    return Guided(
        radius=draw_integer(rng, config.guided_radius_min, config.guided_radius_max),
        epsilon=float(rng.uniform(config.guided_epsilon_min, config.guided_epsilon_max)),
        subsampling=draw_integer(rng, config.guided_subsampling_min, config.guided_subsampling_max),
    )


def _draw_median(config: VisControl, rng: np.random.Generator) -> Median:
    return Median(size=_odd(rng, config.median_size_min, config.median_size_max))


def _draw_laplacian(config: VisControl, rng: np.random.Generator) -> LaplacianOfGaussian:
    size = _odd(rng, config.laplacian_size_min, config.laplacian_size_max)
    sigma = float(rng.uniform(config.laplacian_sigma_min, config.laplacian_sigma_max))
    threshold = draw_integer(rng, config.laplacian_threshold_min, config.laplacian_threshold_max)
    in_two = rng.random() < config.laplacian_threshold_probability
    return LaplacianOfGaussian(size=size, sigma=sigma, threshold=threshold if in_two else None)


def _draw_diffusion(config: VisControl, rng: np.random.Generator) -> Diffusion:
    return Diffusion(
        step=float(rng.uniform(config.diffusion_step_min, config.diffusion_step_max)),
        contrast=float(rng.uniform(config.diffusion_contrast_min, config.diffusion_contrast_max)),
        iterations=draw_integer(rng, config.diffusion_iterations_min, config.diffusion_iterations_max),
    )


_DRAWS: dict[str, Callable[[VisControl, np.random.Generator], Blur]] = {
    "bilateral": _draw_bilateral,
    "gaussian": _draw_gaussian,
    "guided": _draw_guided,
    "median": _draw_median,
    "laplacian_of_gaussian": _draw_laplacian,
    "anisotropic_diffusion": _draw_diffusion,
}
