"""The ray caster knows depth, instances and projections exactly."""

import numpy as np
import pytest

from worldtune.demo.render import Box, Camera, Capsule, Cylinder, Paint, Solid, Sphere, Surroundings, render, unit

UP = np.float32([0, 0, 0.3])
RED = Paint(colour=np.float32([1, 0, 0]), second=np.float32([1, 1, 1]))
LIGHT = Surroundings(
    ground=np.float32([0.5, 0.5, 0.5]),
    ground_second=np.float32([0.4, 0.4, 0.4]),
    tile_m=1.0,
    sky_top=np.float32([0.2, 0.4, 0.9]),
    sky_horizon=np.float32([0.8, 0.9, 1.0]),
    to_sun=unit(np.float32([0.5, -0.5, 1.0])),
)
CAMERA = Camera(position=np.float32([0, -6, 1.5]), target=np.float32([0, 0, 1.0]), fov_deg=40, width=96, height=64)


def solids_at(centre: np.ndarray) -> list[Solid]:
    return [
        Sphere(instance=1, paint=RED, centre=centre, radius=0.5),
        Box(instance=1, paint=RED, centre=centre, half=np.float32([0.5, 0.5, 0.5])),
        Cylinder(instance=1, paint=RED, centre=centre, radius=0.5, half_height=0.5),
        Capsule(instance=1, paint=RED, start=centre - UP, end=centre + UP, radius=0.5),
    ]


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("place", [(0, 0, 1.0), (-1.3, 1.0, 0.8), (1.2, -1.0, 1.2)])
def test_depth_at_the_centre_is_that_of_the_surface(kind: int, place: tuple[float, float, float]) -> None:
    centre = np.float32(place)
    picture = render(CAMERA, [solids_at(centre)[kind]], LIGHT, samples=1)
    (pixel,), (depth,) = CAMERA.project(centre[None])
    row, column = int(pixel[1]), int(pixel[0])
    assert picture.instances[row, column] == 1
    # The surface is nearer than the centre by between the smallest and the largest half width.
    assert depth - 0.5 * np.sqrt(3) < picture.depth[row, column] < depth - 0.4


def test_sphere_depth_reprojects_onto_the_sphere() -> None:
    centre = np.float32([0.4, 0.3, 1.1])
    picture = render(CAMERA, [Sphere(instance=1, paint=RED, centre=centre, radius=0.6)], LIGHT, samples=1)
    hit = picture.instances == 1
    assert hit.sum() > 200
    points = CAMERA.position + CAMERA.rays(1)[hit] * picture.depth[hit][:, None]
    np.testing.assert_allclose(np.linalg.norm(points - centre, axis=1), 0.6, atol=1e-4)


def test_ground_depth_reprojects_onto_the_ground() -> None:
    picture = render(CAMERA, [], LIGHT, samples=1)
    ground = picture.instances == 0
    points = CAMERA.position + CAMERA.rays(1)[ground] * picture.depth[ground][:, None]
    np.testing.assert_allclose(points[:, 2], 0, atol=2e-3)
    assert np.isinf(picture.depth[picture.instances == -1]).all()


def test_the_nearer_body_covers_the_other() -> None:
    near = Sphere(instance=1, paint=RED, centre=np.float32([0, -1, 1]), radius=0.4)
    far = Box(instance=2, paint=RED, centre=np.float32([0, 1, 1]), half=np.float32([0.8, 0.2, 0.8]))
    both, alone = (render(CAMERA, bodies, LIGHT, samples=1) for bodies in ([far, near], [far]))
    covered = (both.instances == 1) & (alone.instances == 2)
    assert covered.any()
    assert (both.depth[covered] < alone.depth[covered]).all()
    np.testing.assert_array_equal(both.depth[both.instances == 2], alone.depth[both.instances == 2])


@pytest.mark.parametrize("kind", range(4))
def test_the_rectangle_of_a_body_cuts_nothing_off(kind: int) -> None:
    for place in ((-2.4, 0, 0.6), (2.2, -2.5, 2.0), (0, -5.0, 1.2)):
        body = solids_at(np.float32(place))[kind]
        found = body.hit(CAMERA.position, CAMERA.rays(1))
        inside = np.zeros(found.shape, dtype=bool)
        inside[CAMERA.rectangle(*body.ball, 1)] = True
        assert not (np.isfinite(found) & ~inside).any()


def test_a_body_darkens_the_ground_behind_it_from_the_sun() -> None:
    body = Sphere(instance=1, paint=RED, centre=np.float32([0, 0, 1.0]), radius=0.4)
    lit, shaded = (render(CAMERA, bodies, LIGHT, samples=2).frame for bodies in ([], [body]))
    foot = body.centre - LIGHT.to_sun * body.centre[2] / LIGHT.to_sun[2]
    x, y = CAMERA.project(foot[None])[0][0]
    assert shaded[int(y), int(x)].sum() < 0.8 * lit[int(y), int(x)].sum()
