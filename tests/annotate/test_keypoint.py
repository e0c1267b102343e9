"""Keypoints: equal to rtmlib frame by frame, every frame an entry, each decoded once; and exact truth."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import rtmlib

import worldtune.annotate.keypoint
from worldtune.annotate.keypoint import FRAMES_PER_WINDOW, WholeBody
from worldtune.annotate.protocol import ClipToAnnotate
from worldtune.common.errors import WorldtuneError
from worldtune.controls.keypoint import draw_person, draw_skeletons, to_openpose
from worldtune.demo.annotators import write_keypoint_networks
from worldtune.demo.scenes import render_scene
from worldtune.demo.write import keypoints_of
from worldtune.formats.keypoints import write_keypoints
from worldtune.formats.pickles import MAX_CONTROL_BYTES, read_pickle
from worldtune.media.video import iterate_frames, write_video
from worldtune.recipe.schema import KeypointControl

DEFAULTS = {"person_confidence_min": 0.3, "keypoint_confidence_min": 0.3, "max_people": 32}
NUM_FRAMES = 2 * FRAMES_PER_WINDOW + 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    write_keypoint_networks(folder, "detector.onnx", "pose.onnx")
    return folder


def load(folder: Path, detector: str = "detector.onnx", pose: str = "pose.onnx", **options) -> WholeBody:
    return WholeBody(folder / detector, folder / pose, "cpu", **DEFAULTS | options)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> ClipToAnnotate:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    shades = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 4, 6, 3), dtype=np.uint8)
    # The detector looks at the mean colour, which noise alone would not change.
    shades[:, 1:, 1:] //= np.linspace(1, 6, NUM_FRAMES).astype(np.uint8)[:, None, None, None]
    write_video(path, shades.repeat(24, axis=1).repeat(24, axis=2), 30_000 / 1001)
    return ClipToAnnotate(
        clip_id="clip", video=path, num_frames=NUM_FRAMES, width=144, height=96, fps=30_000 / 1001, caption=None
    )


def annotate(network: WholeBody, clip: ClipToAnnotate, path: Path):
    assert network.annotate(clip, path) == clip.num_frames
    return read_pickle(path, MAX_CONTROL_BYTES)


def test_keypoints_are_those_of_rtmlib(folder, clip, tmp_path):
    found = annotate(load(folder), clip, tmp_path / "clip.pickle")
    reference = rtmlib.Wholebody(
        det=str(folder / "detector.onnx"),
        det_input_size=(64, 64),
        pose=str(folder / "pose.onnx"),
        pose_input_size=(48, 64),
    )
    assert list(found) == list(range(NUM_FRAMES))
    for number, frame in enumerate(iterate_frames(clip.video)):
        places, confidence = reference(frame[..., ::-1].copy())
        assert len(found[number]) == len(places) > 0
        # rtmlib has no order of people; here the most certain one is first.
        expected = {
            tuple(np.float16(person[0])): (person, sure) for person, sure in zip(places, confidence, strict=True)
        }
        certainty = [float(person["human-bbox"][4]) for person in found[number]]
        assert certainty == sorted(certainty, reverse=True)
        for person in found[number]:
            body = person["body-keypoints-abs"]
            own_places, own_confidence = expected[tuple(body[0, :2])]
            np.testing.assert_array_equal(body[:, :2], own_places.astype(np.float16))
            np.testing.assert_allclose(body[:, 2], own_confidence, atol=1e-3)
            np.testing.assert_array_equal(
                person["body-keypoints"][:, :2], (own_places / [clip.width, clip.height]).astype(np.float16)
            )


def test_boxes_are_the_detectors(folder, clip, tmp_path):
    detector = rtmlib.YOLOX(str(folder / "detector.onnx"), model_input_size=(64, 64))
    found = annotate(load(folder), clip, tmp_path / "clip.pickle")
    boxes = np.clip(detector(next(iterate_frames(clip.video))[..., ::-1].copy()), 0, [144, 96, 144, 96])
    expected = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    ours = np.stack([person["human-bbox-abs"][:4] for person in found[0]])
    np.testing.assert_allclose(np.sort(ours, axis=0), np.sort(expected, axis=0), rtol=1e-3)
    shares = np.stack([person["human-bbox"][:4] for person in found[0]])
    np.testing.assert_allclose(shares * [144, 96, 144, 96], ours, rtol=2e-3)


def test_frames_without_people_have_an_entry_too(folder, clip, tmp_path):
    everyone = annotate(load(folder), clip, tmp_path / "all.pickle")
    assert max(len(people) for people in everyone.values()) > 1
    one = annotate(load(folder, max_people=1), clip, tmp_path / "one.pickle")
    assert {len(people) for people in one.values()} == {1}
    nobody = annotate(load(folder, person_confidence_min=0.999), clip, tmp_path / "none.pickle")
    assert nobody == {number: [] for number in range(NUM_FRAMES)}


def test_no_frame_is_decoded_twice(folder, clip, tmp_path, monkeypatch):
    opened = []

    def counted(path):
        opened.append(path)
        return iterate_frames(path)

    monkeypatch.setattr(worldtune.annotate.keypoint, "iterate_frames", counted)
    first = load(folder).annotate(clip, tmp_path / "a.pickle")
    assert (first, opened) == (NUM_FRAMES, [clip.video])


def test_a_network_of_one_person_a_run_gives_the_same(folder, clip, tmp_path):
    pose = onnx.load(folder / "pose.onnx")
    pose.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(pose, tmp_path / "pose.onnx")
    shutil.copy(folder / "detector.onnx", tmp_path)
    together = annotate(load(folder), clip, tmp_path / "a.pickle")
    alone = annotate(load(tmp_path), clip, tmp_path / "b.pickle")
    for people, others in zip(together.values(), alone.values(), strict=True):
        for person, other in zip(people, others, strict=True):
            np.testing.assert_allclose(person["body-keypoints-abs"], other["body-keypoints-abs"], rtol=2e-3)


def test_a_missing_or_wrong_network_is_refused(folder, tmp_path, monkeypatch):
    def download(*_):
        raise AssertionError("rtmlib fetches a file")

    monkeypatch.setattr("rtmlib.tools.base.download_checkpoint", download)
    with pytest.raises(WorldtuneError, match=r"absent\.onnx does not exist"):
        load(folder, detector="absent.onnx")
    with pytest.raises(WorldtuneError, match="expected boxes with a confidence"):
        load(folder, detector="pose.onnx")
    with pytest.raises(WorldtuneError, match=r"expected \[\[1, 133, 128\], \[1, 133, 128\]\]"):
        load(folder, pose="detector.onnx")
    (folder / "damaged.onnx").write_bytes(b"nonsense")
    with pytest.raises(WorldtuneError, match="cannot be loaded as a network in ONNX"):
        load(folder, pose="damaged.onnx")
    with pytest.raises(WorldtuneError, match="onnxruntime-gpu"):
        WholeBody(folder / "detector.onnx", folder / "pose.onnx", "cuda", **DEFAULTS)


@pytest.mark.parametrize("name", ["scene_0001", "scene_0003"])
def test_exact_keypoints_of_the_embedded_dataset_come_back(tmp_path, name):
    size = (160, 96)
    scene = render_scene(name, seed=0, num_frames=4, width=size[0], height=size[1], fps=4, samples=1)
    path = tmp_path / "people.pickle"
    write_keypoints(path, keypoints_of(scene))
    read = read_pickle(path, MAX_CONTROL_BYTES)
    truth = [points.astype(np.float16) for points in scene.keypoints]
    for number, people in enumerate(truth):
        np.testing.assert_array_equal(np.stack([person["body-keypoints"] for person in read[number]]), people)
    drawn = draw_skeletons(path, 1, (3, size[1], size[0]), KeypointControl())
    for canvas, people in zip(drawn, truth[1:], strict=True):
        expected = np.zeros_like(canvas)
        for person in people:
            points = to_openpose(person.astype(np.float32)) * np.array([*size, 1], np.float32)
            draw_person(expected, points, KeypointControl())
        np.testing.assert_array_equal(canvas, expected)
        assert canvas.any()
