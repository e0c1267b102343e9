"""Rendered streets: what cameras on a driving car see, with the road map and the lidar points of each camera.

A street is a function of its name and seed alone. x points to the right, y along the street, z up; metres and seconds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from worldtune.dataset.scenes import scene_number
from worldtune.demo.render import Box, Camera, Floats, Paint, Picture, Solid, Surroundings, render, turn, unit
from worldtune.demo.scenes import COLOURS, SKIES

CAMERA_YAW_DEG = {
    "pinhole_front": 0.0,
    "pinhole_front_left": 45.0,
    "pinhole_front_right": -45.0,
    "pinhole_side_left": 90.0,
    "pinhole_side_right": -90.0,
}
"""Direction of each camera about the vertical axis, to the left of the driving direction."""
CAMERA_CAPTIONS = {
    "pinhole_front": "",
    "pinhole_front_left": "The camera looks ahead to the left.",
    "pinhole_front_right": "The camera looks ahead to the right.",
    "pinhole_side_left": "The camera looks to the left.",
    "pinhole_side_right": "The camera looks to the right.",
}
"""What stands for the caption of a camera that has none of its own."""
MAIN_CAMERA = "pinhole_front"
CAMERA_HEIGHT_M = 1.6
FOV_DEG = 52.0
LANE_M = 3.4
"""Width of each of the two lanes; the ego car drives on the right one."""
EGO_X = LANE_M / 2
CAR_HALF_M = (0.9, 2.1, 0.45)
CABIN_HALF_M = (0.75, 1.05, 0.3)
DASH_M, GAP_M = 2.0, 4.0
SIGHT_M = 70.0
"""How far along the street things are drawn."""
NEAR_M = 0.3
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float32)
EDGES = [(a, b) for a in range(8) for b in range(a) if int(np.abs(CORNERS[a] - CORNERS[b]).sum()) == 2]
"""Pairs of corners of a box that an edge joins."""
MAP_COLOURS = {"kerb": (60, 120, 255), "lane": (255, 220, 60), "car": (80, 230, 90)}
"""Colours of the road map's lines, RGB."""
LIDAR_RINGS = 40
LIDAR_COLUMNS = 96
LIDAR_RANGE_M = 50.0


@dataclass(frozen=True, kw_only=True)
class Car:
    """Another car."""

    colour: str
    x: float
    y: float
    """Place at time 0."""
    speed: float
    """Metres a second along the street; negative towards the viewer."""


@dataclass(frozen=True, kw_only=True)
class StreetPlan:
    """Everything that a street shows, before a picture is made."""

    cars: tuple[Car, ...]
    buildings: tuple[Box, ...]
    speed: float
    """Of the ego car."""
    sky: str
    light: Surroundings

    @property
    def caption(self) -> str:
        """The street in plain sentences."""
        number = {1: "one car", 2: "two cars", 3: "three cars"}[len(self.cars)]
        return f"A street with {number}. A {self.cars[0].colour} car is ahead under {self.sky}."


@dataclass(frozen=True, kw_only=True)
class Street:
    """A rendered street; each video uint8 [T, H, W, 3], by camera."""

    frames: dict[str, NDArray[np.uint8]]
    hdmap: dict[str, NDArray[np.uint8]]
    lidar: dict[str, NDArray[np.uint8]]
    caption: str


def plan_street(name: str, *, seed: int) -> StreetPlan:
    """Return what the street of a scene's name shows."""
    rng = np.random.default_rng((seed, scene_number(name), 1))
    colours = [str(colour) for colour in rng.permutation(list(COLOURS))]
    cars = []
    for index in range(int(rng.integers(1, 4))):
        # The first one is ahead in the own lane; the others come along the other one.
        own_lane = index == 0
        cars.append(
            Car(
                colour=colours[index],
                x=EGO_X if own_lane else -EGO_X,
                y=float(rng.uniform(10, 16)) if own_lane else float(rng.uniform(8, 14) + 14 * (index - 1)),
                speed=float(rng.uniform(5, 8)) if own_lane else float(-rng.uniform(2, 6)),
            )
        )
    sky = str(rng.choice(list(SKIES)))
    light = Surroundings(
        ground=np.array((0.55, 0.60, 0.45), dtype=np.float32),
        ground_second=np.array((0.50, 0.56, 0.41), dtype=np.float32),
        tile_m=2.0,
        sky_top=np.array(SKIES[sky][0], dtype=np.float32),
        sky_horizon=np.array(SKIES[sky][1], dtype=np.float32),
        to_sun=unit(np.array([0.5, -0.4, 1.2], dtype=np.float32)),
    )
    return StreetPlan(
        cars=tuple(cars),
        buildings=tuple(_buildings(rng)),
        speed=float(rng.uniform(5, 8)),
        sky=sky,
        light=light,
    )


