"""A small ray caster in numpy: solids on a ground plane under a sky, with exact depth and instance numbers.

World axes: x to the right, y away from the viewer, z up, in metres. The ground is the plane z = 0. A ray's parameter t
is depth: ray directions have length one along the optical axis. Shape suffixes: p pixels, n points, 3 coordinates.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""float32 by intent; numpy's type stubs take half of all results for float64."""

SKY = -1
GROUND = 0
EPSILON = 1e-4


def unit(vector: Floats) -> Floats:
    """Return `vector` at length one."""
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def dot(first: Floats, second: Floats) -> Floats:
    """Return scalar products over the last axis; several times as fast as multiplying and summing over three values."""
    return np.einsum("...i,...i->...", first, second)


def turn(axis: Floats, angle_rad: float) -> Floats:
    """Return the rotation matrix (float32 [3, 3]) about `axis` (length one) by `angle_rad`."""
    x, y, z = (float(value) for value in axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return (np.eye(3) + np.sin(angle_rad) * cross + (1 - np.cos(angle_rad)) * (cross @ cross)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera without roll."""

    position: Floats
    target: Floats
    fov_deg: float
    """Vertical field of view."""
    width: int
    height: int

    @cached_property
    def axes(self) -> Floats:
        """Rows: right, down, forward (float32 [3, 3])."""
        forward = unit(self.target - self.position)
        right = unit(np.cross(forward, np.array([0.0, 0.0, 1.0])).astype(np.float32))
        return np.stack([right, np.cross(forward, right).astype(np.float32), forward])

    @property
    def focal_pixels(self) -> float:
        """Focal length in pixels."""
        return 0.5 * self.height / float(np.tan(np.radians(self.fov_deg) / 2))

    def project(self, points_n3: Floats) -> tuple[Floats, Floats]:
        """Return pixel coordinates (float32 [N, 2], x then y, a pixel's centre at .5) and depth (float32 [N])."""
        local = (points_n3 - self.position) @ self.axes.T
        depth = local[:, 2]
        scale = self.focal_pixels / np.maximum(depth, EPSILON)
        centre = np.array([self.width / 2, self.height / 2], dtype=np.float32)
        return (local[:, :2] * scale[:, None] + centre).astype(np.float32), depth

    def rays(self, samples: int) -> Floats:
        """Return ray directions (float32 [H * samples, W * samples, 3]) with one unit of depth each."""
        x = (np.arange(self.width * samples, dtype=np.float32) + 0.5) / samples - self.width / 2
        y = (np.arange(self.height * samples, dtype=np.float32) + 0.5) / samples - self.height / 2
        right, down, forward = self.axes
        rows = (y / self.focal_pixels)[:, None, None] * down + forward
        return rows.astype(np.float32) + (x / self.focal_pixels)[None, :, None].astype(np.float32) * right

    def rectangle(self, centre: Floats, radius: float, samples: int) -> tuple[slice, slice]:
        """Return rows and columns that hold a ball's picture, and more; all where it is near the camera."""
        pixels, depth = self.project(centre[None])
        rows, columns = self.height * samples, self.width * samples
        if depth[0] < 2 * radius:
            # A ball wholly behind the camera has no picture; one about the camera may fill it.
            return (slice(0, 0), slice(0, 0)) if depth[0] < -radius else (slice(0, rows), slice(0, columns))
        x, y = pixels[0]
        # The outline of a ball off the axis reaches further than on it.
        off_axis = ((x - self.width / 2) ** 2 + (y - self.height / 2) ** 2) / self.focal_pixels**2
        reach = 1.1 * self.focal_pixels * radius / np.sqrt(depth[0] ** 2 - radius**2) * (1 + off_axis) + 1

        def span(middle: float, limit: int) -> slice:
            low = int(np.clip(np.floor((middle - reach) * samples), 0, limit))
            return slice(low, int(np.clip(np.ceil((middle + reach) * samples), low, limit)))

        return span(float(y), rows), span(float(x), columns)


@dataclass(frozen=True, kw_only=True)
class Paint:
    """The colour of a solid, in its own coordinates."""

    colour: Floats
    second: Floats
    pattern: str = "plain"
    """plain, stripes (across the x axis), checks or bands (across the z axis)."""
    period: float = 0.5
    """Width of a pair of stripes, in metres."""
    shine: float = 0.25

    def at(self, local_p3: Floats) -> Floats:
        """Return colours (float32 [P, 3], 0 to 1) at points in the solid's coordinates."""
        if self.pattern == "plain":
            return np.broadcast_to(self.colour, local_p3.shape)
        # Just inside the surface: a flat side that lies on a border between stripes would flicker between both.
        steps = np.floor(local_p3 * np.float32(1.998 / self.period) + np.float32(0.5)).astype(np.int32)
        index = {"stripes": steps[:, 0], "bands": steps[:, 2], "checks": steps.sum(axis=1)}[self.pattern]
        return np.where((index % 2 == 0)[:, None], self.colour, self.second)


class Solid(Protocol):
    """A convex body."""

    @property
    def instance(self) -> int:
        """Number from 1; bodies with the same number are one thing."""

    @property
    def paint(self) -> Paint:
        """What colours the body."""

    @property
    def ball(self) -> tuple[Floats, float]:
        """Centre and radius of a ball around the body."""

    def hit(self, origin: Floats, directions_p3: Floats) -> Floats:
        """Return the smallest positive ray parameter of a hit, infinity where there is none (float32 [P]).

        `origin` is one point [3] or one a ray [P, 3].
        """

    def local(self, points_p3: Floats) -> tuple[Floats, Floats]:
        """Return points on the body in its own coordinates, and their outward normals in the world's."""


def _nearest_root(half_b: Floats, square: Floats | float, rest: Floats) -> Floats:
    """Return the first positive solution of square t^2 + 2 half_b t + rest = 0, infinity where there is none."""
    inside = half_b * half_b - square * rest
    root = np.sqrt(np.maximum(inside, 0))
    near = (-half_b - root) / square
    return np.where((inside > 0) & (near > EPSILON), near, np.float32(np.inf)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Sphere:
    """A ball."""

    instance: int
    paint: Paint
    centre: Floats
    radius: float
    rotation: Floats = field(default_factory=lambda: np.eye(3, dtype=np.float32))

    @property
    def ball(self) -> tuple[Floats, float]:
        """See Solid."""
        return self.centre, self.radius

    def hit(self, origin: Floats, directions_p3: Floats) -> Floats:
        """See Solid."""
        offset = origin - self.centre
        half_b = dot(directions_p3, offset)
        square = dot(directions_p3, directions_p3)
        return _nearest_root(half_b, square, dot(offset, offset) - np.float32(self.radius**2))

    def local(self, points_p3: Floats) -> tuple[Floats, Floats]:
        """See Solid."""
        offset = points_p3 - self.centre
        return offset @ self.rotation, offset / np.float32(self.radius)


@dataclass(frozen=True, kw_only=True)
class Box:
    """A cuboid."""

    instance: int
    paint: Paint
    centre: Floats
    half: Floats
    rotation: Floats = field(default_factory=lambda: np.eye(3, dtype=np.float32))

    @property
    def ball(self) -> tuple[Floats, float]:
        """See Solid."""
        return self.centre, float(np.linalg.norm(self.half))

    def hit(self, origin: Floats, directions_p3: Floats) -> Floats:
        """See Solid."""
        start = (origin - self.centre) @ self.rotation
        steps = directions_p3 @ self.rotation
        steps = np.where(np.abs(steps) < 1e-9, np.float32(1e-9), steps)
        first, second = (-self.half - start) / steps, (self.half - start) / steps
        low, high = np.minimum(first, second), np.maximum(first, second)
        near = np.maximum(np.maximum(low[..., 0], low[..., 1]), low[..., 2])
        far = np.minimum(np.minimum(high[..., 0], high[..., 1]), high[..., 2])
        return np.where((near < far) & (near > EPSILON), near, np.float32(np.inf)).astype(np.float32)

    def local(self, points_p3: Floats) -> tuple[Floats, Floats]:
        """See Solid."""
        local = (points_p3 - self.centre) @ self.rotation
        ratio = local / self.half
        axis = np.abs(ratio).argmax(axis=-1)
        rows = np.arange(len(axis))
        return local, np.sign(ratio[rows, axis])[:, None].astype(np.float32) * self.rotation.T[axis]


@dataclass(frozen=True, kw_only=True)
class Cylinder:
    """An upright cylinder."""

    instance: int
    paint: Paint
    centre: Floats
    radius: float
    half_height: float
    rotation: Floats = field(default_factory=lambda: np.eye(3, dtype=np.float32))
    """A turn about the vertical."""

    @property
    def ball(self) -> tuple[Floats, float]:
        """See Solid."""
        return self.centre, float(np.hypot(self.radius, self.half_height))

    def hit(self, origin: Floats, directions_p3: Floats) -> Floats:
        """See Solid."""
        offset = np.broadcast_to(origin - self.centre, directions_p3.shape)
        flat, step = offset[..., :2], directions_p3[..., :2]
        square = np.maximum(dot(step, step), np.float32(1e-12))
        rest = dot(flat, flat) - np.float32(self.radius**2)
        side = _nearest_root(dot(flat, step), square, rest)
        with np.errstate(invalid="ignore", divide="ignore"):
            reach = np.abs(offset[..., 2] + side * directions_p3[..., 2]) <= self.half_height
            slope = directions_p3[..., 2]
            lid = (-np.sign(slope) * np.float32(self.half_height) - offset[..., 2]) / slope
            across = flat + lid[..., None] * step
            on_lid = (dot(across, across) <= self.radius**2) & (lid > EPSILON)
        side = np.where(reach, side, np.float32(np.inf))
        return np.minimum(side, np.where(on_lid, lid, np.float32(np.inf))).astype(np.float32)

    def local(self, points_p3: Floats) -> tuple[Floats, Floats]:
        """See Solid."""
        offset = points_p3 - self.centre
        on_lid = np.abs(offset[:, 2]) > self.half_height - 1e-3
        side = np.concatenate([offset[:, :2] / np.float32(self.radius), np.zeros_like(offset[:, :1])], axis=1)
        lid = np.stack([np.zeros_like(offset[:, 0]), np.zeros_like(offset[:, 0]), np.sign(offset[:, 2])], axis=1)
        return offset @ self.rotation, np.where(on_lid[:, None], lid, side)


@dataclass(frozen=True, kw_only=True)
class Capsule:
    """All points within a radius of a line from one point to another."""

    instance: int
    paint: Paint
    start: Floats
    end: Floats
    radius: float

    @property
    def ball(self) -> tuple[Floats, float]:
        """See Solid."""
        return (self.start + self.end) / 2, float(np.linalg.norm(self.end - self.start)) / 2 + self.radius

    def hit(self, origin: Floats, directions_p3: Floats) -> Floats:
        """See Solid."""
        axis = self.end - self.start
        length2 = float(axis @ axis)
        offset = np.broadcast_to(origin - self.start, directions_p3.shape)
        along_d, along_o = directions_p3 @ axis, offset @ axis
        dd = dot(directions_p3, directions_p3)
        square = np.maximum(dd - along_d * along_d / length2, np.float32(1e-12))
        half_b = dot(directions_p3, offset) - along_d * along_o / length2
        rest = dot(offset, offset) - along_o * along_o / length2 - np.float32(self.radius**2)
        side = _nearest_root(half_b, square, rest)
        with np.errstate(invalid="ignore"):
            place = along_o + side * along_d
        best: Floats = np.where((place >= 0) & (place <= length2), side, np.float32(np.inf))
        for centre in (self.start, self.end):
            away = origin - centre
            end = _nearest_root(dot(directions_p3, away), dd, dot(away, away) - np.float32(self.radius**2))
            best = np.minimum(best, end)
        return best

    def local(self, points_p3: Floats) -> tuple[Floats, Floats]:
        """See Solid."""
        axis = self.end - self.start
        offset = points_p3 - self.start
        share = np.clip(offset @ axis / (axis @ axis), 0, 1)
        normal = (offset - share[:, None] * axis) / np.float32(self.radius)
        return offset, normal


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Ground, sky and light."""

    ground: Floats
    ground_second: Floats
    tile_m: float
    sky_top: Floats
    sky_horizon: Floats
    to_sun: Floats
    """Direction of the light's source, length one."""
    haze_m: float = 40.0
    """Depth at which the ground has faded into the horizon by 63 percent."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One rendered frame."""

    frame: NDArray[np.uint8]
    """RGB [H, W, 3]."""
    depth: Floats
    """Metres along the optical axis at pixel centres [H, W], infinity for the sky."""
    instances: NDArray[np.int32]
    """Instance numbers at pixel centres [H, W]; 0 ground, -1 sky."""


def _cast(camera: Camera, solids: list[Solid], directions: Floats, samples: int) -> tuple[Floats, NDArray[np.int32]]:
    """Return depth and the index of the body (1 up; 0 ground, -1 sky) for each ray."""
    # The camera does not roll, so that a row of pixels meets the ground at one depth.
    slope = directions[:, :1, 2]
    with np.errstate(divide="ignore"):
        row_depth = np.where(slope < -1e-6, -camera.position[2] / slope, np.float32(np.inf)).astype(np.float32)
    depth = np.broadcast_to(row_depth, directions.shape[:2]).copy()
    index = np.where(np.isfinite(depth), GROUND, SKY).astype(np.int32)
    for number, solid in enumerate(solids, start=1):
        part = camera.rectangle(*solid.ball, samples)
        if 0 in depth[part].shape:
            continue
        found = solid.hit(camera.position, directions[part])
        closer = found < depth[part]
        depth[part][closer] = found[closer]
        index[part][closer] = number
    return depth, index


def _paint_surroundings(
    camera: Camera,
    solids: list[Solid],
    light: Surroundings,
    directions: Floats,
    is_ground: NDArray[np.bool_],
    samples: int,
) -> Floats:
    """Return the colours (float32 [H, W, 3]) of sky and ground with shadows; bodies come over it."""
    slope = directions[:, 0, 2]
    colours = np.empty(directions.shape, dtype=np.float32)
    height = np.clip(slope * 2.2, 0, 1)[:, None]
    colours[:] = (light.sky_horizon + (light.sky_top - light.sky_horizon) * height)[:, None]
    horizon = int(np.searchsorted(-slope, 1e-6))
    depth = (-camera.position[2] / slope[horizon:])[:, None, None]
    places = camera.position[:2] + directions[horizon:, :, :2] * depth
    tiles = np.floor(places / np.float32(light.tile_m)).astype(np.int32)
    dark = ((tiles[..., 0] + tiles[..., 1]) % 2).astype(np.float32)[..., None]
    colour = light.ground + (light.ground_second - light.ground) * dark
    _darken(colour, camera, solids, light, places, is_ground[horizon:], horizon, samples)
    haze = np.exp(-depth / np.float32(light.haze_m))
    colours[horizon:] = colour * haze + light.sky_horizon * (1 - haze)
    return colours


def _darken(
    colour: Floats,
    camera: Camera,
    solids: list[Solid],
    light: Surroundings,
    places: Floats,
    is_ground: NDArray[np.bool_],
    horizon: int,
    samples: int,
) -> None:
    """Darken in place the ground's colours ([rows below the horizon, W, 3]) where a body hides the sun."""
    lit = is_ground.copy()
    for solid in solids:
        centre, radius = solid.ball
        # The shadow of a ball is an ellipse; the ball around it has a picture that is known to hold it.
        foot = centre - light.to_sun * np.float32(centre[2] / light.to_sun[2])
        rows, columns = camera.rectangle(foot, radius / float(light.to_sun[2]), samples)
        part = (slice(max(rows.start - horizon, 0), max(rows.stop - horizon, 0)), columns)
        wanted = lit[part]
        ground = places[part][wanted]
        if not len(ground):
            continue
        points = np.concatenate([ground, np.zeros_like(ground[:, :1])], axis=1)
        hidden = np.isfinite(solid.hit(points, np.broadcast_to(light.to_sun, points.shape)))
        shadow = np.zeros_like(wanted)
        shadow[wanted] = hidden
        colour[part][shadow] *= np.float32(0.55)
        lit[part] &= ~shadow


def _shade_solid(solid: Solid, light: Surroundings, camera: Camera, directions_p3: Floats, depth_p: Floats) -> Floats:
    """Return colours (float32 [P, 3]) of points on a body."""
    local, normal = solid.local(camera.position + directions_p3 * depth_p[:, None])
    facing = normal @ light.to_sun
    # Light from the sky and off the ground keeps shaded sides readable.
    shine = 0.50 + 0.10 * normal[:, 2] + 0.5 * np.maximum(facing, 0)
    colour = solid.paint.at(local) * shine[:, None]
    if solid.paint.shine > 0:
        view = -directions_p3 / np.sqrt(dot(directions_p3, directions_p3))[:, None]
        half = view + light.to_sun
        half /= np.sqrt(dot(half, half))[:, None]
        gleam = np.maximum(dot(normal, half), 0) ** 40
        colour = colour + (solid.paint.shine * gleam)[:, None]
    return colour.astype(np.float32)


def render(camera: Camera, solids: list[Solid], light: Surroundings, *, samples: int) -> Picture:
    """Render one frame; colours are the mean of samples x samples rays a pixel, all else is its centre's."""
    depth, index = _cast(camera, solids, camera.rays(1), 1)
    owner = np.array([SKY, GROUND, *(solid.instance for solid in solids)], dtype=np.int32)

    directions = camera.rays(samples)
    fine_depth, fine_index = (depth, index) if samples == 1 else _cast(camera, solids, directions, samples)
    colours = _paint_surroundings(camera, solids, light, directions, fine_index == GROUND, samples)
    for number, solid in enumerate(solids, start=1):
        part = camera.rectangle(*solid.ball, samples)
        mine = fine_index[part] == number
        if mine.any():
            colours[part][mine] = _shade_solid(solid, light, camera, directions[part][mine], fine_depth[part][mine])
    # Slices are summed, since a mean over short inner axes takes several times as long.
    rows = np.add.reduce([colours[start::samples] for start in range(samples)])
    pixels = np.add.reduce([rows[:, start::samples] for start in range(samples)]) * np.float32(255 / samples**2)
    frame: NDArray[np.uint8] = (np.clip(pixels, 0, 255) + 0.5).astype(np.uint8)
    return Picture(frame=frame, depth=depth, instances=owner[index + 1])
