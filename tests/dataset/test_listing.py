import hashlib
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.clips import shard_names, shard_of
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.listing import list_dataset


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def folder(source):
    """A function that makes empty files; listing decodes nothing."""

    def make(*names: str, **texts: str) -> None:
        for name in names:
            path = source.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts.get(name, ""))

    return make


def test_missing_folder_lists_as_empty(source):
    listing = source.listing()
    assert listing.videos("0000") == []
    assert listing.captions("0000") == []


def test_names_sizes_times_and_captions(source, folder):
    folder("b.mp4", "a.mov", "sub/c.MKV", "notes.md", ".hidden.mp4", ".git/d.mp4")
    (source.folder / "a.txt").write_text("  A dog.\n")
    (source.folder / "b.json").write_text(json.dumps({"caption": "A cat.", "fps": 3}))
    (source.folder / "sub/c.MKV").write_bytes(b"12345")
    os.utime(source.folder / "sub/c.MKV", ns=(5, 7))
    listing = source.listing()
    assert [row[0] for row in listing.videos("0000")] == ["a.mov", "b.mp4", "sub/c.MKV"]
    assert listing.videos("0000")[2] == ["sub/c.MKV", 5, 7, None, None]
    assert listing.captions("0000") == [
        ["a.mov", None, None, sha256("A dog.")],
        ["b.mp4", None, None, sha256("A cat.")],
        ["sub/c.MKV", None, None, None],
    ]


def test_txt_goes_before_json(source, folder):
    folder("a.mp4", "a.json")
    (source.folder / "a.txt").write_text("text")
    assert source.listing().captions("0000")[0][3] == sha256("text")


def test_caption_without_video_is_a_row(source, folder):
    folder("a.mp4", "lonely.txt")
    listing = source.listing()
    assert [row[0] for row in listing.videos("0000")] == ["a.mp4"]
    assert [row[0] for row in listing.captions("0000")] == ["a.mp4", "lonely.txt"]


def test_folders_of_given_controls_hold_no_clips(source, folder):
    folder("a.mp4", "depth/a.mp4", "sub/seg/a.mp4", "depths/b.mp4")
    listing = source.listing()
    assert [row[0] for row in listing.videos("0000")] == ["a.mp4", "depths/b.mp4"]
    keys = [row[0] for row in listing.controls("0000", "depth")]
    assert keys == ["depth/a.mp4", "depths/depth/b.mp4"]
    assert listing.controls("0000", "depth")[0][1] == 0
    assert listing.controls("0000", "depth")[1][1:] == [None, None]
    assert listing.controls("0000", "edge") == []


def test_one_edited_caption_changes_one_shard(source, folder):
    source.options["num_shards"] = 4
    folder(*(f"{number}.mp4" for number in range(20)))
    for number in range(20):
        (source.folder / f"{number}.txt").write_text(f"caption {number}")
    before = source.listing()
    captions = {shard: before.captions(shard) for shard in shard_names(4)}
    (source.folder / "7.txt").write_text("another caption")
    after = source.listing()
    assert [shard for shard in shard_names(4) if after.captions(shard) != captions[shard]] == [shard_of("7.mp4", 4)]
    assert all(after.videos(shard) == before.videos(shard) for shard in shard_names(4))


@pytest.mark.parametrize(
    ("options", "video", "listed_as"),
    [
        ({"kind": "hdvila", "max_clips": 1}, "videos/x.mp4", "videos/x.mp4"),
        ({"kind": "huggingface", "repository": "a/b"}, "train/x.MOV", "train/x.MOV"),
        ({"kind": "huggingface", "repository": "a/b"}, "train/0001/000003.webm", "train/0001.parquet"),
        ({"kind": "synthetic", "num_clips": 3}, "scene_0002.mp4", "scene_0002.mp4"),
    ],
)
def test_prompts_of_videos_that_are_made_here_are_inputs_of_their_shard(tmp_path, options, video, listed_as):
    config = DatasetConfig.model_validate({"num_shards": 500, **options})
    prompts = (tmp_path / "tiny/source" / video).with_suffix(".seg.json")
    prompts.parent.mkdir(parents=True)
    shard = shard_of(listed_as, 500)

    def listed() -> dict[str, list[list[object]]]:
        list_dataset.cache_clear()
        listing = list_dataset("tiny", config, tmp_path)
        return {name: listing.prompts(name) for name in shard_names(500)}

    before = listed()
    prompts.write_text("{}")
    written = listed()
    assert [row[:2] for row in written[shard]] == [[prompts.relative_to(tmp_path / "tiny/source").as_posix(), 2]]
    prompts.write_text("{ }")
    edited = listed()
    assert before[shard] != written[shard] != edited[shard]
    # Most shards do not run again.
    assert sum(edited[name] != before[name] for name in edited) <= 13


def test_touched_caption_of_equal_content_changes_nothing(source, folder):
    folder("a.mp4")
    (source.folder / "a.txt").write_text("caption")
    before = source.listing().captions("0000")
    (source.folder / "a.txt").write_text("caption\n")
    os.utime(source.folder / "a.txt", ns=(1, 1))
    assert source.listing().captions("0000") == before


