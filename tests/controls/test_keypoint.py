import pickle

import cv2
import numpy as np
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.controls.keypoint import LINKS, POINT_COLORS, to_openpose
from worldtune.controls.registry import CONTROL_KINDS

KEYPOINT = CONTROL_KINDS["keypoint"]
# Rows of COCO-WholeBody.
NOSE, LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP, LEFT_FOOT, FACE, LEFT_ROOT, RIGHT_ROOT = 0, 5, 6, 11, 17, 23, 91, 112
NAMES = (
    *("nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow"),
    *("right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle"),
    "right ankle",
)
OPENPOSE_NAMES = (
    *("nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist"),
    *("right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle", "right eye", "left eye"),
    *("right ear", "left ear"),
)


def person(points, *, rows=133, dtype=np.float16):
    """Return a person with {row of COCO: (x, y)} seen, in parts of a frame of 128 x 64 pixels."""
    body = np.zeros((133, 3), dtype)
    for row, (x, y) in points.items():
        body[row] = (x / 128, y / 64, 0.9)
    return {"body-keypoints": body[:rows], "hand-keypoints": body[91:].copy()}


@pytest.fixture
def draw(tmp_path, source_of, config_of):
    def make(content, *, frames=1, start=0, first=0, **keys):
        if isinstance(content, list):
            content = {first + number: people for number, people in enumerate(content)}
        path = tmp_path / "skeletons.pickle"
        path.write_bytes(pickle.dumps(content))
        source = source_of(path, start=start, frames=np.zeros((frames, 64, 128, 3), np.uint8))
        return KEYPOINT.evaluation(source, config_of("keypoint", **keys)).hint

    return make


def test_order_of_the_body_and_the_neck():
    coco = np.random.default_rng(0).random((133, 3))
    points = to_openpose(coco)
    assert points.shape == (134, 3)
    for row, name in enumerate(OPENPOSE_NAMES):
        if name != "neck":
            assert np.array_equal(points[row], coco[NAMES.index(name)]), name
    assert np.allclose(points[1, :2], (coco[5, :2] + coco[6, :2]) / 2)
    assert points[1, 2] == min(coco[5, 2], coco[6, 2])
    assert np.array_equal(points[18:], coco[17:])


def test_number_of_points_and_links():
    assert len(POINT_COLORS) == 134
    assert len(LINKS) == 57
    assert not any(18 <= end < 92 for first, second, _ in LINKS for end in (first, second))


@pytest.mark.parametrize(
    ("first", "second", "color"),
    [
        ("neck", "right shoulder", (255, 0, 0)),
        ("left elbow", "left wrist", (85, 255, 0)),
        ("neck", "left hip", (0, 255, 225)),
        ("left hip", "left knee", (0, 170, 255)),
        ("nose", "right eye", (255, 0, 170)),
        ("right eye", "right ear", (170, 0, 255)),
        ("left eye", "left ear", (255, 0, 170)),
    ],
)
def test_links_of_the_body(first, second, color):
    assert (OPENPOSE_NAMES.index(first), OPENPOSE_NAMES.index(second), color) in LINKS


@pytest.mark.parametrize(
    ("root", "link", "color"),
    [
        *((root, (0, 1), (255, 0, 0)) for root in (92, 113)),
        *((root, (0, 5), (204, 255, 0)) for root in (92, 113)),
        *((root, (0, 9), (0, 255, 102)) for root in (92, 113)),
        *((root, (0, 17), (204, 0, 255)) for root in (92, 113)),
        *((root, (19, 20), (255, 0, 76)) for root in (92, 113)),
        (92, (10, 11), (0, 255, 255)),
        (113, (10, 11), (255, 255, 255)),
    ],
)
def test_links_of_the_hands(root, link, color):
    assert (root + link[0], root + link[1], color) in LINKS


@pytest.mark.parametrize(
    ("row", "color"),
    [
        (NOSE, (255, 0, 0)),
        (RIGHT_SHOULDER, (255, 170, 0)),
        (LEFT_SHOULDER, (85, 255, 0)),
        (LEFT_HIP, (0, 85, 255)),
        (3, (255, 0, 85)),
        (4, (255, 0, 170)),
        (LEFT_FOOT, (0, 0, 0)),
        (FACE, (255, 255, 255)),
        (RIGHT_ROOT, (0, 0, 255)),
    ],
)
def test_one_point_is_a_dot_of_its_colour(draw, row, color):
    expected = np.zeros((64, 128, 3), np.uint8)
    cv2.circle(expected, (40, 30), 2, color, -1)
    assert np.array_equal(draw([[person({row: (40, 30)})]])[0], expected)
    assert tuple(expected[30, 40]) == color


