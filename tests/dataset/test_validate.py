import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.dataset.clips import (
    SUMMARY,
    caption_path,
    clip_id,
    control_path,
    load_dataset,
    rows_digest,
    video_path,
)
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.controls import COLUMNS as CONTROL_COLUMNS
from worldtune.dataset.lookalikes import NEAR_BITS
from worldtune.dataset.manifest import read_manifest, write_manifest
from worldtune.dataset.stages import dataset_stages
from worldtune.dataset.validate import _clip_row, conclude, examine, held_out_draw
from worldtune.media.video import write_video


@pytest.fixture
def made(source, fake_encoder):
    """Six good clips, one too short and one without a caption."""
    source.options |= {"min_clips": 3, "held_out_fraction": 0.3, "num_shards": 1}
    for number in range(6):
        source.add(f"{number}.mp4", caption=f"Scene {number}.", seed=number)
    source.add("short.mp4", num_frames=3, seed=20)
    source.add("mute.mp4", caption=None, seed=21)
    source.all_stages()
    return source


def check(source):
    return conclude(examine("tiny", source.config, datasets=source.datasets))


def test_dataset_and_its_reader(made):
    check(made)
    summary = read_json(made.root / "dataset.json")
    assert (summary["num_clips"], summary["controls"]) == (6, ["edge"])
    assert summary["text"] == {"encoder": "worldtune/fake", "channels": 4, "max_tokens": 512}
    assert sum(summary["splits"].values()) == 6
    assert summary["splits"]["held_out"] >= 1
    dataset = load_dataset(made.root)
    assert dataset.digest == summary["digest"]
    assert [clip.clip_id for clip in dataset.clips] == sorted(clip_id(f"{number}.mp4") for number in range(6))
    for clip in dataset.clips:
        paths = (clip.video_path(made.root), clip.caption_path(made.root), clip.t5_path(made.root))
        assert all(path.is_file() for path in (*paths, clip.control_path(made.root, "edge")))
        assert len(clip.control_sha256["edge"]) == 64
    reasons = {clip.source_key: clip.reason for clip in dataset.unusable}
    assert reasons["short.mp4"].startswith("too short: 3 frames")
    assert reasons["mute.mp4"].startswith("no caption")


def test_equal_content_gives_equal_bytes(made, tmp_path):
    check(made)
    names = ("dataset.json", "clips.parquet", "validation/clips.parquet", "validation/clips.csv")
    first = [(made.root / name).read_bytes() for name in names]
    check(made)
    assert [(made.root / name).read_bytes() for name in names] == first
    moved = tmp_path / "moved"
    made.folder.rename(moved)
    made.folder, made.datasets = moved, tmp_path / "other"
    made.all_stages()
    check(made)
    assert [(made.root / name).read_bytes() for name in names] == first


def test_unusable_clips_are_no_content(made):
    check(made)
    first = (made.root / "dataset.json").read_bytes()
    made.add("broken.mp4", num_frames=2, seed=50)
    made.add("short.mp4", num_frames=4, seed=20)
    made.all_stages()
    check(made)
    assert (made.root / "dataset.json").read_bytes() == first
    reasons = {clip.source_key: clip.reason for clip in load_dataset(made.root).unusable}
    assert reasons["broken.mp4"].startswith("too short: 2 frames")
    assert reasons["short.mp4"].startswith("too short: 4 frames")
    assert "6 of 9 clips usable" in (made.root / SUMMARY).read_text()


def times(source) -> dict[str, int]:
    folders = ("videos", "metas", "t5_xxl", "edge")
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in (source.root / folder).iterdir()}


def test_number_of_shards_is_no_content_and_does_no_clip_again(made, fake_encoder):
    check(made)
    first = (made.root / "dataset.json").read_bytes()
    before = times(made)
    fake_encoder.texts.clear()
    made.options["num_shards"] = 3
    made.all_stages()
    check(made)
    assert (made.root / "dataset.json").read_bytes() == first
    assert fake_encoder.texts == []
    assert times(made) == before


def test_split_is_drawn_by_the_clip_alone(made):
    check(made)
    before = {clip.clip_id: clip.split for clip in load_dataset(made.root).clips}
    made.add("new.mp4", seed=30)
    made.all_stages()
    check(made)
    after = {clip.clip_id: clip.split for clip in load_dataset(made.root).clips}
    assert {name: after[name] for name in before} == before
    assert {name for name in after if held_out_draw(name) < 0.3} <= {n for n in after if after[n] == "held_out"}


@pytest.mark.parametrize(("fraction", "sizes"), [(1e-9, (5, 1)), (1 - 1e-9, (1, 5))])
def test_both_splits_have_a_clip(made, fraction, sizes):
    made.options["held_out_fraction"] = fraction
    check(made)
    dataset = load_dataset(made.root)
    assert (len(dataset.split("train")), len(dataset.split("held_out"))) == sizes


