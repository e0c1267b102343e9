"""A person drawn by hand, pixel by pixel: positions, colours and order are written down here, from the format alone.

All links lie along rows or columns, so that a link of width 4 is the pen (a dot of radius 2) at each of its pixels.
"""

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldtune.controls.registry import CONTROL_KINDS

HEIGHT, WIDTH = 300, 420
PEN = [(0, -2), *((-1, x) for x in (-1, 0, 1)), (0, -1), (0, 0), (0, 1), (0, 2), *((1, x) for x in (-1, 0, 1))]
PEN += [(-2, 0), (2, 0)]
"""The dot of radius 2, as (row, column): one pixel, three, five, three, one."""
BLACK, WHITE, BLUE = (0, 0, 0), (255, 255, 255), (0, 0, 255)

COCO = (
    *("nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow"),
    *("right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle"),
    "right ankle",
)
# x and y. The neck lies between the shoulders.
BODY = {
    "nose": (200, 60),
    "left eye": (215, 60),
    "right eye": (185, 60),
    "left ear": (215, 45),
    "right ear": (185, 45),
    "left shoulder": (240, 100),
    "right shoulder": (160, 100),
    "left elbow": (240, 140),
    "right elbow": (160, 140),
    "left wrist": (260, 140),
    "right wrist": (140, 140),
    # Of two links down from the neck the later one is shorter.
    "left hip": (200, 180),
    "right hip": (200, 220),
    "left knee": (230, 180),
    "right knee": (170, 220),
    "left ankle": (230, 250),
    "right ankle": (170, 260),
}
NECK = (200, 100)
FEET = [(100 + 10 * foot, 285) for foot in range(6)]
FACE = [(10 + 8 * (point % 34), 10 + 8 * (point // 34)) for point in range(68)]


def hand(x, y):
    """The root, then four points of the thumb to the left, three fingers up and to the left, one to the right."""
    fingers = [[(x - 12 - 9 * step, y) for step in range(4)]]
    # Of three links up from the root the later one is shorter.
    fingers += [[(x - 9 * step, y - up) for step in range(4)] for up in (36, 24, 12)]
    fingers += [[(x + 12 + 9 * step, y) for step in range(4)]]
    return [(x, y), *(point for finger in fingers for point in finger)]


LEFT, RIGHT = hand(330, 160), hand(70, 220)
POINTS = [*(BODY[name] for name in COCO), *FEET, *FACE, *LEFT, *RIGHT]

BODY_DOTS = {
    "nose": (255, 0, 0),
    "neck": (255, 85, 0),
    "right shoulder": (255, 170, 0),
    "right elbow": (255, 255, 0),
    "right wrist": (170, 255, 0),
    "left shoulder": (85, 255, 0),
    "left elbow": (0, 255, 0),
    "left wrist": (0, 255, 85),
    "right hip": (0, 255, 170),
    "right knee": (0, 255, 255),
    "right ankle": (0, 170, 255),
    "left hip": (0, 85, 255),
    "left knee": (0, 0, 255),
    "left ankle": (85, 0, 255),
    "right eye": (170, 0, 255),
    "left eye": (255, 0, 255),
    "right ear": (255, 0, 170),
    "left ear": (255, 0, 85),
}
"""In the order of drawing."""
BODY_LINES = [
    ("neck", "right shoulder", (255, 0, 0)),
    ("neck", "left shoulder", (255, 85, 0)),
    ("right shoulder", "right elbow", (255, 170, 0)),
    ("right elbow", "right wrist", (255, 255, 0)),
    ("left shoulder", "left elbow", (170, 255, 0)),
    ("left elbow", "left wrist", (85, 255, 0)),
    ("neck", "right hip", (0, 255, 0)),
    ("right hip", "right knee", (0, 255, 85)),
    ("right knee", "right ankle", (0, 255, 170)),
    ("neck", "left hip", (0, 255, 225)),
    ("left hip", "left knee", (0, 170, 255)),
    ("left knee", "left ankle", (0, 85, 255)),
    ("neck", "nose", (0, 0, 255)),
    ("nose", "right eye", (255, 0, 170)),
    ("right eye", "right ear", (170, 0, 255)),
    ("nose", "left eye", (255, 0, 255)),
    ("left eye", "left ear", (255, 0, 170)),
]
FINGER_COLORS = {
    "thumb": [(255, 0, 0), (255, 76, 0), (255, 153, 0), (255, 230, 0)],
    "forefinger": [(204, 255, 0), (128, 255, 0), (51, 255, 0), (0, 255, 26)],
    "middle": [(0, 255, 102), (0, 255, 178), (0, 255, 255), (0, 178, 255)],
    "ring": [(0, 102, 255), (0, 26, 255), (51, 0, 255), (128, 0, 255)],
    "pinky": [(204, 0, 255), (255, 0, 230), (255, 0, 153), (255, 0, 76)],
}


def strokes(seen, points=POINTS):
    """What is drawn of the person whose points `seen` (rows of COCO) are sure: (pixels along it, colour), in order."""
    place = {name: points[row] for row, name in enumerate(COCO) if row in seen}
    if {"left shoulder", "right shoulder"} <= place.keys():
        place["neck"] = NECK
    drawn = [([place[name]], color) for name, color in BODY_DOTS.items() if name in place]
    for rows, color in ((range(17, 23), BLACK), (range(23, 91), WHITE), (range(91, 133), BLUE)):
        drawn += [([points[row]], color) for row in rows if row in seen]
    drawn += [(along(place[a], place[b]), color) for a, b, color in BODY_LINES if a in place and b in place]
    for root, is_right in ((91, False), (112, True)):
        row = root
        for finger, colors in FINGER_COLORS.items():
            ends = [root, row + 1, row + 2, row + 3, row + 4]
            for step, color in enumerate(colors):
                first, second = ends[step : step + 2]
                if {first, second} <= seen:
                    odd = is_right and finger == "middle" and step == 2
                    drawn.append((along(points[first], points[second]), WHITE if odd else color))
            row += 4
    return drawn


def along(first, second):
    """The pixels of a row or column between two points, both included."""
    (x0, y0), (x1, y1) = sorted((first, second))
    assert x0 == x1 or y0 == y1
    return [(x, y) for x in range(x0, x1 + 1) for y in range(min(y0, y1), max(y0, y1) + 1)]


def painted(drawn):
    """The picture, and which stroke each pixel is of."""
    canvas, owner = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.full((HEIGHT, WIDTH), -1)
    for number, (pixels, color) in enumerate(drawn):
        for x, y in pixels:
            for row, column in PEN:
                canvas[y + row, x + column] = color
                owner[y + row, x + column] = number
    return canvas, owner


def person(seen, points=POINTS):
    body = np.zeros((133, 3), np.float32)
    for row in seen:
        x, y = points[row]
        body[row] = ((x + 0.5) / WIDTH, (y + 0.5) / HEIGHT, 0.6)
    return {"body-keypoints": body, "hand-keypoints": body[91:].copy()}


@pytest.fixture
def draw(tmp_path, source_of, config_of):
    def make(people):
        path = tmp_path / "people.pickle"
        path.write_bytes(pickle.dumps({0: people}))
        source = source_of(path, frames=np.zeros((1, HEIGHT, WIDTH, 3), np.uint8))
        return CONTROL_KINDS["keypoint"].evaluation(source, config_of("keypoint")).hint[0]

    return make


def test_a_whole_person_with_each_of_its_57_links(draw):
    everything = set(range(133))
    drawn = strokes(everything)
    expected, owner = painted(drawn)
    assert len(drawn) == 134 + 57
    # Every link and every point of the face is seen somewhere; other points lie beneath their links, or are black.
    visible = set(np.unique(owner))
    assert set(range(134, 134 + 57)) <= visible
    assert set(range(18 + 6, 18 + 6 + 68)) <= visible
    assert np.array_equal(draw([person(everything)]), expected)


def test_each_point_alone(draw):
    for row in range(133):
        expected, _ = painted(strokes({row}))
        assert expected.any() == (not 17 <= row < 23)
        assert np.array_equal(draw([person({row})]), expected), row


def test_black_feet_erase_who_was_drawn_before_and_their_own_points(draw):
    link = (BODY["left knee"][0], BODY["left knee"][1] + 30)
    ankle = BODY["right ankle"]
    own_link = (BODY["right shoulder"][0] + 20, BODY["right shoulder"][1])
    points = [*POINTS[:17], link, ankle, own_link, *POINTS[20:]]
    everything, second = set(range(133)), {5, 6, 16, 17, 18, 19}
    before, _ = painted(strokes(everything))
    after, owner = painted(strokes(second, points))
    expected = np.where((owner >= 0)[..., None], after, before)
    for x, y in (link, ankle):
        assert before[y, x].any()
        assert not expected[y, x].any()
    # Links are drawn after all points.
    assert tuple(expected[own_link[1], own_link[0]]) == (255, 0, 0)
    assert np.array_equal(draw([person(everything), person(second, points)]), expected)


@given(unseen=st.sets(st.integers(0, 132), max_size=60))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_part_of_a_person(draw, unseen):
    seen = set(range(133)) - unseen
    assert np.array_equal(draw([person(seen)]), painted(strokes(seen))[0])
