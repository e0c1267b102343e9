"""Following objects, with a tracker that knows where they are; the networks are in test_sam2."""

import numpy as np
import pytest

from worldtune.annotate.objects import Candidate
from worldtune.annotate.tracking import ClipFrames, track_objects
from worldtune.formats.rle import decode_clip_mask
from worldtune.media.video import read_frames, write_video

NUM_FRAMES, HEIGHT, WIDTH = 10, 16, 48


def place(thing, frame):
    """Two squares move to the right in rows of their own; "late" is there in frames 3 to 7 only."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    if thing != "late" or 3 <= frame <= 7:
        top = {"early": 0, "late": 8}[thing]
        mask[top : top + 6, 2 * frame : 2 * frame + 6] = True
    return mask


def seen(thing, frame, score=0.5):
    rows, columns = np.nonzero(place(thing, frame))
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return Candidate(phrase=thing, score=score, box=tuple(float(edge) for edge in box))


class KnowingTracker:
    """Knows objects by their phrase, and that a session's frames come one after the other."""

    def open(self, frames, *, reverse):
        return KnowingSession(len(frames), reverse)


class KnowingSession:
    def __init__(self, num_frames, reverse):
        self.direction, self.followed, self.last = -1 if reverse else 1, {}, None

    def segment(self, frame, candidates):
        return np.stack([place(candidate.phrase, frame) for candidate in candidates])

    def add(self, frame, candidates):
        assert self.last in (None, frame)
        self.last = frame
        self.followed |= {number: candidate.phrase for number, candidate in candidates.items()}

    def step(self, frame):
        assert self.last == frame - self.direction
        self.last = frame
        return {number: place(phrase, frame) for number, phrase in self.followed.items()}


@pytest.fixture
def frames(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", pixels, 24)
    return ClipFrames(tmp_path / "a.mp4", NUM_FRAMES, HEIGHT, WIDTH)


def track(frames, candidates, same_object_iou=0.7, max_objects=100):
    options = {"same_object_iou": same_object_iou, "max_objects": max_objects}
    return track_objects(KnowingTracker(), frames, candidates, **options)


def masks_of(thing):
    return decode_clip_mask(thing.mask.entry(), 0, NUM_FRAMES)


def test_an_object_seen_in_several_key_frames_is_one_and_a_later_one_is_followed_both_ways(frames):
    found = {0: [seen("early", 0)], 5: [seen("early", 5), seen("late", 5, 0.9)], 7: [seen("late", 7), seen("early", 7)]}
    objects = track(frames, found)
    assert [(thing.candidate.phrase, thing.found_at) for thing in objects] == [("late", 5), ("early", 0)]
    for thing in objects:
        expected = np.stack([place(thing.candidate.phrase, frame) for frame in range(NUM_FRAMES)])
        np.testing.assert_array_equal(masks_of(thing), expected)


def test_objects_of_two_later_key_frames_join_on_the_way_back(frames):
    objects = track(frames, {4: [seen("late", 4)], 8: [seen("early", 8)]})
    for thing in objects:
        expected = np.stack([place(thing.candidate.phrase, frame) for frame in range(NUM_FRAMES)])
        np.testing.assert_array_equal(masks_of(thing), expected)
    assert len(objects) == 2


def test_what_a_person_named_twice_is_two_objects(frames):
    assert len(track(frames, {0: [seen("early", 0)], 5: [seen("early", 5)]}, same_object_iou=None)) == 2


def test_the_most_certain_are_kept_and_the_others_counted(frames, caplog):
    objects = track(frames, {5: [seen("early", 5, 0.3), seen("late", 5, 0.6)]}, max_objects=1)
    assert [thing.candidate.phrase for thing in objects] == ["late"]
    assert "a.mp4, frame 5: 1 objects are left out" in caplog.text


def test_without_a_find_there_is_no_object(frames):
    assert track(frames, {0: [], 5: []}) == []


@pytest.mark.parametrize("window", [1, 3, 100])
def test_frames_are_those_of_the_video_in_any_order_and_window(frames, window):
    expected = read_frames(frames.video, 0, NUM_FRAMES)
    small = ClipFrames(frames.video, NUM_FRAMES, HEIGHT, WIDTH, max_bytes=window * HEIGHT * WIDTH * 3)
    for frame in (*range(NUM_FRAMES), *reversed(range(NUM_FRAMES)), 7, 2):
        np.testing.assert_array_equal(small[frame], expected[frame])
    with pytest.raises(IndexError):
        small[NUM_FRAMES]
