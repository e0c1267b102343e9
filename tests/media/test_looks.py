import numpy as np
import pytest

from worldtune.media.looks import FINGERPRINT_BITS, Looks
from worldtune.media.video import check_video, write_video


def scene(seed: int, num_frames: int = 8) -> np.ndarray:
    """A coarse picture that moves: uint8 [T, 64, 96, 3]."""
    blocks = np.random.default_rng(seed).integers(30, 220, (8, 20), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    frames = np.stack([blocks[:, 2 * number : 2 * number + 96] for number in range(num_frames)])
    return np.repeat(frames[..., None], 3, axis=3)


def looks_of(path, frames: np.ndarray, *, lossless: bool = False):
    write_video(path, frames, 24, lossless=lossless)
    looks = Looks()
    check_video(path, looks.see)
    return looks.facts()


def distance(one, other) -> int:
    return (int(one["fingerprint"], 16) ^ int(other["fingerprint"], 16)).bit_count()


def test_copies_are_near_and_others_far(tmp_path):
    original = looks_of(tmp_path / "a.mp4", scene(0))
    assert len(original["fingerprint"]) * 4 == FINGERPRINT_BITS
    half = scene(0)[:, ::2, ::2]
    brighter = np.clip(scene(0).astype(int) * 1.1 + 10, 0, 255).astype(np.uint8)
    assert distance(original, looks_of(tmp_path / "b.mp4", half)) <= 16
    assert distance(original, looks_of(tmp_path / "c.mp4", brighter)) <= 16
    assert distance(original, looks_of(tmp_path / "d.mp4", scene(1))) > 64


@pytest.mark.parametrize("lossless", [True, False])
def test_the_pixel_format_makes_no_difference(tmp_path, lossless):
    gray = looks_of(tmp_path / "a.mkv", scene(0)[..., 0], lossless=True)
    path = tmp_path / ("b.mkv" if lossless else "b.mp4")
    assert distance(gray, looks_of(path, scene(0), lossless=lossless)) <= 8


def test_brightness_and_motion(tmp_path):
    flat = np.full((4, 64, 96), 100, np.uint8)
    assert looks_of(tmp_path / "a.mkv", flat, lossless=True) == {
        "fingerprint": "0" * (FINGERPRINT_BITS // 4),
        "brightness": 100.0,
        "motion": 0.0,
    }
    flat[2:] = 130
    facts = looks_of(tmp_path / "a.mkv", flat, lossless=True)
    assert (facts["brightness"], facts["motion"]) == (115.0, 10.0)


def test_a_second_video_begins_anew(tmp_path):
    write_video(tmp_path / "a.mp4", scene(0), 24)
    write_video(tmp_path / "b.mp4", scene(1, 5), 24)
    looks = Looks()
    check_video(tmp_path / "a.mp4", looks.see)
    check_video(tmp_path / "b.mp4", looks.see)
    alone = Looks()
    check_video(tmp_path / "b.mp4", alone.see)
    assert looks.facts() == alone.facts()


@pytest.mark.parametrize("num_frames", [1, 3])
def test_few_frames_have_a_whole_fingerprint(tmp_path, num_frames):
    assert len(looks_of(tmp_path / "a.mp4", scene(0, num_frames))["fingerprint"]) * 4 == FINGERPRINT_BITS
