from typing import get_args

import cv2
import numpy as np
import pytest
from PIL import Image

from worldtune.controls.blurs import (
    Bilateral,
    Diffusion,
    Gaussian,
    Guided,
    LaplacianOfGaussian,
    Median,
)
from worldtune.controls.registry import CONTROL_KINDS
from worldtune.controls.vis import PRESETS, Degradation, StepsLeft, degrade, draw_degradation, split
from worldtune.recipe.schema import VisControl, VisPresetName


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
        blurs=(Bilateral(diameter=5, sigma_color=80, sigma_space=3, iterations=2), Gaussian(size=7, sigma=2.0)),
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
    (blur,) = found.blurs
    assert isinstance(blur, Bilateral)
    assert (
        *(blur.diameter, blur.sigma_color, blur.sigma_space, blur.iterations),
        *(found.blur_downscale, found.downscale),
    ) == values


def test_evaluation_takes_the_recipes_preset(frames, source_of, config_of):
    config = config_of("vis", vis={"evaluation_preset": "low"})
    hint = CONTROL_KINDS["vis"].evaluation(source_of(), config).hint
    assert np.array_equal(hint, degrade(frames, PRESETS["low"]))
    assert set(PRESETS) == set(get_args(VisPresetName))


def test_draws_cover_exactly_the_default_ranges():
    rng = np.random.default_rng(0)
    drawn = [draw_degradation(VisControl(), rng) for _ in range(6000)]
    bilateral = [blur for one in drawn for blur in one.blurs if isinstance(blur, Bilateral)]
    gaussian = [blur for one in drawn for blur in one.blurs if isinstance(blur, Gaussian)]
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
    combinations = [tuple(type(blur) for blur in one.blurs) for one in drawn]
    for combination, chance in (((Bilateral,), 0.5), ((Gaussian,), 0.3), ((Bilateral, Gaussian), 0.2)):
        assert np.isclose(np.mean([found == combination for found in combinations]), chance, atol=0.02)


def drawn_blurs(name, count=3000):
    config, rng = VisControl(blurs=((name,),), blur_probabilities=(1.0,)), np.random.default_rng(0)
    return [draw_degradation(config, rng).blurs[0] for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "values", "bounds"),
    [
        ("guided", {"radius": range(41, 50), "subsampling": range(3, 19)}, {"epsilon": (0.1, 0.2)}),
        ("median", {"size": (9, 11, 13, 15)}, {}),
        ("laplacian_of_gaussian", {"size": (3, 5, 7), "threshold": (None, *range(10, 31))}, {"sigma": (0.5, 3.0)}),
        ("anisotropic_diffusion", {"iterations": range(10, 15)}, {"step": (0.2, 0.3), "contrast": (0.1, 0.2)}),
    ],
)
def test_draws_of_the_other_blurs_cover_their_ranges(name, values, bounds):
    drawn = drawn_blurs(name)
    for key, expected in values.items():
        assert {getattr(blur, key) for blur in drawn} == set(expected)
    for key, (low, high) in bounds.items():
        found = [getattr(blur, key) for blur in drawn]
        span = (high - low) / 100
        assert low <= min(found) < low + span
        assert high - span < max(found) <= high
    if name == "laplacian_of_gaussian":
        assert np.isclose(np.mean([blur.threshold is None for blur in drawn]), 0.5, atol=0.05)


BLURS = (
    Guided(radius=9, epsilon=0.02, subsampling=2),
    Median(size=9),
    Diffusion(step=0.25, contrast=0.15, iterations=12),
)


@pytest.mark.parametrize("blur", BLURS, ids=lambda blur: type(blur).__name__)
def test_other_blurs_smooth_areas_and_keep_their_borders(blur):
    noise = np.random.default_rng(0).integers(-12, 13, (48, 64, 3))
    clean = np.full((48, 64, 3), (60, 60, 200))
    clean[:, 32:] = (220, 160, 30)
    blurred = blur.apply((clean + noise).astype(np.uint8)).astype(int)
    assert blurred.shape == (48, 64, 3)
    for half in (np.s_[8:40, 4:24], np.s_[8:40, 40:60]):
        assert (blurred - clean)[half].std() < 0.6 * noise[half].std()
    assert abs(blurred - clean)[8:40, 30:34].max() < 40
    flat = np.full((20, 30, 3), (10, 90, 255), np.uint8)
    assert np.array_equal(blur.apply(flat), flat)


