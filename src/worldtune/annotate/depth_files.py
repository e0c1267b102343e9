"""Files of the depth control: levels of grey, near bright, on one scale. T frames, H height, W width.

The file that training reads is H.264 (spec/transfer1-training.md 5.8, 6.7), which keeps a level to within a few of 255.
A second file beside it keeps 65,536 levels exactly.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from worldtune.media.grey16 import grey16_writer, iterate_grey16
from worldtune.media.video import video_writer

MAX_LEVEL_8 = 255
MAX_LEVEL_16 = 65_535

AppendDepth = Callable[[np.ndarray], None]


def grey_levels(depth: np.ndarray, bounds: tuple[float, float], max_level: int) -> np.ndarray:
    """Return levels of grey, int64 of the shape of `depth`: 0 at the lower bound and beyond, `max_level` at the upper.

    Args:
        depth: finite, larger where nearer.
        bounds: the depths that are black and white; where they are equal all is black.
        max_level: the largest level.
    """
    low, high = bounds
    share = np.clip((depth.astype(np.float64) - low) / ((high - low) or 1.0), 0, 1)
    return np.rint(share * max_level).astype(np.int64)


def lossless_path(path: Path) -> Path:
    """Return where the exact depth lies that belongs to a depth control."""
    return path.with_suffix(".mkv")


@contextlib.contextmanager
def depth_writer(path: Path, fps: float, bounds: tuple[float, float], *, lossless: bool) -> Iterator[AppendDepth]:
    """Give a function that appends depth (finite floats [T, H, W], larger where nearer) to a new depth control.

    Args:
        path: the control, .mp4, grey in three channels.
        fps: frames a second.
        bounds: the depths that are black and white.
        lossless: whether to write `lossless_path` too, uint16 on the same scale.

    Raises:
        WorldtuneError: width or height is odd, or no frame was given.
    """
    with contextlib.ExitStack() as stack:
        append_8 = stack.enter_context(video_writer(path, fps))
        append_16 = stack.enter_context(grey16_writer(lossless_path(path), fps)) if lossless else None

        def append(depth: np.ndarray) -> None:
            grey = grey_levels(depth, bounds, MAX_LEVEL_8).astype(np.uint8)
            append_8(np.repeat(grey[..., None], 3, axis=3))
            if append_16 is not None:
                append_16(grey_levels(depth, bounds, MAX_LEVEL_16).astype(np.uint16))

        yield append


def read_lossless_depth(path: Path) -> Iterator[np.ndarray]:
    """Yield the exact levels of a depth control, uint16 [H, W] a frame: 65,535 times the share of the scale.

    Args:
        path: the control, .mp4; its lossless file lies beside it.

    Raises:
        WorldtuneError: there is no lossless file, or it is damaged.
    """
    yield from iterate_grey16(lossless_path(path))
