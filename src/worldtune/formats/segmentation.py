"""Segmentation files: objects of a clip with their masks as runs (spec/transfer1-training.md 5.9).

T frames, H height, W width.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path
from worldtune.formats.pickles import MAX_CONTROL_BYTES
from worldtune.formats.rle import encode_runs

PICKLE_PROTOCOL = 4


class ClipMask:
    """One object's mask over a clip, put together frame by frame; only the places where it changes are kept."""

    def __init__(self, num_frames: int, height: int, width: int) -> None:
        """Begin with a mask that is empty in all frames."""
        self.shape = (num_frames, height, width)
        self.area = 0
        """Pixels in all frames together."""
        self._edges: dict[int, NDArray[np.int64]] = {}

    def put(self, frame: int, mask: NDArray[np.bool_]) -> None:
        """Set the mask (bool [H, W]) of one frame, once for each frame and in any order.

        Raises:
            WorldtuneError: the mask has another size, or the frame is outside the clip or was set before.
        """
        num_frames, *size = self.shape
        if mask.dtype != np.bool_ or mask.shape != tuple(size):
            raise WorldtuneError(f"a mask is {mask.dtype} {mask.shape}; expected bool {tuple(size)}.")
        if not 0 <= frame < num_frames or frame in self._edges:
            raise WorldtuneError(f"a mask was given for frame {frame}; expected each of 0 to {num_frames - 1} once.")
        flat = np.ascontiguousarray(mask).reshape(-1)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        edges = np.concatenate([[0] if flat[0] else [], changes, [flat.size] if flat[-1] else []]).astype(np.int64)
        self._edges[frame] = edges + frame * flat.size
        self.area += int((edges[1::2] - edges[::2]).sum())

    def entry(self) -> dict[str, Any]:
        """Return it as the entry `segmentation_mask_rle` of a segmentation file."""
        total = int(np.prod(self.shape))
        edges = np.concatenate([np.zeros(0, np.int64), *(self._edges[frame] for frame in sorted(self._edges))])
        # A run that goes on into the next frame ended there only because the frame did.
        goes_on = edges[1:-1:2] == edges[2::2]
        keep = np.ones(edges.size, bool)
        keep[1:-1:2] &= ~goes_on
        keep[2::2] &= ~goes_on
        runs = np.diff(edges[keep], prepend=0, append=total)
        if runs.size > 1 and runs[-1] == 0:
            runs = runs[:-1]
        return {"data": {"size": [total, 1], "counts": encode_runs(runs)}, "mask_shape": self.shape}


def write_segmentation(path: Path, objects: Sequence[tuple[str, ClipMask]]) -> None:
    """Write objects, each a phrase and its mask, as a segmentation file, whole or not at all.

    Raises:
        WorldtuneError: the file would be larger than what its readers admit.
    """
    content = [{"phrase": phrase, "segmentation_mask_rle": mask.entry()} for phrase, mask in objects]
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            pickle.dump(content, file, protocol=PICKLE_PROTOCOL)
        size = temporary.stat().st_size
        if size > MAX_CONTROL_BYTES:
            raise WorldtuneError(
                f"the masks of {len(objects)} objects take {size} bytes, and {MAX_CONTROL_BYTES} are read at most; use "
                "a shorter clip or fewer objects"
            )
