import json

import pytest

from worldtune.annotate.objects import Candidate
from worldtune.annotate.seg_prompts import read_prompts
from worldtune.common.errors import WorldtuneError


def read(tmp_path, content):
    path = tmp_path / "a.seg.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_prompts(path, num_frames=5, height=30, width=40)


def test_boxes_and_points_become_candidates_of_their_frames(tmp_path):
    box = {"phrase": "red cup", "frame": 3, "box": [1, 2, 30, 20.5]}
    points = {"phrase": "hand", "points": [{"x": 5, "y": 6}, {"x": 7, "y": 8, "label": 0}]}
    assert read(tmp_path, {"objects": [box, points]}) == {
        3: [Candidate(phrase="red cup", score=1.0, box=(1, 2, 30, 20.5))],
        0: [Candidate(phrase="hand", score=1.0, points=((5, 6), (7, 8)), labels=(1, 0))],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3, 4]}, r"a.seg.json: objects.0.bbox: Extra inputs are not permitted"),
        ({"box": [1, 2, 3]}, "objects.0.box: List should have at least 4"),
        ({"box": [9, 2, 3, 4]}, "objects.0: .*left, top, right, bottom"),
        ({"box": None}, "objects.0: .*give a box"),
        ({"box": [1, 2, 41, 4]}, r"objects.0.box: \(41.0, 4.0\) is outside of 40x30"),
        ({"frame": 5}, "objects.0.frame: 5; the clip has frames 0 to 4"),
        ({"frame": True}, "objects.0.frame"),
        ({"phrase": ""}, "objects.0.phrase"),
        ({"points": [{"x": 1, "y": -1}]}, "objects.0.points.0.y"),
        ({"points": [{"x": 1, "y": 1, "label": 2}]}, "objects.0.points.0.label"),
    ],
)
def test_a_wrong_key_is_named(tmp_path, change, message):
    thing = {"phrase": "cup", "frame": 0, "box": [1, 2, 3, 4]} | change
    with pytest.raises(WorldtuneError, match=message):
        read(tmp_path, {"objects": [thing]})


def test_a_file_that_is_no_json_is_refused(tmp_path):
    with pytest.raises(WorldtuneError, match=r"a.seg.json: the file: Invalid JSON"):
        read(tmp_path, "{")
