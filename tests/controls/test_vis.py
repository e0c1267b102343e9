import cv2
import numpy as np
import pytest
from PIL import Image

from worldtune.controls.registry import CONTROL_KINDS
from worldtune.controls.vis import PRESETS, Bilateral, Degradation, Gaussian, degrade, draw_degradation
from worldtune.recipe.schema import VisControl


def bicubic(frame, width, height):
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def test_medium_preset_step_by_step(frames, source_of, config_of):
    small = cv2.resize(frames[0], (32, 24), interpolation=cv2.INTER_AREA)
    blurred = cv2.resize(cv2.bilateralFilter(small, 30, 150, 100), (64, 48), interpolation=cv2.INTER_LINEAR)
    expected = bicubic(bicubic(blurred, 6, 4), 64, 48)
    hint = CONTROL_KINDS["vis"].evaluation(source_of(), config_of("vis")).hint
    assert np.array_equal(hint[0], expected)


def test_bilateral_is_repeated_and_comes_before_the_gaussian(frames):
    degradation = Degradation(
        blur_downscale=1,
        bilateral=Bilateral(diameter=5, sigma_color=80, sigma_space=3, iterations=2),
        gaussian=Gaussian(size=7, sigma=2.0),
        downscale=1,
    )
    once = cv2.bilateralFilter(frames[1], 5, 80, 3)
    expected = cv2.GaussianBlur(cv2.bilateralFilter(once, 5, 80, 3), (7, 7), 2.0)
    assert np.array_equal(degrade(frames, degradation)[1], expected)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("none", (1, 1, 1, 1, 1, 1)),
        ("very_low", (15, 100, 50, 1, 1, 4)),
        ("low", (15, 100, 50, 1, 4, 4)),
        ("medium", (30, 150, 100, 1, 2, 10)),
        ("high", (50, 300, 150, 1, 1, 16)),
        ("very_high", (50, 300, 150, 1, 4, 16)),
    ],
)
def test_presets(name, values):
    found = PRESETS[name]
    blur = found.bilateral
    assert found.gaussian is None
    assert (
        *(blur.diameter, blur.sigma_color, blur.sigma_space, blur.iterations),
        *(found.blur_downscale, found.downscale),
    ) == values


def test_draws_cover_exactly_the_default_ranges():
    rng = np.random.default_rng(0)
    drawn = [draw_degradation(VisControl(), rng) for _ in range(6000)]
    bilateral = [one.bilateral for one in drawn if one.bilateral]
    gaussian = [one.gaussian for one in drawn if one.gaussian]
    assert {one.downscale for one in drawn} == set(range(4, 18))
    assert {one.blur_downscale for one in drawn} == {1, 2, 3, 4}
    assert {one.diameter for one in bilateral} == set(range(15, 50))
    assert {one.sigma_color for one in bilateral} == set(range(100, 300))
    assert {one.sigma_space for one in bilateral} == set(range(50, 150))
    assert {one.iterations for one in bilateral} == {1, 2, 3}
    assert {one.size for one in gaussian} == {21, 23, 25, 27, 29}
    sigmas = [one.sigma for one in gaussian]
    assert 10.5 <= min(sigmas) < 10.51
    assert 14.49 < max(sigmas) <= 14.5
    both = np.mean([one.bilateral is not None and one.gaussian is not None for one in drawn])
    assert np.isclose(both, 0.2, atol=0.02)
    assert np.isclose(np.mean([one.gaussian is None for one in drawn]), 0.5, atol=0.02)


def test_large_frames_are_shrunk_to_720_rows_whatever_is_trained():
    frames = np.zeros((1, 1056, 1920, 3), np.uint8)
    frames[:, 300:] = 255
    hint = degrade(frames, PRESETS["none"])
    assert hint.shape == (1, 704, 1280, 3)
    assert not hint[:, :195].any()
    assert (hint[:, 205:] == 255).all()


def test_frames_smaller_than_the_divisor_are_degraded_too():
    frames = np.full((1, 8, 16, 3), 77, np.uint8)
    assert (degrade(frames, PRESETS["very_high"]) == 77).all()
