import os
import pickle
import subprocess

import numpy as np
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.controls.edge import canny
from worldtune.dataset.clips import clip_id, control_path, video_path
from worldtune.dataset.controls import taken_columns
from worldtune.dataset.ledger import ledger_path
from worldtune.dataset.manifest import read_manifest
from worldtune.formats.rle import encode_clip_mask
from worldtune.media.video import ffmpeg_executable, probe, read_frames, write_video

CONTROLS = ["edge", "depth", "seg", "keypoint"]


def rows_by_key(manifest):
    columns = taken_columns(manifest.parent.name.removeprefix("controls-"))
    return {row["source_key"]: row for row in read_manifest(manifest, columns)}


def records(source, kind: str) -> int:
    return ledger_path(source.root, f"controls-{kind}", "0000").read_bytes().count(b'"row"')


@pytest.fixture
def ingested(source):
    source.options["controls"] = CONTROLS
    source.add("sub/a.mp4")
    source.add("sub/short.mp4", num_frames=2)
    source.ingest()
    return source


def test_edge_map_is_the_medium_canny_of_each_frame(ingested):
    rows = rows_by_key(ingested.controls())
    assert set(rows) == {"sub/a.mp4"}
    path = control_path(ingested.root, clip_id("sub/a.mp4"), "edge")
    frames = read_frames(video_path(ingested.root, clip_id("sub/a.mp4")), 0, 6)
    assert np.array_equal(read_frames(path, 0, 6), canny(frames, 100, 200, (1280, 704)))
    assert probe(path).fps == 24.0


def test_edges_are_made_again_only_for_a_changed_video(ingested):
    first = ingested.controls().read_bytes()
    assert ingested.controls(processes=2).read_bytes() == first
    assert records(ingested, "edge") == 1
    ingested.add("sub/a.mp4", seed=9)
    ingested.add("sub/b.mp4")
    ingested.ingest()
    assert ingested.controls(processes=2).read_bytes() != first
    assert records(ingested, "edge") == 3


def test_edges_have_the_same_bytes_every_time(ingested, tmp_path):
    first = ingested.controls().read_bytes()
    ingested.datasets = tmp_path / "other"
    ingested.ingest()
    assert ingested.controls(processes=2).read_bytes() == first


def give(source, kind: str, content: object, *, num_frames: int = 6, size=(32, 48)) -> None:
    suffix = ".mp4" if kind == "depth" else ".pickle"
    path = source.folder / "sub" / kind / f"a{suffix}"
    if kind == "depth":
        write_video(path, np.zeros((num_frames, *size, 3), np.uint8), 24)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content))


def segmentation(shape=(6, 32, 48)):
    mask = np.zeros(shape, bool)
    mask[:, 4:8, 5:9] = True
    return [{"phrase": "a box", "segmentation_mask_rle": encode_clip_mask(mask)}]


def keypoints(num_frames: int = 6, place=(0.5, 0.5)):
    body = np.zeros((133, 3), np.float16)
    body[9] = (*place, 0.9)
    # Whatever nobody is sure of is not drawn and may be anywhere.
    body[10] = (400, 300, 0.1)
    person = {"body-keypoints": body, "hand-keypoints": np.zeros((42, 3), np.float16)}
    return {number: [person] if number % 2 else [] for number in range(num_frames)}


@pytest.mark.parametrize(("kind", "content"), [("depth", None), ("seg", segmentation()), ("keypoint", keypoints())])
def test_given_controls_are_checked_and_copied(ingested, kind, content):
    give(ingested, kind, content)
    (row,) = rows_by_key(ingested.controls(kind)).values()
    assert (row["status"], row["reason"], row["num_frames"]) == ("ok", "", 6)
    target = control_path(ingested.root, clip_id("sub/a.mp4"), kind)
    given = ingested.folder / "sub" / kind / target.with_stem("a").name
    assert target.read_bytes() == given.read_bytes()
    assert given.stat().st_nlink == 1


BROKEN_RLE = segmentation()
BROKEN_RLE[0]["segmentation_mask_rle"]["data"]["counts"] = b"1"