def test_a_shoulder_line_over_the_dots(draw):
    expected = np.zeros((64, 128, 3), np.uint8)
    for place, color in (((50, 20), (255, 85, 0)), ((20, 20), (255, 170, 0)), ((80, 20), (85, 255, 0))):
        cv2.circle(expected, place, 2, color, -1)
    cv2.line(expected, (50, 20), (20, 20), (255, 0, 0), 4)
    cv2.line(expected, (50, 20), (80, 20), (255, 85, 0), 4)
    assert np.array_equal(draw([[person({LEFT_SHOULDER: (80, 20), RIGHT_SHOULDER: (20, 20)})]])[0], expected)


def test_black_feet_wipe_out_who_was_drawn_before(draw):
    face, foot = person({FACE: (40, 30)}), person({LEFT_FOOT: (40, 30)})
    assert not draw([[face, foot]])[0].any()
    assert draw([[foot, face]])[0].any()


def test_only_confident_points_are_drawn(draw):
    unsure = person({NOSE: (40, 30)})
    unsure["body-keypoints"][NOSE, 2] = 0.59
    unsure["body-keypoints"][FACE] = (np.nan, np.inf, 0.1)
    assert not draw([[unsure]]).any()
    assert draw([[unsure]], keypoint={"confidence_min": 0.5}).any()


def test_hands_count_once_however_the_body_is_stored(draw):
    points = {LEFT_ROOT: (20, 10), LEFT_ROOT + 1: (30, 50), RIGHT_ROOT: (90, 20), RIGHT_ROOT + 1: (70, 30)}
    whole = draw([[person(points)]])
    assert np.array_equal(whole, draw([[person(points, rows=91, dtype=np.float32)]]))
    assert tuple(whole[0, 10, 20]) == (255, 0, 0)
    other = person(points)
    other["hand-keypoints"][:] = 0
    assert np.array_equal(whole, draw([[other]]))


def test_frames_are_taken_at_the_windows_place_from_any_first_number(draw):
    clip = [[], [person({NOSE: (10, 10)})], [], [person({NOSE: (90, 50)}), person({FACE: (10, 10)})]]
    hint = draw(clip, frames=3, start=1, first=7)
    assert tuple(hint[0, 10, 10]) == (255, 0, 0)
    assert not hint[1].any()
    assert tuple(hint[2, 50, 90]) == (255, 0, 0)
    assert tuple(hint[2, 10, 10]) == (255, 255, 255)


def test_dots_and_lines_have_the_recipes_size(draw):
    expected = np.zeros((64, 128, 3), np.uint8)
    cv2.circle(expected, (40, 30), 5, (255, 0, 0), -1)
    assert np.array_equal(draw([[person({NOSE: (40, 30)})]], keypoint={"point_radius": 5})[0], expected)
    shoulders = [[person({LEFT_SHOULDER: (80, 20), RIGHT_SHOULDER: (20, 20)})]]
    assert draw(shoulders, keypoint={"line_width": 8}).any(axis=3).sum() > draw(shoulders).any(axis=3).sum()


def test_half_precision_hits_the_pixel_of_its_value(tmp_path, source_of, config_of):
    x = np.float16(1777 / 2048)
    assert (int(float(x) * 3840), int(x * np.float16(3840))) == (3331, 3332)
    one = person({})
    one["body-keypoints"][NOSE] = (x, 0.5, 0.9)
    path = tmp_path / "wide.pickle"
    path.write_bytes(pickle.dumps({0: [one]}))
    hint = KEYPOINT.evaluation(source_of(path, frames=np.zeros((1, 8, 3840, 3), np.uint8)), config_of("keypoint")).hint
    columns = np.flatnonzero(hint.any(axis=(0, 1, 3)))
    assert columns.tolist() == list(range(3329, 3334))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([1], "holds no list of people"),
        ([[3]], "a person is no table"),
        ([[{"body-keypoints": np.zeros((133, 3))}]], "hand-keypoints of a person is NoneType; expected [42, 3]"),
        ([[person({}, rows=17)]], "[17, 3]; expected [133, 3] or [91, 3]"),
        ([[person({NOSE: (40 * 128, 30 * 64)})]], "divide pixels"),
        ([[person({NOSE: (np.nan, 30)})]], "divide pixels"),
        ([], "has 0 frames; frames 0 to 0 were asked for"),
        ({1: [], 3: []}, "gaps"),
        ({"a": []}, "table of frame numbers"),
        (3, "table of frame numbers"),
    ],
)
def test_damaged_files_are_named(draw, content, part):
    with pytest.raises(WorldtuneError) as caught:
        draw(content, frames=2 if part == "gaps" else 1)
    assert "skeletons.pickle" in str(caught.value)
    assert part in str(caught.value)
