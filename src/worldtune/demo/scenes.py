"""Scenes of the embedded dataset: what stands and moves where, in pictures and in words.

A scene is a function of its number, the seed and the size of the pictures alone. Time runs in seconds, so that more
frames continue a scene and another frame rate samples the same motion.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from worldtune.dataset.scenes import scene_number
from worldtune.demo.figure import SKIN, Walker, walk
from worldtune.demo.render import (
    Box,
    Camera,
    Cylinder,
    Floats,
    Paint,
    Picture,
    Solid,
    Sphere,
    Surroundings,
    render,
    turn,
    unit,
)
from worldtune.formats.keypoints import NUM_KEYPOINTS

NUM_JOINTS = 23
"""Keypoints of body and feet, which lie inside the person."""
SKIN_M = 0.09
"""How far points of face and hands may lie behind what is seen at their place: a hand is as thick."""
MIDDLE_S = 0.75
"""When moving things pass the places that the layout gave them."""

COLOURS = {
    "red": (0.90, 0.16, 0.14),
    "orange": (0.98, 0.52, 0.08),
    "yellow": (0.99, 0.83, 0.14),
    "green": (0.15, 0.66, 0.28),
    "turquoise": (0.10, 0.72, 0.72),
    "blue": (0.13, 0.34, 0.88),
    "purple": (0.52, 0.22, 0.76),
    "pink": (0.97, 0.45, 0.68),
    "white": (0.97, 0.97, 0.95),
}
GROUNDS = {
    "sand": ((0.80, 0.71, 0.55), (0.75, 0.66, 0.50)),
    "grass": ((0.47, 0.63, 0.34), (0.42, 0.58, 0.30)),
    "grey stone": ((0.62, 0.63, 0.66), (0.56, 0.57, 0.60)),
    "brown clay": ((0.66, 0.50, 0.36), (0.60, 0.45, 0.32)),
    "snow": ((0.87, 0.89, 0.93), (0.81, 0.84, 0.89)),
}
SKIES = {
    "a clear blue sky": ((0.25, 0.50, 0.88), (0.76, 0.87, 0.97)),
    "an evening sky": ((0.27, 0.26, 0.50), (0.98, 0.72, 0.52)),
    "a pale grey sky": ((0.60, 0.66, 0.73), (0.88, 0.90, 0.92)),
    "a turquoise sky": ((0.14, 0.52, 0.60), (0.80, 0.93, 0.88)),
}
MOTIONS = {
    "sphere": ("rolls to the left", "rolls to the right", "bounces up and down", "stands still"),
    "box": ("slides to the left", "slides to the right", "turns in place", "stands still"),
    "cylinder": ("slides to the left", "slides to the right", "turns in place", "stands still"),
}
CAMERA_MOTIONS = (
    "stands still",
    "turns to the left",
    "turns to the right",
    "circles to the left",
    "circles to the right",
    "moves forward",
    "rises",
)
CLOTHES = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "white")
TROUSERS = {
    "dark blue": (0.12, 0.16, 0.36),
    "black": (0.10, 0.10, 0.12),
    "brown": (0.36, 0.22, 0.14),
    "beige": (0.80, 0.72, 0.56),
}
HAIR = {"black": (0.07, 0.06, 0.06), "brown": (0.30, 0.18, 0.10), "blond": (0.85, 0.70, 0.38)}

Shape = Literal["sphere", "box", "cylinder"]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One solid and how it moves."""

    shape: Shape
    colour: str
    pattern: str
    second: str
    place: tuple[float, float]
    """Where it stands at MIDDLE_S."""
    size: tuple[float, float, float]
    """Half lengths along x, y, z; a sphere's and a cylinder's radius is the first."""
    motion: str
    speed: float
    """Metres or radians a second, or bounces."""
    yaw: float

    @property
    def phrase(self) -> str:
        """The thing in two or three words."""
        return f"{self.colour} {self.shape}" if self.pattern == "plain" else f"{self.colour} patterned {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a scene shows, before a picture is made."""

    name: str
    things: tuple[Thing, ...]
    walker: Walker | None
    walker_phrase: str
    walker_motion: str
    ground: str
    sky: str
    light: Surroundings
    camera_motion: str
    camera_speed: float
    camera_distance: float
    camera_height: float
    camera_side: float

    @property
    def caption(self) -> str:
        """The scene in plain sentences."""
        sentences = []
        for thing in self.things:
            pattern = {"plain": "", "checks": f" with {thing.second} checks"}.get(
                thing.pattern, f" with {thing.second} stripes"
            )
            sentences.append(f"{_article(thing.colour)} {thing.colour} {thing.shape}{pattern} {thing.motion}.")
        if self.walker is not None:
            sentences.insert(0, f"A {self.walker_phrase} {self.walker_motion}.")
        sentences.append(f"The ground is {self.ground} under {self.sky}.")
        sentences.append(f"The camera {self.camera_motion}.")
        return " ".join(sentences)

    @property
    def phrases(self) -> tuple[str, ...]:
        """One phrase an instance, by instance number from 1."""
        phrases = tuple(thing.phrase for thing in self.things)
        return phrases if self.walker is None else (*phrases, self.walker_phrase)


