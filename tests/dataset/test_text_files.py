"""Embeddings that are given, in each form and place that the original has, and the store that they end in."""

import dataclasses
import pickle

import numpy as np
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.clips import Clip, clip_id, load_dataset, t5_path
from worldtune.dataset.manifest import read_manifest
from worldtune.dataset.original_layout import clip_names, write_original_layout
from worldtune.dataset.t5 import COLUMNS
from worldtune.dataset.text import read_t5_tokens
from worldtune.dataset.validate import conclude, examine

CHANNELS = 64
VIEWS = {"pinhole_front": "", "pinhole_front_left": "To the left."}


def tokens(seed: int, number: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((number, CHANNELS)).astype(np.float16)


def put(path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))


def rows_by_key(manifest):
    return {row["source_key"]: row for row in read_manifest(manifest, COLUMNS)}


def embedding(source, key: str, store: str = "pickle") -> np.ndarray:
    return read_t5_tokens(t5_path(source.root, clip_id(key), store), 512, CHANNELS)


@pytest.fixture
def given(source):
    source.options |= {"text": "given", "text_encoder": "worldtune/demo-t5", "min_clips": 2}
    return source


@pytest.mark.parametrize("store", ["pickle", "safetensors"])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.pickle", lambda value: [value]),
        ("a.pickle", lambda value: value),
        ("a.pkl", lambda value: value[None]),
        ("a.pkl", lambda value: {"pickle": {"ground_truth": {"embeddings": {"t5_xxl": [value]}}}}),
        ("a.pkl", lambda value: {"pickle": {"ground_truth": {"embeddings": {"t5_xxl": value}}}}),
    ],
    ids=["list", "array", "first element", "nested list", "nested array"],
)
def test_each_form_beside_a_video_is_taken_over(given, name, form, store):
    given.options["text_store"] = store
    given.add("sub/a.mp4", caption=None)
    put(given.folder / "sub/t5_xxl" / name, form(tokens(0)))
    (row,) = rows_by_key(given.t5()).values()
    assert (row["status"], row["num_tokens"], row["channels"], row["truncated"]) == ("ok", 3, CHANNELS, False)
    assert np.array_equal(embedding(given, "sub/a.mp4", store), tokens(0))


def test_what_does_not_fit_keeps_its_row(given):
    for name in ("none", "wide", "broken", "long"):
        given.add(f"{name}.mp4", caption=None)
    put(given.folder / "t5_xxl/wide.pickle", [np.zeros((2, 128), np.float16)])
    (given.folder / "t5_xxl/broken.pkl").write_bytes(b"cos\nsystem\n.")
    put(given.folder / "t5_xxl/long.pickle", [tokens(0, 600)])
    rows = rows_by_key(given.t5())
    assert "expected it as t5_xxl/none.pickle (or .pkl, .safetensors)" in rows["none.mp4"]["reason"]
    assert "expected 1 to 8192 tokens of 64 channels" in rows["wide.mp4"]["reason"]
    assert "t5_xxl/broken.pkl is no pickle of plain arrays" in rows["broken.mp4"]["reason"]
    assert str(given.folder) not in "".join(row["reason"] for row in rows.values())
    assert (rows["long.mp4"]["num_tokens"], rows["long.mp4"]["truncated"]) == (512, True)


def test_a_changed_file_is_read_again_and_an_equal_one_is_not(given):
    given.add("a.mp4", caption=None)
    put(given.folder / "t5_xxl/a.pickle", [tokens(0)])
    first = given.t5().read_bytes()
    t5_path(given.root, clip_id("a.mp4")).chmod(0o400)
    assert given.t5().read_bytes() == first
    put(given.folder / "t5_xxl/a.pickle", [tokens(1, 4)])
    given.listing()
    assert rows_by_key(given.t5())["a.mp4"]["num_tokens"] == 4


def test_another_store_leaves_no_file_of_the_first(source, fake_encoder):
    source.add("a.mp4", caption="three small words")
    source.captions()
    source.t5()
    source.options["text_store"] = "safetensors"
    source.t5()
    assert [path.name for path in (source.root / "t5_xxl").iterdir()] == [f"{clip_id('a.mp4')}.safetensors"]


@pytest.fixture
def waymo(given):
    """A scene of two views in the original's layout; its caption's name lacks the part's number."""
    given.options |= {"layout": "original", "views": VIEWS, "controls": ["hdmap"]}
    for view in VIEWS:
        given.add(f"videos/{view}/street_0.mp4", caption=None)
        given.add(f"videos/{view}/road.mp4", caption=None, seed=1)
        for name in ("street_0", "road"):
            given.add(f"hdmap/{view}/{name}.mp4", caption=None)
    put(given.folder / "t5_xxl/pinhole_front/street.pkl", [tokens(0)])
    put(given.folder / "t5_xxl/pinhole_front/road.pkl", [tokens(1)])
    put(given.folder / "cache/prefix_pinhole_front.pkl", tokens(2))
    put(given.folder / "cache/prefix_pinhole_front_left.pkl", tokens(3))
    return given


