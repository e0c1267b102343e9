import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldtune.controls import on_device
from worldtune.controls.on_device import TOLERANCE, bilateral, finish, gaussian, gray, linear
from worldtune.controls.registry import gray as gray_frames
from worldtune.controls.vis import PRESETS, degrade, draw_degradation, split
from worldtune.media.geometry import fit
from worldtune.recipe.schema import VisControl


def planes(frames):
    return torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())


def pixels(frames):
    return frames.permute(0, 2, 3, 1).numpy()


def scene(height, width, seed=0):
    """Two frames of areas with borders, shades and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    frames = np.stack([np.stack([rows * 3, columns * 2, rows + columns], axis=-1) % 200] * 2)
    frames[:, height // 3 : height // 2, width // 4 : width // 2] = (250, 5, 90)
    return np.clip(frames + rng.integers(-20, 21, frames.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "values", [(15, 100, 50), (33, 150, 100), (49, 299, 149), (50, 300, 150), (1, 1, 1), (6, 3, 2)]
)
def test_the_bilateral_filter_is_opencvs(values):
    frames = scene(45, 61)
    expected = np.stack([cv2.bilateralFilter(frame, *values) for frame in frames])
    difference = np.abs(pixels(bilateral(planes(frames), *values)).astype(int) - expected)
    # A sum in another order may fall on the other side of a half.
    assert difference.max() <= 1
    assert difference.mean() < 1e-3


def test_a_window_may_be_larger_than_the_frame():
    frames = scene(5, 9)
    expected = np.stack([cv2.bilateralFilter(frame, 31, 100, 50) for frame in frames])
    assert np.abs(pixels(bilateral(planes(frames), 31, 100, 50)).astype(int) - expected).max() <= 1


@given(
    size=st.integers(1, 15).map(lambda half: 2 * half + 1),
    sigma=st.floats(0.5, 20),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_the_gaussian_filter_is_opencvs(size, sigma, height, width):
    frames = scene(height, width)
    expected = np.stack([cv2.GaussianBlur(frame, (size, size), sigma) for frame in frames])
    assert np.abs(pixels(gaussian(planes(frames), size, sigma)).astype(int) - expected).max() <= 1


@given(sides=st.tuples(*4 * [st.integers(1, 60)]))
@settings(max_examples=60, deadline=None)
def test_linear_resizing_is_opencvs(sides):
    height, width, more_height, more_width = sides
    frames = scene(height, width)
    size_hw = (height + more_height, width + more_width)
    expected = np.stack([cv2.resize(frame, size_hw[::-1], interpolation=cv2.INTER_LINEAR) for frame in frames])
    assert np.abs(pixels(linear(planes(frames), size_hw)).astype(int) - expected).max() <= 1


def assert_finished_alike(frames, degradation, size_wh):
    expected = fit(degrade(frames, degradation), size_wh, source_wh=(frames.shape[2], frames.shape[1]))
    begun, steps = split(frames, degradation)
    # What lies outside the frames is not looked at.
    canvas = np.full((2, begun.shape[1] + 3, begun.shape[2] + 5, 3), 255, np.uint8)
    canvas[:, : begun.shape[1], : begun.shape[2]] = begun
    height, width, *resized = expected.image_size
    found = finish(
        torch.from_numpy(canvas.transpose(3, 0, 1, 2).copy()), steps, tuple(resized), (height, width), compiled=False
    )
    difference = np.abs(found.permute(1, 2, 3, 0).numpy().astype(int) - expected.frames)
    assert difference.max() <= TOLERANCE
    assert difference.mean() < 0.1


@pytest.mark.parametrize("downsize_before_blur", [False, True])
def test_drawn_degradations_are_those_of_the_loader(downsize_before_blur, monkeypatch):
    # A frame at a time.
    monkeypatch.setattr(on_device, "PIXELS_AT_ONCE", 1)
    rng = np.random.default_rng(2)
    config = VisControl(downsize_before_blur=downsize_before_blur)
    for size_wh in ((96, 64), (48, 48), (128, 32)):
        assert_finished_alike(scene(63, 85), draw_degradation(config, rng), size_wh)


@pytest.mark.parametrize("name", ["none", "low", "very_high"])
def test_presets_are_those_of_the_loader(name):
    assert_finished_alike(scene(40, 70, seed=3), PRESETS[name], (80, 48))


def test_gray_is_that_of_the_loader():
    frames = scene(9, 11)
    found = gray(torch.from_numpy(frames.transpose(3, 0, 1, 2).copy())[None])[0]
    assert np.array_equal(found.permute(1, 2, 3, 0).numpy(), gray_frames(frames))


@pytest.mark.slow
def test_compiled_code_filters_alike(monkeypatch):
    # Fewer places are compiled sooner.
    monkeypatch.setattr(on_device, "PLACES_AT_ONCE", 2)
    for height, width, diameter in ((24, 32, 9), (17, 41, 14)):
        frames = planes(scene(height, width))
        assert torch.equal(bilateral(frames, diameter, 90, 20, compiled=True), bilateral(frames, diameter, 90, 20))