def test_guided_filter_without_subsampling_is_its_formula_at_each_pixel():
    frame = np.random.default_rng(1).integers(0, 256, (14, 15, 3)).astype(np.uint8)
    found = Guided(radius=2, epsilon=0.01, subsampling=1).apply(frame)
    colors = frame / 255

    def window(row, column):
        return colors[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3)

    # The middle alone, whose windows and those of its neighbours lie within the frame.
    for row, column in ((6, 7), (7, 6)):
        fits = []
        for other_row, other_column in np.ndindex(5, 5):
            pixels = window(row + other_row - 2, column + other_column - 2)
            covariance = np.cov(pixels.T, bias=True)
            slope = np.linalg.inv(covariance + 0.01 * np.eye(3)) @ covariance
            fits.append((slope, pixels.mean(axis=0) - pixels.mean(axis=0) @ slope))
        slopes, offsets = (np.mean(parts, axis=0) for parts in zip(*fits, strict=True))
        expected = colors[row, column] @ slopes + offsets
        assert np.abs(found[row, column] - 255 * expected).max() <= 0.51


def test_outlines_lie_at_borders_and_may_be_black_and_white():
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[:, 30:] = 200
    soft = LaplacianOfGaussian(size=5, sigma=1.4, threshold=None).apply(frame)
    assert soft[:, 27:33].max() > 30
    assert not soft[:, :20].any()
    assert not soft[:, 40:].any()
    hard = LaplacianOfGaussian(size=5, sigma=1.4, threshold=20).apply(frame)
    assert np.array_equal(hard, np.where(soft > 20, 255, 0))


def test_downsizing_before_the_blur_takes_the_place_of_that_after(frames):
    degradation = Degradation(
        blur_downscale=2, blurs=(Gaussian(size=3, sigma=1.0),), downscale=3, downsize_before_blur=True
    )
    small = cv2.resize(frames[0], (21, 16), interpolation=cv2.INTER_AREA)
    smaller = cv2.GaussianBlur(cv2.resize(small, (10, 8), interpolation=cv2.INTER_AREA), (3, 3), 1.0)
    expected = smaller
    for size_wh in ((21, 16), (64, 48)):
        expected = cv2.resize(expected, size_wh, interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(degrade(frames, degradation)[0], expected)


@pytest.mark.parametrize(
    ("blurs", "iterations", "size"),
    [
        ((Median(size=3), BLURS[2]), 0, 1),
        ((Median(size=3), Bilateral(diameter=5, sigma_color=80, sigma_space=3, iterations=2)), 2, 1),
        ((Bilateral(diameter=5, sigma_color=80, sigma_space=3, iterations=2), Median(size=3)), 0, 1),
        ((Gaussian(size=3, sigma=1.0), Gaussian(size=5, sigma=2.0)), 0, 5),
        ((), 0, 1),
    ],
)
def test_what_the_device_cannot_do_is_done_before(frames, blurs, iterations, size):
    begun, steps = split(frames, Degradation(blur_downscale=2, blurs=blurs, downscale=4))
    assert (steps.iterations, steps.gaussian_size) == (iterations, size)
    assert (steps.shrunk_width, steps.shrunk_height, steps.downscale) == (64, 48, 4)
    assert begun.shape == (4, steps.height, steps.width, 3) == (4, 24, 32, 3)
    expected = cv2.resize(frames[0], (32, 24), interpolation=cv2.INTER_AREA)
    for blur in blurs[: len(blurs) - (iterations > 0) - (size > 1)]:
        expected = blur.apply(expected)
    assert np.array_equal(begun[0], expected)
    assert StepsLeft.from_values(steps.to_array().tolist()) == steps


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