def test_views_have_the_text_that_the_original_gives_them(waymo):
    waymo.all_stages()
    conclude(examine("tiny", waymo.config, datasets=waymo.datasets))
    dataset = load_dataset(waymo.root)
    assert sorted(clip.source_key for clip in dataset.clips) == sorted(
        f"{view}/{name}.mp4" for view in VIEWS for name in ("street_0", "road")
    )
    assert np.array_equal(embedding(waymo, "pinhole_front/street_0.mp4"), tokens(0))
    assert np.array_equal(embedding(waymo, "pinhole_front/road.mp4"), tokens(1))
    assert np.array_equal(embedding(waymo, "pinhole_front_left/road.mp4"), tokens(3))


def test_the_views_text_may_come_before_each_videos_own(waymo):
    waymo.options["view_text"] = "before"
    for name, seed in (("street", 4), ("road", 5)):
        put(waymo.folder / f"t5_xxl/pinhole_front_left/{name}.pkl", [tokens(seed)])
    waymo.t5()
    for key, parts in {"pinhole_front/street_0.mp4": (2, 0), "pinhole_front_left/road.mp4": (3, 5)}.items():
        assert np.array_equal(embedding(waymo, key), np.concatenate([tokens(part) for part in parts]))


def test_an_exported_dataset_of_views_is_read_as_the_same(waymo, tmp_path):
    waymo.all_stages()
    conclude(examine("tiny", waymo.config, datasets=waymo.datasets))
    assert write_original_layout(load_dataset(waymo.root), tmp_path / "out") == 4
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert "cache/prefix_pinhole_front_left.pkl" in files
    assert "hdmap/pinhole_front/road.mp4" in files
    assert "t5_xxl/pinhole_front/street_0_clip.pkl" in files
    before = {(clip.view, clip.video_sha256): clip.t5_sha256 for clip in load_dataset(waymo.root).clips}
    waymo.options["path"] = str(tmp_path / "out")
    waymo.all_stages()
    conclude(examine("tiny", waymo.config, datasets=waymo.datasets))
    again = load_dataset(waymo.root).clips
    assert {(clip.view, clip.video_sha256): clip.t5_sha256 for clip in again} == before
    with pytest.raises(WorldtuneError, match="is not empty"):
        write_original_layout(load_dataset(waymo.root), tmp_path / "out")


def test_an_exported_dataset_of_one_view_is_read_as_the_same(source, fake_encoder, tmp_path):
    source.options |= {"controls": ["edge", "hdmap"], "min_clips": 2}
    for name, caption in (("sub/a", "one word"), ("b", "two more words")):
        source.add(f"{name}.mp4", caption=caption, seed=len(caption))
        folder, _, stem = name.rpartition("/")
        source.add(f"{folder}/hdmap/{stem}.mp4".strip("/"), caption=None)
    source.all_stages()
    conclude(examine("tiny", source.config, datasets=source.datasets))
    before = {clip.video_sha256: (clip.caption_sha256, clip.t5_sha256) for clip in load_dataset(source.root).clips}
    write_original_layout(load_dataset(source.root), tmp_path / "out")
    with open(tmp_path / "out/t5_xxl/sub_a.pickle", "rb") as file:
        (array,) = pickle.load(file)  # noqa: S301 - written one line above
    assert (array.dtype, array.shape) == (np.float16, (2, 4))
    source.options |= {"path": str(tmp_path / "out"), "layout": "original"}
    source.all_stages()
    conclude(examine("tiny", source.config, datasets=source.datasets))
    dataset = load_dataset(source.root)
    assert {clip.video_sha256: (clip.caption_sha256, clip.t5_sha256) for clip in dataset.clips} == before
    assert sorted(clip.source_key for clip in dataset.clips) == ["b.mp4", "sub_a.mp4"]


def test_writing_into_an_exported_dataset_does_not_reach_the_dataset(waymo, tmp_path):
    waymo.all_stages()
    conclude(examine("tiny", waymo.config, datasets=waymo.datasets))
    write_original_layout(load_dataset(waymo.root), tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.*"):
        with open(path, "r+b") as file:
            file.write(b"another tool")
    conclude(examine("tiny", waymo.config, datasets=waymo.datasets))
    assert len(load_dataset(waymo.root).clips) == 4


def test_parts_of_a_video_that_begin_nearly_together_have_names_of_their_own():
    spans = [(0.0, 0.00001), (0.00001, 1.0), (1234567.0, 1234568.5), (1234567.25, 1234568.5)]
    facts = dict.fromkeys(field.name for field in dataclasses.fields(Clip))
    facts |= {"status": "ok", "reason": "", "source_key": "a.mp4"}
    parts = [
        Clip(**facts | {"clip_id": clip_id("a.mp4", *span), "start_s": span[0], "end_s": span[1]}) for span in spans
    ]
    names = clip_names(tuple(parts), ())
    assert list(names.values()) == [
        "a_0-0.00001s",
        "a_0.00001-1s",
        "a_1234567-1234568.5s",
        "a_1234567.25-1234568.5s",
    ]
