"""SAM2's own classes at tiny random size: what they see is nonsense, how they are driven is not."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from worldtune.annotate.objects import Candidate
from worldtune.annotate.sam2_transformers import (
    TransformersTracker,
    prepare_frame,
    prompt_points,
    read_normalisation,
)
from worldtune.annotate.tracking import ClipFrames, PreparedFrames, track_objects
from worldtune.common.errors import WorldtuneError
from worldtune.demo.annotators import write_tracker
from worldtune.formats.rle import decode_clip_mask
from worldtune.media.video import write_video

NUM_FRAMES, HEIGHT, WIDTH = 22, 48, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BOX = Candidate(phrase="box", score=0.9, box=(8, 6, 40, 30))
POINTS = Candidate(phrase="points", score=0.8, points=((20, 20), (60, 40)), labels=(1, 0))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    blocks = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 6, 8, 3), dtype=np.uint8)
    write_video(path, blocks.repeat(8, axis=1).repeat(8, axis=2), 24)
    return path


@pytest.fixture
def frames(clip):
    return ClipFrames(clip, NUM_FRAMES, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam2")
    write_tracker(folder)
    return TransformersTracker(folder, "cpu")


def test_frames_are_prepared_as_the_processor_documents_it():
    frame = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    made = prepare_frame(frame, 16, MEAN, STD, torch.device("cpu"))
    assert (made.shape, made.dtype) == ((3, 16, 16), torch.float32)
    levels = made.permute(1, 2, 0).numpy() * (np.array(STD) * 255) + np.array(MEAN) * 255
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
    # Pillow's bilinear filter is the same one in integers.
    pillow = np.array(Image.fromarray(frame).resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(levels.round() - pillow).max() <= 1


def test_a_frame_of_the_networks_size_is_only_normalised():
    frame = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    made = prepare_frame(frame, 16, MEAN, STD, torch.device("cpu"))
    expected = (frame / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(made.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_corners_of_a_box_come_before_its_points():
    places, labels = prompt_points(Candidate(phrase="a", score=1.0, box=(1, 2, 3, 4), points=((5, 6),), labels=(0,)))
    assert places.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert labels.tolist() == [2, 3, 0]


def whole_clip_masks(tracker, frames, candidate, start, *, reverse):
    """What transformers' own loop over a session of the whole clip in memory gives: {frame: bool [H, W]}."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    side = tracker.model.config.image_size
    device = torch.device("cpu")
    video = torch.stack([prepare_frame(frames[number], side, MEAN, STD, device) for number in range(NUM_FRAMES)])
    state = Sam2VideoInferenceSession(video=video, video_height=HEIGHT, video_width=WIDTH, dtype=torch.float32)
    places, labels = prompt_points(candidate)
    inputs = {
        "point_coords": torch.from_numpy(places * np.array([side / WIDTH, side / HEIGHT], np.float32))[None, None],
        "point_labels": torch.from_numpy(labels)[None, None],
    }
    state.add_point_inputs(state.obj_id_to_idx(1), start, inputs)
    state.obj_with_new_inputs = [1]
    masks = {}
    tracker.model(state, frame_idx=start)
    for output in tracker.model.propagate_in_video_iterator(state, start, reverse=reverse):
        logits = torch.nn.functional.interpolate(output.pred_masks, (HEIGHT, WIDTH), mode="bilinear")
        masks[output.frame_idx] = (logits[0, 0] > 0).numpy()
    return masks


def expected_masks(tracker, frames, candidate, start):
    masks = whole_clip_masks(tracker, frames, candidate, start, reverse=False)
    if start:
        masks |= whole_clip_masks(tracker, frames, candidate, start, reverse=True)
    return np.stack([masks[frame] for frame in range(NUM_FRAMES)])


@pytest.mark.parametrize(("candidate", "start"), [(BOX, 0), (POINTS, 18)])
def test_forgetting_old_frames_changes_no_mask(tracker, frames, candidate, start):
    (thing,) = track_objects(tracker, frames, {start: [candidate]}, same_object_iou=None, max_objects=9)
    expected = expected_masks(tracker, frames, candidate, start)
    np.testing.assert_array_equal(decode_clip_mask(thing.mask.entry(), 0, NUM_FRAMES), expected)
    assert 0 < expected.mean() < 1


def test_an_object_that_joins_later_changes_no_other_mask(tracker, frames):
    found = {0: [BOX], 18: [POINTS]}
    objects = track_objects(tracker, frames, found, same_object_iou=None, max_objects=9)
    assert {thing.candidate.phrase for thing in objects} == {"box", "points"}
    for thing in objects:
        made = decode_clip_mask(thing.mask.entry(), 0, NUM_FRAMES)
        # Two objects are rounded otherwise than one, which shows where the network is undecided.
        assert (made != expected_masks(tracker, frames, thing.candidate, thing.found_at)).mean() < 1e-3


def stored_bytes(session):
    """Bytes of all tensors that a session holds, but for the network's."""
    state = session._state
    values = [state.output_dict_per_obj, state.cache._vision_features] if hasattr(state, "cache") else [state]
    total, tensors = 0, set()
    while values:
        value = values.pop()
        if isinstance(value, dict | list | tuple):
            values += value.values() if isinstance(value, dict) else value
        elif isinstance(value, torch.Tensor) and value.data_ptr() not in tensors:
            tensors.add(value.data_ptr())
            total += value.untyped_storage().nbytes()
    return total


def sizes_of_a_session(tracker, frames):
    session = tracker.open(frames, reverse=False)
    session.segment(0, [BOX, POINTS])
    session.add(0, {0: BOX, 1: POINTS})
    sizes = []
    for frame in range(1, NUM_FRAMES):
        session.step(frame)
        sizes.append(stored_bytes(session))
    return sizes


def test_a_session_stays_as_large_as_it_is_after_the_first_frames(tracker, frames):
    sizes = sizes_of_a_session(tracker, frames)
    assert max(sizes[17:]) == min(sizes[17:])
    # From here on only object pointers, some hundred bytes each, are added.
    assert sizes[-1] - sizes[7] < 10_000 < sizes[7]


def test_a_folder_without_a_processor_has_the_classes_own_norm(tmp_path):
    assert read_normalisation(tmp_path) == (MEAN, STD)
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_resize": True, "resample": 2}
    (tmp_path / "processor_config.json").write_text(json.dumps({"video_processor": values}))
    assert read_normalisation(tmp_path) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    (tmp_path / "processor_config.json").write_text(json.dumps({"video_processor": values | {"resample": 3}}))
    with pytest.raises(WorldtuneError, match=r"processor_config.json: resample"):
        read_normalisation(tmp_path)


def test_a_network_without_some_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    write_tracker(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["no_memory_embedding"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorldtuneError, match="lacks weights of SAM2: no_memory_embedding"):
        TransformersTracker(tmp_path, "cpu")


def test_prepared_frames_are_made_when_they_are_asked_for(frames):
    asked = []
    prepared = PreparedFrames(frames, lambda frame: asked.append(frame) or torch.zeros(1))
    assert (len(prepared), asked) == (NUM_FRAMES, [])
    prepared[3]
    np.testing.assert_array_equal(asked[0], frames[3])
