import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json, write_json
from worldtune.dataset.clips import (
    clip_columns,
    clip_id,
    control_path,
    load_dataset,
    rows_digest,
    scene_key,
    shard_names,
    shard_of,
    view_of,
)
from worldtune.dataset.manifest import write_manifest

seconds = st.floats(0, 1e6, allow_nan=False)


def test_ids_and_shards_are_the_same_for_ever():
    assert clip_id("a/b.mp4") == "d124d07bf5df910e"
    assert clip_id("a/b.mp4", 1, 2.5) == "8d8c8a49b3712c0d"
    assert shard_of("a/b.mp4", 16) == "0014"


@given(st.text(), st.none() | seconds, st.none() | seconds)
def test_id_is_made_of_16_digits_and_depends_on_each_part(key, start_s, end_s):
    identifier = clip_id(key, start_s, end_s)
    assert len(identifier) == 16
    assert set(identifier) <= set("0123456789abcdef")
    assert identifier == clip_id(key, start_s, end_s)
    assert identifier != clip_id(key + "x", start_s, end_s)
    assert identifier != clip_id(key, start_s, None if end_s is not None else 1.0)


def test_whole_seconds_are_the_same_however_they_are_written():
    assert clip_id("a", 1, 2) == clip_id("a", 1.0, 2.0)


@given(st.text(), st.integers(1, 9999))
def test_shard_is_one_of_the_dataset(key, num_shards):
    assert shard_of(key, num_shards) in shard_names(num_shards)


def test_clips_of_one_dataset_spread_over_its_shards():
    counts = [0] * 8
    for number in range(8000):
        counts[int(shard_of(f"video_{number}.mp4", 8))] += 1
    assert min(counts) > 850
    assert max(counts) < 1150


def test_controls_without_files(tmp_path):
    with pytest.raises(WorldtuneError, match="'vis'"):
        control_path(tmp_path, "0" * 16, "vis")


def row(number: int, **values: object) -> dict[str, object]:
    columns = dict.fromkeys(clip_columns(("edge",)))
    columns |= {"clip_id": f"{number:016x}", "source_key": f"{number}.mp4", "status": "ok", "reason": ""}
    columns |= {
        "split": "held_out" if number == 2 else "train",
        "num_frames": 121,
        "width": 64,
        "height": 48,
        "fps": 24.0,
    }
    return columns | values


def write_dataset(root, rows) -> None:
    write_manifest(root / "clips.parquet", rows, clip_columns(("edge",)))
    summary = {"format": 1, "name": "tiny", "digest": rows_digest(rows), "controls": ["edge"]}
    text = {"encoder": "a/b", "channels": 8, "max_tokens": 16}
    write_json(root / "dataset.json", summary | {"text": text})


def test_reading_a_dataset(tmp_path):
    write_dataset(tmp_path, [row(1, edge_sha256="e"), row(2), row(3, status="unusable", reason="why", split=None)])
    dataset = load_dataset(tmp_path)
    assert (dataset.name, dataset.text_channels, dataset.text_max_tokens) == ("tiny", 8, 16)
    assert [clip.source_key for clip in dataset.split("train")] == ["1.mp4"]
    assert [clip.source_key for clip in dataset.split("held_out")] == ["2.mp4"]
    assert [clip.reason for clip in dataset.unusable] == ["why"]
    clip = dataset.clips[0]
    assert clip.control_sha256 == {"edge": "e"}
    assert clip.control_path(dataset.root, "edge") == tmp_path / "edge" / "0000000000000001.mkv"


def test_table_of_another_dataset_is_refused(tmp_path):
    write_dataset(tmp_path, [row(1)])
    write_manifest(tmp_path / "clips.parquet", [row(2)], clip_columns(("edge",)))
    with pytest.raises(WorldtuneError, match="does not belong to"):
        load_dataset(tmp_path)


def test_ids_that_would_leave_the_folder_are_refused(tmp_path):
    write_dataset(tmp_path, [row(1, clip_id="../../../../etc/")])
    with pytest.raises(WorldtuneError, match="no clip id"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("change", [{"format": 2}, {"controls": 3}, {"text": {}}, {"controls": ["edge", "depth"]}])
def test_damaged_summaries_are_refused(tmp_path, change):
    write_dataset(tmp_path, [row(1)])
    write_json(tmp_path / "dataset.json", read_json(tmp_path / "dataset.json") | change)
    with pytest.raises(WorldtuneError):
        load_dataset(tmp_path)


def test_missing_table_is_named(tmp_path):
    write_dataset(tmp_path, [row(1)])
    (tmp_path / "clips.parquet").write_bytes(b"nonsense")
    with pytest.raises(WorldtuneError, match=r"clips\.parquet"):
        load_dataset(tmp_path)


def test_views_of_keys():
    views = {"front": "", "left": "To the left."}
    assert view_of("front/day/a.mp4", views) == "front"
    assert scene_key("front/day/a.mp4", views) == scene_key("left/day/a.mp4", views) == "day/a.mp4"
    for key in ("a.mp4", "rear/a.mp4", "front.mp4", "day/front/a.mp4"):
        assert view_of(key, views) is None
        assert scene_key(key, views) == key
