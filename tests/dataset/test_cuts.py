"""Long videos become clips at changes of scene and at a longest duration."""

import numpy as np
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.clips import caption_path, clip_id, load_dataset, video_path
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.cuts import find_cuts
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.manifest import read_manifest
from worldtune.dataset.spans import COLUMNS
from worldtune.dataset.validate import conclude, draw_splits, examine
from worldtune.media.video import read_frames, write_video

SCENES = ((200, 30, 30), (10, 60, 10), (30, 30, 200))
LENGTHS = (20, 7, 33)
"""Frames of each scene."""


def film() -> np.ndarray:
    """Three scenes of other colours that grow brighter from frame to frame, uint8 [60, 32, 48, 3]."""
    frames = [
        np.full((32, 48, 3), colour, np.int64) + number
        for colour, length in zip(SCENES, LENGTHS, strict=True)
        for number in range(length)
    ]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


@pytest.fixture
def cut_source(source):
    """A dataset with one film that is cut, and its captions."""
    source.folder.mkdir()
    (source.folder / "film.txt").write_text("A film.")
    source.options |= {"cut": {"min_s": 0.4, "max_s": 0.5}, "min_frames": 5}
    return source


def cuts(source) -> list[dict[str, object]]:
    source.listing()
    return read_manifest(find_cuts("tiny", source.config, "0000", datasets=source.datasets), COLUMNS)


@pytest.mark.parametrize("fps", [24.0, 24000 / 1001, 30.0])
def test_clips_have_exactly_the_frames_of_their_parts(cut_source, fps):
    frames = film()
    write_video(cut_source.folder / "film.mp4", frames, fps)
    parts = sorted(cuts(cut_source), key=lambda row: row["start_s"])
    longest = round(fps / 2)
    expected = [(0, longest, 0), (longest, 20 - longest, 0), (20, 7, 1)]
    expected += [(start, min(longest, 60 - start), 2) for start in range(27, 60, longest)]
    assert [(row["num_frames"], row["scene"]) for row in parts] == [part[1:] for part in expected]
    # 0.4 s, give or take half a frame.
    assert [row["status"] == "ok" for row in parts] == [(part[1] + 0.5) / fps >= 0.4 for part in expected]
    assert all(row["reason"].startswith("short remainder: ") for row in parts if row["status"] != "ok")
    made = {row["clip_id"]: row for row in read_manifest(cut_source.ingest(), INGEST_COLUMNS)}
    assert set(made) == {row["clip_id"] for row in parts if row["status"] == "ok"}
    for row, (start, length, _) in zip(parts, expected, strict=True):
        assert row["clip_id"] == clip_id("film.mp4", row["start_s"], row["end_s"])
        if row["status"] != "ok":
            continue
        assert made[row["clip_id"]]["num_frames"] == length
        clip = read_frames(video_path(cut_source.root, row["clip_id"]), 0, length)
        wanted = frames[start : start + length]
        # The encoder changes a mean by less than the step from a frame to the next, but not the order.
        assert np.abs(clip.mean(axis=(1, 2, 3)) - wanted.mean(axis=(1, 2, 3))).max() < 2.5
        assert np.corrcoef(clip.mean(axis=(1, 2, 3)), np.arange(length))[0, 1] > 0.9


def test_only_changed_videos_are_cut_again_and_equal_ones_give_equal_clips(cut_source, monkeypatch):
    write_video(cut_source.folder / "film.mp4", film(), 24)
    write_video(cut_source.folder / "other.mp4", film(), 24)
    first = cuts(cut_source)
    manifest = cut_source.root / "manifests/cuts/0000.parquet"
    content = manifest.read_bytes()
    spans = {
        key: [(row["start_s"], row["end_s"], row["status"]) for row in first if row["source_key"] == key]
        for key in ("film.mp4", "other.mp4")
    }
    assert sorted(spans["film.mp4"]) == sorted(spans["other.mp4"])
    seen = []
    monkeypatch.setattr("worldtune.dataset.cuts.find_scene_changes", lambda path, _: seen.append(path.name))
    assert cuts(cut_source) == first
    assert manifest.read_bytes() == content
    assert seen == []


def test_without_scenes_only_the_length_cuts(cut_source):
    cut_source.options["cut"] = {"min_s": 1, "max_s": 2, "scenes": False}
    write_video(cut_source.folder / "film.mp4", film(), 24)
    assert sorted((row["num_frames"], row["status"]) for row in cuts(cut_source)) == [(12, "unusable"), (48, "ok")]


