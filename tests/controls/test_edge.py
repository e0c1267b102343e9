import cv2
import numpy as np
import pytest

from worldtune.controls.edge import PRESETS, canny, draw_thresholds
from worldtune.recipe.schema import EdgeControl


@pytest.fixture
def square():
    frames = np.zeros((2, 60, 80, 3), np.uint8)
    frames[:, 20:40, 30:50] = (200, 100, 50)
    return frames


def test_edges_of_a_square(square):
    edges = canny(square, *PRESETS["medium"], (160, 96))
    assert edges.shape == (2, 60, 80, 3)
    assert set(np.unique(edges)) == {0, 255}
    assert (edges[..., 0] == edges[..., 1]).all()
    assert (edges[..., 0] == edges[..., 2]).all()
    assert edges[0, 28:32, 27:33].any()
    assert not edges[0, 28:32, 36:44].any()
    assert np.array_equal(edges[0, :, :, 0], cv2.Canny(square[0], 100, 200))


def test_larger_frames_are_shrunk_first(square):
    edges = canny(square, 100, 200, (40, 24))
    assert edges.shape == (2, 24, 32, 3)
    small = cv2.resize(square[0], (32, 24), interpolation=cv2.INTER_AREA)
    assert np.array_equal(edges[0, :, :, 0], cv2.Canny(small, 100, 200))


def test_drawn_thresholds_cover_their_ranges():
    config = EdgeControl(threshold_low_min=20, threshold_low_max=22, threshold_gap_min=50, threshold_gap_max=51)
    rng = np.random.default_rng(0)
    drawn = {draw_thresholds(config, rng) for _ in range(200)}
    assert drawn == {(low, low + gap) for low in (20, 21, 22) for gap in (50, 51)}


def test_upper_threshold_ends_at_255():
    config = EdgeControl(threshold_low_min=200, threshold_low_max=200, threshold_gap_min=100, threshold_gap_max=100)
    assert draw_thresholds(config, np.random.default_rng(0)) == (200, 255)
