import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldtune.common.errors import WorldtuneError
from worldtune.controls.edge import canny
from worldtune.media.geometry import fit, nearest_aspect_ratio
from worldtune.recipe.schema import VIDEO_SIZES_WH


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        ((1280, 720), "16:9"),
        ((640, 480), "4:3"),
        ((1280, 800), "16:9"),
        ((500, 500), "1:1"),
        ((480, 640), "3:4"),
        ((720, 1280), "9:16"),
        ((10000, 10), "16:9"),
    ],
)
def test_nearest_aspect_ratio(size, ratio):
    assert nearest_aspect_ratio(*size) == ratio


def test_example_of_the_format():
    frames = np.random.default_rng(0).integers(0, 256, (2, 720, 1280, 3), dtype=np.uint8)
    result = fit(frames, (1280, 704))
    assert result.frames.shape == (2, 704, 1280, 3)
    assert result.image_size == (704, 1280, 704, 1252)
    assert result.padding_mask.sum() == 704 * 28
    assert result.padding_mask[:, :14].all()
    assert result.padding_mask[:, -14:].all()
    # Reflection leaves out the edge itself.
    assert np.array_equal(result.frames[:, :, 13], result.frames[:, :, 15])


def test_fitting_frames_are_untouched():
    frames = np.random.default_rng(0).integers(0, 256, (2, 96, 160, 3), dtype=np.uint8)
    result = fit(frames, (160, 96))
    assert np.array_equal(result.frames, frames)
    assert not result.padding_mask.any()


def test_padding_wider_than_the_picture_repeats_its_edge():
    frames = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    result = fit(frames, (8, 2))
    assert (result.frames[:, :, :3] == frames[:, :, :1]).all()
    assert (result.frames[:, :, 5:] == frames[:, :, 1:]).all()


def test_a_line_keeps_one_pixel_of_its_width():
    frames = np.full((1, 9000, 2, 3), 7, np.uint8)
    result = fit(frames, (704, 1280))
    assert result.image_size == (1280, 704, 1280, 1)
    assert (result.frames == 7).all()
    assert canny(frames, 100, 200, (704, 1280)).shape == (1, 1280, 1, 3)


def test_smaller_control_is_fitted_like_its_video():
    video = np.zeros((1, 1080, 1916, 3), np.uint8)
    control = np.zeros((1, 704, 1249, 3), np.uint8)
    expected = fit(video, (320, 192))
    result = fit(control, (320, 192), source_wh=(1916, 1080))
    assert result.image_size == expected.image_size
    assert np.array_equal(result.padding_mask, expected.padding_mask)


def test_resize_is_antialiased():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    inner = fit(stripes, (16, 16)).frames[0, :, 2:-2]
    assert np.abs(inner.astype(int) - 128).max() < 12


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 90), st.integers(2, 90))
def test_result_has_the_target_size_and_its_mask_counts_the_padding(width, height):
    target = VIDEO_SIZES_WH["128"][nearest_aspect_ratio(width, height)]
    result = fit(np.zeros((1, height, width, 3), np.uint8), target)
    target_height, target_width, inner_height, inner_width = result.image_size
    assert result.frames.shape == (1, target_height, target_width, 3)
    assert (target_width, target_height) == target
    assert result.padding_mask.sum() == target_height * target_width - inner_height * inner_width
    assert inner_width == target_width or inner_height == target_height


def test_other_types_are_refused():
    with pytest.raises(WorldtuneError, match="float64"):
        fit(np.zeros((1, 8, 8, 3)), (16, 16))