def _buildings(rng: np.random.Generator) -> Iterable[Box]:
    for side in (-1, 1):
        y = float(rng.uniform(-12, -4))
        while y < SIGHT_M:
            length, height = float(rng.uniform(4, 8)), float(rng.uniform(2.5, 6))
            colour = COLOURS[str(rng.choice(list(COLOURS)))]
            # Walls are paler than cars.
            pale = 0.55 + 0.35 * np.array(colour, dtype=np.float32)
            yield _box(
                (side * (LANE_M + 6.5), y + length / 2, height / 2), (2.5, length / 2, height / 2), pale, "bands"
            )
            y += length + float(rng.uniform(2, 6))


def _box(
    centre: tuple[float, float, float], half: tuple[float, float, float], colour: Floats, pattern: str = "plain"
) -> Box:
    second = (0.85 * colour).astype(np.float32)
    return Box(
        instance=1,
        paint=Paint(colour=colour.astype(np.float32), second=second, pattern=pattern, period=2.4, shine=0.08),
        centre=np.array(centre, dtype=np.float32),
        half=np.array(half, dtype=np.float32),
    )


def car_boxes(car: Car, time_s: float) -> tuple[Box, Box]:
    """Return body and cabin of a car at a time."""
    y = car.y + car.speed * time_s
    colour = np.array(COLOURS[car.colour], dtype=np.float32)
    body = _box((car.x, y, 0.3 + CAR_HALF_M[2]), CAR_HALF_M, colour)
    top = 0.3 + 2 * CAR_HALF_M[2] + CABIN_HALF_M[2]
    return body, _box((car.x, y - 0.2, top), CABIN_HALF_M, np.array((0.16, 0.2, 0.26), dtype=np.float32))


def _solids(plan: StreetPlan, time_s: float) -> list[Solid]:
    ego_y = plan.speed * time_s
    grey, white = np.full(3, 0.36, dtype=np.float32), np.full(3, 0.93, dtype=np.float32)
    solids: list[Solid] = [_box((0, ego_y + 20, 0), (LANE_M, 60, 0.01), grey)]
    for x in (-LANE_M, LANE_M):
        solids.append(_box((x, ego_y + 20, 0.05), (0.12, 60, 0.07), np.full(3, 0.7, dtype=np.float32)))
    for start in _dashes(ego_y):
        solids.append(_box((0, start + DASH_M / 2, 0.012), (0.08, DASH_M / 2, 0.01), white))
    for car in plan.cars:
        solids += car_boxes(car, time_s)
    return [*solids, *plan.buildings]


def _dashes(ego_y: float) -> list[float]:
    """Return where the dashes of the middle line begin, near a place."""
    period = DASH_M + GAP_M
    first = np.floor((ego_y - 8) / period) * period
    return [float(first + period * index) for index in range(8)]


def camera_of(plan: StreetPlan, name: str, time_s: float, *, width: int, height: int) -> Camera:
    """Return one of the ego car's cameras at a time."""
    forward = turn(np.array([0, 0, 1], dtype=np.float32), float(np.radians(CAMERA_YAW_DEG[name]))) @ np.array([0, 1, 0])
    position = np.array([EGO_X, plan.speed * time_s, CAMERA_HEIGHT_M], dtype=np.float32)
    target = position + forward - np.array([0, 0, 0.06])
    return Camera(position=position, target=target.astype(np.float32), fov_deg=FOV_DEG, width=width, height=height)


