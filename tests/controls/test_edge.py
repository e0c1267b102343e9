import cv2
import numpy as np
import pytest

from worldtune.controls.edge import PRESETS, canny, draw_thresholds
from worldtune.controls.registry import CONTROL_KINDS
from worldtune.media.video import write_video
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


def test_training_uses_one_pair_of_thresholds_for_the_window(frames, source_of, config_of):
    thresholds = draw_thresholds(EdgeControl(), np.random.default_rng(5))
    hint = CONTROL_KINDS["edge"].training(source_of(), config_of("edge"), np.random.default_rng(5)).hint
    assert np.array_equal(hint, canny(frames, *thresholds, (960, 704)))


def test_evaluation_reads_the_stored_map_of_shrunk_frames(tmp_path, source_of, config_of):
    frames = np.random.default_rng(0).integers(0, 256, (3, 720, 1280, 3), dtype=np.uint8)
    stored = canny(frames, *PRESETS["medium"], (1280, 704))
    write_video(tmp_path / "edge.mkv", stored[..., 0], 24, lossless=True)
    source = source_of(tmp_path / "edge.mkv", start=1, frames=frames[1:])
    hint = CONTROL_KINDS["edge"].evaluation(source, config_of("edge")).hint
    assert hint.shape == (2, 704, 1252, 3)
    assert np.array_equal(hint, stored[1:])


def test_draws_cover_exactly_the_default_ranges():
    rng = np.random.default_rng(0)
    drawn = [draw_thresholds(EdgeControl(), rng) for _ in range(20000)]
    assert {low for low, _ in drawn} == set(range(20, 100))
    assert {high - low for low, high in drawn} == set(range(50, 150))
