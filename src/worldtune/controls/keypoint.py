"""The keypoint control: skeletons of people on black (spec/transfer1-training.md 5.10). T frames, H height, W width.

Files hold the 133 keypoints of COCO-WholeBody for each person. They are drawn as the 134 of OpenPose (which has a
neck), with the colours that the released weights have seen.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from worldtune.common.errors import WorldtuneError
from worldtune.controls.protocol import Controlled, ControlSource
from worldtune.formats.controls import KEYPOINT_BODY_ROWS, KEYPOINT_HAND_ROWS, KEYPOINT_LARGEST
from worldtune.formats.pickles import MAX_CONTROL_BYTES, read_pickle
from worldtune.recipe.schema import Control, KeypointControl

NUM_COCO = 133
"""17 of the body, 6 of the feet, 68 of the face, 21 of the left hand, 21 of the right one."""
NECK = 17
"""Where the neck is inserted, before the order is changed."""
OPENPOSE_ROWS = (1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17)
FORMER_ROWS = (17, 6, 8, 10, 7, 9, 12, 14, 16, 13, 15, 2, 1, 4, 3)
"""Rows, with the neck, that become OPENPOSE_ROWS."""
LEFT_HAND, RIGHT_HAND = 92, 113
"""Roots of the hands in OpenPose's order."""

Color = tuple[int, int, int]

BODY_COLORS: tuple[Color, ...] = (
    (255, 0, 0),
    (255, 85, 0),
    (255, 170, 0),
    (255, 255, 0),
    (170, 255, 0),
    (85, 255, 0),
    (0, 255, 0),
    (0, 255, 85),
    (0, 255, 170),
    (0, 255, 255),
    (0, 170, 255),
    (0, 85, 255),
    (0, 0, 255),
    (85, 0, 255),
    (170, 0, 255),
    (255, 0, 255),
    (255, 0, 170),
    (255, 0, 85),
)
"""Nose, neck, right shoulder, elbow, wrist, left ones, right hip, knee, ankle, left ones, right eye, left eye, ears."""
POINT_COLORS: tuple[Color, ...] = (*BODY_COLORS, *6 * [(0, 0, 0)], *68 * [(255, 255, 255)], *42 * [(0, 0, 255)])
"""RGB by keypoint. The feet are black, which can wipe out what lies beneath."""

BODY_LINKS: tuple[tuple[int, int, Color], ...] = (
    (1, 2, (255, 0, 0)),
    (1, 5, (255, 85, 0)),
    (2, 3, (255, 170, 0)),
    (3, 4, (255, 255, 0)),
    (5, 6, (170, 255, 0)),
    (6, 7, (85, 255, 0)),
    (1, 8, (0, 255, 0)),
    (8, 9, (0, 255, 85)),
    (9, 10, (0, 255, 170)),
    # Out of the row of colours (255 would follow), but what the released weights have seen.
    (1, 11, (0, 255, 225)),
    (11, 12, (0, 170, 255)),
    (12, 13, (0, 85, 255)),
    (1, 0, (0, 0, 255)),
    (0, 14, (255, 0, 170)),
    (14, 16, (170, 0, 255)),
    (0, 15, (255, 0, 255)),
    (15, 17, (255, 0, 170)),
)
HAND_COLORS: tuple[Color, ...] = (
    (255, 0, 0),
    (255, 76, 0),
    (255, 153, 0),
    (255, 230, 0),
    (204, 255, 0),
    (128, 255, 0),
    (51, 255, 0),
    (0, 255, 26),
    (0, 255, 102),
    (0, 255, 178),
    (0, 255, 255),
    (0, 178, 255),
    (0, 102, 255),
    (0, 26, 255),
    (51, 0, 255),
    (128, 0, 255),
    (204, 0, 255),
    (255, 0, 230),
    (255, 0, 153),
    (255, 0, 76),
)
"""Links of a hand: four from the root to the tip of the thumb, then of each finger."""
ODD_LINK = 10
"""The link between the second and the third point of the middle finger."""


def _hand_links(root: int, odd_color: Color) -> list[tuple[int, int, Color]]:
    colors = [*HAND_COLORS[:ODD_LINK], odd_color, *HAND_COLORS[ODD_LINK + 1 :]]
    return [(root if link % 4 == 0 else root + link, root + link + 1, color) for link, color in enumerate(colors)]


LINKS: tuple[tuple[int, int, Color], ...] = (
    *BODY_LINKS,
    *_hand_links(LEFT_HAND, HAND_COLORS[ODD_LINK]),
    # White on the right hand only, which the released weights have seen.
    *_hand_links(RIGHT_HAND, (255, 255, 255)),
)
"""Keypoints at both ends and RGB, in the order of drawing."""


def to_openpose(coco: np.ndarray) -> np.ndarray:
    """Return keypoints of COCO-WholeBody (float [133, 3]: x, y, confidence) in OpenPose's order, as [134, 3].

    The neck lies between the shoulders and has the lower one of their confidences.
    """
    left, right = coco[5], coco[6]
    neck = np.append((left[:2] + right[:2]) / 2, np.minimum(left[2], right[2]))
    points = np.insert(coco, NECK, neck, axis=0)
    points[list(OPENPOSE_ROWS)] = points[list(FORMER_ROWS)]
    return points


