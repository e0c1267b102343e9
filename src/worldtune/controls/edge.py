"""The edge control: Canny edges of each frame (spec/transfer1-training.md 5.6). T frames, H height, W width."""

import cv2
import numpy as np

from worldtune.media.geometry import scale_into, scaled
from worldtune.recipe.schema import EdgeControl

PRESETS: dict[str, tuple[int, int]] = {
    "none": (20, 50),
    "very_low": (20, 50),
    "low": (50, 100),
    "medium": (100, 200),
    "high": (200, 300),
    "very_high": (300, 400),
}
"""Fixed (lower, upper) thresholds by name."""

EDGE_RESOLUTION = "720"
"""Row of the size table to which larger frames are shrunk before their edges are found, whatever is trained."""
LARGEST_THRESHOLD = 255


def draw_thresholds(config: EdgeControl, rng: np.random.Generator) -> tuple[int, int]:
    """Draw the (lower, upper) thresholds of one clip; both ends of each range are included."""
    low = int(rng.integers(config.threshold_low_min, config.threshold_low_max + 1))
    gap = int(rng.integers(config.threshold_gap_min, config.threshold_gap_max + 1))
    return low, min(LARGEST_THRESHOLD, low + gap)


def edge_map(frame: np.ndarray, low: int, high: int, size_wh: tuple[int, int]) -> np.ndarray:
    """Return the edges of one frame (uint8 [H, W, 3]) as uint8 [h, w], 0 or 255.

    A frame that is larger than `size_wh` (width, height) is first shrunk into it, keeping its aspect ratio; a smaller
    one keeps its size.
    """
    source_wh = (frame.shape[1], frame.shape[0])
    scale = scale_into(source_wh, size_wh)
    if scale < 1:
        frame = cv2.resize(frame, scaled(source_wh, scale), interpolation=cv2.INTER_AREA)
    return cv2.Canny(np.ascontiguousarray(frame), low, high)


def canny(frames: np.ndarray, low: int, high: int, size_wh: tuple[int, int]) -> np.ndarray:
    """Return the edges of uint8 [T, H, W, 3] as uint8 [T, h, w, 3], 0 or 255; see edge_map for h and w."""
    return np.stack([np.repeat(edge_map(frame, low, high, size_wh)[..., None], 3, axis=2) for frame in frames])
