"""The 133 whole-body keypoints of the walking person, in metres, from its joints (COCO-WholeBody's order).

17 joints, 6 points of the feet, 68 of the face, 21 of each hand. Axes of the person: forward, left, up.
"""

from collections.abc import Mapping

import numpy as np

from worldtune.demo.render import Floats

FOOT_M, HEEL_M, TOE_HALF_M, ANKLE_DROP_M = 0.20, 0.04, 0.035, 0.05
"""From the ankle to the toes and back to the heel, half the distance between the toes, and down from the ankle."""
HAND_M, HAND_RADIUS_M = 0.10, 0.042
"""From the wrist to the middle of the fist's far end, and the fist's radius."""
KNUCKLE_M, FINGERTIP_M = 0.07, 0.13
"""From the wrist along the hand."""
FINGER_SPREAD_M = 0.026
"""From the middle of the hand to the outer fingers."""
FACE_UNIT_M = 0.128
"""From the middle of the head to the face, whose skin is a ball."""

Side = str


def _arc(start: tuple[float, float], end: tuple[float, float], sag: float, count: int) -> list[tuple[float, float]]:
    """Return points (left, up) from one to another, bent upwards by `sag` in the middle."""
    shares = np.linspace(0, 1, count)
    return [
        (float(start[0] + (end[0] - start[0]) * share), float(start[1] + (end[1] - start[1]) * share + bend))
        for share, bend in zip(shares, sag * 4 * shares * (1 - shares), strict=True)
    ]


def _ellipse(middle: tuple[float, float], half: tuple[float, float], degrees: list[float]) -> list[tuple[float, float]]:
    """Return points (left, up) of an ellipse; 0 degrees is the person's right, 90 is up."""
    angles = np.radians(degrees)
    return [
        (float(middle[0] - half[0] * np.cos(angle)), float(middle[1] + half[1] * np.sin(angle))) for angle in angles
    ]


FACE: tuple[tuple[float, float], ...] = (
    # The jaw from the person's right ear over the chin to the left one.
    *_arc((-0.80, 0.10), (0.80, 0.10), -0.85, 17),
    # Brows, each from the person's right to the left.
    *_arc((-0.58, 0.42), (-0.16, 0.44), 0.10, 5),
    *_arc((0.16, 0.44), (0.58, 0.42), 0.10, 5),
    # Ridge of the nose downwards, then its base.
    *((0.0, up) for up in (0.26, 0.14, 0.02, -0.10)),
    *_arc((-0.16, -0.20), (0.16, -0.20), -0.05, 5),
    # Eyes: outer corner of the right one, over the upper lid, back along the lower lid; the left one from its inner.
    *_ellipse((-0.34, 0.24), (0.13, 0.06), [0, 60, 120, 180, 240, 300]),
    *_ellipse((0.34, 0.24), (0.13, 0.06), [0, 60, 120, 180, 240, 300]),
    # Outer lips, then inner ones, from the right corner over the upper lip.
    *_ellipse((0.0, -0.44), (0.28, 0.13), [0, 30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 330]),
    *_ellipse((0.0, -0.44), (0.20, 0.05), [0, 45, 90, 135, 180, 225, 270, 315]),
)
"""The 68 points of the face as (left, up) in units of the head's radius, on the half of the ball that looks forward."""


def whole_body(joints: Mapping[str, Floats], order: tuple[str, ...], forward: Floats) -> Floats:
    """Return the keypoints of a person (float32 [133, 3], metres).

    Args:
        joints: the 17 joints by name.
        order: their names in COCO's order.
        forward: where the person looks, length one, level.
    """
    up = np.array([0, 0, 1], dtype=np.float32)
    left = np.cross(up, forward).astype(np.float32)
    parts = [
        np.stack([joints[name] for name in order]),
        *(_foot(joints[f"{side}_ankle"], forward, left, outward) for side, outward in (("left", 1), ("right", -1))),
        _face((joints["left_ear"] + joints["right_ear"]) / 2, forward, left, up),
        *(_hand(joints, side, forward) for side in ("left", "right")),
    ]
    return np.concatenate(parts).astype(np.float32)


def _foot(ankle: Floats, forward: Floats, left: Floats, outward: int) -> Floats:
    """Return big toe, small toe and heel ([3, 3])."""
    sole = ankle - np.array([0, 0, ANKLE_DROP_M], dtype=np.float32)
    toes = sole + FOOT_M * forward
    side = TOE_HALF_M * outward * left
    return np.stack([toes - side, toes + side - 0.03 * forward, sole - HEEL_M * forward])


def _face(head: Floats, forward: Floats, left: Floats, up: Floats) -> Floats:
    aside, high = np.array(FACE, dtype=np.float32).T
    ahead = np.sqrt(np.maximum(1 - aside**2 - high**2, 0))
    directions = ahead[:, None] * forward + aside[:, None] * left + high[:, None] * up
    return head + FACE_UNIT_M * directions


def hand_end(joints: Mapping[str, Floats], side: Side) -> Floats:
    """Return the far end of the line in the middle of a hand ([3]); the hand is all within HAND_RADIUS_M of it."""
    return joints[f"{side}_wrist"] + HAND_M * _along(joints, side)


def _along(joints: Mapping[str, Floats], side: Side) -> Floats:
    forearm = joints[f"{side}_wrist"] - joints[f"{side}_elbow"]
    return forearm / np.float32(np.linalg.norm(forearm))


def _hand(joints: Mapping[str, Floats], side: Side, forward: Floats) -> Floats:
    """Return the hand's root at the wrist, then four points of thumb, forefinger, middle, ring and pinky ([21, 3])."""
    wrist, along = joints[f"{side}_wrist"], _along(joints, side)
    # The palm faces the body, so that the thumb is in front.
    across = forward - (forward @ along) * along
    across = across / np.linalg.norm(across)
    points = [wrist]
    for finger in range(5):
        offset = FINGER_SPREAD_M * (1 - finger / 2) * across
        # The thumb starts and ends nearer to the wrist; the outer fingers are shorter than the middle one.
        first, last = (0.02, 0.09) if finger == 0 else (KNUCKLE_M, FINGERTIP_M - 0.008 * abs(finger - 2))
        points += [wrist + share * along + offset for share in np.linspace(first, last, 4)]
    return np.stack(points)
