"""The package sam2, an optional extra, at tiny random size; skipped where it is not installed."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from worldtune.annotate.objects import Candidate
from worldtune.annotate.sam2_package import OVERRIDES_FILE, PackageTracker, read_overrides
from worldtune.annotate.tracking import ClipFrames, track_objects
from worldtune.common.errors import WorldtuneError
from worldtune.formats.rle import decode_clip_mask
from worldtune.media.video import write_video

needs_sam2 = pytest.mark.skipif(
    importlib.util.find_spec("sam2") is None, reason="the package sam2 is not installed (extra `segmentation`)"
)
NUM_FRAMES, HEIGHT, WIDTH = 22, 48, 64
BOX = Candidate(phrase="box", score=0.9, box=(8, 6, 40, 30))
POINTS = Candidate(phrase="points", score=0.8, points=((20, 20), (60, 40)), labels=(1, 0))


@pytest.mark.skipif(importlib.util.find_spec("sam2") is not None, reason="the package sam2 is installed")
def test_without_the_package_the_error_says_what_to_do(tmp_path):
    with pytest.raises(WorldtuneError, match=r"\[segmentation\].*tracker_backend 'transformers'"):
        PackageTracker(tmp_path, "cpu")


def test_overrides_are_numbers_of_the_network_and_no_code(tmp_path):
    assert read_overrides(tmp_path) == []
    path = tmp_path / OVERRIDES_FILE
    path.write_text(json.dumps({"model.image_size": 128, "model.image_encoder.trunk.stages": [1, 2]}))
    assert read_overrides(tmp_path) == ["++model.image_size=128", "++model.image_encoder.trunk.stages=[1,2]"]
    for wrong in ({"model._target_": 1}, {"model.image_size": "os.system"}, {"hydra.run": 1}, [1]):
        path.write_text(json.dumps(wrong))
        with pytest.raises(WorldtuneError, match=OVERRIDES_FILE):
            read_overrides(tmp_path)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    from worldtune.annotate.sam2_package import make_torchvision_importable

    make_torchvision_importable()
    from worldtune.demo.annotators import write_package_tracker

    folder = tmp_path_factory.mktemp("sam2")
    write_package_tracker(folder)
    return PackageTracker(folder, "cpu")


@pytest.fixture
def frames(tmp_path):
    blocks = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 6, 8, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", blocks.repeat(8, axis=1).repeat(8, axis=2), 24)
    return ClipFrames(tmp_path / "a.mp4", NUM_FRAMES, HEIGHT, WIDTH)


def whole_clip_masks(tracker, frames, candidate, start, *, reverse):
    """What the package's own loop gives, with all frames in memory: {frame: bool [H, W]}."""
    state = tracker.open(frames, reverse=reverse)._state
    state["images"] = torch.stack([state["images"][number] for number in range(NUM_FRAMES)])
    places = {"points": np.array(candidate.points), "labels": np.array(candidate.labels)} if candidate.points else {}
    box = None if candidate.box is None else np.array(candidate.box)
    tracker.model.add_new_points_or_box(state, start, 1, box=box, **places)
    steps = tracker.model.propagate_in_video(state, start, reverse=reverse)
    return {frame: (logits[0, 0] > 0).numpy() for frame, _, logits in steps}


def expected_masks(tracker, frames, candidate, start):
    masks = whole_clip_masks(tracker, frames, candidate, start, reverse=False)
    if start:
        masks |= whole_clip_masks(tracker, frames, candidate, start, reverse=True)
    return np.stack([masks[frame] for frame in range(NUM_FRAMES)])


@needs_sam2
@pytest.mark.parametrize(("candidate", "start"), [(BOX, 0), (POINTS, 18)])
def test_forgetting_old_frames_changes_no_mask(tracker, frames, candidate, start):
    (thing,) = track_objects(tracker, frames, {start: [candidate]}, same_object_iou=None, max_objects=9)
    expected = expected_masks(tracker, frames, candidate, start)
    np.testing.assert_array_equal(decode_clip_mask(thing.mask.entry(), 0, NUM_FRAMES), expected)
    assert 0 < expected.mean() < 1


@needs_sam2
def test_an_object_that_joins_later_changes_no_other_mask(tracker, frames):
    found = {0: [BOX], 18: [POINTS]}
    objects = track_objects(tracker, frames, found, same_object_iou=None, max_objects=9)
    assert {thing.candidate.phrase for thing in objects} == {"box", "points"}
    for thing in objects:
        made = decode_clip_mask(thing.mask.entry(), 0, NUM_FRAMES)
        # Two objects are rounded otherwise than one, which shows where the network is undecided.
        assert (made != expected_masks(tracker, frames, thing.candidate, thing.found_at)).mean() < 1e-3


@needs_sam2
def test_an_object_of_the_second_frame_is_followed_back_to_the_first(tracker, frames):
    (thing,) = track_objects(tracker, frames, {1: [BOX]}, same_object_iou=None, max_objects=9)
    expected = whole_clip_masks(tracker, frames, BOX, 1, reverse=True)
    np.testing.assert_array_equal(decode_clip_mask(thing.mask.entry(), 0, 1)[0], expected[0])


@needs_sam2
def test_a_session_stays_as_large_as_it_is_after_the_first_frames(tracker, frames):
    session = tracker.open(frames, reverse=False)
    session.segment(0, [BOX, POINTS])
    session.add(0, {0: BOX, 1: POINTS})
    kept = []
    for frame in range(1, NUM_FRAMES):
        session.step(frame)
        outputs = session._state["output_dict_per_obj"].values()
        tracked = [out for parts in outputs for out in parts["non_cond_frame_outputs"].values()]
        kept.append((len(tracked), sum("maskmem_features" in out for out in tracked)))
        assert len(session._state["cached_features"]) == 1
    assert kept[-1] == (2 * 16, 2 * 7)
    assert kept[-1] == kept[-4]


@needs_sam2
def test_a_folder_without_the_file_is_refused(tmp_path):
    with pytest.raises(WorldtuneError, match=r"has 0 files of SAM2; expected one of .*sam2_hiera_large.pt"):
        PackageTracker(tmp_path, "cpu")