@dataclass(frozen=True, kw_only=True)
class RenderedScene:
    """A clip and what the renderer knows of it."""

    name: str
    fps: float
    frames: NDArray[np.uint8]
    """RGB [T, H, W, 3]."""
    depth: NDArray[np.float32]
    """Metres along the optical axis at pixel centres [T, H, W]; infinity for the sky."""
    instance_masks: NDArray[np.bool_]
    """Visible pixels of each thing [K, T, H, W]."""
    phrases: tuple[str, ...]
    """What each mask shows, in its order."""
    keypoints: tuple[NDArray[np.float32], ...]
    """For each frame its people [people, 133, 3]: x, y as shares of width and height, and confidence; COCO-WholeBody's
    order. Confidence is 1 where a point is seen, 0.3 where another thing hides it, or the person itself a point of
    its face or hands, 0 outside the picture."""
    caption: str


def _article(word: str) -> str:
    return "An" if word[0] in "aeiou" else "A"


def plan_scene(name: str, *, seed: int) -> Plan:
    """Return what the scene shows."""
    number = scene_number(name)
    rng = np.random.default_rng((seed, number))
    ground, sky = str(rng.choice(list(GROUNDS))), str(rng.choice(list(SKIES)))
    with_walker = number % 2 == 1
    # The walker's lane is kept free of things.
    lane_y = float(rng.uniform(-0.9, -0.3))
    things = _place_things(rng, int(rng.integers(2, 4 if with_walker else 5)), lane_y if with_walker else None)
    walker, phrase, motion = _plan_walker(rng, len(things) + 1, lane_y) if with_walker else (None, "", "")
    sun = np.array([rng.choice([-1, 1]) * rng.uniform(0.4, 0.9), -rng.uniform(0.3, 0.8), rng.uniform(1.0, 1.5)])
    light = Surroundings(
        ground=np.array(GROUNDS[ground][0], dtype=np.float32),
        ground_second=np.array(GROUNDS[ground][1], dtype=np.float32),
        tile_m=float(rng.uniform(0.8, 1.2)),
        sky_top=np.array(SKIES[sky][0], dtype=np.float32),
        sky_horizon=np.array(SKIES[sky][1], dtype=np.float32),
        to_sun=unit(sun.astype(np.float32)),
    )
    return Plan(
        name=name,
        things=things,
        walker=walker,
        walker_phrase=phrase,
        walker_motion=motion,
        ground=ground,
        sky=sky,
        light=light,
        camera_motion=str(rng.choice(CAMERA_MOTIONS)),
        camera_speed=float(rng.uniform(0.8, 1.2)),
        camera_distance=float(rng.uniform(5.6, 6.6)),
        camera_height=float(rng.uniform(1.4, 2.6)),
        camera_side=float(rng.uniform(-1.0, 1.0)),
    )


