"""Stage annotate for masks, end to end with tiny networks of the real classes."""

import json

import pytest
from pycocotools import mask as coco

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.annotation import annotate_clips
from worldtune.dataset.clips import caption_path, clip_id, control_path
from worldtune.dataset.controls import COLUMNS
from worldtune.dataset.listing import list_dataset
from worldtune.dataset.manifest import read_manifest
from worldtune.dataset.parameters import stage_values
from worldtune.demo.annotators import write_detector, write_tracker
from worldtune.formats.pickles import MAX_CONTROL_BYTES, read_pickle
from worldtune.formats.rle import decode_clip_mask


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    write_detector(folder / "tiny/detector")
    write_tracker(folder / "tiny/tracker")
    return folder


@pytest.fixture
def annotated(source, networks):
    source.checkpoints = networks
    settings = {"detector": "tiny/detector", "tracker": "tiny/tracker", "key_frames": 2, "max_objects": 3}
    source.options |= {"controls": ["seg"], "annotate": {"seg": settings}}
    for name in ("a", "b"):
        source.add(f"{name}.mp4", caption="A red cup. A hand.", seed=ord(name))
    return source


def annotate(source) -> dict[str, dict[str, object]]:
    source.ingest()
    source.captions()
    places = {"datasets": source.datasets, "checkpoints": source.checkpoints}
    path = annotate_clips("tiny", source.config, "0000", "seg", device="cpu", **places)
    return {row["source_key"]: row for row in read_manifest(path, COLUMNS)}


def objects_of(source, key):
    return read_pickle(control_path(source.root, clip_id(key), "seg"), MAX_CONTROL_BYTES)


def test_clips_get_whole_masks_with_phrases_of_their_captions_and_none_without(annotated):
    rows = annotate(annotated)
    assert [(row["status"], row["num_frames"]) for row in rows.values()] == [("ok", 6), ("ok", 6)]
    for key in rows:
        objects = objects_of(annotated, key)
        assert objects
        for thing in objects:
            assert set(thing["phrase"].split()) <= {"a", "red", "cup", "hand"}
            entry = thing["segmentation_mask_rle"]
            assert entry["mask_shape"] == (6, 32, 48)
            masks = decode_clip_mask(entry, 0, 6)
            assert (coco.decode(entry["data"]).reshape(masks.shape) == masks).all()
            assert masks.any()
    files = {key: control_path(annotated.root, clip_id(key), "seg") for key in rows}
    before = {key: file.stat().st_ino for key, file in files.items()}
    (annotated.folder / "a.txt").unlink()
    rows = annotate(annotated)
    assert rows["a.mp4"]["reason"].startswith("seg not made: it has no caption to search for")
    assert not files["a.mp4"].exists()
    assert files["b.mp4"].stat().st_ino == before["b.mp4"]


def test_a_caption_that_its_stage_did_not_write_is_not_searched_for(annotated):
    annotate(annotated)
    caption = caption_path(annotated.root, clip_id("a.mp4"))
    caption.write_text("A dog.\n")
    places = {"datasets": annotated.datasets, "checkpoints": annotated.checkpoints}
    with pytest.raises(
        WorldtuneError,
        match=rf"{caption.name} is not what its stage wrote\. Delete what is there, then: .*--forcerun captions",
    ):
        annotate_clips("tiny", annotated.config, "0000", "seg", device="cpu", **places)
    # Nobody reads it where the clip has prompts of its own.
    prompts = {"objects": [{"phrase": "left cup", "box": [4, 4, 20, 20]}]}
    (annotated.folder / "a.seg.json").write_text(json.dumps(prompts))
    path = annotate_clips("tiny", annotated.config, "0000", "seg", device="cpu", **places)
    assert [row["status"] for row in read_manifest(path, COLUMNS)] == ["ok", "ok"]


def test_boxes_beside_a_video_are_followed_instead(annotated):
    prompts = {"objects": [{"phrase": "left cup", "frame": 3, "box": [4, 4, 20, 20]}]}
    (annotated.folder / "a.seg.json").write_text(json.dumps(prompts))
    wrong = {"objects": [{"phrase": "cup", "frame": 9, "box": [4, 4, 20, 20]}]}
    (annotated.folder / "b.seg.json").write_text(json.dumps(wrong))
    rows = annotate(annotated)
    assert [thing["phrase"] for thing in objects_of(annotated, "a.mp4")] == ["left cup"]
    assert rows["b.mp4"]["status"] == "unusable"
    assert rows["b.mp4"]["reason"] == "seg not made: b.seg.json: objects.0.frame: 9; the clip has frames 0 to 5"


def test_prompt_files_are_what_the_job_depends_on_and_no_captions(annotated):
    (annotated.folder / "a.seg.json").write_text("{}")
    listing = annotated.listing()
    assert [clip.key for clip in listing.clips("0000")] == ["a.mp4", "b.mp4"]
    values = stage_values("annotate", "tiny", annotated.config, shard="0000", control="seg")
    assert [row[:2] for row in values["prompts"]] == [["a.seg.json", 2]]
    list_dataset.cache_clear()


def test_prompt_files_lie_beside_the_videos_of_the_original_layout_too(annotated):
    annotated.options["layout"] = "original"
    annotated.add("videos/a.mp4", caption=None)
    (annotated.folder / "videos/a.seg.json").write_text("{}")
    listing = annotated.listing()
    assert [clip.key for clip in listing.clips("0000")] == ["a.mp4"]
    assert [row[:2] for row in listing.prompts("0000")] == [["a.seg.json", 2]]


def test_a_clip_without_finds_has_a_file_without_objects_or_a_reason(annotated, caplog):
    settings = annotated.options["annotate"]["seg"]
    settings |= {"prompt": "cup", "box_threshold": 1.0, "retry_threshold": 1.0}
    assert {row["status"] for row in annotate(annotated).values()} == {"ok"}
    assert objects_of(annotated, "a.mp4") == []
    assert f"{clip_id('a.mp4')}: no object was found" in caplog.text
    settings["keep_empty"] = False
    assert {row["reason"] for row in annotate(annotated).values()} == {"seg not made: no object was found in it"}
    assert not control_path(annotated.root, clip_id("a.mp4"), "seg").exists()
