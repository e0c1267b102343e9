"""Rendered streets: the same each time, with map and lidar points that lie over what is seen."""

import numpy as np
import pytest

from worldtune.demo.driving import (
    CAMERA_YAW_DEG,
    MAP_COLOURS,
    Street,
    camera_of,
    car_boxes,
    plan_street,
    render_street,
)

SIZE = {"num_frames": 2, "width": 160, "height": 96, "fps": 8.0}
CAMERAS = tuple(CAMERA_YAW_DEG)


@pytest.fixture(scope="module")
def street() -> Street:
    return render_street("scene_0001", seed=0, cameras=CAMERAS, **SIZE)


def test_a_street_depends_on_its_name_and_seed_alone(street: Street) -> None:
    again = render_street("scene_0001", seed=0, cameras=("pinhole_front",), **SIZE)
    for kind in ("frames", "hdmap", "lidar"):
        assert np.array_equal(getattr(again, kind)["pinhole_front"], getattr(street, kind)["pinhole_front"])
    other = render_street("scene_0001", seed=1, cameras=("pinhole_front",), **SIZE)
    assert not np.array_equal(other.frames["pinhole_front"], street.frames["pinhole_front"])


def test_every_camera_sees_something_else(street: Street) -> None:
    for kind in ("frames", "lidar"):
        videos = [getattr(street, kind)[camera].tobytes() for camera in CAMERAS]
        assert len(set(videos)) == len(CAMERAS)
    assert all(video.shape == (2, 96, 160, 3) for video in street.frames.values())


@pytest.mark.parametrize("name", ["scene_0001", "scene_0002", "scene_0005"])
def test_the_map_outlines_the_car_ahead(name: str) -> None:
    """The car ahead has one bright colour; its pixels lie within the box that the map draws around it."""
    size = {"num_frames": 1, "width": 320, "height": 192}
    rendered = render_street(name, seed=0, cameras=("pinhole_front",), fps=8.0, **size)
    plan = plan_street(name, seed=0)
    camera = camera_of(plan, "pinhole_front", 0.0, width=320, height=192)
    body, _ = car_boxes(plan.cars[0], 0.0)
    pixels, depth = camera.project(body.centre[None])
    assert depth[0] > 0
    x, y = pixels[0].astype(int)
    shown = rendered.frames["pinhole_front"][0, y, x].astype(float)
    expected = np.array(body.paint.colour) * 255
    # Shading darkens a colour and keeps its hue.
    cosine = float(shown @ expected / np.linalg.norm(shown) / np.linalg.norm(expected))
    assert cosine > 0.97
    lines = (rendered.hdmap["pinhole_front"][0] == MAP_COLOURS["car"]).all(axis=-1)
    rows, columns = np.nonzero(lines)
    assert rows.min() <= y <= rows.max()
    assert columns.min() <= x <= columns.max()


def test_lidar_points_lie_on_what_is_near(street: Street) -> None:
    points = street.lidar["pinhole_front"][0].any(axis=-1)
    assert 0.05 < points.mean() < 0.6
    # The sky returns nothing.
    assert not points[:20].any()
    assert points[-20:].any()


def test_captions_name_the_cars() -> None:
    plan = plan_street("scene_0003", seed=0)
    assert f"A {plan.cars[0].colour} car is ahead" in plan.caption
