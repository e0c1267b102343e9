"""Which of the things that were found in a clip are objects of their own. N, M objects, H height, W width."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels of the frame."""
Point = tuple[float, float]
"""Column and row in pixels of the frame."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something in one frame that may be an object: where it is, and what it is called."""

    phrase: str
    score: float
    """How certain it is, 0 to 1."""
    box: Box | None = None
    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    """For each point: 1 lies on the object, 0 beside it."""


def even_key_frames(num_frames: int, count: int) -> list[int]:
    """Return `count` frames at equal distances, the first one of the clip among them; all where it has fewer."""
    count = min(count, num_frames)
    return [number * num_frames // count for number in range(count)]


def key_frames_of_scenes(num_frames: int, count: int, cuts: Sequence[int]) -> list[int]:
    """Return `count` frames: the first of each scene, then those that halve the longest stretches between them.

    Args:
        num_frames: frames of the clip.
        count: key frames; with more scenes than these, evenly chosen scenes have one.
        cuts: first frame of each scene but the first.
    """
    starts = sorted({0, *(cut for cut in cuts if 0 < cut < num_frames)})
    if len(starts) >= count:
        return [starts[number] for number in even_key_frames(len(starts), count)]
    while len(starts) < min(count, num_frames):
        ends = [*starts[1:], num_frames]
        longest = max(range(len(starts)), key=lambda number: (ends[number] - starts[number], -number))
        starts.insert(longest + 1, (starts[longest] + ends[longest]) // 2)
    return starts


def box_iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return intersection over union, float64 [N, M], of boxes [N, 4] and [M, 4]; 0 where both are empty."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0.0, None).prod(axis=-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None).prod(axis=-1) for boxes in (first, second)]
    return _ratio(shared, areas[0], areas[1])


def mask_iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return intersection over union, float64 [N, M], of masks [N, H, W] and [M, H, W]; 0 where both are empty."""
    packed = [
        np.packbits(masks.reshape(len(masks), masks.shape[1] * masks.shape[2]), axis=1) for masks in (first, second)
    ]
    # Row by row: all pairs at once would take N times M pictures of memory.
    rows = [np.bitwise_count(packed[1] & row).sum(axis=1, dtype=np.int64) for row in packed[0]]
    shared = np.array(rows, np.float64).reshape(len(first), len(second))
    areas = [np.bitwise_count(bits).sum(axis=1, dtype=np.int64).astype(np.float64) for bits in packed]
    return _ratio(shared, areas[0], areas[1])


def _ratio(shared: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    union = first[:, None] + second[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def mask_boxes(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the smallest boxes, float64 [N, 4], around masks [N, H, W]; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4))
    for number, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size:
            boxes[number] = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return boxes


def choose_new(
    candidates: Sequence[Candidate],
    masks: NDArray[np.bool_],
    tracked: NDArray[np.bool_],
    same_object_iou: float,
) -> list[int]:
    """Return the numbers of the candidates that are objects of their own, the most certain first, then the largest.

    A candidate is none where the tracker sees nothing in its place, or where its mask or its box overlaps, by at least
    `same_object_iou`, with those of an object that is tracked already or of a candidate before it.

    Args:
        candidates: what was found in a frame.
        masks: what the tracker takes for each of them in this frame, [N, H, W].
        tracked: where the objects that are tracked already are in this frame, [M, H, W].
        same_object_iou: overlap from which two are one.
    """
    areas = masks.sum(axis=(1, 2))
    boxes = mask_boxes(masks)
    for number, candidate in enumerate(candidates):
        if candidate.box is not None:
            boxes[number] = candidate.box
    overlap = np.maximum(mask_iou(masks, tracked), box_iou(boxes, mask_boxes(tracked)))
    known = overlap.max(axis=1, initial=0.0) >= same_object_iou
    alike = np.maximum(mask_iou(masks, masks), box_iou(boxes, boxes)) >= same_object_iou
    chosen: list[int] = []
    for number in sorted(range(len(candidates)), key=lambda number: (-candidates[number].score, -areas[number])):
        if areas[number] and not known[number] and not alike[number, chosen].any():
            chosen.append(number)
    return chosen