def _place_things(rng: np.random.Generator, count: int, lane_y: float | None) -> tuple[Thing, ...]:
    """Draw solids that keep clear of each other's paths and of the walker's lane."""
    colours = [str(colour) for colour in rng.permutation(list(COLOURS))]
    taken: list[tuple[float, float, float, float]] = []
    things: list[Thing] = []
    while len(things) < count:
        shape: Shape = ("sphere", "box", "cylinder")[int(rng.integers(3))]
        # The first one moves, so that no scene is a still.
        motion = str(rng.choice(MOTIONS[shape][: None if things else 3]))
        width, depth, height = (float(value) for value in rng.uniform((0.42, 0.42, 0.45), (0.75, 0.75, 0.9)))
        speed = float(rng.uniform(1.0, 1.8))
        reach = (speed if "to the" in motion else 0.0) + float(np.hypot(width, depth))
        x, y = float(rng.uniform(-2.5, 2.5)), float(rng.uniform(-1.2, 2.4))
        crowded = any(abs(x - x2) < reach + r2 and abs(y - y2) < depth + d2 + 0.25 for x2, y2, r2, d2 in taken)
        in_lane = lane_y is not None and abs(y - lane_y) < 0.4 + depth
        if crowded or in_lane:
            # Without room left, the last ones to come stand further back.
            if rng.uniform() > 0.02:
                continue
            y = max((y2 + d2 for _, y2, _, d2 in taken), default=1.0) + depth + 0.4
            y = max(y, 1.0 + depth)
        taken.append((x, y, reach, depth))
        pattern = ("stripes", "checks")[int(rng.integers(2))] if _shows_turning(motion) else "plain"
        things.append(
            Thing(
                shape=shape,
                colour=colours[len(things)],
                pattern=pattern,
                second="white" if colours[len(things)] != "white" else "blue",
                place=(x, y),
                size=(width, width if shape != "box" else depth, height),
                motion=motion,
                speed=speed,
                yaw=float(rng.uniform(0, 2 * np.pi)),
            )
        )
    return tuple(things)


def _shows_turning(motion: str) -> bool:
    return motion.startswith(("rolls", "turns"))


def _plan_walker(rng: np.random.Generator, instance: int, lane_y: float) -> tuple[Walker, str, str]:
    """Draw the person: the walker, its phrase and its motion in words."""
    shirt, trousers = str(rng.choice(CLOTHES)), str(rng.choice(list(TROUSERS)))
    direction = ("left", "right")[int(rng.integers(2))]
    heading = (np.pi if direction == "left" else 0.0) + float(rng.uniform(-0.12, 0.12))
    walker = Walker(
        instance=instance,
        middle=(float(rng.uniform(-0.8, 0.8)), lane_y),
        middle_s=MIDDLE_S,
        heading_rad=heading,
        speed_m_s=float(rng.uniform(1.1, 1.7)),
        phase=float(rng.uniform()),
        skin=np.array(SKIN[str(rng.choice(list(SKIN)))], dtype=np.float32),
        hair=np.array(HAIR[str(rng.choice(list(HAIR)))], dtype=np.float32),
        shirt=np.array(COLOURS[shirt], dtype=np.float32),
        trousers=np.array(TROUSERS[trousers], dtype=np.float32),
        shoes=np.array((0.15, 0.13, 0.13), dtype=np.float32),
    )
    return walker, f"person in a {shirt} shirt and {trousers} trousers", f"walks to the {direction}"


def _solid(thing: Thing, instance: int, time_s: float) -> Solid:
    """Return the body of a thing at a time."""
    x, y = thing.place
    width, depth, height = thing.size
    up, right = np.array([0, 0, 1], dtype=np.float32), np.array([1, 0, 0], dtype=np.float32)
    z = width if thing.shape == "sphere" else height
    rotation = turn(up, thing.yaw)
    if thing.motion.endswith(("to the left", "to the right")):
        along = thing.speed * (time_s - MIDDLE_S) * (-1 if thing.motion.endswith("left") else 1)
        x += along
        if thing.shape == "sphere":
            # A ball that rolls towards +x turns about +y.
            rotation = turn(np.cross(up, right).astype(np.float32), along / width) @ rotation
    elif thing.motion.startswith("bounces"):
        z += 1.1 * abs(float(np.sin(np.pi * (0.9 * time_s * thing.speed + thing.yaw))))
    elif thing.motion.startswith("turns"):
        rotation = turn(up, thing.yaw + thing.speed * time_s)
    paint = Paint(
        colour=np.array(COLOURS[thing.colour], dtype=np.float32),
        second=np.array(COLOURS[thing.second], dtype=np.float32),
        pattern=thing.pattern,
        period=0.8 * width if thing.pattern == "stripes" else width,
        shine=0.35 if thing.shape == "sphere" else 0.12,
    )
    centre = np.array([x, y, z], dtype=np.float32)
    if thing.shape == "sphere":
        return Sphere(instance=instance, paint=paint, centre=centre, radius=width, rotation=rotation)
    if thing.shape == "box":
        half = np.array([width, depth, height], dtype=np.float32)
        return Box(instance=instance, paint=paint, centre=centre, half=half, rotation=rotation)
    return Cylinder(instance=instance, paint=paint, centre=centre, radius=width, half_height=height, rotation=rotation)


