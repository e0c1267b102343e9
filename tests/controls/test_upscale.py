import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from worldtune.controls.registry import CONTROL_KINDS
from worldtune.controls.upscale import crop_size, lower

UPSCALE = CONTROL_KINDS["upscale"]


@pytest.fixture
def numbered():
    """Frames whose pixels tell their row and column."""
    rows, columns = np.mgrid[:48, :64].astype(np.uint8)
    return np.stack([np.stack([rows, columns, rows], axis=-1)] * 2)


def test_crops_of_training_lie_anywhere_and_hints_are_of_the_crop(numbered, source_of, config_of):
    rng, corners = np.random.default_rng(0), set()
    source = source_of(frames=numbered, size_wh=(60, 46))
    for _ in range(150):
        controlled = UPSCALE.training(source, config_of("upscale"), rng)
        assert controlled.video.shape == controlled.hint.shape == (2, 46, 60, 3)
        top, left = (int(part) for part in controlled.video[0, 0, 0, :2])
        assert np.array_equal(controlled.video, numbered[:, top : top + 46, left : left + 60])
        assert any(np.array_equal(controlled.hint, lower(controlled.video, divisor)) for divisor in (6, 3, 2))
        corners.add((top, left))
    assert corners == {(top, left) for top in range(3) for left in range(5)}


def test_divisors_are_drawn_with_their_probabilities(frames, source_of, config_of):
    source, rng = source_of(frames=frames[:1], size_wh=(64, 48)), np.random.default_rng(0)
    hints = {divisor: lower(frames[:1], divisor) for divisor in (6, 3, 2)}
    drawn = [UPSCALE.training(source, config_of("upscale"), rng).hint for _ in range(1000)]
    for divisor, chance in ((6, 0.3), (3, 0.5), (2, 0.2)):
        assert np.isclose(np.mean([np.array_equal(hint, hints[divisor]) for hint in drawn]), chance, atol=0.05)


def test_evaluation_is_the_middle_in_a_third_of_the_resolution(frames, source_of, config_of):
    controlled = UPSCALE.evaluation(source_of(size_wh=(32, 24)), config_of("upscale"))
    assert np.array_equal(controlled.video, frames[:, 12:36, 16:48])
    small = Image.fromarray(controlled.video[0]).resize((10, 8), Image.Resampling.BICUBIC)
    expected = np.asarray(small.resize((32, 24), Image.Resampling.BILINEAR))
    assert np.abs(controlled.hint[0].astype(int) - expected).max() <= 1


@given(st.tuples(*4 * [st.integers(8, 2000)]))
def test_crops_lie_in_the_frame_and_keep_the_aspect_ratio(sides):
    source, target = sides[:2], sides[2:]
    width, height = crop_size(source, target)
    assert 1 <= width <= min(source[0], target[0])
    assert 1 <= height <= min(source[1], target[1])
    assert (width in (source[0], target[0])) or (height in (source[1], target[1]))
    # Within the rounding of one side.
    assert abs(width * target[1] - height * target[0]) <= max(target)


def test_small_frames_are_cropped_no_more_than_their_aspect_ratio_needs(frames, source_of, config_of):
    controlled = UPSCALE.evaluation(source_of(size_wh=(1280, 704)), config_of("upscale"))
    assert controlled.video.shape == controlled.hint.shape == (4, 35, 64, 3)