@pytest.mark.parametrize(
    ("kind", "content", "part"),
    [
        ("seg", segmentation((5, 32, 48)), "expected (6, 32, 48)"),
        ("seg", segmentation((6, 48, 32)), "expected (6, 32, 48)"),
        ("seg", {"phrase": "x"}, "expected a list"),
        ("seg", [{"phrase": "x"}], "no phrase with a mask"),
        ("seg", BROKEN_RLE, "does not cover the clip"),
        ("keypoint", keypoints(5), "it has 5 frames, the clip has 6"),
        ("keypoint", {number: [] for number in (0, 1, 2, 3, 4, 6)}, "gaps"),
        (
            "keypoint",
            {number: [{"body-keypoints": np.zeros((133, 2))}] for number in range(6)},
            "frame 0: body-keypoints of a person is [133, 2]",
        ),
        ("keypoint", {n: [{**keypoints()[1][0], "body-keypoints": np.zeros((17, 3))}] for n in range(6)}, "[91, 3]"),
        ("keypoint", keypoints(place=(400.0, 300.0)), "frame 1: a place is no part of the frame's width and height"),
        ("keypoint", [1], "expected a table"),
        ("keypoint", {number: print for number in range(6)}, "not admitted"),
    ],
)
def test_given_controls_that_do_not_fit(ingested, kind, content, part):
    give(ingested, kind, content)
    (row,) = rows_by_key(ingested.controls(kind)).values()
    assert row["status"] == "unusable"
    assert row["reason"].startswith(f"{kind} unusable: ")
    assert part in row["reason"]
    assert str(ingested.folder) not in row["reason"]
    assert not control_path(ingested.root, clip_id("sub/a.mp4"), kind).exists()


class Command:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("seg", [{"phrase": Command(), "segmentation_mask_rle": {}}]),
        ("keypoint", {number: [Command()] for number in range(6)}),
    ],
)
def test_pickle_that_would_run_code(ingested, monkeypatch, kind, content):
    monkeypatch.chdir(ingested.folder)
    give(ingested, kind, content)
    (row,) = rows_by_key(ingested.controls(kind)).values()
    assert row["status"] == "unusable"
    assert row["reason"].startswith(f"{kind} unusable: sub/{kind}/a.pickle is no pickle of plain arrays")
    assert "not admitted" in row["reason"]
    assert not (ingested.folder / "executed").exists()
    assert not control_path(ingested.root, clip_id("sub/a.mp4"), kind).exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"num_frames": 5}, "it has 5 frames, the clip has 6"),
        ({"size": (16, 48)}, "it is 48x16, the clip is 48x32"),
    ],
)
def test_given_depth_that_does_not_fit(ingested, options, part):
    give(ingested, "depth", None, **options)
    (row,) = rows_by_key(ingested.controls("depth")).values()
    assert part in row["reason"]
    give(ingested, "depth", None)
    (row,) = rows_by_key(ingested.controls("depth")).values()
    assert row["status"] == "ok"


@pytest.mark.parametrize(("kind", "content"), [("depth", None), ("seg", segmentation()), ("keypoint", keypoints())])
@pytest.mark.parametrize(
    ("options", "part"),
    [
        (
            ("-vf", "setpts='if(lt(N,3),N,3+(N-3)*1.5)/24/TB'", "-frames:v", "6", "-fps_mode", "vfr"),
            "has frames that last for different times",
        ),
        (("-c", "copy"), "is turned by 180 degrees"),
    ],
    ids=["times", "turned"],
)
def test_no_control_is_taken_for_frames_that_the_clip_does_not_have(source, kind, content, options, part):
    source.options["controls"] = CONTROLS
    path = source.add("sub/a.mp4")
    plain = path.rename(path.with_name("plain.mp4"))
    turn = ("-display_rotation", "180") if part.startswith("is turned") else ()
    subprocess.run([ffmpeg_executable(), "-v", "error", *turn, "-i", plain, *options, path], check=True)
    plain.unlink()
    source.ingest()
    give(source, kind, content)
    (row,) = rows_by_key(source.controls(kind)).values()
    assert row["reason"].startswith(f"{kind} unusable: the video {part}")
    assert row["reason"].endswith("encode the video with a constant rate, upright, and make its control from that")


def test_a_given_video_that_is_turned_is_refused(ingested):
    give(ingested, "depth", None)
    path = ingested.folder / "sub/depth/a.mp4"
    plain = path.rename(path.with_name("plain.mp4"))
    command = [ffmpeg_executable(), "-v", "error", "-display_rotation", "180", "-i", plain, "-c", "copy", path]
    subprocess.run(command, check=True)
    (row,) = rows_by_key(ingested.controls("depth")).values()
    assert row["reason"] == "depth unusable: it is turned by 180 degrees when it is shown; encode it upright"


def test_missing_given_control_is_named(ingested):
    (row,) = rows_by_key(ingested.controls("depth")).values()
    assert row["reason"] == "depth unusable: expected it as sub/depth/a.mp4 in the source folder"


def test_control_that_the_dataset_does_not_have(ingested):
    with pytest.raises(WorldtuneError, match="not 'lidar'"):
        ingested.controls("lidar")
