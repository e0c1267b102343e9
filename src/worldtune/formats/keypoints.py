"""Writing keypoint files: people of each frame with their whole-body keypoints (spec/transfer1-training.md 5.10, 6.7).

Training reads body-keypoints and hand-keypoints; the other fields are the format's own, for other readers.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldtune.common.files import atomic_path

NUM_KEYPOINTS = 133
"""COCO-WholeBody: 17 of the body, 6 of the feet, 68 of the face, 21 of the left hand, 21 of the right one."""
FACE = slice(23, 91)
HANDS = slice(91, 133)
PICKLE_PROTOCOL = 4

Person = dict[str, np.ndarray]
"""A person of one frame: field -> array."""


def person_fields(
    points: np.ndarray, box: np.ndarray, size_wh: tuple[int, int], *, face_confidence_min: float
) -> Person:
    """Return all fields of a person; those that end in -abs are in pixels, the others shares of width and height.

    Args:
        points: float [133, 3], x and y as shares of width and height, confidence; COCO-WholeBody's order.
        box: float [5], left, top, width and height as shares, confidence.
        size_wh: width and height of the frame in pixels.
        face_confidence_min: the face's box is drawn around face points of this confidence; all are 0 without any.

    Returns:
        body-keypoints [133, 3], hand-keypoints [42, 3] (rows 91 to 132 of the body), human-bbox [5] and face-bbox [4]
        (left, top, width, height), each with its -abs; float16, but face-bbox-abs int16.
    """
    scale = np.array(size_wh, np.float64)
    face = _box_around(points[FACE], face_confidence_min)
    absolute = np.concatenate([points[:, :2] * scale, points[:, 2:]], axis=1)
    in_pixels = np.tile(scale, 2)
    return {
        "human-bbox": box.astype(np.float16),
        "human-bbox-abs": np.append(box[:4] * in_pixels, box[4]).astype(np.float16),
        "body-keypoints": points.astype(np.float16),
        "body-keypoints-abs": absolute.astype(np.float16),
        "hand-keypoints": points[HANDS].astype(np.float16),
        "hand-keypoints-abs": absolute[HANDS].astype(np.float16),
        "face-bbox": face.astype(np.float16),
        "face-bbox-abs": np.rint(face * in_pixels).astype(np.int16),
    }


def _box_around(points: np.ndarray, confidence_min: float) -> np.ndarray:
    """Return left, top, width, height (float64 [4]) of the points (x, y, confidence) that are sure enough."""
    places = points[points[:, 2] >= confidence_min, :2].astype(np.float64)
    if not len(places):
        return np.zeros(4)
    first, last = places.min(axis=0), places.max(axis=0)
    return np.concatenate([first, last - first])


def write_keypoints(path: Path, frames: Sequence[Sequence[Person]]) -> None:
    """Write the people of every frame of a clip, whole or not at all; equal people give equal bytes.

    Args:
        path: the file.
        frames: the people of each frame, from `person_fields`; a frame without people has an entry too.
    """
    content = {number: list(people) for number, people in enumerate(frames)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(pickle.dumps(content, protocol=PICKLE_PROTOCOL))