def draw_person(canvas: np.ndarray, points: np.ndarray, config: KeypointControl) -> None:
    """Draw a person (float [134, 3]: x and y in pixels, confidence) over a picture (uint8 [H, W, 3])."""
    seen = points[:, 2] >= config.confidence_min
    # Pixels are the whole part of a coordinate; what is not drawn may be no number at all.
    pixels = np.where(seen[:, None], points[:, :2], 0).astype(np.int64).tolist()
    for point in np.flatnonzero(seen):
        cv2.circle(canvas, pixels[point], config.point_radius, POINT_COLORS[point], cv2.FILLED)
    for first, second, color in LINKS:
        if seen[first] and seen[second]:
            cv2.line(canvas, pixels[first], pixels[second], color, config.line_width)


def _person(person: Any) -> np.ndarray:
    """Return COCO's keypoints, float32 [133, 3], of a person in a file."""
    if not isinstance(person, dict):
        raise WorldtuneError("a person is no table")
    body = _rows(person, "body-keypoints", KEYPOINT_BODY_ROWS)
    hands = _rows(person, "hand-keypoints", (KEYPOINT_HAND_ROWS,))
    return np.concatenate([body, hands])[:NUM_COCO]


def _rows(person: dict[Any, Any], key: str, numbers: tuple[int, ...]) -> np.ndarray:
    array = person.get(key)
    shapes = [(number, 3) for number in numbers]
    if not isinstance(array, np.ndarray) or array.shape not in shapes:
        found = list(array.shape) if isinstance(array, np.ndarray) else type(array).__name__
        raise WorldtuneError(f"{key} of a person is {found}; expected {' or '.join(str(list(s)) for s in shapes)}")
    # Half precision, in which files are stored, would miss pixels of a wide frame.
    return array.astype(np.float32)


def people_points(people: Any, confidence_min: float) -> list[np.ndarray]:
    """Return the keypoints of the people of one frame of a file, in OpenPose's order.

    Args:
        people: the frame's entry in the file, as it was read.
        confidence_min: the confidence from which on a keypoint is drawn, and has to be a place.

    Returns:
        float32 [134, 3] for each person: x and y as parts of the frame's width and height, confidence.

    Raises:
        WorldtuneError: the entry is no list of people, or a place is no part of the frame.
    """
    if not isinstance(people, list | tuple):
        raise WorldtuneError("it holds no list of people")
    found = []
    for person in people:
        points = to_openpose(_person(person))
        places = points[points[:, 2] >= confidence_min, :2]
        if not (np.abs(places) <= KEYPOINT_LARGEST).all():
            raise WorldtuneError("a place is no part of the frame's width and height (0 to 1); divide pixels by them")
        found.append(points)
    return found


def _draw_frame(canvas: np.ndarray, people: Any, config: KeypointControl) -> None:
    height, width = canvas.shape[:2]
    for points in people_points(people, config.confidence_min):
        draw_person(canvas, points * np.array([width, height, 1], np.float32), config)


def draw_skeletons(path: Path, start: int, shape: tuple[int, int, int], config: KeypointControl) -> np.ndarray:
    """Draw the people in a window of a keypoint file.

    Args:
        path: a pickle {frame: [person, ...]} with consecutive frame numbers.
        start: the window's first frame, counted from the file's first one.
        shape: (T, H, W) of the window.
        config: what is drawn.

    Returns:
        uint8 [T, H, W, 3].

    Raises:
        WorldtuneError: the file is damaged, has no such frames, or holds anything else.
    """
    frames = read_pickle(path, MAX_CONTROL_BYTES)
    if not isinstance(frames, dict) or not all(isinstance(number, int) for number in frames):
        raise WorldtuneError(f"{path}: expected a table of frame numbers. Make the file again.")
    if start < 0 or start + shape[0] > len(frames):
        raise WorldtuneError(
            f"{path} has {len(frames)} frames; frames {start} to {start + shape[0] - 1} were asked for. Give an entry "
            "for every frame of the clip."
        )
    first = min(frames, default=0)
    canvas = np.zeros((*shape, 3), np.uint8)
    for index in range(shape[0]):
        number = first + start + index
        if number not in frames:
            raise WorldtuneError(f"{path} has no frame {number}: its numbers have gaps. Give an entry for every frame.")
        try:
            _draw_frame(canvas[index], frames[number], config)
        except WorldtuneError as error:
            raise WorldtuneError(f"{path}, frame {number}: {error}. Make the file again.") from error
    return canvas


class Keypoint:
    """All people of each frame; nothing is random."""

    def training(self, source: ControlSource, config: Control, rng: np.random.Generator) -> Controlled:
        """Return the skeletons; see protocol.ControlKind."""
        return self.evaluation(source, config)

    def evaluation(self, source: ControlSource, config: Control) -> Controlled:
        """Return the skeletons; see protocol.ControlKind."""
        shape = source.frames.shape[:3]
        hint = draw_skeletons(source.control_file(), source.start, shape, config.keypoint)
        return Controlled(video=source.frames, hint=hint)