def test_unfit_dataset_writes_no_table_but_a_page(made):
    check(made)
    made.options["min_clips"] = 7
    with pytest.raises(WorldtuneError) as caught:
        check(made)
    text = str(caught.value)
    assert "6 of 8 clips can be used, at least 7 are needed" in text
    assert "1 clip: too short (for example short.mp4: too short: 3 frames; at least 5 are needed)" in text
    assert "1 clip: no caption" in text
    assert str(made.root / "validation/index.html") in text
    assert not (made.root / "dataset.json").exists()
    assert "short.mp4" in (made.root / SUMMARY).read_text()
    with open(made.root / "validation/clips.csv", newline="") as file:
        assert sum(row["status"] == "unusable" for row in csv.DictReader(file)) == 2


def test_empty_dataset_says_so(source, fake_encoder):
    source.folder.mkdir()
    source.all_stages()
    with pytest.raises(WorldtuneError, match="no clip at all"):
        check(source)


@pytest.mark.parametrize("what", ["video", "edge"])
def test_lost_file_makes_its_clip_unusable(made, what):
    clip = clip_id("0.mp4")
    (video_path(made.root, clip) if what == "video" else control_path(made.root, clip, "edge")).unlink()
    check(made)
    (lost,) = (clip for clip in load_dataset(made.root).unusable if clip.source_key == "0.mp4")
    rule = "ingest" if what == "video" else "controls"
    assert lost.reason.startswith(f"file gone: {'videos' if what == 'video' else what}/{clip}.")
    assert lost.reason.endswith(f"; `snakemake datasets/tiny/dataset.json --forcerun {rule}` makes it again")


def test_changed_files_make_their_clips_unusable(made):
    check(made)
    names = [clip_id(f"{number}.mp4") for number in range(3)]
    control = control_path(made.root, names[0], "edge")
    control.write_bytes(control.read_bytes()[:-1] + b"x")
    caption_path(made.root, names[1]).write_text("Another one.\n")
    check(made)
    reasons = {clip.clip_id: clip.reason for clip in load_dataset(made.root).unusable}
    changed = "it is not what its stage made; delete it, then `snakemake datasets/tiny/dataset.json --forcerun"
    assert reasons[names[0]] == f"file changed: edge/{names[0]}.mkv; {changed} controls` makes it again"
    assert reasons[names[1]] == f"file changed: metas/{names[1]}.txt; {changed} captions` makes it again"
    assert names[2] not in reasons
    # As the message says.
    control.unlink()
    made.controls()
    check(made)
    assert names[0] in {clip.clip_id for clip in load_dataset(made.root).clips}


def test_a_control_of_another_size_is_misplaced(made):
    path = made.root / "manifests/controls-edge/0000.parquet"
    rows = read_manifest(path, CONTROL_COLUMNS)
    (row,) = (row for row in rows if row["source_key"] == "0.mp4")
    row["width"] += 8
    write_manifest(path, rows, CONTROL_COLUMNS)
    check(made)
    (lost,) = (clip for clip in load_dataset(made.root).unusable if clip.source_key == "0.mp4")
    assert lost.reason == "edge misplaced: it is 56x32; expected 48x32 for this clip; make it again"


def table_of(source) -> dict[str, dict]:
    return {row["source_key"]: row for row in pq.read_table(source.root / "validation/clips.parquet").to_pylist()}


def test_copies_in_another_size_look_alike(made):
    blocks = np.random.default_rng(0).integers(0, 256, (6, 4, 6, 3), dtype=np.uint8)
    write_video(made.folder / "large.mp4", blocks.repeat(16, axis=1).repeat(16, axis=2), 24)
    (made.folder / "large.txt").write_text("A copy.")
    made.options["held_out_fraction"] = 1e-9
    made.all_stages()
    digest = read_json(check(made))["digest"]
    table = table_of(made)
    assert table["large.mp4"]["looks_like"] == clip_id("0.mp4")
    assert table["0.mp4"]["looks_like"] == clip_id("large.mp4")
    assert 0 <= table["0.mp4"]["differing_bits"] <= NEAR_BITS
    assert "looks alike: large.mp4, " in table["0.mp4"]["remarks"]
    assert table["1.mp4"]["looks_like"] is None
    assert "1 group of clips looks alike: 0.mp4 ~ large.mp4" in (made.root / SUMMARY).read_text()
    # What is only for people is no content.
    assert digest == rows_digest(pq.read_table(made.root / "clips.parquet").to_pylist())