def test_each_part_has_the_videos_caption_and_nothing_is_lost(cut_source, fake_encoder):
    cut_source.options["min_clips"] = 2
    write_video(cut_source.folder / "film.mp4", film(), 24)
    (cut_source.folder / "broken.mp4").write_bytes(b"no video")
    (cut_source.folder / "broken.txt").write_text("Nothing.")
    parts = cuts(cut_source)
    cut_source.all_stages()
    conclude(examine("tiny", cut_source.config, datasets=cut_source.datasets))
    dataset = load_dataset(cut_source.root)
    usable = {row["clip_id"] for row in parts if row["status"] == "ok"}
    assert {clip.clip_id for clip in dataset.clips} == usable
    assert {clip.caption_path(cut_source.root).read_text() for clip in dataset.clips} == {"A film.\n"}
    reasons = {clip.clip_id: clip.reason for clip in dataset.unusable}
    assert reasons.keys() == {row["clip_id"] for row in parts} - usable
    assert "broken.mp4 cannot be decoded" in reasons[clip_id("broken.mp4")]


def test_parts_that_a_list_names_are_left_as_they_are(cut_source):
    write_video(cut_source.folder / "film.mp4", film(), 24)
    path = cut_source.folder.parent / "list.csv"
    path.write_text("video,caption,start_s,end_s\nfilm.mp4,Listed.,0.25,1\n")
    cut_source.options["captions"] = str(path)
    assert cuts(cut_source) == []
    [row] = read_manifest(cut_source.ingest(), INGEST_COLUMNS)
    assert (row["start_s"], row["end_s"], row["num_frames"]) == (0.25, 1.0, 18)


def test_a_part_that_a_list_names_too_is_one_clip_with_the_lists_caption(cut_source, fake_encoder):
    write_video(cut_source.folder / "film.mp4", film(), 24)
    path = cut_source.folder.parent / "list.csv"
    cut_source.options["captions"] = str(path)
    path.write_text("video,caption,start_s,end_s\nfilm.mp4,Whole.,,\n")
    before = {row["clip_id"] for row in cuts(cut_source)}
    part = next(row for row in cuts(cut_source) if row["status"] == "ok")
    with path.open("a") as file:
        file.write(f"film.mp4,Listed.,{part['start_s']},{part['end_s']}\n")
    assert {row["clip_id"] for row in cuts(cut_source)} == before
    clips = [row["clip_id"] for row in read_manifest(cut_source.ingest(processes=2), INGEST_COLUMNS)]
    assert sorted(clips) == sorted(set(clips))
    cut_source.captions()
    assert caption_path(cut_source.root, part["clip_id"]).read_text() == "Listed.\n"


def test_parts_of_a_video_are_on_one_side_of_the_split(cut_source, fake_encoder):
    for name in "abcd":
        write_video(cut_source.folder / f"{name}.mp4", film(), 24)
    cut_source.options |= {"cut": {"scenes": False, "min_s": 0.2, "max_s": 0.25}, "held_out_fraction": 0.5}
    for name in "abcd":
        (cut_source.folder / f"{name}.txt").write_text("A film.")
    cuts(cut_source)
    cut_source.all_stages()
    rows = [row for row in examine("tiny", cut_source.config, datasets=cut_source.datasets).rows if row["split"]]
    sides = {(row["source_key"], row["split"]) for row in rows}
    assert len(rows) > len(sides) == 4
    assert {split for _, split in sides} == {"train", "held_out"}
    only = [dict(row) for row in rows if row["source_key"] == "a.mp4"]
    draw_splits(only, 0.5)
    assert {row["split"] for row in only} == {"train", "held_out"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cut": {"min_s": 2, "max_s": 1}}, "no part could be used"),
        ({"cut": {"min_s": 2, "scenes": False}}, "nothing would be cut"),
        ({"cut": {"min_s": 2}, "controls": ["depth"]}, "for which depth cannot be given"),
        ({"cut": {"min_s": 2}, "views": {"a": "", "b": "B."}}, "datasets with views cannot be cut"),
        ({"cut": {"min_s": 2}, "kind": "hdvila", "max_clips": 2, "path": None}, "kind 'hdvila' cannot be cut"),
    ],
)
def test_configurations_that_cannot_be(values, message):
    table = {"kind": "folder", "path": "v", "num_shards": 1} | values
    with pytest.raises(ValueError, match=message):
        DatasetConfig.model_validate({key: value for key, value in table.items() if value is not None})


def test_a_dataset_that_is_not_cut_says_so(source):
    with pytest.raises(WorldtuneError, match="has no `cut`"):
        find_cuts("tiny", source.config, "0000", datasets=source.datasets)
