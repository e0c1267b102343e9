"""How well drawn frames keep to a control: the F1 score of their edges. T frames, H height, W width.

The score is Canny F1, by which Cosmos-Transfer models are compared: edges of the drawn frames are told from other
pixels as those of the true frames are. Edges count as found within a few pixels, as in the boundary benchmark BSDS
(Martin, Fowlkes, Malik 2004), since an edge that is drawn one pixel beside its place would otherwise be wrong twice.
As in the contour accuracy of DAVIS (Perazzi et al. 2016), one edge may be found by several: dilation by a disk takes
the place of a matching one to one.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from worldtune.common.errors import WorldtuneError
from worldtune.controls.edge import PRESETS

THRESHOLDS = PRESETS["medium"]
"""Canny thresholds of both sides: those of the stored control, whatever was drawn in training."""
TOLERANCE = 0.0075
"""Distance within which edges count as the same, as a part of the frame's diagonal (BSDS): 2 pixels at 320x192, 10 at
1280x704."""


@dataclass(frozen=True, kw_only=True)
class EdgeAdherence:
    """Agreement of edges, each the mean over the frames."""

    precision: float
    """Part of the drawn edge pixels that lie near a true one."""
    recall: float
    """Part of the true edge pixels that lie near a drawn one."""
    f1: float
    """Mean over the frames of each frame's harmonic mean of precision and recall."""


def edge_adherence(drawn: np.ndarray, true: np.ndarray) -> EdgeAdherence:
    """Compare the Canny edges of drawn frames with those of the true ones.

    The true frames' edges are the edge control itself wherever it was stored at this size.

    Args:
        drawn: uint8 [T, H, W, 3].
        true: the same.

    Raises:
        WorldtuneError: the shapes differ, or there is no frame.
    """
    if drawn.shape != true.shape or not len(drawn):
        raise WorldtuneError(
            f"edges of frames of shape {list(drawn.shape)} cannot be compared with those of {list(true.shape)}; "
            "expected as many frames of the same size, one at least."
        )
    radius = tolerance_pixels(*drawn.shape[1:3])
    scores = np.array(
        [frame_scores(_edges(one), _edges(other), radius) for one, other in zip(drawn, true, strict=True)]
    )
    precision, recall, f1 = scores.mean(axis=0).tolist()
    return EdgeAdherence(precision=precision, recall=recall, f1=f1)


def tolerance_pixels(height: int, width: int) -> int:
    """Return the whole pixels of TOLERANCE in a frame of this size."""
    return int(TOLERANCE * np.hypot(height, width))


def frame_scores(drawn: np.ndarray, true: np.ndarray, radius: int) -> tuple[float, float, float]:
    """Return precision, recall and F1 of one edge map against another.

    Args:
        drawn: bool [H, W], true at edges.
        true: the same.
        radius: pixels within which edges count as the same, by Euclidean distance.

    Returns:
        Numbers from 0 to 1. Without a drawn edge nothing is wrong, so that precision is 1; without a true one nothing
        is missed, so that recall is 1. F1 is 0 where both are.
    """
    precision = _share(drawn, near=true, radius=radius)
    recall = _share(true, near=drawn, radius=radius)
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0


def _share(edges: np.ndarray, *, near: np.ndarray, radius: int) -> float:
    """Return the part of one map's edge pixels that lie within `radius` of another's."""
    count = int(edges.sum())
    if not count:
        return 1.0
    reached = cv2.dilate(near.astype(np.uint8), _disk(radius))
    return int(reached[edges].sum()) / count


def _disk(radius: int) -> np.ndarray:
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return (rows**2 + columns**2 <= radius**2).astype(np.uint8)


def _edges(frame: np.ndarray) -> np.ndarray:
    return cv2.Canny(np.ascontiguousarray(frame), *THRESHOLDS) > 0
