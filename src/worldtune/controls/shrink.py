"""Shrinking of large frames before a control is computed from them (spec/transfer1-training.md 5.5)."""

import cv2
import numpy as np

from worldtune.media.geometry import nearest_aspect_ratio, scale_into, scaled
from worldtune.recipe.schema import VIDEO_SIZES_WH

SHRINK_RESOLUTION = "720"
"""Row of the size table to which larger frames are shrunk, whatever is trained."""


def shrink_target(frames: np.ndarray) -> tuple[int, int]:
    """Return the (width, height) into which frames (uint8 [T, H, W, 3]) of this aspect ratio are shrunk."""
    height, width = frames.shape[1:3]
    return VIDEO_SIZES_WH[SHRINK_RESOLUTION][nearest_aspect_ratio(width, height)]


def shrunk_size(source_wh: tuple[int, int], target_wh: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) of a frame after `shrink`."""
    scale = scale_into(source_wh, target_wh)
    return scaled(source_wh, scale) if scale < 1 else source_wh


def shrink(frame: np.ndarray, target_wh: tuple[int, int]) -> np.ndarray:
    """Shrink one frame (uint8 [H, W, 3]) into a (width, height), keeping its aspect ratio; smaller ones stay."""
    source_wh = (frame.shape[1], frame.shape[0])
    size_wh = shrunk_size(source_wh, target_wh)
    return frame if size_wh == source_wh else cv2.resize(frame, size_wh, interpolation=cv2.INTER_AREA)