def test_unreadable_captions_have_a_hash(source, folder):
    folder("a.mp4", "b.mp4", "c.mp4")
    (source.folder / "a.txt").write_bytes(b"\xff\xfe\xfa")
    (source.folder / "b.json").write_text("{]")
    (source.folder / "c.json").write_text('{"caption": "\\ud800"}')
    assert all(len(row[3]) == 64 for row in source.listing().captions("0000"))


def test_links_to_folders_are_followed_once(source, folder):
    folder("sub/a.mp4")
    (source.folder / "sub/back").symlink_to(source.folder)
    (source.folder / "gone.mp4").symlink_to(source.folder / "nothing")
    assert [row[:2] for row in source.listing().videos("0000")] == [["gone.mp4", None], ["sub/a.mp4", 0]]


def test_names_that_are_no_utf8(source, folder):
    folder("a.mp4")
    (source.folder / os.fsdecode(b"\xff.mp4")).touch()
    with pytest.raises(WorldtuneError, match="no UTF-8"):
        source.listing()


def test_unknown_shard(source):
    with pytest.raises(WorldtuneError, match="'0001'; shards are 0000"):
        source.listing().videos("0001")


def test_scenes_are_listed_from_the_configuration_alone(tmp_path):
    config = DatasetConfig(kind="synthetic", num_shards=2, num_clips=6)
    listing = list_dataset("demo", config, tmp_path)
    rows = sorted(row for shard in shard_names(2) for row in listing.videos(shard))
    assert rows == [[f"scene_{number:04d}.mp4", None, None, None, None] for number in range(6)]
    captions = [row for shard in shard_names(2) for row in listing.captions(shard)]
    assert all(row[3] is None for row in captions)
    assert listing.source == tmp_path / "demo/source"


VIEWS = {"front": "", "left": "To the left.", "right": "To the right."}


def test_views_of_a_scene_share_a_shard_and_have_captions(source, folder):
    source.options |= {"num_shards": 8, "views": VIEWS, "controls": ("hdmap",)}
    scenes = [f"day/{number}.mp4" for number in range(12)]
    folder(*(f"{view}/{scene}" for view in VIEWS for scene in scenes))
    for scene in scenes[1:]:
        (source.folder / "front" / scene).with_suffix(".txt").write_text(f"Scene {scene}.")
    (source.folder / "right" / scenes[0]).with_suffix(".txt").write_text("Its own.")
    listing = source.listing()
    shards = {row[0]: shard for shard in shard_names(8) for row in listing.videos(shard)}
    assert len(shards) == 36
    assert len(set(shards.values())) > 2
    for scene in scenes:
        assert {shards[f"{view}/{scene}"] for view in VIEWS} == {shard_of(scene, 8)}
    captions = {row[0]: row[3] for shard in shard_names(8) for row in listing.captions(shard)}
    assert captions[f"front/{scenes[0]}"] is None
    assert captions[f"front/{scenes[1]}"] == sha256(f"Scene {scenes[1]}.")
    assert captions[f"left/{scenes[1]}"] == sha256("To the left.")
    assert captions[f"right/{scenes[0]}"] == sha256("Its own.")
    given = [row[0] for shard in shard_names(8) for row in listing.controls(shard, "hdmap")]
    assert sorted(given) == sorted(f"{view}/day/hdmap/{number}.mp4" for view in VIEWS for number in range(12))


def test_an_empty_caption_of_a_list_gives_way_to_the_views(source, folder):
    source.options |= {"views": VIEWS, "captions": str(source.folder.parent / "list.csv")}
    folder("front/a.mp4", "left/a.mp4")
    (source.folder.parent / "list.csv").write_text("video,caption\nfront/a.mp4,One.\nleft/a.mp4,\n")
    assert [row[3] for row in source.listing().captions("0000")] == [sha256("One."), sha256("To the left.")]


def test_a_video_outside_of_the_views_keeps_a_row_with_the_reason(source, folder):
    source.options["views"] = VIEWS
    folder("front/a.mp4", "rear/a.mp4", "a.mp4")
    rows = {row[0]: row[5:] for row in source.listing().videos("0000")}
    assert rows["front/a.mp4"] == []
    assert "none of the folders front, left, right" in rows["rear/a.mp4"][0]
    assert rows["a.mp4"] == rows["rear/a.mp4"]


def test_rendered_views_are_listed_from_the_configuration_alone(tmp_path):
    views = {"pinhole_front": "", "pinhole_side_left": "To the left."}
    config = DatasetConfig(kind="synthetic", world="driving", num_shards=1, num_clips=2, views=views)
    listing = list_dataset("drive", config, tmp_path)
    assert [row[0] for row in listing.videos("0000")] == [f"{view}/scene_000{n}.mp4" for view in views for n in (0, 1)]
    assert [row[3] for row in listing.captions("0000")] == [None, None, *[sha256("To the left.")] * 2]


def test_hdvila_lists_as_empty(tmp_path):
    config = DatasetConfig(kind="hdvila", num_shards=2, max_clips=3)
    assert list_dataset("hdvila", config, tmp_path).videos("0001") == []


