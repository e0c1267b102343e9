"""The figure's whole-body keypoints: complete, on the body, mirrored, and in the order of COCO-WholeBody."""

import numpy as np
import pytest

from worldtune.demo.figure import JOINTS, walk
from worldtune.demo.render import Capsule, Sphere
from worldtune.demo.scenes import plan_scene

FEET, FACE, LEFT_HAND, RIGHT_HAND = slice(17, 23), slice(23, 91), slice(91, 112), slice(112, 133)


@pytest.fixture(params=[0.2, 0.9])
def figure(request):
    walker = plan_scene("scene_0001", seed=0).walker
    assert walker is not None
    bodies, points = walk(walker, request.param)
    forward = np.array([np.cos(walker.heading_rad), np.sin(walker.heading_rad), 0])
    left = np.array([-forward[1], forward[0], 0])
    return bodies, points, forward, left


def outside_m(bodies, point) -> float:
    """How far a point lies outside all bodies, in metres; negative within one."""
    distances = []
    for body in bodies:
        if isinstance(body, Sphere):
            distances.append(np.linalg.norm(point - body.centre) - body.radius)
        elif isinstance(body, Capsule):
            axis = body.end - body.start
            share = np.clip((point - body.start) @ axis / (axis @ axis), 0, 1)
            distances.append(np.linalg.norm(point - body.start - share * axis) - body.radius)
    return float(min(distances))


def test_every_keypoint_lies_in_or_on_the_body(figure):
    bodies, points, _, _ = figure
    assert points.shape == (133, 3)
    assert max(outside_m(bodies, point) for point in points) < 0.004
    assert len(np.unique(points.round(5), axis=0)) > 125


def test_the_face_lies_on_the_skin_and_looks_forward(figure):
    _, points, forward, left = figure
    face = points[FACE]
    head = (points[JOINTS.index("left_ear")] + points[JOINTS.index("right_ear")]) / 2
    np.testing.assert_allclose(np.linalg.norm(face - head, axis=1), 0.128, atol=1e-4)
    assert ((face - head) @ forward > 0).all()
    jaw, brows, nose, eyes, mouth = face[:17], face[17:27], face[27:36], face[36:48], face[48:68]
    assert jaw[:, 2].argmin() == 8
    heights = [part[:, 2].mean() for part in (brows, eyes, nose, mouth)]
    assert heights == sorted(heights, reverse=True)
    # The person's right comes first in the jaw, the brows and the eyes, and at the corner of the mouth.
    side = (face - head) @ left
    assert side[0] < 0 < side[16]
    assert side[17:22].max() < 0 < side[22:27].min()
    assert side[36:42].max() < 0 < side[42:48].min()
    assert side[48] < 0 < side[54]


def test_hands_begin_at_the_wrists(figure):
    _, points, forward, _ = figure
    for hand, side in ((points[LEFT_HAND], "left"), (points[RIGHT_HAND], "right")):
        wrist, elbow = points[JOINTS.index(f"{side}_wrist")], points[JOINTS.index(f"{side}_elbow")]
        np.testing.assert_allclose(hand[0], wrist, atol=1e-6)
        along = (wrist - elbow) / np.linalg.norm(wrist - elbow)
        reach = (hand[1:] - wrist) @ along
        assert (np.diff(reach.reshape(5, 4), axis=1) > 0).all()
        assert reach.max() == pytest.approx(0.13, abs=1e-3)
        # Thumb, forefinger, middle, ring, pinky from front to back.
        fronts = (hand[4::4] - wrist) @ forward - reach[3::4] * (along @ forward)
        assert (np.diff(fronts) < 0).all()


def test_feet_point_forward_with_the_big_toes_inside(figure):
    _, points, forward, left = figure
    for feet, outward, side in ((points[17:20], 1, "left"), (points[20:23], -1, "right")):
        ankle = points[JOINTS.index(f"{side}_ankle")]
        big, small, heel = (feet - ankle) @ forward
        assert big > small > 0 > heel
        assert (feet[1] - feet[0]) @ left * outward > 0
        assert (feet[:, 2] < ankle[2]).all()