def test_the_table_and_the_sums_for_people(made):
    check(made)
    row = table_of(made)["2.mp4"]
    assert (row["caption"], row["num_words"], row["edge_empty_frames"]) == ("Scene 2.", 2, 0)
    assert row["seconds"] == pytest.approx(6 / 24)
    assert row["motion"] > 10
    sums = {line["key"]: line for line in read_json(made.root / "validation/statistics.json")}
    assert (sums["num_frames"]["clips"], sums["num_frames"]["total"], sums["fps"]["total"]) == (6, 36, None)


def test_stages_that_ran_on_something_else_are_noticed(made):
    made.add("0.mp4", caption="Scene 0.", seed=99)
    made.ingest()
    (made.folder / "1.txt").write_text("Changed.")
    made.captions()
    check(made)
    reasons = {clip.source_key: clip.reason for clip in load_dataset(made.root).unusable}
    assert reasons["0.mp4"].startswith("edge out of date")
    assert reasons["1.mp4"].startswith("text embedding out of date")


def test_missing_manifest_is_named(made):
    (made.root / "manifests/t5/0000.parquet").unlink()
    with pytest.raises(WorldtuneError, match=r"manifests/t5/0000\.parquet"):
        check(made)


def test_copies_are_remarked(made):
    for number in range(8):
        (made.folder / f"copy{number}.mp4").write_bytes((made.folder / "0.mp4").read_bytes())
        (made.folder / f"copy{number}.txt").write_text("A copy.")
    made.all_stages()
    check(made)
    summary = (made.root / SUMMARY).read_text()
    assert "1 video is there more than once: 0.mp4 = " in summary
    assert " trained on; remove the copies" in summary


def test_what_is_left_out_and_cut_is_one_line(made, caplog):
    caplog.set_level("INFO")
    made.options["text_max_tokens"] = 1
    made.t5()
    check(made)
    summary = (made.root / SUMMARY).read_text()
    assert summary.startswith("tiny: 6 of 8 clips usable (")
    assert "short.mp4: too short: 3 frames; at least 5 are needed" in summary
    assert "7 captions are longer than text_max_tokens and were cut: 0.mp4" in summary
    assert summary.strip() in caplog.text


@pytest.fixture
def street(source, fake_encoder):
    """Four scenes of two cameras; the second one's videos have no captions of their own."""
    source.options |= {"min_clips": 2, "held_out_fraction": 0.3, "num_shards": 1}
    source.options["views"] = {"front": "", "left": "The camera looks to the left."}
    for number in range(4):
        source.add(f"front/{number}.mp4", caption=f"Street {number}.", seed=number)
        source.add(f"left/{number}.mp4", caption=None, seed=10 + number)
    return source


def test_views_of_a_scene_are_used_together(street):
    street.all_stages()
    check(street)
    summary = read_json(street.root / "dataset.json")
    assert (summary["num_clips"], summary["views"]) == (4, ["front", "left"])
    assert sum(summary["splits"].values()) == 4
    dataset = load_dataset(street.root)
    assert len(dataset.clips) == 8
    assert set(dataset.scenes) == {clip_id(f"front/{number}.mp4") for number in range(4)}
    for scene, views in dataset.scenes.items():
        assert views["front"].clip_id == scene
        assert len({clip.split for clip in views.values()}) == 1
        assert views["left"].caption_path(dataset.root).read_text().strip() == "The camera looks to the left."
    both = (*dataset.split("train"), *dataset.split("held_out"))
    assert {clip.view for clip in both} == {"front"}
    assert len(both) == 4


def test_a_scene_without_one_of_its_views_is_not_used(street):
    (street.folder / "left/1.mp4").unlink()
    street.add("left/2.mp4", caption=None, num_frames=7, seed=12)
    street.add("stray.mp4", seed=30)
    street.all_stages()
    check(street)
    dataset = load_dataset(street.root)
    assert set(dataset.scenes) == {clip_id(f"front/{number}.mp4") for number in (0, 3)}
    reasons = {clip.source_key: clip.reason for clip in dataset.unusable}
    assert reasons["front/1.mp4"] == "view missing: left"
    assert reasons["front/2.mp4"].startswith("views differ: 6 frames of 48x32 at 24; 7 frames")
    assert reasons["stray.mp4"].startswith("no view: it lies in none of the folders front, left")


@pytest.mark.parametrize(
    ("reason", "advice"),
    [("download failed: x", "; `make retry DATASET=films` tries again"), ("not in the repository: x", "")],
)
def test_a_failure_that_may_pass_says_how_it_is_tried_again(tmp_path, reason, advice):
    config = DatasetConfig(kind="hdvila", num_shards=1, max_clips=1)
    fetched = {"clip_id": "c", "source_key": "videos/a.mp4", "start_s": 0.0, "end_s": 1.0, "status": "unusable"}
    tables = {stage: {} for stage in dataset_stages(config)} | {"fetch_videos": {"c": fetched | {"reason": reason}}}
    assert _clip_row(tmp_path / "films", "c", tables, config)["reason"] == reason + advice