def camera_at(plan: Plan, time_s: float, *, width: int, height: int) -> Camera:
    """Return the camera at a time."""
    position = np.array([plan.camera_side, -plan.camera_distance, plan.camera_height])
    target = np.array([0.0, 0.3, 0.75])
    step = plan.camera_speed * (time_s - MIDDLE_S)
    sign = -1 if plan.camera_motion.endswith("left") else 1
    if plan.camera_motion.startswith("turns"):
        target[0] += sign * 1.1 * step
    elif plan.camera_motion.startswith("circles"):
        angle = 0.28 * sign * step
        x, y = position[0], position[1] - target[1]
        position[0] = x * np.cos(angle) - y * np.sin(angle)
        position[1] = target[1] + x * np.sin(angle) + y * np.cos(angle)
    elif plan.camera_motion == "moves forward":
        position[1] += 1.3 * step
    elif plan.camera_motion == "rises":
        position[2] = max(0.5, position[2] + 0.9 * step)
    return Camera(
        position=position.astype(np.float32), target=target.astype(np.float32), fov_deg=38, width=width, height=height
    )


def bodies_at(plan: Plan, time_s: float) -> tuple[list[Solid], Floats | None]:
    """Return all bodies at a time, and the person's keypoints (float32 [133, 3], metres) where there is one."""
    bodies = [_solid(thing, instance, time_s) for instance, thing in enumerate(plan.things, start=1)]
    if plan.walker is None:
        return bodies, None
    limbs, joints = walk(plan.walker, time_s)
    return bodies + limbs, joints


def render_scene(
    name: str, *, seed: int, num_frames: int, width: int, height: int, fps: float, samples: int = 2
) -> RenderedScene:
    """Render a scene's first `num_frames` frames at `fps` frames a second.

    Args:
        name: one of `scene_names`.
        seed: another seed gives another scene of that name.
        num_frames: frames from time 0 on.
        width: pixels.
        height: pixels.
        fps: frames a second.
        samples: rays along each side of a pixel; 1 is fast and has jagged edges.
    """
    plan = plan_scene(name, seed=seed)
    pictures, people = [], []
    for frame in range(num_frames):
        time_s = frame / fps
        camera = camera_at(plan, time_s, width=width, height=height)
        bodies, joints = bodies_at(plan, time_s)
        picture = render(camera, bodies, plan.light, samples=samples)
        pictures.append(picture)
        people.append(_keypoints(camera, joints, picture, len(plan.phrases)))
    instances = np.stack([picture.instances for picture in pictures])
    return RenderedScene(
        name=name,
        fps=fps,
        frames=np.stack([picture.frame for picture in pictures]),
        depth=np.stack([picture.depth for picture in pictures]),
        instance_masks=np.stack([instances == number for number in range(1, len(plan.phrases) + 1)]),
        phrases=plan.phrases,
        keypoints=tuple(people),
        caption=plan.caption,
    )


def _keypoints(camera: Camera, points_n3: Floats | None, picture: Picture, instance: int) -> NDArray[np.float32]:
    """Return the people of a frame (float32 [people, 133, 3]); see RenderedScene."""
    if points_n3 is None:
        return np.zeros((0, NUM_KEYPOINTS, 3), dtype=np.float32)
    person = np.zeros((1, NUM_KEYPOINTS, 3), dtype=np.float32)
    pixels, depth = camera.project(points_n3)
    for row, ((x, y), away) in enumerate(zip(pixels, depth, strict=True)):
        if away > 0 and 0 <= x < camera.width and 0 <= y < camera.height:
            at = int(y), int(x)
            seen = picture.instances[at] == instance and (row < NUM_JOINTS or away - picture.depth[at] <= SKIN_M)
            person[0, row] = x / camera.width, y / camera.height, 1.0 if seen else 0.3
    return person
