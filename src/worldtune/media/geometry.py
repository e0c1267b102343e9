"""How frames of any size come to a model's size (spec/transfer1-training.md 5.5). T frames, H height, W width."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from worldtune.common.errors import WorldtuneError
from worldtune.media.threads import for_each_frame

ASPECT_RATIOS: dict[str, float] = {"16:9": 16 / 9, "4:3": 4 / 3, "1:1": 1.0, "3:4": 3 / 4, "9:16": 9 / 16}
"""Width / height of the rows of the size table."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """Frames of the target size."""

    frames: np.ndarray
    """uint8 [T, Ht, Wt, C]."""
    padding_mask: np.ndarray
    """float32 [Ht, Wt]; 1 where a pixel is padding."""
    image_size: tuple[int, int, int, int]
    """Target height and width, then height and width of the part that is no padding."""


def nearest_aspect_ratio(width: int, height: int) -> str:
    """Return the key of ASPECT_RATIOS with the smallest squared difference of width / height."""
    return min(ASPECT_RATIOS, key=lambda name: (ASPECT_RATIOS[name] - width / height) ** 2)


def scale_into(source_wh: tuple[int, int], target_wh: tuple[int, int]) -> float:
    """Return the factor that brings a size into another one, keeping its aspect ratio."""
    return min(target_wh[0] / source_wh[0], target_wh[1] / source_wh[1])


def scaled(size_wh: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return (width, height) times a factor, halves rounded up, 1 at least."""
    return max(int(scale * size_wh[0] + 0.5), 1), max(int(scale * size_wh[1] + 0.5), 1)


def resize(frames: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """Resize uint8 [T, H, W, C] with C 1 or 3 to [T, size_wh[1], size_wh[0], C]: bicubic with antialiasing."""
    num_frames, height, width, channels = frames.shape
    if (width, height) == size_wh:
        return frames
    out = np.empty((num_frames, size_wh[1], size_wh[0], channels), np.uint8)

    def resize_frame(index: int) -> None:
        frame = frames[index]
        image = Image.fromarray(np.ascontiguousarray(frame[..., 0] if channels == 1 else frame))
        pixels = np.asarray(image.resize(size_wh, Image.Resampling.BICUBIC))
        out[index] = pixels[..., None] if channels == 1 else pixels

    for_each_frame(resize_frame, num_frames)
    return out


def fit(frames: np.ndarray, size_wh: tuple[int, int], *, source_wh: tuple[int, int] | None = None) -> FitResult:
    """Resize frames into the target size, then pad them to it by reflection (or by their edge where that is too small).

    Args:
        frames: uint8 [T, H, W, C], C 1 or 3.
        size_wh: target (width, height).
        source_wh: the size that the scale is computed from, where it is not the frames' own: a control that was stored
            smaller than its video is fitted like the video.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4:
        raise WorldtuneError(f"frames are {frames.dtype} {frames.shape}; expected uint8 [T, H, W, C].")
    source = source_wh or (frames.shape[2], frames.shape[1])
    width, height = scaled(source, scale_into(source, size_wh))
    resized = resize(frames, (width, height))
    left, top = (size_wh[0] - width) // 2, (size_wh[1] - height) // 2
    right, bottom = size_wh[0] - width - left, size_wh[1] - height - top
    padding_mask = np.ones((size_wh[1], size_wh[0]), np.float32)
    padding_mask[top : top + height, left : left + width] = 0.0
    if left or top or right or bottom:
        # Reflection has no pixel to give beyond the far edge.
        too_small = max(left, right) >= width or max(top, bottom) >= height
        pads = ((0, 0), (top, bottom), (left, right), (0, 0))
        resized = np.pad(resized, pads, mode="edge" if too_small else "reflect")
    return FitResult(frames=resized, padding_mask=padding_mask, image_size=(size_wh[1], size_wh[0], height, width))
