import cv2
import numpy as np
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.controls.adherence import edge_adherence, frame_scores, tolerance_pixels


def scores_pixel_by_pixel(drawn: np.ndarray, true: np.ndarray, radius: int) -> tuple[float, float, float]:
    """The definition, without images: each edge pixel's distance to each of the other map."""

    def near(ones: np.ndarray, others: np.ndarray) -> float:
        here, there = np.argwhere(ones), np.argwhere(others)
        if not len(here):
            return 1.0
        found = [any(np.sqrt(((pixel - other) ** 2).sum()) <= radius for other in there) for pixel in here]
        return sum(found) / len(here)

    precision, recall = near(drawn, true), near(true, drawn)
    return (
        precision,
        recall,
        0.0 if precision + recall == 0 else 2 / (1 / precision + 1 / recall) if precision * recall else 0.0,
    )


@pytest.mark.parametrize("radius", [0, 1, 2, 3])
@pytest.mark.parametrize("density", [0.0, 0.005, 0.05, 0.3])
def test_scores_are_those_of_the_definition(radius: int, density: float) -> None:
    rng = np.random.default_rng(radius)
    for other_density in (0.0, 0.02, 0.2):
        drawn, true = rng.random((17, 23)) < density, rng.random((17, 23)) < other_density
        assert frame_scores(drawn, true, radius) == pytest.approx(scores_pixel_by_pixel(drawn, true, radius))


def test_frames_are_compared_by_their_canny_edges_at_the_controls_thresholds() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2, (2, 3, 6, 10, 3), dtype=np.uint8) * 255
    drawn, true = coarse.repeat(16, axis=2).repeat(16, axis=3)
    found = edge_adherence(drawn, true)
    radius = tolerance_pixels(96, 160)
    assert radius == 1
    expected = [
        scores_pixel_by_pixel(cv2.Canny(one, 100, 200) > 0, cv2.Canny(other, 100, 200) > 0, radius)
        for one, other in zip(drawn, true, strict=True)
    ]
    assert (found.precision, found.recall, found.f1) == pytest.approx(tuple(np.mean(expected, axis=0)))
    assert 0 < found.f1 < 1
    assert edge_adherence(true, true).f1 == 1.0


def test_a_picture_without_edges_misses_all_and_a_moved_one_is_near() -> None:
    true = np.zeros((1, 192, 320, 3), np.uint8)
    true[:, 50:120, 100:200] = 255
    blank = edge_adherence(np.zeros_like(true), true)
    assert (blank.precision, blank.recall, blank.f1) == (1.0, 0.0, 0.0)
    assert tolerance_pixels(192, 320) == 2
    assert edge_adherence(np.roll(true, 2, axis=2), true).f1 == 1.0
    assert edge_adherence(np.roll(true, 6, axis=2), true).f1 < 0.9
    assert edge_adherence(np.zeros_like(true), np.zeros_like(true)).f1 == 1.0


def test_frames_of_another_size_are_refused() -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(WorldtuneError, match=r"\[1, 16, 16, 3\].*as many frames"):
        edge_adherence(frames, frames[:1])
    with pytest.raises(WorldtuneError, match="one at least"):
        edge_adherence(frames[:0], frames[:0])