def render_street(
    name: str, *, seed: int, num_frames: int, width: int, height: int, fps: float, cameras: Sequence[str]
) -> Street:
    """Render the first `num_frames` frames of a street at `fps` frames a second, as `cameras` see it."""
    plan = plan_street(name, seed=seed)
    videos: dict[str, dict[str, list[NDArray[np.uint8]]]] = {
        kind: {camera: [] for camera in cameras} for kind in ("frames", "hdmap", "lidar")
    }
    for frame in range(num_frames):
        time_s = frame / fps
        solids = _solids(plan, time_s)
        for camera_name in cameras:
            camera = camera_of(plan, camera_name, time_s, width=width, height=height)
            picture = render(camera, solids, plan.light, samples=1)
            videos["frames"][camera_name].append(picture.frame)
            videos["hdmap"][camera_name].append(road_map(plan, camera, time_s))
            videos["lidar"][camera_name].append(lidar_picture(picture))
    stacked = {kind: {camera: np.stack(frames) for camera, frames in by.items()} for kind, by in videos.items()}
    return Street(frames=stacked["frames"], hdmap=stacked["hdmap"], lidar=stacked["lidar"], caption=plan.caption)


def road_map(plan: StreetPlan, camera: Camera, time_s: float) -> NDArray[np.uint8]:
    """Return the lines of lanes, kerbs and cars as a camera sees them, on black; uint8 [H, W, 3]."""
    canvas = np.zeros((camera.height, camera.width, 3), dtype=np.uint8)
    ego_y = plan.speed * time_s
    for x in (-LANE_M, LANE_M):
        _draw_line(canvas, camera, (x, ego_y - 10, 0.1), (x, ego_y + SIGHT_M, 0.1), MAP_COLOURS["kerb"])
    for start in _dashes(ego_y):
        _draw_line(canvas, camera, (0, start, 0), (0, start + DASH_M, 0), MAP_COLOURS["lane"])
    for car in plan.cars:
        for box in car_boxes(car, time_s):
            corners = box.centre + CORNERS * box.half
            for first, second in EDGES:
                _draw_line(canvas, camera, corners[first], corners[second], MAP_COLOURS["car"])
    return canvas


def _draw_line(
    canvas: NDArray[np.uint8],
    camera: Camera,
    start: Sequence[float] | Floats,
    end: Sequence[float] | Floats,
    colour: tuple[int, int, int],
) -> None:
    """Draw a line in space, as far as it lies before the camera."""
    ends = np.array([start, end], dtype=np.float32)
    depth = (ends - camera.position) @ camera.axes[2]
    if depth.max() < NEAR_M:
        return
    if depth.min() < NEAR_M:
        behind = int(depth.argmin())
        share = (NEAR_M - depth[behind]) / (depth[1 - behind] - depth[behind])
        ends[behind] += share * (ends[1 - behind] - ends[behind])
    pixels, _ = camera.project(ends)
    # OpenCV takes 16-bit fractions and overflows on far points.
    pixels = np.clip(pixels, -4 * canvas.shape[1], 5 * canvas.shape[1])
    (x1, y1), (x2, y2) = np.round(pixels - 0.5).astype(int).tolist()
    cv2.line(canvas, (x1, y1), (x2, y2), colour, 2, cv2.LINE_AA)


def lidar_picture(picture: Picture) -> NDArray[np.uint8]:
    """Return points on scan lines, coloured by their depth from red (near) to blue, on black; uint8 [H, W, 3]."""
    height, width = picture.depth.shape
    rows = np.linspace(0.3, 0.98, LIDAR_RINGS) * (height - 1)
    columns = np.linspace(0, width - 1, LIDAR_COLUMNS)
    y, x = (grid.round().astype(int).ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
    depth = picture.depth[y, x]
    seen = depth < LIDAR_RANGE_M
    # The eye tells near distances apart, so the colour follows the logarithm.
    near = 1 - np.log(np.clip(depth[seen], 2, LIDAR_RANGE_M) / 2) / np.log(LIDAR_RANGE_M / 2)
    colours = cv2.applyColorMap((near * 255).astype(np.uint8)[:, None], cv2.COLORMAP_JET)[:, 0, ::-1]
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    for dy, dx in ((0, 0), (0, 1)):
        canvas[np.minimum(y[seen] + dy, height - 1), np.minimum(x[seen] + dx, width - 1)] = colours
    return canvas
