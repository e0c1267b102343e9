"""Scenes: determinism, captions, masks against depth, keypoints; and their files."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json, sha256_file
from worldtune.dataset.scenes import scene_names
from worldtune.demo.figure import JOINTS
from worldtune.demo.scenes import (
    RenderedScene,
    bodies_at,
    camera_at,
    plan_scene,
    render_scene,
)
from worldtune.demo.write import depth_picture, write_scenes
from worldtune.formats.rle import decode_clip_mask
from worldtune.media.video import probe, read_frames

SIZE = {"num_frames": 5, "width": 160, "height": 96, "fps": 6.0}


@pytest.fixture(scope="module")
def scene() -> RenderedScene:
    return render_scene("scene_0003", seed=0, samples=1, **SIZE)


def test_names_and_numbers() -> None:
    assert scene_names(2) == ["scene_0000", "scene_0001"]
    with pytest.raises(WorldtuneError, match="scene_0007"):
        plan_scene("kitchen", seed=0)


def test_a_scene_is_a_function_of_name_and_seed(scene: RenderedScene) -> None:
    again = render_scene("scene_0003", seed=0, samples=1, **SIZE)
    np.testing.assert_array_equal(scene.frames, again.frames)
    np.testing.assert_array_equal(scene.depth, again.depth)
    assert scene.caption == again.caption
    other = render_scene("scene_0003", seed=1, samples=1, **SIZE)
    assert (scene.frames != other.frames).any()
    longer = render_scene("scene_0003", seed=0, samples=1, **{**SIZE, "num_frames": 6})
    np.testing.assert_array_equal(scene.frames, longer.frames[:5])


def test_shapes_and_types(scene: RenderedScene) -> None:
    assert scene.frames.shape == (5, 96, 160, 3)
    assert scene.frames.dtype == np.uint8
    assert scene.depth.shape == (5, 96, 160)
    assert scene.depth.dtype == np.float32
    assert scene.instance_masks.shape == (len(scene.phrases), 5, 96, 160)
    assert scene.instance_masks.sum(axis=0).max() == 1
    assert len(scene.keypoints) == 5


def test_things_move(scene: RenderedScene) -> None:
    change = np.abs(np.diff(scene.frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert (change > 0.5).all()


@pytest.mark.parametrize("name", scene_names(24))
def test_captions_name_what_is_there(name: str) -> None:
    plan = plan_scene(name, seed=0)
    for thing in plan.things:
        assert f"{thing.colour} {thing.shape}" in plan.caption
        assert thing.motion in plan.caption
    assert ("person" in plan.caption) == (plan.walker is not None)
    assert "camera" in plan.caption
    assert any(not thing.motion.startswith("stands") for thing in plan.things)


def test_half_of_the_scenes_have_a_person() -> None:
    assert sum(plan_scene(name, seed=0).walker is not None for name in scene_names(16)) == 8


@pytest.mark.parametrize("name", ["scene_0001", "scene_0004", "scene_0007"])
def test_masks_agree_with_depth(name: str) -> None:
    """A pixel belongs to the thing whose bodies alone are nearest there."""
    rendered = render_scene(name, seed=0, samples=1, **SIZE)
    plan = plan_scene(name, seed=0)
    frame = 2
    bodies, _ = bodies_at(plan, frame / SIZE["fps"])
    camera = camera_at(plan, frame / SIZE["fps"], width=SIZE["width"], height=SIZE["height"])
    rays = camera.rays(1)
    nearest = np.full((len(rendered.phrases), 96, 160), np.inf)
    for body in bodies:
        nearest[body.instance - 1] = np.minimum(nearest[body.instance - 1], body.hit(camera.position, rays))
    for index, mask in enumerate(rendered.instance_masks[:, frame]):
        np.testing.assert_allclose(rendered.depth[frame][mask], nearest[index][mask], rtol=1e-4)
        others = np.delete(nearest, index, axis=0)
        assert (nearest[index][mask][None] <= others[:, mask] + 1e-4).all()


@pytest.mark.parametrize("name", ["scene_0001", "scene_0003", "scene_0005"])
def test_seen_keypoints_lie_in_the_persons_mask(name: str) -> None:
    rendered = render_scene(name, seed=0, samples=1, **SIZE)
    plan = plan_scene(name, seed=0)
    assert plan.walker is not None
    seen = 0
    for frame, people in enumerate(rendered.keypoints):
        assert people.shape == (1, 133, 3)
        for x, y, confidence in people[0]:
            if confidence == 1:
                seen += 1
                assert rendered.instance_masks[-1, frame, int(y * 96), int(x * 160)]
    assert seen > 200


def test_a_walker_stands_on_the_ground() -> None:
    plan = plan_scene("scene_0001", seed=0)
    for time_s in np.linspace(0, 1.5, 9):
        _, joints = bodies_at(plan, float(time_s))
        assert joints is not None
        ankles = joints[[JOINTS.index("left_ankle"), JOINTS.index("right_ankle")], 2]
        assert ankles.min() == pytest.approx(0.09, abs=1e-4)
        assert joints[JOINTS.index("nose"), 2] == pytest.approx(1.6, abs=0.15)


def test_depth_pictures_are_bright_where_near() -> None:
    depth = np.float32([[[2.0, 4.0], [8.0, np.inf]]])
    grey = depth_picture(depth)
    assert grey.shape == (1, 2, 2, 3)
    assert grey[0, :, :, 0].tolist() == [[255, 128], [64, 0]]


def test_written_files(tmp_path: Path, scene: RenderedScene) -> None:
    names = ["scene_0003", "scene_0004"]
    manifest = tmp_path / "0000.json"
    write_scenes(names, tmp_path / "raw", manifest, world="objects", views=(), seed=0, **SIZE)
    content = json.loads(manifest.read_text())
    assert content["scenes"] == names
    assert len(content["files"]) == 10
    for file, sha256 in content["files"].items():
        assert sha256_file(tmp_path / "raw" / file) == sha256
    for kind in (".", "depth"):
        info = probe(tmp_path / "raw" / kind / "scene_0003.mp4")
        assert (info.num_frames, info.width, info.height, info.fps) == (5, 160, 96, 6)
    frames = read_frames(tmp_path / "raw" / "scene_0003.mp4", 0, 5)
    smooth = render_scene("scene_0003", seed=0, **SIZE)
    assert np.abs(frames.astype(int) - smooth.frames).mean() < 6
    assert (tmp_path / "raw" / "scene_0003.txt").read_text() == scene.caption + "\n"
    entries = pickle.loads((tmp_path / "raw" / "seg" / "scene_0003.pickle").read_bytes())  # noqa: S301
    assert [entry["phrase"] for entry in entries] == list(scene.phrases)
    for entry, mask in zip(entries, scene.instance_masks, strict=True):
        np.testing.assert_array_equal(decode_clip_mask(entry["segmentation_mask_rle"], 0, 5), mask)
    people = pickle.loads((tmp_path / "raw" / "keypoint" / "scene_0003.pickle").read_bytes())  # noqa: S301
    assert sorted(people) == [0, 1, 2, 3, 4]
    assert people[0][0]["body-keypoints"].shape == (133, 3)
    assert people[0][0]["hand-keypoints"].shape == (42, 3)
    empty = pickle.loads((tmp_path / "raw" / "keypoint" / "scene_0004.pickle").read_bytes())  # noqa: S301
    assert empty == {frame: [] for frame in range(5)}


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        manifest = tmp_path / f"{folder}.json"
        write_scenes(["scene_0001"], tmp_path / folder, manifest, world="objects", views=(), seed=0, **SIZE)
    assert (tmp_path / "first.json").read_text() == (tmp_path / "second.json").read_text()


def test_streets_lie_in_a_folder_of_each_view_and_the_main_one_has_the_caption(tmp_path: Path) -> None:
    size = {"num_frames": 2, "width": 64, "height": 48, "fps": 8.0}
    views = ("pinhole_front", "pinhole_side_left")
    write_scenes(
        ["scene_0001"], tmp_path / "views", tmp_path / "views.json", world="driving", views=views, seed=0, **size
    )
    write_scenes(["scene_0001"], tmp_path / "one", tmp_path / "one.json", world="driving", views=(), seed=0, **size)
    one = ["hdmap/scene_0001.mp4", "lidar/scene_0001.mp4", "scene_0001.mp4", "scene_0001.txt"]
    assert sorted(read_json(tmp_path / "one.json")["files"]) == one
    expected = {f"{view}/{name}" for view in views for name in one} - {"pinhole_side_left/scene_0001.txt"}
    assert set(read_json(tmp_path / "views.json")["files"]) == expected
    same = [sha256_file(tmp_path / folder / "hdmap/scene_0001.mp4") for folder in ("one", "views/pinhole_front")]
    assert same[0] == same[1]
