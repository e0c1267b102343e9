import pickle

import numpy as np
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.control_checks import check_control, check_lossless, expected_size, misplacement
from worldtune.formats.controls import CONTROLS
from worldtune.formats.rle import encode_clip_mask
from worldtune.media.grey16 import grey16_writer
from worldtune.media.video import write_video

CLIP = {"num_frames": 6, "width": 48, "height": 32}


@pytest.fixture
def depth() -> np.ndarray:
    frames = np.full((6, 32, 48, 3), 120, np.uint8)
    frames[2:4] = 0
    return frames


def test_frames_of_one_level_of_a_given_video_are_counted(tmp_path, depth):
    depth[:5, :16] //= 2
    write_video(tmp_path / "a.mp4", depth, 24)
    facts = check_control("lidar", tmp_path / "a.mp4", CLIP)
    assert (facts.num_frames, facts.width, facts.height, facts.empty_frames) == (6, 48, 32, 3)


def test_depth_in_the_colours_of_a_map_is_refused(tmp_path, depth):
    depth[:, :, 24:] = (250, 130, 20)
    write_video(tmp_path / "a.mp4", depth, 24)
    with pytest.raises(WorldtuneError, match=r"frame 0 is coloured .* expected grey \(near is bright"):
        check_control("depth", tmp_path / "a.mp4", CLIP)
    assert check_control("hdmap", tmp_path / "a.mp4", CLIP).num_frames == 6


@pytest.mark.parametrize(
    ("shape", "problem"),
    [((5, 32, 48), "it has 5 frames, the clip has 6"), ((6, 32, 40), "it is 40x32, the clip is 48x32")],
)
def test_exact_depth_lies_on_its_clip(tmp_path, shape, problem):
    path = tmp_path / "a.mkv"
    with grey16_writer(path, 24) as append:
        append(np.zeros(shape, np.uint16))
    with pytest.raises(WorldtuneError, match=f"^its lossless file: {problem}"):
        check_lossless("depth", path, CLIP)
    check_lossless("depth", path, dict(zip(("num_frames", "height", "width"), shape, strict=True)))


def test_edges_have_two_values(tmp_path):
    edges = np.zeros((6, 32, 48), np.uint8)
    edges[:, 3] = 255
    write_video(tmp_path / "a.mkv", edges, 24, lossless=True)
    assert check_control("edge", tmp_path / "a.mkv", CLIP).empty_frames == 0
    edges[5, 4] = 100
    write_video(tmp_path / "a.mkv", edges, 24, lossless=True)
    with pytest.raises(WorldtuneError, match="frame 5 has other values than 0 or 255"):
        check_control("edge", tmp_path / "a.mkv", CLIP)


def test_frames_without_an_object_are_counted(tmp_path):
    masks = np.zeros((3, 6, 32, 48), bool)
    # From the last pixel of frame 1 to the first one of frame 2, and the whole of frame 4; the third has nothing.
    masks[0].reshape(-1)[2 * 32 * 48 - 1 : 2 * 32 * 48 + 1] = True
    masks[1, 4] = True
    things = [{"phrase": "x", "segmentation_mask_rle": encode_clip_mask(mask)} for mask in masks]
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(things))
    facts = check_control("seg", tmp_path / "a.pickle", CLIP)
    assert (facts.num_objects, facts.empty_frames) == (3, int((~masks.any(axis=(0, 2, 3))).sum()))


@pytest.mark.parametrize(
    "part", [{"mask_shape": np.full((3, 2), 6)}, {"data": {"size": np.ones((2, 1)), "counts": b""}}]
)
def test_a_mask_whose_sizes_are_no_numbers_is_refused(tmp_path, part):
    mask = encode_clip_mask(np.zeros((6, 32, 48), bool)) | part
    (tmp_path / "a.pickle").write_bytes(pickle.dumps([{"phrase": "x", "segmentation_mask_rle": mask}]))
    with pytest.raises(WorldtuneError, match="object 0 is no phrase with a mask"):
        check_control("seg", tmp_path / "a.pickle", CLIP)


def test_people_are_counted(tmp_path):
    person = {"body-keypoints": np.zeros((133, 3), np.float16), "hand-keypoints": np.zeros((42, 3), np.float16)}
    people = {number: [person] * (number % 3) for number in range(6)}
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(people))
    facts = check_control("keypoint", tmp_path / "a.pickle", CLIP)
    assert (facts.people_per_frame, facts.empty_frames, facts.width) == (1.0, 2, None)


def test_large_clips_have_smaller_edges():
    assert expected_size(CONTROLS["edge"], 1920, 1080) == (1252, 704)
    assert expected_size(CONTROLS["edge"], 320, 192) == (320, 192)
    assert expected_size(CONTROLS["depth"], 1920, 1080) == (1920, 1080)
    large = {"num_frames": 6, "width": 1920, "height": 1080}
    assert misplacement(CONTROLS["edge"], 6, (1252, 704), large) == ""
    assert "expected 1252x704" in misplacement(CONTROLS["edge"], 6, (1920, 1080), large)