CSV = 'video,caption,start_s,end_s\na.mp4,"One, two.",0,1.5\na.mp4,Three.,1.5,3\nsub/b.mp4,Whole.,,\n'
JSONL = "\n".join(
    json.dumps(record)
    for record in (
        {"video": "a.mp4", "caption": "One, two.", "start_s": 0, "end_s": 1.5},
        {"video": "./a.mp4", "caption": "Three.", "start_s": 1.5, "end_s": 3},
        {"video": "sub/b.mp4", "caption": "Whole."},
    )
)


@pytest.mark.parametrize(("name", "text"), [("list.csv", CSV), ("list.csv", "\ufeff" + CSV), ("list.jsonl", JSONL)])
def test_caption_list_with_time_ranges(source, folder, name, text):
    folder("a.mp4", "c.mp4")
    (source.folder / "c.txt").write_text("Beside.")
    path = source.folder.parent / name
    path.write_text(text)
    source.options["captions"] = str(path)
    listing = source.listing()
    videos = [[row[0], row[1], row[3], row[4]] for row in listing.videos("0000")]
    assert videos == [
        ["a.mp4", 0, 0.0, 1.5],
        ["a.mp4", 0, 1.5, 3.0],
        ["c.mp4", 0, None, None],
        ["sub/b.mp4", None, None, None],
    ]
    assert [row[3] for row in listing.captions("0000")] == [*map(sha256, ("One, two.", "Three.", "Beside.", "Whole."))]


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.csv", "video,caption\na.mp4,x\na.mp4,y\n", "line 3: the same clip as in line 2"),
        ("a.csv", "video,captoin\na.mp4,x\n", "unknown column 'captoin'"),
        ("a.csv", "video,caption\na.mp4,x,y\n", "more or fewer cells"),
        ("a.csv", "video,caption,start_s,end_s\na.mp4,x,2,1\n", "the end after the start"),
        ("a.csv", "video,caption,start_s,end_s\na.mp4,x,1,\n", "expected both"),
        ("a.csv", "video,caption,start_s,end_s\na.mp4,x,nan,2\n", "no time in seconds"),
        ("a.jsonl", '{"video": "a.mp4", "start_s": 1' + "0" * 400 + "}", "0... is no time in seconds"),
        ("a.csv", "video,caption\n../a.mp4,x\n", "no path below"),
        ("a.csv", "video,caption\n/a.mp4,x\n", "no path below"),
        ("a.jsonl", '{"video": "a.mp4"\n', "line 1 is no JSON"),
        ("a.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", '{"caption": "x"}\n', "video is None"),
        ("a.jsonl", '{"video": "a.mp4", "caption": 3}\n', "expected a text"),
    ],
)
def test_mistakes_in_a_caption_list_are_named(source, folder, name, text, part):
    folder("a.mp4")
    path = source.folder.parent / name
    path.write_text(text)
    source.options["captions"] = str(path)
    with pytest.raises(WorldtuneError, match=name.replace(".", r"\.")) as caught:
        source.listing()
    assert part in str(caught.value)


def write_parquet(path, columns: dict[str, list[object]]) -> None:
    pq.write_table(pa.table(columns), path)


def test_caption_list_as_parquet(source, folder):
    folder("a.mp4", "sub/b.mp4")
    path = source.folder.parent / "list.parquet"
    columns = {"video": ["a.mp4", "a.mp4", "sub/b.mp4"], "caption": ["One.", "Two.", None]}
    write_parquet(path, columns | {"start_s": [0.0, 1.5, None], "end_s": [1.5, 3.0, None]})
    source.options["captions"] = str(path)
    listing = source.listing()
    spans = [("a.mp4", 0.0, 1.5), ("a.mp4", 1.5, 3.0), ("sub/b.mp4", None, None)]
    assert [(row[0], row[3], row[4]) for row in listing.videos("0000")] == spans
    assert [row[3] for row in listing.captions("0000")] == [sha256("One."), sha256("Two."), sha256("")]


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"video": ["a.mp4", "a.mp4"], "caption": ["x", "y"]}, "row 2: the same clip as in row 1"),
        ({"video": ["a.mp4"], "captoin": ["x"]}, "unknown column 'captoin'"),
        ({"video": ["a.mp4"], "caption": [3]}, "row 1: caption is 3; expected a text"),
        ({"video": ["../a.mp4"]}, "no path below"),
        (None, "cannot be read"),
    ],
)
def test_mistakes_in_a_parquet_list_are_named(source, folder, columns, part):
    folder("a.mp4")
    path = source.folder.parent / "list.parquet"
    path.write_text("PAR1 but no more") if columns is None else write_parquet(path, columns)
    source.options["captions"] = str(path)
    with pytest.raises(WorldtuneError, match=r"list\.parquet") as caught:
        source.listing()
    assert part in str(caught.value)


def test_missing_caption_list(source, folder):
    folder("a.mp4")
    source.options["captions"] = str(source.folder / "none.csv")
    with pytest.raises(WorldtuneError, match=r"none\.csv does not exist"):
        source.listing()
