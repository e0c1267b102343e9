"""Pictures of drawn clips: latents to frames, and what belongs together side by side as videos and grids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from worldtune.common.files import atomic_path
from worldtune.media.video import write_video
from worldtune.transfer1.tokenizer import VideoTokenizer

GAP_PIXELS = 4
"""White space between the pictures of a grid."""


def decode_frames(tokenizer: VideoTokenizer, latents: Tensor) -> Tensor:
    """Return the frames of one clip's latents.

    Args:
        tokenizer: it decodes.
        latents: normalised, [1, 16, T, H, W]; views stacked along T. What is not finite becomes grey.

    Returns:
        Frames on the CPU, uint8 [3, T, H, W].
    """
    pixels = tokenizer.decode(latents)[0].float().nan_to_num(nan=0.0)
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def views_stacked(video: Tensor | str, num_views: int) -> np.ndarray:
    """Return the frames [T, V * H, W, 3] of a video [3, V * T, H, W]: views one above the other."""
    assert isinstance(video, Tensor)
    return video.unflatten(1, (num_views, -1)).permute(2, 1, 3, 4, 0).flatten(1, 2).numpy()


def write_comparison(stem: Path, columns: Sequence[np.ndarray], fps: float) -> dict[str, Any]:
    """Write videos of equal size side by side as `<stem>.mp4`, and their first, middle and last frames as `<stem>.png`.

    Args:
        stem: path without suffix.
        columns: uint8 [T, H, W, 3] each.
        fps: frames a second.

    Returns:
        Names of the files, and their size, for samples.json.
    """
    side_by_side = np.concatenate(columns, axis=2)
    num_frames, height, width = side_by_side.shape[:3]
    video, grid = stem.with_suffix(".mp4"), stem.with_suffix(".png")
    write_video(video, side_by_side, fps)
    rows = []
    for index in (0, num_frames // 2, num_frames - 1):
        pictures = [column[index] for column in columns]
        gap = np.full((height, GAP_PIXELS, 3), 255, np.uint8)
        row = np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)
        rows += [row, np.full((GAP_PIXELS, row.shape[1], 3), 255, np.uint8)]
    with atomic_path(grid) as temporary:
        Image.fromarray(np.concatenate(rows[:-1])).save(temporary)
    return {
        "video": video.name,
        "grid": grid.name,
        "num_frames": num_frames,
        "height": height,
        "width": width // len(columns),
        "fps": fps,
    }
